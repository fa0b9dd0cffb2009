"""Checks of AMO, the reverse proxy, the key set and the webhook receiver. No request contains credentials."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import aiohttp

from amo_callback import __version__, probe
from amo_callback.cli.api_client import connection_error
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.identity.jwks import read_jwks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

    from amo_callback.clock import Clock
    from amo_callback.config.settings import Settings
    from amo_callback.crypto import Cipher
    from amo_callback.probe import ObservedClient

    HttpProbe = Callable[..., Awaitable["ProbeResponse | NoResponse"]]
    """A function that sends a request, given its method, URL and optional `headers`."""

_MAX_BODY = 256 * 1024
"""The maximum number of bytes read from a response."""
INVALID_CERTIFICATE = "the TLS certificate is not valid"
_SKEW_WARN, _SKEW_FAIL = 30.0, 300.0
"""The minimum clock skews, in seconds, that cause a warning or a failure. This machine's clock determines expiry."""
_SET_CLOCK = "synchronize this machine's clock: timedatectl set-ntp true"


# --- requests --------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeResponse:
    """A response; `at` is the midpoint between sending the request and receiving the response headers."""

    status: int
    at: datetime
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoResponse:
    why: str


@asynccontextmanager
async def open_probe(
    *, clock: Clock, wait_limit: float, connector: aiohttp.TCPConnector | None = None
) -> AsyncIterator[HttpProbe]:
    """Open an HTTP session, and yield a function that sends a request with a timeout of `wait_limit` seconds."""
    async with aiohttp.ClientSession(
        connector=connector or aiohttp.TCPConnector(force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None),
        headers={"User-Agent": f"amo-callback/{__version__}", "Accept-Encoding": "identity"},
    ) as session:
        yield partial(_probe, session, clock, wait_limit)


async def _probe(
    session: aiohttp.ClientSession,
    clock: Clock,
    wait_limit: float,
    method: str,
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
) -> ProbeResponse | NoResponse:
    try:
        async with asyncio.timeout(wait_limit):
            asked = clock.now()
            async with session.request(method, url, headers=headers, allow_redirects=False) as response:
                at = asked + (clock.now() - asked) / 2
                body = bytearray()
                async for chunk in response.content.iter_chunked(16 * 1024):
                    body += chunk
                    if len(body) > _MAX_BODY:
                        break
                return ProbeResponse(status=response.status, at=at, headers=response.headers, body=bytes(body))
    except TimeoutError:
        return NoResponse(why=f"no response within {wait_limit:g} s")
    except aiohttp.ClientConnectorCertificateError:
        return NoResponse(why=INVALID_CERTIFICATE)
    except aiohttp.ClientConnectorDNSError:
        return NoResponse(why="the host name cannot be resolved")
    except aiohttp.ClientConnectorError as error:
        return NoResponse(why=connection_error(error))
    except (aiohttp.ClientError, OSError, ValueError):  # the messages may quote the request or response
        return NoResponse(why="no HTTP response")


# --- AMO and the app's servers -------------------------------------------------------------------


