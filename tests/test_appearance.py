"""The app's color and logo on the return page: contrast, and the file's size and type."""

import base64
import itertools
import os
import re
import struct
import zlib
from importlib import resources
from pathlib import Path

import pytest

from amo_callback.appearance import BACKGROUNDS, MAX_LOGO, check_accent, contrast, read_logo, text_color
from amo_callback.cli.main import main
from amo_callback.config.loader import load_settings
from amo_callback.errors import ConfigurationError
from tests.cli.harness import environ_with

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8"><circle cx="4" cy="4" r="4"/></svg>'
_STEPS = range(0, 256, 17)


def png() -> bytes:
    """Return an image of one pixel."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


# --- color -----------------------------------------------------------------------------------------


def test_backgrounds_are_those_of_the_page() -> None:
    """The contrast is checked with the backgrounds of the page's light and dark color schemes."""
    css = (resources.files("amo_callback.web") / "pages" / "page.css").read_text(encoding="utf-8")
    assert tuple(re.findall(r"--back: (#\w+)", css)) == BACKGROUNDS


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("#000000", "#ffffff", 21), ("#777777", "#FFFFFF", 4.48), ("#00f", "#00f", 1)]
)
def test_contrast_is_ratio_of_luminances(one: str, other: str, ratio: float) -> None:
    """The contrast is WCAG's, in either order."""
    one, other = (
        color if len(color) == 7 else "#" + "".join(2 * digit for digit in color[1:]) for color in (one, other)
    )
    assert (round(contrast(one, other), 2), contrast(one, other)) == (ratio, contrast(other, one))


def test_accepted_accents_are_readable() -> None:
    """Every accepted color differs from both backgrounds by 3, and from its text by 4.5."""
    accepted = 0
    for red, green, blue in itertools.product(_STEPS, _STEPS, _STEPS):
        color = f"#{red:02x}{green:02x}{blue:02x}"
        assert contrast(color, text_color(color)) >= 4.5, color
        least = min(contrast(color, background) for background in BACKGROUNDS)
        if least >= 3:
            assert check_accent(color) == color
            accepted += 1
        else:
            with pytest.raises(ValueError, match="has a contrast of"):
                check_accent(color)
    assert accepted > 100


_FORM = 'must be a color such as "#2563eb"'


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (
            "#ffd600",
            "has a contrast of 1.41 with the page's background #ffffff, but 3 is required; choose a darker color",
        ),
        (
            "#1a56db",
            "has a contrast of 2.87 with the page's background #111827, but 3 is required; choose a lighter color",
        ),
        *((value, _FORM) for value in ("red", "#25e", "#2563eb00", "#2563eb;}", "#25\n63eb")),
    ],
)
def test_load_settings_invalid_accent_is_reported_with_measured_contrast(value: str, problem: str) -> None:
    """The error has the measured ratio and the fix."""
    with pytest.raises(ConfigurationError) as raised:
        load_settings(None, environ_with(APP__ACCENT=value))
    assert list(raised.value.problems) == [f"app.accent: {value!r}: {problem}"]


# --- logo ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (SVG, "svg+xml"),
        (b"\xef\xbb\xbf<?xml version='1.0' encoding='utf-8'?>\n<!-- drawn -->\n" + SVG, "svg+xml"),
        (SVG.decode().encode("utf-16"), "svg+xml"),
        (png(), "png"),
        (png().ljust(MAX_LOGO, b"\0"), "png"),
    ],
)
def test_read_logo_returns_data_url_by_content(tmp_path: Path, content: bytes, kind: str) -> None:
    """The type follows from the content, whatever the file's name is."""
    path = tmp_path / "logo.gif"
    path.write_bytes(content)
    assert read_logo(path) == f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GIF89a" + b"\0" * 32,
        b"\xff\xd8\xff\xe0 a photo",
        b"\x89PNG\r\n\x1a\n",
        b"<html><svg xmlns='http://www.w3.org/2000/svg'></svg></html>",
        b"<svg><circle/></svg>",
        SVG[:-2],
        b"<svg xmlns='http://www.w3.org/2000/svg'>&undefined;</svg>",
        b"<?xml version='1.0' encoding='no-such'?>" + SVG,
        b"<?xml version='1.0' encoding='idna'?>" + SVG,
        b"<svg \0",
        b"\xff\xfe\0",
        b"<a>" * 8000,
        b"<!DOCTYPE a [<!ENTITY a 'aaaaaaaaaa'>" + b"".join(
            b"<!ENTITY %c '%s'>" % (98 + i, b"&%c;" % (97 + i) * 10) for i in range(12)
        ) + b"]><svg xmlns='http://www.w3.org/2000/svg'>&m;</svg>",
    ],
)  # fmt: skip
def test_read_logo_of_another_type_is_refused(tmp_path: Path, content: bytes) -> None:
    """Neither another format nor a broken or hostile SVG file is shown."""
    path = tmp_path / "logo.svg"
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"app\.logo: .*/logo\.svg is neither an SVG nor a PNG file"):
        read_logo(path)


def test_config_check_unusable_logo_exits_78(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A logo that is missing, too large, no file or of another type is a configuration error."""
    (tmp_path / "large.png").write_bytes(png().ljust(MAX_LOGO + 1, b"\0"))
    (tmp_path / "text.svg").write_text("a logo")
    os.mkfifo(tmp_path / "pipe.svg")
    for name, problem in (
        ("missing.svg", "cannot read {path}: No such file or directory"),
        ("large.png", "cannot read {path}: Larger than 32,768 bytes"),
        ("", "cannot read {path}: Is a directory"),
        ("pipe.svg", "cannot read {path}: Not a regular file"),
        ("text.svg", "{path} is neither an SVG nor a PNG file: convert it to one of them"),
    ):
        path = tmp_path / name
        assert main(["config", "check"], environ=environ_with(APP__LOGO=str(path))) == 78
        assert f"app.logo: {problem.format(path=path)}" in capsys.readouterr().err


def test_load_settings_relative_logo_starts_at_configuration_folder(tmp_path: Path) -> None:
    """A relative path to the logo starts at the folder of the configuration file."""
    (tmp_path / "logo.svg").write_bytes(SVG)
    config = tmp_path / "config.toml"
    config.write_text('[app]\nlogo = "logo.svg"\naccent = "#2563EB"\n')
    app = load_settings(config, environ_with()).app
    assert (app.logo, app.accent) == (tmp_path / "logo.svg", "#2563EB")
