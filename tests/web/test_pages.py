"""The return page in its variants and languages, and the detection of browser and language."""

import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator
from importlib import resources

import pytest
import segno
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from amo_callback.appearance import BACKGROUNDS, contrast
from amo_callback.deeplink import DEEP_LINK_ERRORS
from amo_callback.web.pages import (
    LANGUAGES,
    PLACEHOLDER,
    Brand,
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
ADDRESS = "https://admin.example.com/api/amo-crm/return/AAAAAAAAAAAAAAAAAAAAAA"
CONNECTED = View(variant="connected", status=200, link=LINK, auto_open=True, domain=HOST, support="0a1b2c3d")
APP_LINK = View(variant="app_link", status=200, link="https://open.example.com/amo?code=c&state=s")
EN = UserAgent(kind=Kind.IOS, language="en")
BRAND = Brand(app="For You", crm="amoCRM")
IOS_STORE, ANDROID_STORE = "https://apps.apple.com/app/id1", "https://play.google.com/store/apps/details?id=a&hl=en"
VIEWS = [
    CONNECTED,
    View(variant="connected", status=200, link=LINK, intent=INTENT, attempted=True, domain=HOST, support="0a1b2c3d"),
    View(variant="exchanging", status=200, support="0a1b2c3d"),
    View(variant="gone", status=404, link="foryoure://amo-crm/callback", support="0a1b2c3d"),
    View(variant="amo_unavailable", status=503, retry_url=""),
    *(View(variant=word, status=known.status, link=LINK, intent=INTENT) for word, known in DEEP_LINK_ERRORS.items()),
    *(
        View(variant=word, status=known.status, link=LINK, retry_url="?again=1", support="0a1b2c3d")
        for word, known in DEEP_LINK_ERRORS.items()
    ),
    APP_LINK,
    dataclasses.replace(CONNECTED, address=ADDRESS),
]


def _visitors() -> Iterator[UserAgent]:
    for kind, language in itertools.product(Kind, LANGUAGES):
        yield UserAgent(kind=kind, language=language)


def _html(answer: web.Response) -> str:
    assert answer.text is not None
    return answer.text


@pytest.fixture(scope="module")
def pages() -> Pages:
    return Pages(BRAND)


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
        assert not re.search(r"@import|url\(|animation|transition|\{[a-z]+\}|None", html)
        assert re.findall(r"https?://[^/]*", html) == ["https://open.example.com"] * (view is APP_LINK)
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
        assert [icon.get("aria-hidden") for icon in markup.named("svg") if "class" in icon] == ["true"]
        metas = {element.get("name", ""): element.get("content") for element in markup.named("meta")}
        assert metas["viewport"] == "width=device-width, initial-scale=1"
        assert metas["color-scheme"] == "light dark"
        ids = [element["id"] for _, element in markup.elements if "id" in element]
        assert len(set(ids)) == len(ids)
        assert answer.status == view.status
        assert answer.headers["Vary"] == "Accept, Accept-Language, User-Agent"


def test_pages_script_and_style_have_fresh_nonce(pages: Pages) -> None:
    """Only a page with a link, or one that waits for the result, may run its script; the nonce is new on each page."""
    nonces = set()
    for view in VIEWS:
        answer = pages.render(view, UserAgent(kind=Kind.IOS, language="en"))
        markup, policy = Markup.read(_html(answer)), answer.headers["Content-Security-Policy"]
        [style] = markup.named("style")
        nonce = style["nonce"]
        nonces.add(nonce)
        waits = view.variant == "exchanging"
        scripts = f"script-src 'nonce-{nonce}'; " if view.link or waits else ""
        scripts += "connect-src 'self'; " if waits else ""
        assert [element["nonce"] for element in markup.named("script")] == [nonce] * bool(scripts)
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
    texts = fill(read_texts(language), {"app": "For You", "crm": "amoCRM", "domain": ""})
    final = Markup.read(_html(pages.render(View(variant=word, status=400, link=LINK), visitor)))
    assert final.text_of("h1") == texts[word]["title"]
    assert texts[word]["todo"] in final.text["p"]
    assert final.named("a") == [{"id": "open", "class": "button", "href": LINK}]
    passing = Markup.read(_html(pages.render(View(variant=word, status=400, link=LINK, retry_url=""), visitor)))
    assert texts["todo"]["again"] in passing.text["p"]
    assert passing.named("a") == [
        {"id": "again", "class": "button", "href": ""},
        {"id": "open", "class": "second", "href": LINK},
    ]


def test_exchanging_page_shows_result_without_header(pages: Pages) -> None:
    """Only the page of an unfinished exchange waits: by its script, else by a meta element, and by a link to itself."""
    for view in VIEWS:
        answer = pages.render(view, UserAgent(kind=Kind.IOS, language="en"))
        html, waits = _html(answer), view.variant == "exchanging"
        assert "Refresh" not in answer.headers
        assert html.count('<noscript><meta http-equiv="refresh" content="2"></noscript>') == waits
        assert ("fetch(" in html) == waits
        if waits:
            assert Markup.read(html).named("a") == [{"id": "look", "class": "button", "href": ""}]


@pytest.mark.parametrize(
    ("kind", "note"),
    [
        (Kind.IOS, None),
        (Kind.ANDROID, None),
        (Kind.IN_APP, "in_app"),
        (Kind.OTHER, "on_phone"),
        (Kind.MAC, "on_phone"),
        (Kind.LINUX, "on_phone"),
    ],
)
@pytest.mark.parametrize("language", LANGUAGES)
def test_connected_page_note_depends_on_browser_kind(pages: Pages, kind: Kind, note: str | None, language: str) -> None:
    """In-app browsers and desktops get a note above the button; other browsers get none."""
    html = _html(pages.render(CONNECTED, UserAgent(kind=kind, language=language)))
    texts = fill(read_texts(language), {"app": "For You", "crm": "amoCRM", "domain": HOST})["page"]
    notes = [key for key in ("in_app", "on_phone") if texts[key] in html]
    assert notes == ([note] if note else [])
    if note:
        assert html.index('class="note"') < html.index('id="open"')
    unread = View(variant="amo_unavailable", status=503, retry_url="")
    bare = Markup.read(_html(pages.render(unread, UserAgent(kind=kind, language=language))))
    assert not [element for element in bare.named("p") if element.get("class") == "note"]


@pytest.mark.parametrize("kind", Kind)
def test_page_that_may_be_tablets_marks_parts_for_script(pages: Pages, kind: Kind) -> None:
    """On a Mac or Linux, the script decides by the touch screen; the parts that it changes are marked."""
    view = dataclasses.replace(CONNECTED, intent=INTENT if kind in {Kind.ANDROID, Kind.LINUX} else None)
    markup = Markup.read(_html(pages.render(view, UserAgent(kind=kind, language="en"))))
    assert ("data-tablet" in markup.id("open")) == (kind in {Kind.MAC, Kind.LINUX})
    parts = {element["data-only"]: name for name, element in markup.elements if "data-only" in element}
    desktop = {"desktop": "p"} if kind in {Kind.MAC, Kind.LINUX, Kind.OTHER} else {}
    assert parts == {**desktop, **({"tablet": "a"} if kind is Kind.LINUX else {})}
    assert ("hidden" in (markup.find("intent") or {})) == (kind is Kind.LINUX)


@pytest.mark.parametrize("kind", Kind)
def test_qr_code_is_only_on_desktops_with_address(pages: Pages, kind: Kind) -> None:
    """A desktop's page shows its own address as a QR code with a text alternative; a retry or other devices do not."""
    agent = UserAgent(kind=kind, language="en")
    view = dataclasses.replace(CONNECTED, address=ADDRESS)
    html = _html(pages.render(view, agent))
    markup = Markup.read(html)
    desktop = kind in {Kind.MAC, Kind.LINUX, Kind.OTHER}
    alternatives = [element["aria-label"] for element in markup.named("div") if element.get("role") == "img"]
    assert alternatives == ["QR code with the address of this page"] * desktop
    if desktop:
        size = segno.make_qr(ADDRESS, error="m").symbol_size(border=4)[0]
        assert f'<svg viewBox="0 0 {size} {size}">' in html
        assert html.index('id="scan"') < html.index('id="open"')
    for other in (CONNECTED, dataclasses.replace(view, retry_url=""), dataclasses.replace(view, link=None)):
        assert "scan" not in _html(pages.render(other, agent)).partition("<body>")[2].partition("<script")[0]


def test_crm_is_named_as_its_users_know_it() -> None:
    """Pages of kommo.com accounts say Kommo and others amoCRM; without an account, the consent page's host decides."""
    for crm, domain, expected in (
        ("Kommo", "reforyou.kommo.com", "Kommo"),
        ("amoCRM", "reforyou.kommo.com", "Kommo"),
        ("Kommo", "reforyou.amocrm.ru", "amoCRM"),
        ("Kommo", "notkommo.com", "amoCRM"),
        ("Kommo", None, "Kommo"),
        ("amoCRM", None, "amoCRM"),
    ):
        pages = Pages(dataclasses.replace(BRAND, crm=crm))
        for view, agent in itertools.product(VIEWS, _visitors()):
            html = _html(pages.render(dataclasses.replace(view, domain=domain), agent)).replace(domain or "-", "")
            assert ({"amoCRM", "Kommo"} - {expected}).pop() not in html
    assert "Kommo is connected" in _html(Pages(BRAND).render(dataclasses.replace(CONNECTED, domain="a.kommo.com"), EN))


# --- the app: stores, color and logo ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stores"),
    [
        (Kind.IOS, ["ios"]),
        (Kind.ANDROID, ["android"]),
        (Kind.IN_APP, ["ios", "android"]),
        (Kind.OTHER, ["ios", "android"]),
        (Kind.MAC, ["ios", "android"]),
        (Kind.LINUX, ["ios", "android"]),
    ],
)
def test_store_links_fit_device(kind: Kind, stores: list[str]) -> None:
    """A phone sees its own store, other devices see both; a store without a URL has no link."""
    urls = {"ios": IOS_STORE, "android": ANDROID_STORE}
    pages = Pages(dataclasses.replace(BRAND, ios_store_url=IOS_STORE, android_store_url=ANDROID_STORE))
    for view in VIEWS:
        markup = Markup.read(_html(pages.render(view, UserAgent(kind=kind, language="en"))))
        found = {link["id"]: link["href"] for link in markup.named("a") if link["id"].endswith("-store")}
        assert found == ({f"{store}-store": urls[store] for store in stores} if view.link else {})
    only = Pages(dataclasses.replace(BRAND, ios_store_url=IOS_STORE))
    html = _html(only.render(CONNECTED, UserAgent(kind=Kind.OTHER, language="en")))
    assert ("ios-store" in html, "android-store" in html) == (True, False)


