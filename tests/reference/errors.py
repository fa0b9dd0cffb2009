"""The words and codes of errors, where each is told, and what to do."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from amo_callback.cli.main import COMMANDS
from amo_callback.cli.main import STATUSES as EXIT_STATUSES
from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.web.private.api import problem_errors
from amo_callback.web.public.api import error_actions
from tests.reference.markdown import code, table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_NOT_IN_JSON = {"missing_code", "access_denied"}


def deep_link_errors() -> list[str]:
    """Return the table of the errors of the deep link."""
    rows = [[code(word), known.meaning, known.action, str(known.status)] for word, known in DEEP_LINK_ERRORS.items()]
    return table(["`error`", "what happened", "what the app should do", "the page's status"], rows)


def public_errors(document: Mapping[str, Any]) -> list[str]:
    """Return the table of the public API's errors in JSON."""
    statuses = _statuses(document, api="public")
    statuses["not_found"].add(404)
    statuses["method_not_allowed"].add(405)
    rows = [
        [code(error), _listed(statuses[error]), action]
        for error, action in error_actions().items()
        if error not in _NOT_IN_JSON
    ]
    return table(["`error`", "status", "what the app should do"], rows)


def private_errors(document: Mapping[str, Any]) -> list[str]:
    """Return the table of the private API's problems."""
    statuses = _statuses(document, api="private")
    rows = [
        [code(problem), _listed({error.http_status, *statuses[problem]}), error.action]
        for problem, error in sorted(problem_errors().items(), key=lambda item: item[1].http_status)
    ]
    return table(["`code`", "status", "what the backend should do"], rows)


def exit_statuses() -> list[str]:
    """Return the table of the command's exit statuses."""
    rows = [[str(status), meaning] for status, meaning in EXIT_STATUSES.items()]
    return table(["exit status", "when"], rows)


def commands() -> list[str]:
    """Return the table of the commands."""
    return table(["command", "does"], [[code(f"amo-callback {name}"), does] for name, (_, does) in COMMANDS.items()])


def _statuses(document: Mapping[str, Any], *, api: str) -> dict[str, set[int]]:
    """Return with which statuses an API answers each code."""
    found: dict[str, set[int]] = defaultdict(set)
    operations = [one for item in document["paths"].values() for one in item.values() if api in one["tags"]]
    for operation in operations:
        for status, reply in operation["responses"].items():
            for content in reply.get("content", {}).values():
                members = content["schema"].get("properties", {})
                for name in (members.get("code") or members.get("error") or {}).get("enum", ()):
                    found[name].add(int(status))
    return found


def _listed(statuses: Iterable[int]) -> str:
    return ", ".join(str(status) for status in sorted(statuses))
