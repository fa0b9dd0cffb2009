"""The person at the terminal: told, asked, and free to break off."""

from __future__ import annotations

import signal
import sys

EX_USAGE = 2
"""The exit status for a command line that cannot be carried out, as argparse has it."""


def say(text: str) -> None:
    """Print a line, at once."""
    print(text, flush=True)


def is_agreed(question: str) -> bool:
    """Ask, and tell whether the answer is yes; the end of the input is none."""
    print(question, end=" [y/N] ", flush=True)
    return sys.stdin.readline().strip().lower() in {"y", "yes"}


def waiting(left: float) -> str:
    """Return what is said while refreshes come to their end."""
    return f"Waiting for refreshes that are under way, {left:.0f} s at most."


def end_tidily() -> None:
    """End on SIGTERM as on Ctrl-C: nothing half-made stays behind, and how it was left is said."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
