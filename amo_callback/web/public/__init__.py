"""The public API, for browsers, the app and AMO."""
