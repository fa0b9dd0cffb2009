"""The composition of the OAuth flow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.hosts import parse_account_host
from amo_callback.oauth.authorization import Authorizations
from amo_callback.oauth.code_exchange import ExchangeParts, Exchanger
from amo_callback.oauth.grant_service import GrantService
from amo_callback.oauth.grants import GrantRules
from amo_callback.oauth.limits import Limits
from amo_callback.oauth.redemption import Redeemer

if TYPE_CHECKING:
    from amo_callback.config.settings import Settings
    from amo_callback.core import Core
    from amo_callback.tokens.lifecycle import TokenLifecycle


class OAuth:
    """The components of the OAuth flow in one process."""

    def __init__(self, core: Core, settings: Settings, lifecycle: TokenLifecycle) -> None:
        amo = settings.amo
        rules = GrantRules(
            issued_only=settings.app.state == "issued",
            allowed_accounts=frozenset(amo.allowed_accounts),
            default_domain=parse_account_host((amo.default_domain or "").encode(), allowed=amo.allowed_domains),
        )
        self.limits = limits = Limits(
            attempts=settings.limits.failed_codes,
            window=settings.limits.window,
            requests_per_second=amo.requests_per_second,
            queued_for=core.rules.lease - core.amo.timeout,
            clock=core.clock,
        )
        parts = ExchangeParts(
            pending_writes=lifecycle.pending_writes,
            raw_answers=lifecycle.raw_answers,
            credentials=lifecycle.credentials,
            address_block=lifecycle.breaker.address_block,
            connected=lifecycle.connected,
        )
        self.authorizations = Authorizations(core, rules, starts=limits.starts)
        self.connect = GrantService(
            core,
            rules,
            exchanger=Exchanger(core, rules, parts),
            authorizations=self.authorizations,
            limits=limits,
        )
        self.redeemer = Redeemer(core, rules, service=self.connect, limits=limits)
