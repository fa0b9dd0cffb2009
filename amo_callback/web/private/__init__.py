"""The door for the operator's backends and monitoring."""
