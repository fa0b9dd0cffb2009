"""The return page's security: headers, frames, other hosts, referrers and its content policy."""

import re
from typing import Any

from tests.browser.chromium import ANDROID, IPHONE, Chromium
from tests.browser.conftest import Site
from tests.browser.page_states import BEFORE_AMO, SETTINGS, STATES, public, returned, titles
from tests.service import BASE, LINK, Running

TITLES = titles()
_NONCE = re.compile(r"'nonce-([\w-]{22})'")


async def test_page_of_each_state_has_title_and_no_violation(chromium: Chromium, run: Any) -> None:
    """Each state has its title and link, and no action violates the policy.

    A failure makes no automatic attempt and no further request to AMO.
    """
    browser = await chromium.own()
    for state, reach in STATES.items():
        async with run(APP__ANDROID_PACKAGE="ae.foryoure.app", **SETTINGS.get(state, {})) as app:
            tab = await chromium.tab(ANDROID, browser=browser)
            address = await reach(app)
            asked = app.amo.sandbox.requests
            answer = await tab.page.goto(address)
            assert answer is not None
            title = TITLES[state]
            assert (await tab.page.locator("h1").inner_text(), await tab.page.title()) == (title, title)
            if state != "connected":
                link = await tab.link() or ""
                if state == "exchanging":
                    assert link == ""
                elif state == "gone":
                    assert link == LINK
                else:
                    assert link.startswith(f"{LINK}?error={state}")
                if state != "exchanging":
                    await tab.pass_time(60)
                    await tab.go_on()
                assert (state, tab.launches, tab.navigations) == (state, [], [])
                assert app.amo.sandbox.requests == asked == (0 if state in BEFORE_AMO else asked)
            headers = await answer.all_headers()
            policy = headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; ")
            assert "unsafe" not in policy
            assert headers["content-type"] == "text/html; charset=utf-8"
            assert headers["cache-control"] == "no-store"
            nonces = set(_NONCE.findall(policy))
            assert len(nonces) == 1
            used = await tab.page.evaluate("[...document.querySelectorAll('script, style')].map(each => each.nonce)")
            assert set(used) == nonces
            if await tab.link() is not None:
                await tab.page.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true })")
                await tab.hide_and_show()
                await tab.tap()
            assert (state, tab.violations, tab.dialogs) == (state, [], [])
            assert [text for text in tab.console if text.startswith("uncaught")] == []
            app.amo.sandbox.go_on.set()
            await tab.context.close()


async def test_policy_blocks_injected_content(chromium: Chromium, app: Running, other_site: Site) -> None:
    """Injected scripts, handlers, styles, pictures, forms and frames are blocked."""
    tab = await chromium.tab()
    await tab.page.goto(await returned(app))
    await tab.page.evaluate(
        """evil => {
          document.querySelector('main').insertAdjacentHTML('beforeend', `
            <img src="${evil}/x.png" onerror="window.__x = 1"><iframe src="${evil}/frame"></iframe>
            <style>h1 { display: none }</style><form action="${evil}/form"><button id="send"></button></form>
            <a id="script" href="javascript:window.__x=1">x</a>`);
          const script = document.createElement('script');
          script.textContent = 'window.__x = 1';
          document.body.append(script);
          document.querySelector('#script').click();
          document.querySelector('#send').click();
        }""",
        other_site.address,
    )
    await tab.pass_time(1)
    assert await tab.page.evaluate("window.__x") is None
    assert await tab.page.locator("h1").is_visible()
    assert other_site.visits == []
    refused = " ".join(tab.violations)
    for directive in ("script-src", "style-src", "img-src", "default-src", "form-action"):
        assert directive in refused


async def test_page_cannot_be_framed(chromium: Chromium, app: Running, other_site: Site) -> None:
    """Another site's frame shows neither the page nor the callback, so no link can be tapped unseen."""
    for address in (await returned(app), public(app, f"{BASE}/callback?error=access_denied&state=s")):
        other_site.pages["/"] = f'<!doctype html><iframe src="{address}"></iframe>'
        tab = await chromium.tab(IPHONE)
        async with tab.page.expect_console_message(lambda message: "frame" in message.text):
            await tab.page.goto(other_site.address)
        [_, frame] = tab.page.frames
        assert await frame.locator("#open").count() == 0
        assert tab.launches == []
        await tab.context.close()


async def test_page_requests_no_other_host(chromium: Chromium, app: Running) -> None:
    """The page loads nothing from another host, and from the service only itself."""
    tab = await chromium.tab(IPHONE, own_browser=True)
    callback = public(app, f"{BASE}/callback?{app.query(state='s')}")
    await tab.page.goto(callback)
    link = await tab.until_launched()
    await tab.pass_time(60)
    assert tab.hosts == {app.service.public}
    page = tab.page.url.partition("?")[0]
    assert [address for address in tab.requests if not address.startswith("data:")] == [callback, page, link]


async def test_page_sends_no_referrer(chromium: Chromium, app: Running, other_site: Site) -> None:
    """A link away from the page or from an error at the callback's address sends no referrer."""
    for address in (await returned(app), public(app, f"{BASE}/callback?error=access_denied&state=secret-state")):
        tab = await chromium.tab()
        await tab.page.goto(address)
        await tab.page.evaluate(
            """to => {
              const link = Object.assign(document.createElement('a'), {href: to, textContent: 'away', id: 'away'});
              document.querySelector('main').append(link);
            }""",
            other_site.address + "/away",
        )
        await tab.page.click("#away")
        await tab.page.wait_for_url("**/away")
        [headers] = [headers for path, headers in other_site.visits if path == "/away"]
        assert "Referer" not in headers
        assert await tab.page.evaluate("document.referrer") == ""
        other_site.visits.clear()
        await tab.context.close()


async def test_callback_ignores_host_headers_and_cookies(app: Running) -> None:
    """The return address does not depend on a request's host headers, and no cookie is used."""
    for headers in (
        {"Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "gopher"},
        {"Forwarded": "host=evil.example", "Cookie": "session=evil.example"},
        {"X-Original-URL": "//evil.example", "X-Rewrite-URL": "//evil.example"},
    ):
        answer = await app.callback(app.query(), html=True, headers=headers)
        assert re.fullmatch(rf"{BASE}/return/[\w-]{{22}}", answer.location)
        page = await app.public(answer.location, headers=headers)
        assert "evil.example" not in page.text + repr(answer.headers) + repr(page.headers)
        assert "Set-Cookie" not in {**answer.headers, **page.headers}
