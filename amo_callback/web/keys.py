"""What the handlers find in their application, by typed keys; `make_apps` puts it there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from amo_callback.amo.client import AmoClient
from amo_callback.cipher import Cipher
from amo_callback.clock import Clock
from amo_callback.config import Settings
from amo_callback.connect.authorization import Authorizations
from amo_callback.connect.completion import Connect
from amo_callback.connect.redemption import Redeemer
from amo_callback.custody.build import Custody
from amo_callback.custody.handout import Handout
from amo_callback.identity import ApiKeys
from amo_callback.identity.users import Users
from amo_callback.observe.metrics import Metrics
from amo_callback.store import Store
from amo_callback.web.pages.render import Pages
from amo_callback.web.peer import TrustedProxies

if TYPE_CHECKING:
    from amo_callback.connect.build import Connecting

SETTINGS = web.AppKey("settings", Settings)
PROXIES = web.AppKey("proxies", TrustedProxies)
LOG = web.AppKey("log", FilteringBoundLogger)
CLOCK = web.AppKey("clock", Clock)
AUTHORIZATIONS = web.AppKey("authorizations", Authorizations)
REDEEMER = web.AppKey("redeemer", Redeemer)
USERS = web.AppKey("users", Users)
AMO = web.AppKey("amo", AmoClient)
METRICS = web.AppKey("metrics", Metrics)
CIPHER = web.AppKey("cipher", Cipher)
STORE = web.AppKey("store", Store)
CONNECT = web.AppKey("connect", Connect)
CUSTODY = web.AppKey("custody", Custody)
HANDOUT = web.AppKey("handout", Handout)
API_KEYS = web.AppKey("api_keys", ApiKeys)
PAGES = web.AppKey("pages", Pages)


@dataclass(frozen=True, kw_only=True, slots=True)
class Services:
    """What both doors stand before, opened by `services`."""

    store: Store
    amo: AmoClient
    cipher: Cipher
    connecting: Connecting
    users: Users | None
    """Who the app's users are; `None` where their JWTs are not configured."""
    custody: Custody
    clock: Clock
    metrics: Metrics
