"""The real service, as `amo-callback serve` runs it, with a task beside it that writes the lags of its loop.

Run as a process of its own: `python -m tests.benchmarks.subject FILE`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from amo_callback.cli import serve
from amo_callback.cli.loop import run_loop
from amo_callback.cli.main import make_parser
from tests.benchmarks.lag import beside

if TYPE_CHECKING:
    from collections.abc import Coroutine


def main() -> int:
    """Serve until it is stopped."""
    file = Path(sys.argv[1])

    def run(work: Coroutine[object, object, int]) -> int:
        return run_loop(beside(file, work))

    return serve.run(make_parser("serve").parse_args(["serve"]), os.environ, run_loop=run)


if __name__ == "__main__":
    sys.exit(main())
