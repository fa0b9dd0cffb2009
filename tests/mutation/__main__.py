"""Change a module in one place after the other, and tell which changes no test notices.

Everything happens in copies of the repository. Give the module, and the tests that should notice:

    python -m tests.mutation amo_callback/deeplink.py tests/test_deeplink.py

The exit status is 1 where a change was not noticed.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.mutation.runs import Plan, run


def main() -> int:
    """Run the tests against each mutant, and print those that survive."""
    given = _parser().parse_args()
    plan = Plan(module=given.module, tests=tuple(given.tests), lines=frozenset(given.lines), patience=given.patience)
    found: Counter[str] = Counter()
    for mutant, outcome in run(plan, workers=given.workers):
        found[outcome] += 1
        if outcome != "killed":
            _tell(f"{given.module}:{mutant}  [{outcome}]")
    _tell(f"{given.module}: {found.total()} mutants" + "".join(f", {n} {what}" for what, n in sorted(found.items())))
    return 1 if found["survived"] else 0


def _tell(line: str) -> None:
    print(line, flush=True)  # noqa: T201 -- because a command prints


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("module", type=Path, help="the module to change")
    parser.add_argument("tests", nargs="+", help="what pytest is given: files, or whatever else it takes")
    parser.add_argument("--lines", type=int, nargs="*", default=(), metavar="N", help="change these lines only")
    parser.add_argument("--workers", type=int, default=1, help="how many run at once (default: %(default)s)")
    parser.add_argument(
        "--patience",
        type=float,
        default=60.0,
        metavar="SECONDS",
        help="what takes longer counts as noticed, for it hangs (default: %(default)s)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
