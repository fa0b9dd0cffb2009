"""Files of an installation: systemd units, an example configuration of nginx, and Prometheus rules."""
