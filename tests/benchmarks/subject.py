"""The real service, as `amo-callback serve` runs it, with a task beside it that writes the lags of its loop.

Run as a process of its own: `python -m tests.benchmarks.subject FILE`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cli import serve
from amo_callback.cli.context import run_loop
from tests.benchmarks.lag import beside

if TYPE_CHECKING:
    from collections.abc import Coroutine


def main() -> int:
    """Serve until it is stopped."""
    file = Path(sys.argv[1])

    def run(work: Coroutine[object, object, int]) -> int:
        return run_loop(beside(file, work))

    return serve.run(None, os.environ, run_loop=run)


if __name__ == "__main__":
    sys.exit(main())
