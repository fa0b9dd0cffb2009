"""The app's color and logo on the return page, which the operator configures."""

from __future__ import annotations

import base64
import math
import re
from typing import TYPE_CHECKING

from amo_callback.errors import ConfigurationError
from amo_callback.files import read_regular

if TYPE_CHECKING:
    from pathlib import Path

BACKGROUNDS = ("#ffffff", "#111827")
"""The page's backgrounds in the light and the dark color scheme, as in `page.css`."""
_LEAST_CONTRAST = 3.0
"""The minimum contrast of a control with its background: WCAG 2.2, 1.4.11."""
_TEXT_COLORS = ("#ffffff", "#000000")
"""The text colors of the button; on every color, one of them has the contrast of 4.5 that WCAG 2.2, 1.4.3, requires."""
MAX_LOGO = 32 * 1024
"""The maximum size of the logo's file in bytes."""
_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_PNG = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_SVG_ROOT = "{http://www.w3.org/2000/svg}svg"


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colors, from 1 to 21: https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(color: str) -> float:
    channels = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def text_color(background: str) -> str:
    """Return the text color with the better contrast."""
    return max(_TEXT_COLORS, key=lambda color: contrast(color, background))


def check_accent(color: str) -> str:
    """Return the button's color; raises `ValueError` if its contrast with a background of the page is low."""
    if not _COLOR.fullmatch(color):
        raise ValueError('must be a color such as "#2563eb"')
    for background, fix in zip(BACKGROUNDS, ("darker", "lighter"), strict=True):
        measured = math.floor(100 * contrast(color, background)) / 100
        if measured < _LEAST_CONTRAST:
            raise ValueError(
                f"has a contrast of {measured} with the page's background {background}, but {_LEAST_CONTRAST:g} is "
                f"required; choose a {fix} color"
            )
    return color


def read_logo(path: Path) -> str:
    """Return the logo as a `data:` URL; raises `ConfigurationError` unless it is a small SVG or PNG file."""
    try:
        content = read_regular(path, limit=MAX_LOGO)
    except OSError as error:
        raise ConfigurationError(f"app.logo: cannot read {path}: {error.strerror}") from None
    if content.startswith(_PNG):
        kind = "png"
    elif _is_svg(content):
        kind = "svg+xml"
    else:
        raise ConfigurationError(f"app.logo: {path} is neither an SVG nor a PNG file: convert it to one of them")
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _is_svg(content: bytes) -> bool:
    from xml.etree.ElementTree import ParseError, fromstring  # noqa: PLC0415 -- needed only for an SVG logo

    try:
        return fromstring(content).tag == _SVG_ROOT  # noqa: S314 -- the operator's own small file
    except (ParseError, ValueError, LookupError):  # the last two are raised for an unknown encoding
        return False
