"""Write the tables into README.md, each into its block."""

import asyncio
import sys
from pathlib import Path

from tests.reference.markdown import complaints, written
from tests.reference.tables import all_tables

REPOSITORY = Path(__file__).parent.parent.parent


def main() -> int:
    """Write them, and tell what is still to be done by hand."""
    readme = REPOSITORY / "README.md"
    tables = asyncio.run(all_tables(REPOSITORY))
    text = written(readme.read_text(encoding="utf-8"), tables)
    readme.write_text(text, encoding="utf-8")
    left = complaints(text, tables)
    print("\n".join(left) or "README.md has every table as the code is")
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
