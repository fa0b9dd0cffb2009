"""The parts of the OAuth flow, put together."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from amo_callback.hosts import check_host
from amo_callback.oauth.authorization import Authorizations, StartLimiter
from amo_callback.oauth.code_exchange import Exchanger, ExchangeRules
from amo_callback.oauth.grant_factory import GrantFactory
from amo_callback.oauth.grant_service import GrantService
from amo_callback.oauth.limits import AdmissionQueue, Limits, capacity_for
from amo_callback.oauth.redemption import Redeemer
from amo_callback.oauth.state_policy import StatePolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from amo_callback.config.settings import Settings
    from amo_callback.core import Core
    from amo_callback.model import Connection
    from amo_callback.tokens.lifecycle import TokenLifecycle


class OAuth:
    """The OAuth flow of one process, built and not started; `connected` is called where AMO has accepted a code."""

    def __init__(
        self,
        core: Core,
        settings: Settings,
        lifecycle: TokenLifecycle,
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
            starts=StartLimiter(each=limits.starts, links=limits.links, queue=AdmissionQueue(capacity=capacity)),
            new_secret=_new_secret,
        )
        records = GrantFactory(cipher=cipher, clock=clock, lease=rules.lease, new_secret=_new_secret)
        exchanger = Exchanger(
            core,
            pending_writes=lifecycle.pending_writes,
            raw_answers=lifecycle.raw_answers,
            credentials=lifecycle.credentials,
            address_block=lifecycle.breaker.address_block,
            rules=ExchangeRules(
                allowed_accounts=frozenset(settings.amo.allowed_accounts),
                default_domain=check_host((settings.amo.default_domain or "").encode(), allowed=allowed),
                refresh=rules,
            ),
            connected=connected,
        )
        admission = StatePolicy(
            authorizations=self.authorizations,
            issued_only=issued_only,
            lists_accounts=bool(settings.amo.allowed_accounts),
        )
        self.connect = GrantService(
            store=store,
            amo=amo,
            records=records,
            clock=clock,
            observer=core.observer,
            exchanger=exchanger,
            admission=admission,
            attempts=limits.codes,
            queue=AdmissionQueue(capacity=capacity),
            leases=lifecycle.leases,
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
