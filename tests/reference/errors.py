"""The words and codes of errors, where each is told, and what to do."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from amo_callback.cli.main import COMMANDS
from amo_callback.cli.main import STATUSES as EXIT_STATUSES
from amo_callback.deeplink import WORDS
from amo_callback.web.answers import TODO, FailureCode, status_of
from amo_callback.web.private import problems
from amo_callback.web.public.errors import CODES
from tests.reference.markdown import code, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def deep_link_errors() -> list[str]:
    """Return the table of the words that the deep link has for errors."""
    rows = [[code(word), told.happened, told.todo, str(status_of(word))] for word, told in WORDS.items()]
    return table(["`error`", "what happened", "what the app should do", "the page's status"], rows)


def public_errors(document: Mapping[str, Any]) -> list[str]:
    """Return the table of the public door's errors in JSON."""
    statuses = _statuses(document, door="public")
    for status, failure in CODES.items():
        statuses[failure].add(status)
    rows = [[code(failure), _listed(statuses[failure]), TODO[failure]] for failure in FailureCode]
    return table(["`error`", "status", "what the app should do"], rows)


def private_errors(document: Mapping[str, Any]) -> list[str]:
    """Return the table of the private door's problems."""
    statuses = _statuses(document, door="private")
    rows = [
        [code(problem), _listed({problems.STATUSES[problem], *statuses[problem]}), problems.TODO[problem]]
        for problem in problems.Code
    ]
    return table(["`code`", "status", "what the backend should do"], rows)


def exit_statuses() -> list[str]:
    """Return the table of the command's exit statuses."""
    rows = [[str(status), meaning] for status, meaning in EXIT_STATUSES.items()]
    return table(["exit status", "when"], rows)


def commands() -> list[str]:
    """Return the table of the commands."""
    return table(["command", "does"], [[code(f"amo-callback {name}"), does] for name, (_, does) in COMMANDS.items()])


def _statuses(document: Mapping[str, Any], *, door: str) -> dict[str, set[int]]:
    """Return with which statuses a door answers each code."""
    found: dict[str, set[int]] = defaultdict(set)
    operations = [one for item in document["paths"].values() for one in item.values() if door in one["tags"]]
    for operation in operations:
        failures = {int(status): reply for status, reply in operation["responses"].items() if int(status) >= 400}
        for status, reply in failures.items():
            for content in reply.get("content", {}).values():
                for name in content.get("examples", {}):
                    found[name].add(status)
    return found


def _listed(statuses: Iterable[int]) -> str:
    return ", ".join(str(status) for status in sorted(statuses))
