"""Figures, never asserted: each module is a command of its own, as `python -m tests.benchmarks.handout`."""
