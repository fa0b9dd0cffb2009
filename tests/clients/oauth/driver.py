"""Call AMO once for each line of the input by `amo` of `snippet.py`; the arguments name the library's errors.

Each line of the output is the account's id, or the name of the error, its code and its description.
"""

import asyncio
import importlib
import inspect
import pydoc
import sys
from typing import Any

amo: Any = importlib.import_module("snippet").amo
located = map(pydoc.locate, sys.argv[1:])
errors: Any = tuple(error for error in located if error is not None)  # a library uses the HTTP client that is installed


async def main() -> None:
    for _ in sys.stdin:
        try:
            answer = amo("GET", "/api/v4/account")
            shown = (await answer if inspect.isawaitable(answer) else answer).json()["id"]
        except errors as error:
            shown = f"{type(error).__name__} {_described(error)}"
        sys.stdout.write(f"{shown}\n")
        sys.stdout.flush()


def _described(error: Any) -> str:
    if hasattr(error, "error"):
        return f"{error.error} {error.description}"
    body = error.response.json()  # an error of the HTTP client, which the library does not translate
    return f"{body['error']} {body['error_description']}"


asyncio.run(main())
