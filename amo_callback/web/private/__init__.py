"""The private API: the operator's backends and monitoring."""
