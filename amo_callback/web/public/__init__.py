"""The public API: browsers, the app and AMO."""
