"""The return page in its variants and languages, and the detection of browser and language."""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.web.pages import (
    LANGUAGES,
    PLACEHOLDER,
    Kind,
    Pages,
    UserAgent,
    View,
    fill,
    parse_user_agent,
    read_texts,
)
from tests.web.agents import AGENTS
from tests.web.markup import Markup

LINK = "foryoure://amo-crm/callback?code=c&state=s"
INTENT = "intent://amo-crm/callback?code=c&state=s#Intent;scheme=foryoure;package=com.example.app;end"
HOST = "reforyou.amocrm.ru"
CONNECTED = View(variant="connected", status=200, link=LINK, auto_open=True, domain=HOST, support="0a1b2c3d")
VIEWS = [
    CONNECTED,
    View(variant="connected", status=200, link=LINK, intent=INTENT, attempted=True, domain=HOST, support="0a1b2c3d"),
    View(variant="exchanging", status=200, support="0a1b2c3d"),
    View(variant="gone", status=404),
    View(variant="amo_unavailable", status=503, retry_url=""),
    *(View(variant=word, status=known.status, link=LINK, intent=INTENT) for word, known in DEEP_LINK_ERRORS.items()),
    *(
        View(variant=word, status=known.status, link=LINK, retry_url="?again=1", support="0a1b2c3d")
        for word, known in DEEP_LINK_ERRORS.items()
    ),
]


def _visitors() -> Iterator[UserAgent]:
    for kind, language in itertools.product(Kind, LANGUAGES):
        yield UserAgent(kind=kind, language=language)


def _html(answer: web.Response) -> str:
    assert answer.text is not None
    return answer.text


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages(app_name="For You")


def test_pages_are_small_and_load_nothing(pages: Pages, record_property: Callable[[str, object], None]) -> None:
    """Every page has at most 10 kB without its links, and loads nothing, in every language and browser."""
    heaviest = 0
    for view, visitor in itertools.product(VIEWS, _visitors()):
        html = _html(pages.render(view, visitor))
        markup = Markup.read(html)
        links = sum(len(link["href"].encode()) for link in markup.named("a"))
        heaviest = max(heaviest, len(html.encode()) - links)
        assert not [element for _, element in markup.elements if "src" in element or "target" in element]
        assert [element["href"] for element in markup.named("link")] == ["data:,"]
        assert not re.search(r"https?://|@import|url\(|http-equiv|animation|transition|\{[a-z]+\}|None", html)
    record_property("bytes at most", heaviest)
    assert heaviest <= 10_000


def test_pages_are_complete_documents_in_their_language(pages: Pages) -> None:
    """Every page has language, title, heading, main part, an icon hidden from screen readers, and unique ids."""
    for view, visitor in itertools.product(VIEWS, _visitors()):
        answer = pages.render(view, visitor)
        markup = Markup.read(_html(answer))
        assert [element["lang"] for element in markup.named("html")] == [visitor.language]
        assert markup.text_of("title") == markup.text_of("h1") != ""
        assert (len(markup.named("main")), len(markup.named("h1"))) == (1, 1)
        assert [icon["aria-hidden"] for icon in markup.named("svg")] == ["true"]
        metas = {element.get("name"): element.get("content") for element in markup.named("meta")}
        assert metas["viewport"] == "width=device-width, initial-scale=1"
        assert metas["color-scheme"] == "light dark"
        ids = [element["id"] for _, element in markup.elements if "id" in element]
        assert len(set(ids)) == len(ids)
        assert answer.status == view.status
        assert answer.headers["Vary"] == "Accept, Accept-Language, User-Agent"


def test_pages_script_and_style_have_fresh_nonce(pages: Pages) -> None:
    """Only a page with a link to the app may run its script; the nonce is new on each page."""
    nonces = set()
    for view in VIEWS:
        answer = pages.render(view, UserAgent(kind=Kind.IOS, language="en"))
        markup, policy = Markup.read(_html(answer)), answer.headers["Content-Security-Policy"]
        [style] = markup.named("style")
        nonce = style["nonce"]
        nonces.add(nonce)
        scripts = f"script-src 'nonce-{nonce}'; " if view.link else ""
        assert [element["nonce"] for element in markup.named("script")] == [nonce] * bool(view.link)
        assert policy == (
            f"default-src 'none'; {scripts}style-src 'nonce-{nonce}'; img-src data:; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'"
        )
    assert len(nonces) == len(VIEWS)
    assert {len(nonce) for nonce in nonces} == {22}


# --- content --------------------------------------------------------------------------------------


