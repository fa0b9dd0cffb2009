"""Brings people back to the mobile app from amoCRM / Kommo OAuth, and keeps their tokens alive."""

__version__ = "0.1.0"
