"""A server that returns users from amoCRM (Kommo) OAuth to a mobile app, and stores and refreshes their tokens."""

__version__ = "0.1.0"
