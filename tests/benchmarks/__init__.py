"""Figures, never asserted: `python -m tests.benchmarks` measures all of it, or what is named."""
