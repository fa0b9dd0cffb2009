"""Watching: logs."""
