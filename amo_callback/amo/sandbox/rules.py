"""What can be set of the stand-in: the integration, how long things live, and what is not known of AMO."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class SandboxIntegration:
    """The one integration that is registered in the stand-in."""

    client_id: str = "c6190000-0000-4000-8000-000000000000"
    client_secret: str = field(default="sandbox-client-secret-0123456789abcdef", repr=False)
    redirect_uri: str = "http://127.0.0.1:8080/api/amo-crm/callback"


@dataclass(frozen=True, kw_only=True, slots=True)
class Lifetimes:
    """How long things live, in seconds."""

    code: float = 1200.0
    access: float = 86400.0
    refresh: float = 90 * 86400.0


@dataclass(slots=True)
class Quirks:
    """What is not known of AMO: each way can be had, and who relies on neither is right with both."""

    refresh_kills_access: bool = False
    """Whether a refresh ends the access token before it."""
    look_up_knows_spent: bool = False
    """Whether the look-up takes a spent refresh token for a good one."""
    moved_status: int = 404
    """What the old host of a moved account answers, without a hint."""