@pytest.mark.parametrize("language", LANGUAGES)
def test_app_link_page_has_button_and_stores(language: str) -> None:
    """The page at an app link's own address opens the link by a button and shows the store, without a support code."""
    pages = Pages(dataclasses.replace(BRAND, ios_store_url=IOS_STORE))
    answer = pages.render(APP_LINK, UserAgent(kind=Kind.IOS, language=language))
    markup = Markup.read(_html(answer))
    assert answer.status == 200
    assert markup.text_of("h1") == read_texts(language)["app_link"]["title"].replace("{app}", "For You")
    assert [(link["id"], link["class"], link["href"]) for link in markup.named("a")] == [
        ("open", "button", APP_LINK.link),
        ("ios-store", "second", IOS_STORE),
    ]
    assert (markup.named("code"), "data-auto" in markup.id("open")) == ([], False)


def test_accent_and_logo_change_page() -> None:
    """The accent colors the button, with the readable text color; the logo is an image with the app's name."""
    pages = Pages(dataclasses.replace(BRAND, accent="#059669", logo="data:image/png;base64,AAAA"))
    for view in VIEWS:
        html = _html(pages.render(view, EN))
        assert ":root { --button: #059669; --on-button: #000000; --link: var(--text) }" in html
        assert Markup.read(html).named("img") == [
            {"class": "logo", "src": "data:image/png;base64,AAAA", "alt": "For You"}
        ]
        assert _html(Pages(BRAND).render(view, EN)).count("--button:") == 2


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
    brand = Brand(app=hostile, crm=hostile, logo=hostile)
    html = _html(Pages(brand).render(view, UserAgent(kind=Kind.ANDROID, language="uk")))
    markup = Markup.read(html)
    assert [len(markup.named(name)) for name in ("script", "img", "a", "style")] == [1, 1, 2, 1]
    assert [image["alt"] for image in markup.named("img")] == [hostile]
    assert not any(name.startswith("on") for _, element in markup.elements for name in element)
    assert markup.id("open")["href"] == markup.id("intent")["href"] == hostile
    assert markup.text_of("b") == hostile.strip()
    assert hostile in markup.id("status")["data-back"]


