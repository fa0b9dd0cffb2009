"""All connections and notices at a glance."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from amo_callback.model import Reason, Status
from amo_callback.store import rows
from amo_callback.store.writer import Writer
from amo_callback.survey import Survey

if TYPE_CHECKING:
    from datetime import datetime


class Surveys(Writer):
    """The tables `connections` and `outbox`, counted."""

    async def survey(self, *, now: datetime, late: datetime) -> Survey:
        """Count connections and notices, and refreshes that were due before `late` as overdue."""
        [row] = await self._database.read("survey", now=now, late=late)
        others: dict[str, int] = json.loads(row["not_active"])
        return Survey(
            active=row["active"],
            fresh=row["fresh"],
            needs_reauth={reason: others.get(reason, 0) for reason in Reason},
            disconnected=others.get(Status.DISCONNECTED, 0),
            mismatched=row["mismatched"],
            hosts_not_allowed=row["hosts_not_allowed"],
            expired=row["expired"],
            due=row["due"],
            overdue=row["overdue"],
            next_expiry=rows.maybe_moment(row["next_expiry"]),
            next_deadline=rows.maybe_moment(row["next_deadline"]),
            waiting=row["waiting"],
            waiting_since=rows.maybe_moment(row["waiting_since"]),
            parked=row["parked"],
        )
