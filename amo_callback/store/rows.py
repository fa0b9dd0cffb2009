"""Rows into values, and times into what both engines compare."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar

from amo_callback.clock import rfc3339
from amo_callback.event import Notice, Recorded
from amo_callback.grant import Grant, GrantStatus, IssuedState
from amo_callback.model import AmoBlock, Connection, Freeze, Reason, Status

if TYPE_CHECKING:
    from collections.abc import Mapping

E = TypeVar("E", bound=StrEnum)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_EARLIEST = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // _TICK
_LATEST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // _TICK
_JSON = json.JSONEncoder(ensure_ascii=False)


def ticks(moment: datetime) -> int:
    """Return a time as microseconds since 1970, exactly."""
    return (moment - _EPOCH) // _TICK


def microseconds(length: timedelta) -> int:
    """Return a length of time as what is added to such times."""
    return length // _TICK


def stored(value: object) -> object:
    """Return a value as it is stored, and compared: times and lengths of time as numbers."""
    if isinstance(value, datetime):
        return ticks(value)
    return microseconds(value) if isinstance(value, timedelta) else value


def moment(value: int) -> datetime:
    """Return a stored time; one beyond what can be represented was written by hand, and is taken to the nearest."""
    return _EPOCH + min(max(value, _EARLIEST), _LATEST) * _TICK


def maybe_moment(value: int | None) -> datetime | None:
    """Return a stored time, where there is one."""
    return None if value is None else moment(value)


def connection(row: Mapping[str, Any]) -> Connection:
    """Read a row of `connections`."""
    return Connection(
        id=row["id"],
        account_id=row["account_id"],
        user_id=row["user_id"],
        domain=row["domain"],
        api_domain=row["api_domain"],
        client_id=row["client_id"],
        status=_word(Status, row["status"], Status.NEEDS_REAUTH),
        reason=_word(Reason, row["reason"], Reason.UNREADABLE) if row["reason"] else None,
        last_error=row["last_error"],
        sealed_pair=row["sealed_pair"],
        access_issued_at=maybe_moment(row["access_issued_at"]),
        access_expires_at=maybe_moment(row["access_expires_at"]),
        refresh_expires_at=maybe_moment(row["refresh_expires_at"]),
        refreshed_at=maybe_moment(row["refreshed_at"]),
        next_refresh_at=maybe_moment(row["next_refresh_at"]),
        failures=row["failures"],
        connected_at=moment(row["connected_at"]),
        pair_version=row["pair_version"],
        row_version=row["row_version"],
        attempt=row["attempt"],
        lease_owner=row["lease_owner"],
        lease_until=maybe_moment(row["lease_until"]),
        spending=row["spending"],
        doubtful=row["doubtful"],
        look_up_at=maybe_moment(row["look_up_at"]),
        hook_at=maybe_moment(row["hook_at"]),
        looked_up_at=maybe_moment(row["looked_up_at"]),
        look_up_pause=None if row["look_up_pause"] is None else row["look_up_pause"] * _TICK,
        grant_iat=row["grant_iat"],
        refused_since=maybe_moment(row["refused_since"]),
        refusals=row["refusals"],
        suspended_reason=_word(Reason, row["suspended_reason"], Reason.IN_DOUBT) if row["suspended_reason"] else None,
        suspended_token=row["suspended_token"],
        frozen=row["frozen_at"] is not None or bool(row.get("all_frozen")),
        lease_left=_left(row),
    )


def _word(words: type[E], stored: str, otherwise: E) -> E:
    """Return a stored word; one that is unknown was written by hand, and must not stop what reads many rows."""
    return words(stored) if stored in words.__members__.values() else otherwise


def _left(row: Mapping[str, Any]) -> float | None:
    """Return how many seconds of a lease were left when the row was read, where the statement asked the clock."""
    if row["lease_until"] is None or row.get("clock") is None:
        return None
    return float((row["lease_until"] - row["clock"]) / 1e6)


def grant(row: Mapping[str, Any]) -> Grant:
    """Read a row of `grants`."""
    return Grant(
        code_hash=row["code_hash"],
        handle_hash=row["handle_hash"],
        sealed=row["sealed"],
        status=GrantStatus(row["status"]),
        error=row["error"],
        connection_id=row["connection_id"],
        attempt=row["attempt"],
        lease_until=moment(row["lease_until"]),
        lease_left=_left(row),
        doubtful=bool(row["doubtful"]),
        expires_at=moment(row["expires_at"]),
        ticket_hash=row["ticket_hash"],
        accepted_at=maybe_moment(row["accepted_at"]),
        no=row["no"],
    )


def issued_state(row: Mapping[str, Any]) -> IssuedState:
    """Read a row of `states`."""
    return IssuedState(
        state_hash=row["state_hash"],
        sealed=row["sealed"],
        expires_at=moment(row["expires_at"]),
        used_by=row["used_by"],
    )


def recorded(row: Mapping[str, Any]) -> Recorded:
    """Read a row of `events`."""
    return Recorded(
        id=row["id"],
        at=moment(row["at"]),
        connection_id=row["connection_id"],
        name=row["name"],
        process=row["process"],
        details=_object(row["details"]),
    )


def notice(row: Mapping[str, Any]) -> Notice:
    """Read a row of `outbox`."""
    return Notice(
        number=row["number"],
        id=row["id"],
        at=moment(row["at"]),
        type=row["type"],
        connection_id=row["connection_id"],
        data=_object(row["data"]),
        tries=row["tries"],
        next_try_at=moment(row["next_try_at"]),
        last_error=row["last_error"],
        parked_at=maybe_moment(row["parked_at"]),
    )


def _object(text: str | bytes) -> Mapping[str, Any]:
    """Return a JSON object; an empty one for what was written by hand and is none."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def freeze(value: bytes) -> Freeze:
    """Read the mark of a frozen store; one that cannot be read keeps it frozen until it is thawed."""
    content = _object(value)
    try:
        at, why = moment(int(str(content["at"]))), str(content["why"])
    except (KeyError, ValueError):
        return Freeze(at=moment(0), why="the mark in the database cannot be read", elsewhere=True)
    return Freeze(at=at, why=why, elsewhere=bool(content.get("elsewhere")))


def freeze_value(freeze: Freeze) -> bytes:
    """Write the mark of a frozen store."""
    return json.dumps({"at": ticks(freeze.at), "why": freeze.why, "elsewhere": freeze.elsewhere}).encode()


def amo_block(value: bytes) -> AmoBlock:
    """Read the mark of a block of our address; one that cannot be read begins anew, with a probe."""
    content = _object(value)
    try:
        times = {name: moment(int(content[name])) for name in ("since", "probe_at", "exchange_at")}
        return AmoBlock(**times, probed=tuple(map(str, content["probed"])))
    except (KeyError, TypeError, ValueError):
        return AmoBlock(since=moment(0), probe_at=moment(0), exchange_at=moment(0), probed=())


def amo_block_value(block: AmoBlock) -> bytes:
    """Write the mark of a block of our address."""
    times = {"since": block.since, "probe_at": block.probe_at, "exchange_at": block.exchange_at}
    return json.dumps({**{name: ticks(time) for name, time in times.items()}, "probed": block.probed}).encode()


def details(fields: Mapping[str, object]) -> str:
    """Write what an event tells as JSON: times in RFC 3339, what is not known left out."""
    plain = {name: _plain(value) for name, value in fields.items() if value is not None}
    return _JSON.encode(plain)


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        return rfc3339(value)
    return value if isinstance(value, bool | int | float) else str(value)
