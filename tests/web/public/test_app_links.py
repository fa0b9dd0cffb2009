"""The routes on the hosts of https deep links: the files that let the app claim the links, and the page."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from yarl import URL

from amo_callback.app_links import ANDROID_FILE, IOS_FILE
from amo_callback.web.pages import LANGUAGES
from tests.service import BASE, HOST, LINK, READ_KEY, Answer, Running
from tests.web.markup import Markup

WEB = "https://app.example.com/amo-crm/back"
FINGERPRINT = ":".join(["ab"] * 31 + ["0f"])
APPS = {
    "APP__IOS_APP_IDS": "ABCDE12345.com.example.app ABCDE12345.com.example.app-dev",
    "APP__ANDROID_PACKAGE": "com.example.app",
    "APP__ANDROID_CERT_FINGERPRINTS": f"{FINGERPRINT}, {FINGERPRINT.upper().replace('AB', 'CD')}",
}
ANDROID = "Mozilla/5.0 (Linux; Android 15; Pixel 9) AppleWebKit/537.36 Chrome/138.0.0.0 Mobile Safari/537.36"


@pytest.fixture
async def app(run: Any) -> AsyncIterator[Running]:
    """Run the service with an https deep link and its apps."""
    async with run(APP__DEEP_LINK=f"{LINK} {WEB}", **APPS) as running:
        yield running


def _linked(answer: Answer) -> str:
    """Return the link of a page, which has no other link to this host."""
    markup = Markup.read(answer.text)
    assert len(markup.named("script")) == 1
    return str(markup.id("open")["href"])


# --- the files -------------------------------------------------------------------------------------


async def test_files_have_apples_and_googles_format(app: Running) -> None:
    """The files name the apps and the paths of the https deep links; fingerprints are in upper case."""
    assert (await app.public(IOS_FILE)).json() == {
        "applinks": {
            "details": [
                {
                    "appIDs": ["ABCDE12345.com.example.app", "ABCDE12345.com.example.app-dev"],
                    "components": [{"/": "/amo-crm/back"}],
                }
            ]
        },
        "webcredentials": {"apps": ["ABCDE12345.com.example.app", "ABCDE12345.com.example.app-dev"]},
    }
    assert (await app.public(ANDROID_FILE)).json() == [
        {
            "relation": ["delegate_permission/common.handle_all_urls"],
            "target": {
                "namespace": "android_app",
                "package_name": "com.example.app",
                "sha256_cert_fingerprints": [
                    FINGERPRINT.upper(),
                    FINGERPRINT.upper().replace("AB", "CD"),
                ],
            },
        }
    ]


@pytest.mark.parametrize("host", ["app.example.com", "admin.example.com", "evil.example", "x" * 300, "a b", "[", ""])
@pytest.mark.parametrize("path", [IOS_FILE, ANDROID_FILE])
async def test_files_are_plain_json_for_every_host(app: Running, path: str, host: str) -> None:
    """GET and HEAD are 200 without a redirect or cookie, with `application/json`, and may be cached for minutes."""
    for method in ("GET", "HEAD"):
        answer = await app.public(f"{path}?x=1", method=method, headers={"Host": host})
        assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
        assert answer.headers["Cache-Control"] == "public, max-age=300"
        assert answer.headers.keys() & {"Location", "Set-Cookie", "Vary"} == set()
        assert int(answer.headers["Content-Length"]) > 100
    assert (await app.public(path, method="POST")).status == 405
    assert (await app.private(path)).status == 404


@pytest.mark.parametrize(
    ("more", "found"),
    [
        ({}, set()),
        ({"APP__DEEP_LINK": WEB}, set()),
        ({"APP__DEEP_LINK": WEB, "APP__ANDROID_PACKAGE": "com.example.app"}, set()),
        ({"APP__DEEP_LINK": WEB, "APP__IOS_APP_IDS": APPS["APP__IOS_APP_IDS"]}, {IOS_FILE}),
        ({"APP__DEEP_LINK": WEB, **{key: APPS[key] for key in APPS if "IOS" not in key}}, {ANDROID_FILE}),
    ],
)
async def test_file_without_its_settings_is_404(run: Any, more: dict[str, str], found: set[str]) -> None:
    """A file exists only if its settings do, and the OpenAPI document has only existing ones."""
    async with run(**more) as app:
        for path in (IOS_FILE, ANDROID_FILE):
            answer = await app.public(path)
            assert answer.status == (200 if path in found else 404)
        documented = (await app.private("/openapi.json", key=READ_KEY)).json()["paths"]
        assert {path for path in documented if path.startswith("/.well-known")} == found
        assert ("/amo-crm/back" in documented) is bool(more)


# --- the page --------------------------------------------------------------------------------------


async def test_page_opens_app_and_exchanges_nothing(app: Running) -> None:
    """The link's own page has the link with the received query, and the code in the query is not exchanged."""
    code = app.amo.code()
    answer = await app.public(f"/amo-crm/back?code={code}&state=a%20b%ff&referer={HOST}")
    assert answer.status == 200
    assert _linked(answer) == f"{LINK}?code={code}&state=a%20b%ff&referer={HOST}"
    assert "data-auto" not in answer.text
    assert Markup.read(answer.text).text_of("h1") == "Continue in For You"
    assert app.amo.sandbox.requests == 0
    assert app.amo.fake.ledger.entries == []


