"""The private API: backends and monitoring."""
