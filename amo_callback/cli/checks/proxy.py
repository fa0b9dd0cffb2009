"""The public address: whether it leads to this service, and whether the client's address comes through."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from amo_callback import probe
from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.cli.checks.http_probe import CERTIFICATE, NoResponse

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.cli.checks.http_probe import HttpProbe, ProbeResponse
    from amo_callback.config.settings import Settings
    from amo_callback.crypto import Cipher
    from amo_callback.probe import Seen

_BAD_GATEWAY = frozenset({502, 503, 504})
_LATER = "check from where AMO's browsers come: curl -I the redirect URI elsewhere"


async def check_proxy(settings: Settings, http: HttpProbe, *, cipher: Cipher, nonce: str) -> AsyncIterator[Finding]:
    """Check the redirect URI by HEAD, which never spends a code, and carries none."""
    address = settings.amo.redirect_uri
    name = urlsplit(address).netloc
    answer = await http("HEAD", address, headers={probe.HEADER: probe.ask(cipher, nonce=nonce)})
    if isinstance(answer, NoResponse):
        message = f"{name}: {answer.why}"
        if answer.why == CERTIFICATE:
            yield fail("proxy", message, fix="give the proxy a certificate that browsers take")
        else:
            yield warn("proxy", f"{message}, asked from this machine", fix=_LATER)
        return
    seen = probe.read_answer(cipher, answer.headers.get(probe.HEADER, ""), nonce=nonce)
    yield _unseen(settings, name, answer) if seen is None else _seen(settings, name, seen)


def _unseen(settings: Settings, name: str, answer: ProbeResponse) -> Finding:
    """Return what answers there instead of the service with our keys."""
    if answer.status in _BAD_GATEWAY:
        return fail(
            "proxy",
            f"{name} answers {answer.status}: the proxy does not reach the service",
            fix="start the service; compare the proxy's upstream with server.public",
        )
    if answer.status == 200 and answer.headers.get("X-Robots-Tag") == "noindex" and "X-Request-ID" in answer.headers:
        return fail(
            "proxy",
            f"an amo-callback answers at {name}, but not with the keys of this configuration",
            fix="restart the service if its keys were changed; else the proxy leads to another installation",
        )
    return fail(
        "proxy",
        f"something else answers at {name} ({answer.status})",
        fix=f"have the proxy pass {settings.server.base_path}/callback on to server.public: README, nginx",
    )


def _seen(settings: Settings, name: str, seen: Seen) -> Finding:
    limits = "all clients share one reservation in [limits]"
    if seen.forwarded and seen.client == seen.peer and seen.peer is not None and not _is_loopback(seen.peer):
        return warn(
            "proxy",
            f"{name} leads here, but {seen.peer} is no trusted proxy: {limits}",
            fix=f'add "{seen.peer}" to server.trusted_proxies, if that is your proxy',
        )
    if not seen.forwarded and urlsplit(settings.amo.redirect_uri).scheme == "https":
        return warn(
            "proxy",
            f"{name} leads here, but the proxy does not say whose requests they are: {limits}",
            fix="have it set X-Forwarded-For to the client's address: see the README's nginx example",
        )
    return ok("proxy", f"{name} leads to this service, which sees this machine as {seen.client or 'unknown'}")


def _is_loopback(address: str) -> bool:
    return address in {"127.0.0.1", "::1"}
