"""Write each table into its block in README.md."""

import sys
from pathlib import Path

from tests.reference.markdown import blocks, written
from tests.reference.tables import all_tables

REPOSITORY = Path(__file__).parent.parent.parent


def main() -> int:
    readme = REPOSITORY / "README.md"
    tables = all_tables(REPOSITORY)
    text = written(readme.read_text(encoding="utf-8"), tables)
    readme.write_text(text, encoding="utf-8")
    others = sorted(tables.keys() ^ blocks(text).keys())
    print(f"no block, or no table, for: {', '.join(others)}" if others else "README.md has every table as the code is")
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