def test_connected_page_shows_account_and_one_button(pages: Pages) -> None:
    """The page names the account, its one link opens the app, and the script's later messages are hidden."""
    html = _html(pages.render(CONNECTED, UserAgent(kind=Kind.IOS, language="en")))
    markup = Markup.read(html)
    assert markup.text_of("h1") == "amoCRM is connected"
    assert markup.text_of("b") == HOST
    assert markup.named("a") == [{"id": "open", "class": "button", "href": LINK, "data-auto": "1"}]
    status = markup.id("status")
    assert status["role"] == "status"
    assert (status["data-late"], "you may close this tab" in status["data-back"]) == (
        "Did not open? Press “Return to For You”.",
        True,
    )
    assert re.search(r'<p id="status"[^>]*></p>', html)
    assert f"You connected {HOST}." in html
    assert markup.text_of("summary") == "Wrong account? Did not get to the app?"
    assert markup.text_of("code") == "0a1b2c3d"
    assert "open" not in markup.id("help")


def test_connected_page_after_attempt_shows_help(pages: Pages) -> None:
    """After an automatic attempt the page makes no further attempt and shows the help."""
    markup = Markup.read(_html(pages.render(VIEWS[1], UserAgent(kind=Kind.ANDROID, language="en"))))
    assert "open" in markup.id("help")
    assert "data-auto" not in markup.id("open")
    assert markup.id("intent")["href"] == INTENT


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("word", DEEP_LINK_ERRORS)
def test_error_page_has_text_and_buttons_in_every_language(pages: Pages, word: str, language: str) -> None:
    """Each error has its own text and a button to the app, no automatic opening, and a retry if it is transient."""
    visitor = UserAgent(kind=Kind.IOS, language=language)
    texts = read_texts(language)
    final = Markup.read(_html(pages.render(View(variant=word, status=400, link=LINK), visitor)))
    assert final.text_of("h1") == texts[word]["title"]
    assert texts[word]["todo"].replace("{app}", "For You") in final.text["p"]
    assert final.named("a") == [{"id": "open", "class": "button", "href": LINK}]
    passing = Markup.read(_html(pages.render(View(variant=word, status=400, link=LINK, retry_url=""), visitor)))
    assert texts["todo"]["again"].replace("{app}", "For You") in passing.text["p"]
    assert passing.named("a") == [
        {"id": "again", "class": "button", "href": ""},
        {"id": "open", "class": "second", "href": LINK},
    ]


def test_exchanging_page_reloads_itself(pages: Pages) -> None:
    """Only the page of an unfinished exchange reloads, by a header and by a link to its own address."""
    for view in VIEWS:
        answer = pages.render(view, UserAgent(kind=Kind.IOS, language="en"))
        waits = view.variant == "exchanging"
        assert answer.headers.get("Refresh") == ("2" if waits else None)
        if waits:
            assert Markup.read(_html(answer)).named("a") == [{"id": "look", "class": "button", "href": ""}]


@pytest.mark.parametrize(
    ("kind", "note"), [(Kind.IOS, None), (Kind.ANDROID, None), (Kind.IN_APP, "in_app"), (Kind.OTHER, "on_phone")]
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_connected_page_note_depends_on_browser_kind(pages: Pages, kind: Kind, note: str | None, language: str) -> None:
    """In-app browsers and desktops get a note above the button; other browsers get none."""
    html = _html(pages.render(CONNECTED, UserAgent(kind=kind, language=language)))
    texts = fill(read_texts(language), {"app": "For You", "domain": HOST})["page"]
    notes = [key for key in ("in_app", "on_phone") if texts[key] in html]
    assert notes == ([note] if note else [])
    if note:
        assert html.index('class="note"') < html.index('id="open"')
    bare = Markup.read(_html(pages.render(View(variant="gone", status=404), UserAgent(kind=kind, language=language))))
    assert not [element for element in bare.named("p") if element.get("class") == "note"]


@pytest.mark.parametrize(
    "hostile",
    [
        '"><script>window.__x=1</script>',
        "</title><img src=x onerror=window.__x=1>",
        "' onmouseover='x",
        "{{7*7}}{% raw %}",
        "{domain}",
        "{app}",
        "\u2028\u202e",
    ],
)
def test_pages_hostile_values_stay_text(hostile: str) -> None:
    """Markup in an app name, account or link stays text or the value of one attribute."""
    view = View(variant="connected", status=200, link=hostile, intent=hostile, domain=hostile, support=hostile)
    html = _html(Pages(app_name=hostile).render(view, UserAgent(kind=Kind.ANDROID, language="uk")))
    markup = Markup.read(html)
    assert [len(markup.named(name)) for name in ("script", "img", "a", "style")] == [1, 0, 2, 1]
    assert not any(name.startswith("on") for _, element in markup.elements for name in element)
    assert markup.id("open")["href"] == markup.id("intent")["href"] == hostile
    assert markup.text_of("b") == hostile.strip()
    assert hostile in markup.id("status")["data-back"]


# --- parts -----------------------------------------------------------------------------------------


def test_texts_have_same_keys_and_placeholders_in_every_language() -> None:
    """Every language has the same sections, keys and placeholders; only `account` texts use the domain."""
    english = read_texts("en")
    for language in LANGUAGES:
        texts = read_texts(language)
        assert {section: set(content) for section, content in texts.items()} == {
            section: set(content) for section, content in english.items()
        }
        for section, content in texts.items():
            for key, text in content.items():
                names = set(PLACEHOLDER.findall(text))
                assert text.strip(), f"{language} {section}.{key}"
                assert names == set(PLACEHOLDER.findall(english[section][key])), f"{language} {section}.{key}"
                assert names <= ({"app", "domain"} if section == "account" else {"app"})
                assert set(re.findall(r"(?i)\bamo\w*", text)) <= {"amoCRM"}, f"{language} {section}.{key}"


def test_colours_meet_wcag_contrast_in_both_schemes() -> None:
    """Text has a contrast of at least 4.5, icons and focus outlines of at least 3: WCAG 2.2, AA."""
    css = (resources.files("amo_callback.web.pages") / "page.css").read_text(encoding="utf-8")
    light, _, dark = css.partition("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        colours = {name: _luminance(value) for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6})", scheme)}
        for text, ground in (("text", "back"), ("quiet", "back"), ("link", "back"), ("on-button", "button")):
            assert _contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for shape in ("good", "bad", "button"):
            assert _contrast(colours[shape], colours["back"]) >= 3, shape