async def test_page_is_not_stored_or_indexed_and_sends_no_referrer(app: Running) -> None:
    """GET and HEAD have the headers of the return page; other methods are 405."""
    for method in ("GET", "HEAD"):
        answer = await app.public("/amo-crm/back?code=x", method=method)
        assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert "script-src 'nonce-" in answer.headers["Content-Security-Policy"]
        assert answer.headers.keys() & {"Location", "Set-Cookie", "Refresh"} == set()
    assert (await app.public("/amo-crm/back", method="POST")).status == 405


@pytest.mark.parametrize("language", LANGUAGES)
async def test_page_has_text_in_each_language(app: Running, language: str) -> None:
    """The page follows `Accept-Language`."""
    answer = await app.public("/amo-crm/back", headers={"Accept-Language": language})
    markup = Markup.read(answer.text)
    assert markup.named("html")[0]["lang"] == language
    assert "For You" in markup.text_of("h1")


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ""),
        ("?", ""),
        ("?code=a&code=b&state=", "?code=a&code=b&state="),
        ("?a=1+2%2B3", "?a=1+2%2B3"),
        ("?%ff%FE=%zz%", "?%ff%FE=%zz%"),
        ("?code=def?x/y:@!$'()*,;", "?code=def%3Fx%2Fy%3A%40%21%24%27%28%29%2A%2C%3B"),
        ('?x="><script>window.__x=1</script>', "?x=%22%3E%3Cscript%3Ewindow.__x=1%3C%2Fscript%3E"),
        ("?x='onmouseover='y", "?x=%27onmouseover=%27y"),
        ("?x={{7*7}}{app}", "?x=%7B%7B7%2A7%7D%7D%7Bapp%7D"),
        ("?x=#Intent;scheme=javascript;end", "?x=%23Intent%3Bscheme=javascript%3Bend"),
        ("?" + "x" * 9_000, "?" + "x" * 9_000),
        ("?" + "x" * 18_444, "?" + "x" * 18_444),
        ("?" + "x" * 18_445, ""),
        ("?" + '"' * 9_000, ""),
        ("?" + "&" * 9_000, "?" + "&" * 9_000),
        ("?" + "x" * 30_000, ""),
    ],
    ids=range(16),
)
async def test_page_link_has_received_query_escaped_and_limited(app: Running, query: str, expected: str) -> None:
    """Any query stays one attribute of one link, and a longer one than a deep link's is left out."""
    status, page = await _raw(app, f"GET /amo-crm/back{query} HTTP/1.1\r\nHost: a\r\nUser-Agent: {ANDROID}".encode())
    assert (status, Markup.read(page).id("open")["href"]) == (200, LINK + expected)
    assert [len(Markup.read(page).named(name)) for name in ("script", "style", "h1")] == [1, 1, 1]
    assert not any(name.startswith("on") for _, element in Markup.read(page).elements for name in element)


@pytest.mark.parametrize("raw", ["й\u2028🙂".encode(), b"\xff\xc0\xae", b"\x00", b"\x7f"])
async def test_page_with_bytes_that_no_url_contains_is_400(app: Running, raw: bytes) -> None:
    """Bytes that a client must percent-encode are a malformed request, which is neither answered nor logged in full."""
    answer = await _raw(app, b"GET /amo-crm/back?secret=" + raw + b" HTTP/1.1\r\nHost: a")
    assert answer == (400, "400: malformed request\n")
    assert "secret=" not in app.log.getvalue()


