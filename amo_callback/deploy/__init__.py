"""What an installation needs beside the package: units for systemd, an example for nginx, rules for Prometheus."""
