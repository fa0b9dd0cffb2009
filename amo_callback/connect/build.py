"""The parts of the OAuth flow, put together."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from amo_callback.connect.admission import Admission
from amo_callback.connect.authorization import Authorizations, Starts
from amo_callback.connect.completion import Connect
from amo_callback.connect.exchange import Exchanger, ExchangeRules
from amo_callback.connect.limits import AdmissionQueue, Limits, capacity_for
from amo_callback.connect.records import Records
from amo_callback.connect.redemption import Redeemer
from amo_callback.hosts import check_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.config.settings import Settings
    from amo_callback.custody.build import Core, Custody
    from amo_callback.model import Connection


class OAuth:
    """The OAuth flow of one process, built and not started; `connected` is called where AMO has accepted a code."""

    def __init__(
        self,
        core: Core,
        settings: Settings,
        custody: Custody,
        *,
        connected: Callable[[Connection], None],
    ) -> None:
        store, amo, cipher, clock = core.store, core.amo, core.cipher, core.clock
        rate, rules = settings.amo.requests_per_second, settings.refresh.rules
        issued_only, allowed = settings.app.state == "issued", settings.amo.allowed_domains
        self.limits = limits = Limits(
            attempts=settings.limits.failed_codes,
            window=settings.limits.window,
            requests_per_second=rate,
            clock=clock,
        )
        capacity = capacity_for(per_second=rate, seconds=rules.lease - amo.timeout)
        self.authorizations = Authorizations(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            starts=Starts(each=limits.starts, links=limits.links, queue=AdmissionQueue(capacity=capacity)),
            new_secret=_new_secret,
        )
        records = Records(cipher=cipher, clock=clock, lease=rules.lease, new_secret=_new_secret)
        exchanger = Exchanger(
            store=store,
            amo=amo,
            cipher=cipher,
            clock=clock,
            observer=core.observer,
            unsaved=custody.unsaved,
            raw_answers=custody.raw_answers,
            credentials=custody.credentials,
            address_block=custody.breaker.address_block,
            rules=ExchangeRules(
                allowed_accounts=frozenset(settings.amo.allowed_accounts),
                default_domain=check_host((settings.amo.default_domain or "").encode(), allowed=allowed),
                refresh=rules,
            ),
            random=core.random,
            connected=connected,
        )
        admission = Admission(
            authorizations=self.authorizations,
            issued_only=issued_only,
            lists_accounts=bool(settings.amo.allowed_accounts),
        )
        self.connect = Connect(
            store=store,
            amo=amo,
            records=records,
            clock=clock,
            observer=core.observer,
            exchanger=exchanger,
            admission=admission,
            attempts=limits.codes,
            queue=AdmissionQueue(capacity=capacity),
            leases=custody.leases,
        )
        self.redeemer = Redeemer(
            store=store,
            records=records,
            clock=clock,
            connect=self.connect,
            attempts=limits.codes,
            issued_only=issued_only,
        )


def _new_secret() -> str:
    """Return 128 random bits, as `[A-Za-z0-9_-]`: what links carry unharmed."""
    return secrets.token_urlsafe(16)
