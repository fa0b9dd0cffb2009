"""The pair in an answer that the service could not read: looked for with less care, since a person decides about it."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import TYPE_CHECKING

from amo_callback.custody.raw_answers import open_raw, refreshed_by
from amo_callback.errors import CommandFailed, DecryptionFailed
from amo_callback.model import fingerprint
from amo_callback.transfer.plain import read_plain
from amo_callback.transfer.record import Arrival, Problem

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    from amo_callback.cipher import Cipher
    from amo_callback.model import Connection, Told
    from amo_callback.store import Store

_MEMBER = r'"{}"\s*:\s*"\s*([!#-\[\]-~]+)\s*"'
"""A member of a JSON object whose value is closed: what was cut off is no token."""


async def read_raw(
    name: str,
    sealed: bytes,
    *,
    store: Store,
    cipher: Cipher,
    tell: Callable[[str], Told],
    client_id: str,
    now: datetime,
) -> Arrival | Problem:
    """Return what a raw answer's file may bring into the store: only what follows the pair that is stored now.

    Raises `CommandFailed` where the file cannot be opened.
    """
    try:
        answer = open_raw(name, sealed, cipher)
    except DecryptionFailed:
        raise CommandFailed(
            f"{name}: no encryption key of the configuration opens it: was it renamed, or its key removed?"
        ) from None
    refreshed, stored = refreshed_by(name), None
    if refreshed is not None:
        stored = await store.connection(refreshed[0])
        if stored is None or stored.pair_version != refreshed[1]:
            return Problem(place=name, why="its connection has other tokens by now, or is not in this database")
    pair = _pair(answer.body, presented=answer.presented)
    if pair is None:
        return Problem(place=name, why="no pair can be found in it: the user has to connect again")
    entry = {**pair, "domain": stored.domain if stored else answer.domain, **_account(stored)}
    [arrival] = read_plain(json.dumps(entry).encode(), tell=tell, client_id=client_id, now=now)
    if isinstance(arrival, Problem) or stored is None:
        return dataclasses.replace(arrival, place=name)
    record = dataclasses.replace(
        arrival.record,
        api_domain=arrival.record.api_domain or stored.api_domain,
        # It came after the stored pair, whatever AMO's clock says.
        issued_at=max(arrival.record.issued_at, stored.access_issued_at or arrival.record.issued_at),
    )
    return dataclasses.replace(arrival, place=name, record=record)


def _account(stored: Connection | None) -> dict[str, str]:
    """Return whose the tokens must be: those that tell another account or user are refused."""
    if stored is None:
        return {}
    told = {"account_id": stored.account_id, "user_id": stored.user_id}
    return {name: value for name, value in told.items() if value}


def _pair(body: bytes, *, presented: str) -> dict[str, str] | None:
    """Return the only access token and the only refresh token of the text, but for the one presented."""
    text = body.decode(json.detect_encoding(body), errors="replace")
    pair = {}
    for name in ("access_token", "refresh_token"):
        tokens = {token for token in re.findall(_MEMBER.format(name), text) if fingerprint(token) != presented}
        if len(tokens) != 1:
            return None
        pair[name] = tokens.pop()
    return pair
