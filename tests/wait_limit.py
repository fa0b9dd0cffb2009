"""How long the tests wait for what another task, process or machine does."""

WAIT_LIMIT = 120.0
"""Seconds: only a hang takes so long, however busy the machine. Below the limit of a whole test (pyproject.toml)."""
