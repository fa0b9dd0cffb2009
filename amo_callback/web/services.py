"""What the handlers of both APIs use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from structlog.typing import FilteringBoundLogger

    from amo_callback.config.settings import Settings
    from amo_callback.core import Core
    from amo_callback.identity import ApiKeys
    from amo_callback.identity.jwt import JwtVerifier
    from amo_callback.oauth.flow import OAuth
    from amo_callback.observe.metrics import Metrics
    from amo_callback.store import Store
    from amo_callback.tokens.lifecycle import TokenLifecycle
    from amo_callback.web.client_ip import TrustedProxies
    from amo_callback.web.pages.render import Pages


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What the handlers of both APIs use."""

    settings: Settings
    core: Core
    store: Store
    oauth: OAuth
    lifecycle: TokenLifecycle
    users: JwtVerifier | None
    """The verifier of the app's JWTs; `None` where none are configured."""
    api_keys: ApiKeys
    proxies: TrustedProxies
    pages: Pages
    metrics: Metrics
    log: FilteringBoundLogger
