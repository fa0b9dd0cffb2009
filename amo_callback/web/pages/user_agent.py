"""The kind of a browser and its language, from `User-Agent` and `Accept-Language`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MAX_AGENT = 2048
_MAX_LANGUAGES = 512
"""Characters that are parsed: no browser sends longer headers."""

_IN_APP = re.compile(
    r"FBAN|FBAV|FB_IAB|Instagram|Barcelona|\bLine/|MicroMessenger|Telegram|WhatsApp|Viber|musical_ly|TikTok"
    r"|Bytedance|Snapchat|Twitter|LinkedInApp|Pinterest|KAKAOTALK|\bVK(?:AndroidApp|Client|ontakte)?/|vk\.vkclient"
    r"|; ?wv\)",
    re.IGNORECASE,
)
"""The marks of browsers inside other apps; `; wv)` is Android's own mark of a WebView,
https://developer.chrome.com/docs/webview/user-agent."""
_IOS = re.compile(r"\b(?:iPhone|iPad|iPod)\b")
_ANDROID = re.compile(r"\bAndroid\b.*(?:Chrome|Firefox|Safari|OPR)/")
_RANGE = re.compile(
    r"(?P<tag>\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)"
    r"(?:[ \t]*;[ \t]*[qQ]=(?P<q>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
"""A language range and its weight: RFC 9110, sections 12.4.2 and 12.5.4."""


class Kind(Enum):
    """The kind of browser."""

    IOS = "ios"
    """Safari, a sheet of it inside an app, or a browser built on it."""
    ANDROID = "android"
    """A browser, or a tab of one inside an app."""
    IN_APP = "in_app"
    """A view inside another app, where an app's address may replace the page by an error."""
    OTHER = "other"
    """A desktop, or unknown; also iPads that present themselves as a Macintosh."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserAgent:
    """The browser that a page is for."""

    kind: Kind
    language: str

    @property
    def allows_auto_open(self) -> bool:
        """Whether a page may open the deep link by itself: in other browsers this can replace the page by an error."""
        return self.kind in {Kind.IOS, Kind.ANDROID}


def parse_user_agent(*, user_agent: str, accept_language: str, languages: Sequence[str]) -> UserAgent:
    """Parse the headers of those names, for pages in `languages`, the default first; never raises."""
    return UserAgent(kind=_kind(user_agent), language=_language(accept_language, languages))


def _kind(agent: str) -> Kind:
    if len(agent) > _MAX_AGENT or "Windows Phone" in agent:  # it names all the others, too
        return Kind.OTHER
    if _IN_APP.search(agent):
        return Kind.IN_APP
    if _IOS.search(agent):
        return Kind.IOS if "Safari/" in agent else Kind.IN_APP
    return Kind.ANDROID if _ANDROID.search(agent) else Kind.OTHER


def _language(accepted: str, languages: Sequence[str]) -> str:
    """Choose by RFC 4647's lookup: a range is shortened until it fits, `*` stands for the default."""
    if len(accepted) > _MAX_LANGUAGES:
        accepted = accepted[:_MAX_LANGUAGES].rpartition(",")[0]  # half a range is none
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
    offered = [language for language in languages if language not in refused]
    wanted = [language for language in weights if language in offered]
    return max(wanted, key=lambda language: weights[language], default=(offered or languages)[0])