def _luminance(colour: str) -> float:
    """Return the relative luminance, https://www.w3.org/TR/WCAG22/#dfn-relative-luminance."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)


# --- the browser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_user_agent_kind_is_detected(name: str) -> None:
    """Phone browsers are distinguished from in-app browsers and from everything else."""
    kind, agent = AGENTS[name]
    visitor = parse_user_agent(user_agent=agent, accept_language="")
    assert visitor.kind is kind
    assert visitor.allows_auto_open == (kind in {Kind.IOS, Kind.ANDROID})


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("uk", "uk"),
        ("uk-UA", "uk"),
        ("UK-ua", "uk"),
        ("ru-RU,ru;q=0.9,en-US;q=0.8,en;q=0.7", "ru"),
        ("uk-UA,uk;q=0.9,ru;q=0.8", "uk"),
        ("ru;q=0.8, uk;q=0.9", "uk"),
        ("de-DE,de;q=0.9,ru;q=0.1", "ru"),
        ("de, fr;q=0.5", "en"),
        ("ru-Cyrl-RU-x-private", "ru"),
        ("ru ; Q=0.5 , uk;q=0.4", "ru"),
        ("ru;q=0.5,uk;q=0.5", "ru"),
        ("uk;q=0", "en"),
        ("uk;q=0.000, ru;q=0.001", "ru"),
        ("uk-UA;q=0, uk;q=0.5", "uk"),
        ("en;q=0, de", "uk"),
        ("en;q=0, uk;q=0, ru;q=0", "en"),
        ("*", "en"),
        ("*, ru;q=0.1", "ru"),
        ("de, *;q=0.5", "en"),
        ("russian", "en"),
        ("ru_RU, uk;q=0.1", "uk"),
        ("ru;q=2, uk;q=0.1", "uk"),
        ("ru;q=, uk;q=0.1", "uk"),
        ("ru;q=0.1234, uk;q=0.1", "uk"),
        ("ru;q=\u0660.\u0665, uk;q=0.1", "uk"),
        ("ru;level=1, uk;q=0.1", "uk"),
        (",,;q=1,, ,uk", "uk"),
        ("de," * 200 + "ru", "en"),
        ("x" * 509 + ",ru-RU", "en"),
    ],
)
def test_language_follows_accept_language(accepted: str, language: str) -> None:
    """Languages count by weight, then by order; ranges are shortened; malformed or excess parts are ignored."""
    assert parse_user_agent(user_agent="", accept_language=accepted).language == language


@given(agent=st.text(st.characters(), max_size=300), accepted=st.text(st.characters(), max_size=300))
def test_user_agent_any_header_is_parsed(agent: str, accepted: str) -> None:
    """Any header text, including lone surrogates, gives a kind and a language."""
    assert parse_user_agent(user_agent=agent, accept_language=accepted).language in LANGUAGES


@pytest.mark.parametrize("piece", ["Android ", "iPhone", ",", "a-", "ru;q=0.5,", "\t", " ;", "ru \t\t\t\t", "; wv"])
def test_user_agent_huge_header_is_parsed_quickly(piece: str) -> None:
    """A header of 30 kB that would cause backtracking is parsed within a second."""
    started = time.thread_time()  # of this thread only, whatever the machine's load
    parse_user_agent(user_agent=piece * (2048 // len(piece)), accept_language=piece * (30_000 // len(piece)))
    assert time.thread_time() - started < 1
