"""`/readyz` of the service that runs, as the command reads it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp

from amo_callback.cli.door import private_session, why_unconnected
from amo_callback.errors import CommandFailed

if TYPE_CHECKING:
    from collections.abc import Mapping


_FROZEN = "frozen"


class NotUnderstood(CommandFailed):
    """What answers is no service of ours, or another version's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ready:
    """What the service says of itself."""

    checks: Mapping[str, bool]
    red: Mapping[str, str]
    """What each check that is not good says."""
    details: Mapping[str, str] = field(default_factory=dict)
    """What each check says."""

    @property
    def only_frozen(self) -> bool:
        """Whether all that is wrong is that a person has to say `thaw`: what lives is still handed out."""
        return set(self.red) == {_FROZEN}


@dataclass(frozen=True, kw_only=True, slots=True)
class Unreachable:
    """Why nobody answers."""

    why: str


async def ask_ready(address: str, *, patience: float) -> Ready | Unreachable:
    """Ask the private door; no key is needed. Raises `NotUnderstood`."""
    try:
        async with asyncio.timeout(patience), private_session(address, patience=patience) as session:
            status, content = await _ask(session)
    except TimeoutError:
        return Unreachable(why=f"no answer within {patience:g} s")
    except aiohttp.ClientConnectorError as error:
        return Unreachable(why=why_unconnected(error))
    except (aiohttp.ClientError, OSError):
        return Unreachable(why="the connection was lost")
    return _read(status, content)


async def _ask(session: aiohttp.ClientSession) -> tuple[int, Any]:
    async with session.get("/readyz", allow_redirects=False) as response:
        try:
            return response.status, await response.json(content_type=None)
        except ValueError:
            return response.status, None


def _read(status: int, content: Any) -> Ready:  # noqa: ANN401 -- because it is what came
    checks = content.get("checks") if isinstance(content, dict) else None
    if status not in {200, 503} or not isinstance(checks, dict) or not checks:
        raise NotUnderstood(f"status {status} and no list of checks")
    known = {str(name): dict(check) for name, check in checks.items() if isinstance(check, dict)}
    details = {name: str(check.get("detail", "")) for name, check in known.items()}
    return Ready(
        checks={name: check.get("ok") is True for name, check in known.items()},
        red={name: details[name] for name, check in known.items() if check.get("ok") is not True},
        details=details,
    )
