"""The private API, for backends and monitoring."""