async def _raw(app: Running, head: bytes) -> tuple[int, str]:
    """Send a request's head as it is, and return the status and the body."""
    host, _, port = app.service.public.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head + b"\r\nConnection: close\r\n\r\n")
    answer = (await reader.read()).decode(errors="replace")
    writer.close()
    return int(answer.split()[1]), answer.partition("\r\n\r\n")[2]


async def test_query_of_page_is_never_logged(app: Running) -> None:
    """Neither the access log nor any other line contains the query or its values, in whatever form."""
    secrets = ["def50200secret", "zzsecretstate"]
    for query in (f"code={secrets[0]}&state={secrets[1]}", f"{secrets[0]}%ff", f"{secrets[0]}&" * 500):
        for method in ("GET", "HEAD", "POST"):
            await app.public(f"/amo-crm/back?{query}", method=method)
        await app.public(f"/amo-crm/back/?{query}")
        await app.public(f"{IOS_FILE}?{query}")
    await _raw(app, f"GET /amo-crm/back?{secrets[0]} HTTP/1.1\r\nHost: a\x00b".encode())
    await _raw(app, f"GET /amo-crm/back?{secrets[0]}{'x' * 40_000} HTTP/1.1\r\nHost: a".encode())
    routes = {line["route"] for line in app.lines() if line["event"] == "http.request"}
    assert routes == {"/amo-crm/back", IOS_FILE, "none"}
    assert [secret for secret in secrets if secret in app.log.getvalue()] == []


@pytest.mark.parametrize("path", ["/amo-crm/back/", "/amo-crm", "/amo-crm/back/x", "/AMO-CRM/back", "//amo-crm/back"])
async def test_other_path_than_links_is_404(app: Running, path: str) -> None:
    """Only the exact path of the link has the page."""
    assert (await app.public(path)).status == 404


async def test_page_is_not_served_without_https_link_or_for_http_links(run: Any) -> None:
    """A deep link with the app's own scheme, or an http link on this machine, has no page."""
    async with run(APP__DEEP_LINK="foryoure://amo-crm/back http://127.0.0.1:9/amo-crm/back") as app:
        assert (await app.public("/amo-crm/back")).status == 404


async def test_several_links_have_their_own_pages(run: Any) -> None:
    """Each path has its page; of two links with the same path, the page has the link of the requested host."""
    links = ["https://app.example.com/a", "https://app.example.org:443/a", "https://app.example.com/callback"]
    async with run(APP__DEEP_LINK=",".join(links), **APPS) as app:
        for host, path, link in (
            ("app.example.com", "/a", links[0]),
            ("APP.example.org", "/a", links[1]),
            ("app.example.org:443", "/a", links[1]),
            ("evil.example", "/a", links[0]),
            ("app.example.org", "/callback", links[2]),
        ):
            assert _linked(await app.public(f"{path}?x=1", headers={"Host": host})) == f"{link}?x=1"
        [details] = (await app.public(IOS_FILE)).json()["applinks"]["details"]
        assert details["components"] == [{"/": "/a"}, {"/": "/callback"}]
        document = (await app.private("/openapi.json", key=READ_KEY)).json()
        names = [one["operationId"] for item in document["paths"].values() for one in item.values()]
        assert len(names) == len(set(names))
        assert {"app_link_1", "app_link_2", "callback", "head_callback"} <= set(names)


async def test_callback_and_page_of_link_are_separate_routes(app: Running) -> None:
    """The way back from AMO ends at the https link, whose page shows the app's own link with the same query."""
    started = await app.public(f"{BASE}/connect?deep_link={URL(WEB)}")
    state = URL(started.location).query["state"]
    code = app.amo.code()
    back = await app.callback(f"code={code}&state={state}&referer={HOST}")
    assert back.location.startswith(f"{WEB}?code={code}")
    page = await app.public(back.location.removeprefix("https://app.example.com"))
    assert _linked(page) == LINK + back.location.removeprefix(WEB)
    assert app.amo.sandbox.requests == 1
