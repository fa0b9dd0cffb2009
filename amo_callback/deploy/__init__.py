"""Files of an installation: systemd units, an nginx example, Prometheus rules."""
