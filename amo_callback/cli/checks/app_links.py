"""Checks of the hosts of https deep links, as phones and browsers see them. No request contains credentials."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from amo_callback.app_links import app_link_files, host_of
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.cli.checks.network import INVALID_CERTIFICATE, NoResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.cli.checks.network import HttpProbe, ProbeResponse
    from amo_callback.config.settings import Settings

_CHECK = "app_links"
_JSON = "application/json"
_FORWARD = 'forward this path to server.public: see "App links" in the README'


async def check_app_links(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether each host serves the files that let the app claim its links, and whether each link has its page."""
    links, files = settings.app.https_links, app_link_files(settings.app)
    if links and not files:
        yield warn(
            _CHECK,
            "no app can claim the https deep links, so phones open them in a browser",
            fix="set app.ios_app_ids, or app.android_package and app.android_cert_fingerprints",
        )
    for host in dict.fromkeys(map(host_of, links)):
        for path, content in files.items():
            url = f"https://{host}{path}"
            yield _finding(url, await http("GET", url), content)
    for link in links:
        yield _finding(link, await http("GET", link), None)


def _finding(url: str, answer: ProbeResponse | NoResponse, content: str | None) -> Finding:
    """Return the finding for a file with this content, or for a page if there is no content to compare."""
    if isinstance(answer, NoResponse):
        return _no_response(url, answer)
    if answer.status != 200:
        what = " (phones follow no redirect)" if 300 <= answer.status < 400 else ""
        return fail(_CHECK, f"{url} responds with status {answer.status} instead of 200{what}", fix=_FORWARD)
    if content is None:
        return ok(_CHECK, f"{url} shows a page to browsers")
    media = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media != _JSON:
        return fail(_CHECK, f"{url} has the media type {media or 'unknown'} instead of {_JSON}", fix=_FORWARD)
    if not _is_same(answer.body, content):
        return fail(
            _CHECK,
            f"{url} does not match the configuration",
            fix="restart the service if the settings were changed; otherwise, forward this path to server.public",
        )
    return ok(_CHECK, f"{url} matches the configuration")


def _no_response(url: str, answer: NoResponse) -> Finding:
    if answer.why == INVALID_CERTIFICATE:
        return fail(_CHECK, f"{url}: {answer.why}", fix="configure this host with a certificate that phones accept")
    message = f"{url}: {answer.why} (request sent from this machine)"
    return warn(_CHECK, message, fix=f"from another network, run: curl -i {url}")


def _is_same(body: bytes, content: str) -> bool:
    """Return whether a response contains the same JSON; its white space may differ."""
    try:
        return bool(json.loads(body) == json.loads(content))
    except (ValueError, RecursionError):
        return False
