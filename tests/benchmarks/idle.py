"""An event loop with nothing to do: its lags are the machine's.

Run as a process of its own: `python -m tests.benchmarks.idle FILE`.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from amo_callback.cli.context import run_loop
from tests.benchmarks.lag import beside

if __name__ == "__main__":
    run_loop(beside(Path(sys.argv[1]), asyncio.Event().wait()))
