"""The `Store` port on SQLite: a named statement for each method."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from amo_callback.model import Fleet
from amo_callback.store import rows

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from amo_callback.grant import Grant, GrantedPair
    from amo_callback.model import Claim, Connection, Extension, RefreshedPair, Verdict
    from amo_callback.store.database import Database, Row

T = TypeVar("T")


class SqliteStore:
    """The `Store` port on SQLite."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @property
    def failed_at(self) -> float | None:
        """The monotonic time when it last could not do its work."""
        return self._database.failed_at

    @property
    def failing(self) -> str | None:
        """Why the last write failed; `None` where it did not."""
        return self._database.failing

    async def ping(self) -> None:
        """Read something."""
        await self._database.read("ping")

    async def canary(self, fresh: bytes) -> bytes:
        """Return the store's canary; a new store keeps the fresh one."""

        async def unit() -> bytes:
            await self._database.run("save_canary", value=fresh)
            [row] = await self._database.run("canary")
            return bytes(row["value"])

        return await self._database.unit(unit)

    async def prune(self, *, now: datetime, keep_grants: float) -> None:
        """Erase what expired grants hold, and forget them `keep_grants` seconds later."""

        async def unit() -> None:
            await self._database.run("erase_grants", now=now)
            await self._database.run("forget_grants", before=now - timedelta(seconds=keep_grants))

        await self._database.unit(unit)

    async def deaths_held(self) -> bool:
        """Tell whether more deaths are not to be believed."""
        return bool(await self._database.read("deaths_held"))

    async def hold_deaths(self, *, now: datetime) -> None:
        """Believe no more deaths, also after a restart."""
        await self._database.write("hold_deaths", value=now.isoformat().encode())

    async def believe_deaths(self) -> None:
        """Believe those that were, and those to come."""

        async def unit() -> None:
            await self._database.run("release_deaths")
            await self._database.run("believe_deaths")

        await self._database.unit(unit)

    # --- connections -----------------------------------------------------------------------------

    async def connection(self, connection_id: str) -> Connection | None:
        """Return one connection."""
        return _first(await self._database.read("connection", id=connection_id), rows.connection)

    async def connections_of(self, account_id: str) -> Sequence[Connection]:
        """Return an AMO account's connections, the freshest active one first."""
        return _all(await self._database.read("connections_of", account_id=account_id), rows.connection)

    async def due(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[Connection]:
        """Return connections whose refresh is due, those with an open attempt too, oldest expiry first."""
        found = await self._database.read("due", now=now, limit=limit, apart_from=_list(apart_from))
        return _all(found, rows.connection)

    async def next_due(self, *, now: datetime, apart_from: Sequence[str]) -> datetime | None:
        """Return when the next refresh comes due that nobody is at."""
        found = await self._database.read("next_due", now=now, apart_from=_list(apart_from))
        return rows.moment(found[0]["next_refresh_at"]) if found else None

    async def probe(self, *, apart_from: Sequence[str]) -> Connection | None:
        """Return an active connection, the one due first."""
        return _first(await self._database.read("probe", apart_from=_list(apart_from)), rows.connection)

    async def look_ups(self, *, now: datetime, limit: int, apart_from: Sequence[str]) -> Sequence[str]:
        """Return the ids of connections whose tokens are to be looked up."""
        found = await self._database.read("look_ups", now=now, limit=limit, apart_from=_list(apart_from))
        return [row["id"] for row in found]

    async def fleet(self, *, now: datetime, since: datetime) -> Fleet:
        """Count the living, those of them whose access tokens live, and those given up since."""
        [row] = await self._database.read("fleet", now=now, since=since)
        return Fleet(living=row["living"], fresh=row["fresh"], died=row["died"])

    async def claim(self, claim: Claim) -> Connection | None:
        """Commit a claim; `None` where the connection has changed since it was read."""
        return _first(await self._database.write("claim", **_values(claim)), rows.connection)

    async def extend(self, extension: Extension) -> bool:
        """Commit a longer lease and the account's new host; `False` where the attempt is no longer ours."""
        return bool(await self._database.write("extend", **_values(extension)))

    async def save_refreshed(self, refreshed: RefreshedPair) -> Connection | None:
        """Commit a refreshed pair and end its claim; `None` where its version was superseded."""
        return _first(await self._database.write("save_refreshed", **_values(refreshed)), rows.connection)

    async def save_verdict(self, verdict: Verdict) -> Connection | None:
        """Commit what became of an attempt without a pair; `None` where the attempt is no longer ours."""
        return _first(await self._database.write("save_verdict", **_values(verdict)), rows.connection)

    async def release(self, *, connection_id: str, attempt: str) -> None:
        """Give a claim back unspent."""
        await self._database.write("release", connection_id=connection_id, attempt=attempt)

    async def postpone(self, connection: Connection, *, last_error: str, next_refresh_at: datetime) -> bool:
        """Put off a refresh that was not begun; `False` where the connection has changed since it was read."""
        return await self._change("postpone", connection, last_error=last_error, next_refresh_at=next_refresh_at)

    async def reseal(self, *, connection_id: str, before: bytes, sealed_pair: bytes) -> bool:
        """Put the same pair under another key; `False` where the stored bytes are no longer those read."""
        return bool(
            await self._database.write("reseal", connection_id=connection_id, before=before, sealed_pair=sealed_pair)
        )

    async def revive(self, connection: Connection, *, next_refresh_at: datetime) -> bool:
        """Make a connection active again; `False` where it has changed since it was read."""
        return await self._change("revive", connection, next_refresh_at=next_refresh_at)

    async def disconnect(self, connection: Connection, *, at: datetime | None) -> bool:
        """Erase a connection's tokens; `False` where it has changed since it was read.

        A pair granted before `at` does not come back; without it, whatever was granted may be stored later.
        """
        return await self._change("disconnect", connection, at=at)

    async def switched_off(self, account_id: str, *, now: datetime, quiet: float) -> Sequence[str]:
        """Note AMO's hook: look-ups are due now, unless the last hook came less than `quiet` seconds ago."""
        before = now - timedelta(seconds=quiet)
        found = await self._database.write("switched_off", account_id=account_id, now=now, before=before)
        return [row["id"] for row in found]

    async def look_up_again(self, connection: Connection, *, at: datetime | None) -> bool:
        """Set when its tokens are looked up next; `False` where it has changed since it was read."""
        return await self._change("look_up_again", connection, look_up_at=at)

    async def _change(self, name: str, connection: Connection, **values: object) -> bool:
        """Write over the very row that was read."""
        return bool(await self._database.write(name, id=connection.id, row_version=connection.row_version, **values))

    # --- grants ----------------------------------------------------------------------------------

    async def grant(self, code_hash: str) -> Grant | None:
        """Return what is known of an authorization code."""
        return _first(await self._database.read("grant", code_hash=code_hash), rows.grant)

    async def grant_by_handle(self, handle_hash: str) -> Grant | None:
        """Return the grant that a return address names."""
        return _first(await self._database.read("grant_by_handle", handle_hash=handle_hash), rows.grant)

    async def claim_grant(self, grant: Grant, *, now: datetime) -> Grant:
        """Begin a grant, or try a failed one again; who began it is told by the result's `attempt`."""

        async def unit() -> Grant:
            await self._database.run("claim_grant", **_values(grant), now=now)
            [row] = await self._database.run("grant", code_hash=grant.code_hash)
            return rows.grant(dict(row))

        return await self._database.unit(unit)

    async def finish_grant(self, grant: Grant) -> bool:
        """Commit a grant's end where its attempt is still the one given."""
        return bool(await self._database.write("finish_grant", **_values(grant)))

    async def save_connected(self, granted: GrantedPair) -> Connection | None:
        """Commit a granted pair and its grant's end as one; `None` where a later grant's pair was kept."""

        async def unit() -> Connection | None:
            saved = await self._database.run(
                "save_connected", **_values(granted.connection), token_iat=granted.token_iat
            )
            await self._database.run("finish_grant", **_values(granted.grant))
            return _first(saved, rows.connection)

        return await self._database.unit(unit)


def _values(value: Any) -> dict[str, Any]:  # noqa: ANN401 -- because any dataclass is taken
    """Return a value's fields: the statements name them alike."""
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _list(names: Sequence[str]) -> str:
    return json.dumps(list(names))


def _first(found: Sequence[Row], read: Callable[[Mapping[str, Any]], T]) -> T | None:
    return read(dict(found[0])) if found else None


def _all(found: Sequence[Row], read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    return [read(dict(row)) for row in found]
