"""What the use cases need of the outside, as protocols: whoever fits may be passed."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from amo_callback.ports.shared import Shared
from amo_callback.ports.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from amo_callback.event import Event
    from amo_callback.grant import Redirect
    from amo_callback.model import Account, Issued, Sighting, Told
    from amo_callback.survey import ServiceStatus

__all__ = ["AmoOAuth", "Clock", "Metrics", "Observer", "Priority", "RescueFiles", "Shared", "Store", "Supervisor"]


class Clock(Protocol):
    """Time, passed in so that tests own it."""

    def now(self) -> datetime:
        """Return the wall clock's time, in UTC."""

    def monotonic(self) -> float:
        """Return seconds that no step of the wall clock changes."""

    async def sleep(self, seconds: float) -> None:
        """Sleep."""


class Observer(Protocol):
    """A receiver of events (logging, metrics)."""

    def __call__(self, event: Event) -> None:
        """Receive an event; never raise."""


class Metrics(Protocol):
    """The counters of the service."""

    def key_refused(self) -> None:
        """Count a request with an unknown API key."""

    def watch_clients(self, listener: str, count: Callable[[], int]) -> None:
        """Call `count` at each scrape for the number of a listener's connections."""

    def client_closed(self, listener: str, reason: str) -> None:
        """Count a client connection that was closed because of a limit."""

    def handed_out(self, outcome: str) -> None:
        """Count a request for an access token, by what was handed out, or by the error's code."""

    def called_back(self, outcome: str) -> None:
        """Count a callback, by the status of its grant, or by the deep link's error."""

    def text(self, status: ServiceStatus) -> bytes:
        """Return the counters and the service's status in Prometheus's text format."""


class Supervisor(Protocol):
    """The supervisor of the process: systemd, or none."""

    @property
    def enabled(self) -> bool:
        """Whether there is a supervisor."""

    @property
    def watchdog(self) -> float | None:
        """Seconds within which it expects the next notification."""

    def __call__(self, *assignments: str) -> None:
        """Send some assignments, as in sd_notify(3)."""


class Priority(IntEnum):
    """The order at AMO's rate limit: people first, the better known before strangers, and hook checks last."""

    EXPECTED = 0
    """A person whose grant began here, for a user that is known."""
    STARTED = 1
    """A person whose grant began here, with a plain link: anybody can."""
    STRANGER = 2
    """Whoever brings a code."""
    TOKEN_CHECK = 3
    """A question about an access token that a caller waits for: at most a quarter of the rate."""
    BACKGROUND = 4
    HOOK_CHECK = 5
    """A question about an account that AMO's hook named: at most a tenth of the rate, and only after refreshes."""


class AmoOAuth(Protocol):
    """The vendor's OAuth."""

    @property
    def client_id(self) -> str:
        """The integration that tokens are granted to."""

    @property
    def timeout(self) -> float:
        """Seconds that one request may take."""

    def consent_address(self, state: str) -> str:
        """Return AMO's page where a person allows access."""

    def read_redirect(self, query: bytes) -> Redirect:
        """Read the raw query of AMO's redirect; what is wrong with it is in its `error`."""

    def check_domain(self, host: str | None) -> str:
        """Return the account's host, the default one for `None`; raises `UserError`."""

    def base_url(self, host: str) -> str:
        """Return the address of AMO's API at a stored host; raises `HostNotAllowed`."""

    def account_of(self, access_token: str) -> Account:
        """Return whose access token it is, as far as it tells."""

    def told_by(self, access_token: str) -> Told:
        """Return what an access token tells of itself."""

    def is_hook(self, *, account_id: str, client_id: str, signature: str) -> bool:
        """Tell whether AMO signed that our integration was switched off in this account."""

    async def slot(self, priority: Priority) -> None:
        """Wait until the rate limit lets one more request go."""

    async def exchange(self, *, code: bytes, domain: str, not_after: float) -> Issued:
        """Spend an authorization code; one request, never repeated, and not sent after this monotonic time.

        This and the next three send nothing to a host that is not allowed: they raise `HostNotAllowed`.
        """

    async def refresh(self, *, refresh_token: str, domain: str, not_after: float) -> Issued:
        """Spend a refresh token; one request, never repeated, and not sent after this monotonic time."""

    async def look_up(self, *, refresh_token: str, api_domain: str | None, account_id: str) -> Sighting:
        """Ask about a refresh token without spending it, and where its account lives; raises `HostNotAllowed` alone."""

    async def ask_about(self, *, access_token: str, domain: str, account_id: str) -> Sighting:
        """Ask about an access token, and where its account lives; spends nothing, raises `HostNotAllowed` alone."""


class RescueFiles(Protocol):
    """A folder for pairs that the store does not take. Its methods block, and raise `OSError`."""

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole, and so that a power failure does not lose it."""

    def remove(self, name: str) -> None:
        """Remove a file."""

    def read(self) -> Mapping[str, bytes | None]:
        """Return what each file with a pair holds; `None` of one that cannot be read."""

    def read_raw(self) -> Mapping[str, bytes | None]:
        """Return what each raw answer's file holds; `None` of one that cannot be read."""

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""

    def raw_ages(self) -> Mapping[str, float]:
        """Return how many seconds ago each raw answer was written."""

    def reserve(self) -> bool:
        """Keep some of the disk free for it; tell whether it is kept."""
