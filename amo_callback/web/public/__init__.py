"""The door for browsers, the app and AMO."""
