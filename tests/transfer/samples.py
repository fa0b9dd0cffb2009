"""Export records and import entries for tests, with default values."""

from __future__ import annotations

import base64
import io
import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from amo_callback.amo.pair import token_claims
from amo_callback.errors import UnknownOutcome
from amo_callback.model import Account, RefreshRules, connection_id
from amo_callback.refresh.pending_writes import PendingWrites
from amo_callback.refresh.raw_answers import RawAnswers
from amo_callback.transfer.export_file import ExportRecord, ExportWriter, ParsedRecord, key_of_host
from amo_callback.transfer.importer import ImportRules, apply
from amo_callback.transfer.json_format import JsonReader
from tests.builders import DAY, a_core
from tests.fakes import START

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from amo_callback.crypto import Cipher
    from amo_callback.store import Store
    from amo_callback.transfer.importer import ImportPlan

CLIENT = "c619"
RULES = ImportRules(client_id=CLIENT, allowed_domains=(), allowed_accounts=(), replace=False)
REPLACE = ImportRules(client_id=CLIENT, allowed_domains=(), allowed_accounts=(), replace=True)
READER = JsonReader(claims_of=token_claims, client_id=CLIENT, now=START)


def a_record(number: int = 1, **more: Any) -> ExportRecord:
    """Return an export record."""
    values: dict[str, Any] = {
        "id": connection_id(Account(account_id=str(number), user_id="1"), ""),
        "account_id": str(number),
        "user_id": "1",
        "domain": f"a{number}.amocrm.ru",
        "api_domain": "api-b.amocrm.ru",
        "client_id": CLIENT,
        "access_token": f"access-token-of-{number}",
        "refresh_token": f"refresh-token-of-{number}",
        "issued_at": START,
        "expires_at": START + DAY,
        "refresh_expires_at": START + 90 * DAY,
        "refreshed_at": START + timedelta(microseconds=123457),
        "connected_at": START,
        "grant_iat": 1,
        "precedence": number,
    }
    return ExportRecord(**{**values, **more})


def arrivals(*records: ExportRecord) -> list[ParsedRecord]:
    return [ParsedRecord(place=f"line {number}", record=record) for number, record in enumerate(records, start=1)]


def sealed(records: Sequence[ExportRecord], *, key: str, file_id: str = "a file") -> io.BytesIO:
    file = io.BytesIO()
    writer = ExportWriter(file, key_of_host(key), file_id=file_id)
    for record in records:
        writer.add(record)
    writer.end()
    file.seek(0)
    return file


async def written(plan: ImportPlan, store: Store, cipher: Cipher) -> Sequence[str]:
    """Apply the plan and return the ids of the skipped connections."""
    return await apply(
        plan,
        store=store,
        cipher=cipher,
        rules=RefreshRules(jitter=0),
        random=lambda: 0.5,
        source="a test",
        advance=lambda _done: None,
    )


# --- import from another system ------------------------------------------------------------------


def a_token(number: int = 1, *, at: datetime = START, lifetime: timedelta = DAY, **more: object) -> str:
    """Return an access token as AMO issues it."""
    claims = {
        "aud": CLIENT,
        "iat": int(at.timestamp()),
        "exp": int((at + lifetime).timestamp()),
        "sub": "1",
        "account_id": number,
        "api_domain": "api-b.amocrm.ru",
        **more,
    }
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (b"{}", json.dumps(claims).encode(), b"sign")
    )


def an_entry(number: int = 1, **more: object) -> dict[str, object]:
    """Return a connection in the JSON format of another system, without `None` fields."""
    values: dict[str, object] = {
        "access_token": a_token(number),
        "refresh_token": f"refresh-token-of-{number}",
        "expires_in": 86400,
        "domain": f"a{number}.amocrm.ru",
        **more,
    }
    return {name: value for name, value in values.items() if value is not None}


async def keep_raw(store: Store, cipher: Cipher, rescue: Any, body: bytes, name: str, **more: str) -> None:
    """Write an unreadable answer of AMO to the rescue folder as the service does."""
    core = a_core(store=store, cipher=cipher, clock=store.clock)
    raw = RawAnswers(core, rescue=rescue, pending_writes=PendingWrites(core, rescue=rescue))
    await raw.keep(name, UnknownOutcome("not_json", body=body), **more)
