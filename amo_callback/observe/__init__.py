"""The log, metrics, and notifications to systemd."""
