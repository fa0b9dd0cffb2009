"""Other servers: AMO and its clock, the app's key set, the receiver of webhooks. No credential is sent to them."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from amo_callback.cli.checks.finding import Finding, fail, ok, warn
from amo_callback.cli.checks.http_probe import NoResponse
from amo_callback.identity.jwks import read_jwks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from amo_callback.cli.checks.http_probe import HttpProbe, ProbeResponse
    from amo_callback.config.settings import Settings

SKEW_TOLD, SKEW_BAD = 30.0, 300.0
"""Seconds between AMO's clock and ours: when a token ends is counted by ours."""
_SET_CLOCK = "set this machine's clock: timedatectl set-ntp true"


async def check_amo(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether AMO answers, and compare the clocks.

    The token endpoint of `amo.default_domain` is asked with HEAD, else the consent page: no code,
    no token and no secret goes there.
    """
    domain = settings.amo.default_domain
    url = settings.amo.authorize_url
    if domain is not None:
        url = settings.amo.endpoint.replace("{domain}", domain) + "/oauth2/access_token"
    name = urlsplit(url).netloc
    answer = await http("HEAD", url)
    if isinstance(answer, NoResponse):
        yield fail(
            "amo", f"{name}: {answer.why}", fix="let this machine out to AMO by https: DNS, firewall, certificates"
        )
        yield warn("clock", "AMO's is not known, so ours cannot be compared", fix="reach AMO, and check again")
        return
    if answer.status >= 500 or answer.status in {403, 429}:
        yield warn(
            "amo", f"{name} answers {answer.status}", fix="check again later; 403 and 429: AMO blocks this address"
        )
    else:
        yield ok("amo", f"{name} answers")
    yield _clock(answer)


def _clock(answer: ProbeResponse) -> Finding:
    try:
        theirs = parsedate_to_datetime(answer.headers.get("Date", ""))
    except ValueError:
        return warn("clock", "AMO sends no time", fix="compare this machine's clock yourself: timedatectl")
    ahead = (answer.at - _aware(theirs)).total_seconds() - 0.5  # a date has no fractions: half a second on average
    message = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} AMO's"
    if abs(ahead) >= SKEW_BAD:
        return fail("clock", f"{message}: tokens expire unnoticed, or are refreshed too early", fix=_SET_CLOCK)
    if abs(ahead) >= SKEW_TOLD:
        return warn("clock", message, fix=_SET_CLOCK)
    return ok("clock", f"within {SKEW_TOLD:.0f} s of AMO's")


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


async def check_key_set(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether the app's JWTs can be verified."""
    if settings.app.jwks_url is None:
        return
    name = urlsplit(settings.app.jwks_url).netloc
    answer = await http("GET", settings.app.jwks_url)
    fix = "correct app.jwks_url, or repair its server: without keys no user's JWT is valid"
    if isinstance(answer, NoResponse):
        yield fail("jwks_url", f"{name}: {answer.why}", fix=fix)
    elif answer.status != 200:
        yield fail("jwks_url", f"{name} answers {answer.status}", fix=fix)
    else:
        try:
            keys = read_jwks(answer.body)
        except ValueError:
            yield fail("jwks_url", f"{name}: no key that may be used (RSA of 2048 bits or more, or P-256)", fix=fix)
        else:
            yield ok("jwks_url", f"{len(keys)} keys at {name}")


async def check_receiver(settings: Settings, http: HttpProbe) -> AsyncIterator[Finding]:
    """Check whether `webhook.url` answers a HEAD request, in any way."""
    if settings.webhook.url is None:
        return
    name = urlsplit(settings.webhook.url).netloc
    answer = await http("HEAD", settings.webhook.url)
    if isinstance(answer, NoResponse):
        fix = "correct webhook.url, or start the receiver; webhooks wait for it, up to a day"
        yield warn("webhook", f"{name}: {answer.why}", fix=fix)
    else:
        yield ok("webhook", f"{name} answers")
