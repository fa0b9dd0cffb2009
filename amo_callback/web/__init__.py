"""The public and the private API over HTTP, and the composition of the service."""
