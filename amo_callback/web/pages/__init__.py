"""The return page, which returns the user to the app: browser detection, content, texts and rendering.

To add a language, add an entry to `LANGUAGES` and a file to `texts/`.
"""

from __future__ import annotations

import re
import secrets
import tomllib
from dataclasses import dataclass, field
from enum import Enum
from importlib import resources
from typing import TYPE_CHECKING

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from amo_callback.appearance import text_color
from amo_callback.hosts import crm_name

if TYPE_CHECKING:
    from collections.abc import Mapping

Texts = dict[str, dict[str, str]]
"""Page texts by section and key."""

_FOLDER = resources.files("amo_callback.web") / "pages" / "texts"
LANGUAGES = ("en", "uk", "ru", "es", "pt")
"""The languages of the pages, the default first; each has a file in `texts/`."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")
_POLICY = (
    "default-src 'none'; {script}style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_EXCHANGING = "exchanging"
"""The variant of the page that waits for the result: its script requests the page's own URL."""

_MAX_AGENT = 2048
_MAX_LANGUAGES = 512
"""The maximum number of characters of `Accept-Language` that are parsed; no browser sends more."""

_IN_APP = re.compile(
    r"FBAN|FBAV|FB_IAB|Instagram|Barcelona|\bLine/|MicroMessenger|Telegram|WhatsApp|Viber|musical_ly|TikTok"
    r"|Bytedance|Snapchat|Twitter|LinkedInApp|Pinterest|KAKAOTALK|\bVK(?:AndroidApp|Client|ontakte)?/|vk\.vkclient"
    r"|; ?wv\)",
    re.IGNORECASE,
)
"""User-agent markers of browsers inside other apps; `; wv)` marks an Android WebView,
https://developer.chrome.com/docs/webview/user-agent."""
_IOS = re.compile(r"\b(?:iPhone|iPad|iPod)\b")
_ANDROID = re.compile(r"\bAndroid\b.*(?:Chrome|Firefox|Safari|OPR)/")
_MAC = re.compile(r"\(Macintosh;.*Safari/")
_LINUX = re.compile(r"\(X11; Linux .*(?:Chrome|Firefox|Safari|OPR)/")
_RANGE = re.compile(
    r"(?P<tag>\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)"
    r"(?:[ \t]*;[ \t]*[qQ]=(?P<q>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
"""A language range and its weight: RFC 9110, sections 12.4.2 and 12.5.4."""


class Kind(Enum):
    IOS = "ios"
    """Safari on iOS, a Safari view inside an app, or another iOS browser."""
    ANDROID = "android"
    """An Android browser, or a browser tab inside an app."""
    IN_APP = "in_app"
    """A web view inside another app, where opening a deep link may replace the page with an error."""
    MAC = "mac"
    """A browser on a Mac, or on an iPad that identifies itself as a Mac."""
    LINUX = "linux"
    """A browser on desktop Linux, or on an Android tablet that requests desktop pages."""
    OTHER = "other"
    """Another desktop browser, or an unknown one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserAgent:
    kind: Kind
    language: str

    @property
    def may_be_tablet(self) -> bool:
        """Whether the device may be a tablet; the page's script checks whether it has a touch screen."""
        return self.kind in {Kind.MAC, Kind.LINUX}

    @property
    def allows_auto_open(self) -> bool:
        """Whether a page may open the deep link automatically; on a Mac or Linux, only if the device is a tablet.

        In other browsers, opening the link may replace the page with an error.
        """
        return self.may_be_tablet or self.kind in {Kind.IOS, Kind.ANDROID}

    @property
    def may_be_android(self) -> bool:
        """Whether an `intent:` link may work."""
        return self.kind in {Kind.ANDROID, Kind.LINUX}


def parse_user_agent(*, user_agent: str, accept_language: str) -> UserAgent:
    """Parse the headers `User-Agent` and `Accept-Language`; never raises."""
    return UserAgent(kind=_kind(user_agent), language=_language(accept_language))


def _kind(agent: str) -> Kind:
    # The user agent of Windows Phone also contains the names of other browsers.
    if len(agent) > _MAX_AGENT or "Windows Phone" in agent:
        return Kind.OTHER
    if _IN_APP.search(agent):
        return Kind.IN_APP
    if _IOS.search(agent):
        return Kind.IOS if "Safari/" in agent else Kind.IN_APP
    kinds = {Kind.ANDROID: _ANDROID, Kind.MAC: _MAC, Kind.LINUX: _LINUX}
    return next((kind for kind, pattern in kinds.items() if pattern.search(agent)), Kind.OTHER)


def _language(accepted: str) -> str:
    """Choose a language by lookup (RFC 4647): `uk-UA` matches `uk`, and `*` matches the default language."""
    if len(accepted) > _MAX_LANGUAGES:
        accepted = accepted[:_MAX_LANGUAGES].rpartition(",")[0]  # drop the range that was cut off
    weights: dict[str, float] = {}
    refused = set()
    for item in accepted.split(","):
        match = _RANGE.fullmatch(item.strip(" \t"))
        if match is None:
            continue
        tag, weight = match["tag"].lower(), float(match["q"] or 1)
        if weight:
            language = tag.partition("-")[0]
            weights[language] = max(weight, weights.get(language, 0))
        else:
            refused.add(tag)
    offered = [language for language in LANGUAGES if language not in refused]
    wanted = [language for language in weights if language in offered]
    return max(wanted, key=lambda language: weights[language], default=(offered or LANGUAGES)[0])


_DESKTOPS = frozenset({Kind.MAC, Kind.LINUX, Kind.OTHER})


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """The content of a page; `variant` is `connected`, `exchanging`, `gone`, `app_link`, or a deep link error."""

    variant: str
    status: int
    """The HTTP status."""
    link: str | None = field(default=None, repr=False)
    """The deep link, if there is one."""
    intent: str | None = field(default=None, repr=False)
    """The deep link as an Android `intent:` link."""
    auto_open: bool = False
    """Whether the page opens the link automatically, once."""
    attempted: bool = False
    """Whether the page has already opened the link and the user has come back to the page."""
    retry_url: str | None = None
    """The URL that retries a temporary failure; empty for the page's own URL."""
    domain: str | None = None
    """The account's host, if it is known."""
    address: str | None = field(default=None, repr=False)
    """The page's public URL, with which a phone can show the page, too."""
    support: str | None = None
    """The support code."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Brand:
    """The app as the user knows it."""

    app: str
    """The app's name."""
    crm: str
    """AMO's name on pages without an account."""
    ios_store_url: str | None = None
    android_store_url: str | None = None
    accent: str | None = None
    """The color of the button, as `#RRGGBB`."""
    logo: str | None = field(default=None, repr=False)
    """The app's logo, as a `data:` URL."""


class Pages:
    def __init__(self, brand: Brand) -> None:
        self._brand = brand
        self._texts = {language: read_texts(language) for language in LANGUAGES}
        environment = Environment(
            loader=PackageLoader("amo_callback.web", "pages"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        self._template = environment.get_template("page.html")

    def render(self, view: View, agent: UserAgent) -> web.Response:
        brand = self._brand
        values = {
            "app": brand.app,
            "crm": crm_name(view.domain) if view.domain else brand.crm,
            "domain": view.domain or "",
        }
        texts = fill(self._texts[agent.language], values)
        note = _note(view, agent)
        nonce = secrets.token_urlsafe(16)
        html = self._template.render(
            view=view,
            agent=agent,
            brand=brand,
            on_accent=text_color(brand.accent) if brand.accent else None,
            texts=texts,
            text=texts[view.variant],
            todo=texts["todo"]["again"] if view.retry_url is not None else texts[view.variant].get("todo"),
            note=note,
            qr_code=_qr_code(view.address) if view.address and note == _ON_PHONE else None,
            stores=_stores(brand, agent.kind),
            nonce=nonce,
        )
        response = web.Response(text=html, status=view.status, content_type="text/html", charset="utf-8")
        script = f"script-src 'nonce-{nonce}'; " if view.link or view.variant == _EXCHANGING else ""
        if view.variant == _EXCHANGING:
            script += "connect-src 'self'; "
        response.headers["Content-Security-Policy"] = _POLICY.format(nonce=nonce, script=script)
        response.headers["Vary"] = "Accept, Accept-Language, User-Agent"
        return response


_ON_PHONE = "on_phone"


def _note(view: View, agent: UserAgent) -> str | None:
    """Return the key of the note for a button that may not work in this browser.

    Returns `None` if the retry button comes first, and on the app link's page, which has the stores' links instead.
    """
    if view.link is None or view.retry_url is not None or view.variant == "app_link":
        return None
    if agent.kind is Kind.IN_APP:
        return "in_app"
    return _ON_PHONE if agent.kind in _DESKTOPS else None


def _stores(brand: Brand, kind: Kind) -> Mapping[str, str]:
    """Return the URLs of the app's stores by platform, without the store of the other platform if that is known."""
    urls = {
        "ios": None if kind is Kind.ANDROID else brand.ios_store_url,
        "android": None if kind is Kind.IOS else brand.android_store_url,
    }
    return {platform: url for platform, url in urls.items() if url is not None}


def _qr_code(url: str) -> str:
    """Return a URL as a QR code: an SVG element without colors for the background, and with the quiet zone."""
    import segno  # noqa: PLC0415 -- loaded only if a desktop shows the page

    return segno.make_qr(url, error="m").svg_inline(border=4, omitsize=True, svgclass=None, lineclass=None)


def read_texts(language: str) -> Texts:
    """Read the texts of a language from its TOML file."""
    return tomllib.loads((_FOLDER / f"{language}.toml").read_text(encoding="utf-8"))


def fill(texts: Texts, values: Mapping[str, str]) -> Texts:
    """Replace all placeholders in one pass, so that a placeholder inside a value is kept."""
    return {
        section: {
            key: PLACEHOLDER.sub(lambda placeholder: values[placeholder[1]], text) for key, text in content.items()
        }
        for section, content in texts.items()
    }
