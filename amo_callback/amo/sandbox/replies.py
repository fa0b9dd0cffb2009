"""The stand-in's answers, in AMO's words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_PROBLEM = "https://developers.amocrm.ru/v3/errors/OAuthProblemJson"


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxReply:
    """An answer of the stand-in."""

    status: int
    content: Mapping[str, object]
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bytes:
        """The answer's bytes."""
        return json.dumps(self.content, ensure_ascii=False).encode()


def whereabouts(*, account_id: int, host: str) -> SandboxReply:
    """Answer where an account lives."""
    label, _, top = host.partition(".")
    return SandboxReply(
        status=200,
        content={"id": account_id, "subdomain": label, "domain": host, "top_level_domain": top},
    )


def problem(status: int, hint: str | None, *, title: str = "Bad request", detail: str = "") -> SandboxReply:
    """Answer a problem as AMO words it; `hint` may be absent."""
    content: dict[str, object] = {"title": title, "type": _PROBLEM, "status": status, "detail": detail}
    if hint is not None:
        content["hint"] = hint
    return SandboxReply(status=status, content=content, content_type="application/problem+json")


def client_unknown() -> SandboxReply:
    """Answer as AMO does where it does not know the client: without a hint."""
    return problem(401, None, title="Некорректный клиент", detail="Авторизация клиента не прошла")
