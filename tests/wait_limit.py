"""The longest time that tests wait for another task, process or machine."""

WAIT_LIMIT = 120.0
"""Seconds: only a hang takes longer, even on a busy machine. A whole test has a higher limit (pyproject.toml)."""
