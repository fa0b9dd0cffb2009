"""Who looks at a page: the kind of browser, and the language, as their headers tell it. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

LANGUAGES = ("en", "uk", "ru")
"""What the pages are written in; the first is for whoever asks for none of them."""

_LONGEST_AGENT = 2048
_LONGEST_LANGUAGES = 512
"""Characters that are read: longer headers are nobody's, and reading them would be work for nothing."""

_IN_APP = re.compile(
    r"FBAN|FBAV|FB_IAB|Instagram|Barcelona|\bLine/|MicroMessenger|Telegram|WhatsApp|Viber|musical_ly|TikTok"
    r"|Bytedance|Snapchat|Twitter|LinkedInApp|Pinterest|KAKAOTALK|\bVK(?:AndroidApp|Client|ontakte)?/|vk\.vkclient"
    r"|; ?wv\)",
    re.IGNORECASE,
)
"""What other apps call the browser inside them; `; wv)` is Android's own mark of a WebView,
https://developer.chrome.com/docs/webview/user-agent."""
_IOS = re.compile(r"\b(?:iPhone|iPad|iPod)\b")
_ANDROID = re.compile(r"\bAndroid\b.*(?:Chrome|Firefox|Safari|OPR)/")
_RANGE = re.compile(
    r"(?P<tag>\*|[A-Za-z]{1,8}(?:-[A-Za-z0-9]{1,8})*)"
    r"(?:[ \t]*;[ \t]*[qQ]=(?P<q>0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?))?"
)
"""A language range and its weight: RFC 9110, sections 12.4.2 and 12.5.4."""


class Kind(Enum):
    """What the page is looked at in."""

    IOS = "ios"
    """Safari, a sheet of it inside an app, or a browser built on it."""
    ANDROID = "android"
    """A browser, or a tab of one inside an app."""
    IN_APP = "in_app"
    """A view inside another app, where an address that is not the web's may replace the page by an error."""
    OTHER = "other"
    """A desktop, or something unknown; iPads that call themselves a Macintosh, too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Visitor:
    """Who looks at a page."""

    kind: Kind
    language: str

    @property
    def may_be_sent(self) -> bool:
        """Whether a page may try by itself to bring them to the app: elsewhere the try can cost them the page."""
        return self.kind in {Kind.IOS, Kind.ANDROID}


def read_visitor(*, user_agent: str, accept_language: str) -> Visitor:
    """Read who it is from the headers of those names; never raises, whatever they hold."""
    return Visitor(kind=_kind(user_agent), language=_language(accept_language))


def _kind(agent: str) -> Kind:
    if len(agent) > _LONGEST_AGENT or "Windows Phone" in agent:  # that one named all the others, too
        return Kind.OTHER
    if _IN_APP.search(agent):
        return Kind.IN_APP
    if _IOS.search(agent):
        return Kind.IOS if "Safari/" in agent else Kind.IN_APP
    return Kind.ANDROID if _ANDROID.search(agent) else Kind.OTHER


def _language(accepted: str) -> str:
    """Choose by RFC 4647's lookup: a range is shortened until it fits, `*` stands for the default."""
    if len(accepted) > _LONGEST_LANGUAGES:
        accepted = accepted[:_LONGEST_LANGUAGES].rpartition(",")[0]  # half a range is none
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
