"""Watching: log lines, metrics, and what systemd is told."""