async def check_amo(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether AMO responds, and compare its clock with this machine's clock.

    Sends a HEAD request, without credentials, to the token endpoint of `amo.default_domain`. If that setting is absent,
    the request is sent to the consent page.
    """
    domain = settings.amo.default_domain
    url = settings.amo.authorize_url
    if domain is not None:
        url = settings.amo.endpoint.replace("{domain}", domain) + "/oauth2/access_token"
    name = urlsplit(url).netloc
    answer = await http("HEAD", url)
    if isinstance(answer, NoResponse):
        yield fail(
            "amo",
            f"{name}: {answer.why}",
            fix="allow HTTPS from this machine to AMO: check DNS, the firewall and certificates",
        )
        yield warn(
            "clock",
            "the clock skew is unknown, because AMO does not respond",
            fix="restore access to AMO, then run the check again",
        )
        return
    if answer.status >= 500 or answer.status in {403, 429}:
        yield warn(
            "amo",
            f"{name} responds with status {answer.status}",
            fix="run the check again later; 403 or 429 means that AMO blocks the address of this machine",
        )
    else:
        yield ok("amo", f"{name} responds")
    yield _clock(answer)


def _clock(answer: ProbeResponse) -> Finding:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return warn(
            "clock",
            "cannot compare the clock with AMO's: no valid Date header in the response",
            fix="check this machine's clock with timedatectl",
        )
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    # The Date header is truncated to whole seconds: it is half a second behind on average.
    ahead = (answer.at - theirs).total_seconds() - 0.5
    message = f"this machine's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} AMO's clock"
    if abs(ahead) >= _SKEW_FAIL:
        return fail("clock", f"{message}: tokens expire unnoticed, or are refreshed too early", fix=_SET_CLOCK)
    if abs(ahead) >= _SKEW_WARN:
        return warn("clock", message, fix=_SET_CLOCK)
    return ok("clock", f"this machine's clock is within {_SKEW_WARN:.0f} s of AMO's clock")


async def check_key_set(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    if settings.app.jwks_url is None:
        return
    name = urlsplit(settings.app.jwks_url).netloc
    answer = await http("GET", settings.app.jwks_url)
    fix = "correct app.jwks_url, or repair its server: without keys, no JWT can be verified"
    if isinstance(answer, NoResponse):
        yield fail("jwks_url", f"{name}: {answer.why}", fix=fix)
    elif answer.status != 200:
        yield fail("jwks_url", f"{name} responds with status {answer.status}", fix=fix)
    else:
        try:
            keys = read_jwks(answer.body)
        except ValueError:
            yield fail("jwks_url", f"{name} provides no usable key (RSA with at least 2048 bits, or P-256)", fix=fix)
        else:
            yield ok("jwks_url", f"{name} provides {len(keys)} usable keys")


async def check_receiver(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether the server at `webhook.url` responds to a HEAD request, with any status."""
    if settings.webhook.url is None:
        return
    name = urlsplit(settings.webhook.url).netloc
    answer = await http("HEAD", settings.webhook.url)
    if isinstance(answer, NoResponse):
        fix = "correct webhook.url, or start the receiver; webhooks are retried for up to a day"
        yield warn("webhook", f"{name}: {answer.why}", fix=fix)
    else:
        yield ok("webhook", f"{name} responds")


# --- the reverse proxy ---------------------------------------------------------------------------


async def check_proxy(settings: Settings, http: HttpProbe, *, cipher: Cipher, nonce: str) -> AsyncIterator[Finding]:
    """Check whether the redirect URI leads to this service; the HEAD request contains no code."""
    address = settings.amo.redirect_uri
    name = urlsplit(address).netloc
    answer = await http("HEAD", address, headers={probe.HEADER: probe.seal_nonce(cipher, nonce=nonce)})
    if isinstance(answer, NoResponse):
        message = f"{name}: {answer.why}"
        if answer.why == INVALID_CERTIFICATE:
            yield fail("proxy", message, fix="configure the proxy with a certificate that browsers accept")
        else:
            yield warn(
                "proxy",
                f"{message} (request sent from this machine)",
                fix=f"from another network, run: curl -I {address}",
            )
        return
    seen = probe.read_reply(cipher, answer.headers.get(probe.HEADER, ""), nonce=nonce)
    yield _unseen(settings, name, answer) if seen is None else _seen(settings, name, seen)


def _unseen(settings: Settings, name: str, answer: ProbeResponse) -> Finding:
    """Return a finding about the server that responds instead of this service."""
    if answer.status in {502, 503, 504}:
        return fail(
            "proxy",
            f"{name} responds with status {answer.status}: the proxy cannot reach the service",
            fix="start the service, and compare the proxy's upstream with server.public",
        )
    if answer.status == 200 and answer.headers.get("X-Robots-Tag") == "noindex" and "X-Request-ID" in answer.headers:
        return fail(
            "proxy",
            f"the amo-callback service at {name} does not have the encryption keys of this configuration",
            fix="restart the service if its encryption keys were changed; otherwise correct the upstream of the proxy",
        )
    return fail(
        "proxy",
        f"another server responds at {name} (status {answer.status})",
        fix=f'forward {settings.server.base_path}/callback to server.public: see "nginx" in the README',
    )


def _seen(settings: Settings, name: str, seen: ObservedClient) -> Finding:
    limits = "all clients share one rate limit"
    if seen.forwarded and seen.client == seen.peer and seen.peer not in {None, "127.0.0.1", "::1"}:
        return warn(
            "proxy",
            f"{name} leads to this service, but {seen.peer} is not a trusted proxy: {limits}",
            fix=f'if this is your proxy, add "{seen.peer}" to server.trusted_proxies',
        )
    if not seen.forwarded and urlsplit(settings.amo.redirect_uri).scheme == "https":
        return warn(
            "proxy",
            f"{name} leads to this service, but the proxy does not forward client addresses: {limits}",
            fix='configure the proxy to set X-Forwarded-For to the client address: see "nginx" in the README',
        )
    return ok("proxy", f"{name} leads to this service; client address seen by the service: {seen.client or 'unknown'}")
