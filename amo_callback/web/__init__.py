"""The public and the private HTTP API, and the composition of the service."""