# --- parts -----------------------------------------------------------------------------------------


def test_texts_have_same_keys_and_placeholders_in_every_language() -> None:
    """Every language has the same sections, keys and placeholders, and no text names AMO itself."""
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
                assert names <= ({"app", "crm", "domain"} if section == "account" else {"app", "crm"})
                assert not re.search("(?i)amo ?crm|kommo", text), f"{language} {section}.{key}"


def test_colours_meet_wcag_contrast_in_both_schemes() -> None:
    """Text has a contrast of at least 4.5, icons and focus outlines of at least 3: WCAG 2.2, AA."""
    css = (resources.files("amo_callback.web.pages") / "page.css").read_text(encoding="utf-8")
    light, _, dark = css.partition("@media (prefers-color-scheme: dark)")
    for scheme in (light, dark):
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", scheme))
        for text, ground in (("text", "back"), ("quiet", "back"), ("link", "back"), ("on-button", "button")):
            assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        for shape in ("good", "bad", "button"):
            assert contrast(colours[shape], colours["back"]) >= 3, shape
    assert tuple(re.findall(r"--back: (#\w+)", css)) == BACKGROUNDS


# --- the browser -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_user_agent_kind_is_detected(name: str) -> None:
    """Phone browsers are distinguished from in-app browsers and from everything else."""
    kind, agent = AGENTS[name]
    visitor = parse_user_agent(user_agent=agent, accept_language="")
    assert visitor.kind is kind
    assert visitor.may_be_tablet == (kind in {Kind.MAC, Kind.LINUX})
    assert visitor.allows_auto_open == (visitor.may_be_tablet or kind in {Kind.IOS, Kind.ANDROID})


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
        ("en;q=0, uk;q=0, ru;q=0, es;q=0, pt;q=0", "en"),
        ("es-MX,es;q=0.9,en;q=0.8", "es"),
        ("pt-BR,pt;q=0.9,en-US;q=0.8", "pt"),
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
