"""Write each table into its block in README.md or another document."""

import sys

from tests.reference.markdown import blocks, written
from tests.reference.tables import DOCUMENTS, REPOSITORY, all_tables


def main() -> int:
    tables, found = all_tables(), set[str]()
    for name in DOCUMENTS:
        file = REPOSITORY / name
        text = written(file.read_text(encoding="utf-8"), tables)
        file.write_text(text, encoding="utf-8")
        found |= blocks(text).keys()
    others = sorted(tables.keys() ^ found)
    print(
        f"no block, or no table, for: {', '.join(others)}" if others else "the documents have every table of the code"
    )
    return 1 if others else 0


if __name__ == "__main__":
    sys.exit(main())
