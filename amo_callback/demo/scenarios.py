"""Scenarios: actions and faults that the user triggers, and their expected results."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from amo_callback.amo.sandbox.app import Fault
from amo_callback.demo.feed import YOU

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from amo_callback.amo.sandbox.app import Sandbox
    from amo_callback.amo.sandbox.fake_amo import SandboxAccount
    from amo_callback.demo.backend import Backend, ConnectionSnapshot
    from amo_callback.demo.feed import Feed
    from amo_callback.demo.phone import Phone

_BACKENDS = 100
_AWAY = Fault.HTML
SLOW = 9.0
"""Seconds until AMO's response in the scenario `slow`, more than the service lets the user wait."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    name: str
    title: str
    expect: str
    """The expected result, as shown to the user."""
    one: bool = True
    """Whether the scenario requires a connection."""


SCENARIOS = (
    Scenario(
        name="refresh",
        title="Refresh now",
        expect="The service gets a new token pair. The old refresh token is spent and is not presented again.",
    ),
    Scenario(
        name="rejected",
        title=f"{_BACKENDS} backends get a 401",
        expect="All of them request a new token at the same time. One refresh serves them all.",
    ),
    Scenario(
        name="cut",
        title="Lose a request",
        expect="The request is lost before amoCRM examines it. The service introspects the refresh token, "
        "which is valid, and refreshes again. During this time, the service hands out the valid access token.",
    ),
    Scenario(
        name="lost",
        title="Lose a response",
        expect="amoCRM spends the refresh token, and the response is lost. The service introspects the token, presents "
        "it again, and reports that the user has to connect again. The access token is handed out until it expires.",
    ),
    Scenario(
        name="move",
        title="Move the account",
        expect="The old host rejects the refresh token. The service introspects the token to find the new host, and "
        "refreshes there.",
    ),
    Scenario(
        name="revoke",
        title="Revoke access",
        expect="The integration is disabled, and amoCRM calls the disable hook. The service introspects the "
        "tokens, amoCRM rejects them, and the service erases them. To continue, connect again on the phone.",
    ),
    Scenario(
        name="slow",
        title="Delay the next connection",
        expect='Then connect on the phone. After 8 seconds, the phone shows the page "Still connecting". amoCRM '
        f"responds after {SLOW:.0f} seconds. Then the page shows the result and opens the app, without a tap.",
        one=False,
    ),
    Scenario(
        name="lost_link",
        title="Lose the deep link",
        expect="Then connect on the phone. The page reports the connection, but its deep link does not reach the app. "
        "The app requests the result every 2 seconds with its state and its PKCE verifier, and its user becomes the "
        'owner. To see its screen, select "Open the app on the phone".',
        one=False,
    ),
    Scenario(
        name="away",
        title="amoCRM unreachable / reachable",
        expect="The service still hands out valid access tokens, and retries refreshes later. No connection is lost.",
        one=False,
    ),
)
"""The scenarios, in the order in which the panel shows them."""


class Scenarios:
    def __init__(self, sandbox: Sandbox, backend: Backend, phone: Phone, feed: Feed, *, hook: str) -> None:
        self._sandbox = sandbox
        self._backend = backend
        self._phone = phone
        self._feed = feed
        self._hook = hook
        self._on_one: Mapping[str, Callable[[ConnectionSnapshot, SandboxAccount], Awaitable[None]]] = {
            "refresh": self._refresh,
            "rejected": self._rejected,
            "lost": partial(self._lose, Fault.NOTHING_AFTER, "amoCRM's next response is lost."),
            "cut": partial(self._lose, Fault.RESET, "The next request to amoCRM is lost."),
            "move": self._move,
            "revoke": self._revoke,
        }
        self._without_connection: Mapping[str, Callable[[], None]] = {
            "slow": self._slow,
            "lost_link": self._lose_link,
            "away": self._away,
        }

    async def run(self, name: str, connection: ConnectionSnapshot | None) -> bool:
        """Run a scenario; return `False` if the scenario or the connection that it requires does not exist."""
        if name in self._without_connection:
            self._without_connection[name]()
            return True
        act = self._on_one.get(name)
        account = None if connection is None else self._account(connection)
        if act is None or connection is None or account is None:
            return False
        await act(connection, account)
        return True

    def _account(self, connection: ConnectionSnapshot) -> SandboxAccount | None:
        accounts = self._sandbox.fake.accounts
        return next((account for account in accounts if str(account.id) == connection.account_id), None)

    def _away(self) -> None:
        away = self._sandbox.faults.persistent is None
        self._sandbox.faults.persistent = self._sandbox.introspection_faults.persistent = _AWAY if away else None
        self._feed.add(YOU, "amoCRM is unreachable." if away else "amoCRM is reachable again.")

    def _slow(self) -> None:
        self._sandbox.code_delay = SLOW
        text = f"amoCRM's response to the next authorization code is delayed by {SLOW:.0f} s: connect on the phone."
        self._feed.add(YOU, text)

    def _lose_link(self) -> None:
        self._phone.lose_next_link()
        self._feed.add(YOU, "The next deep link does not reach the app: connect on the phone.")

    async def _refresh(self, connection: ConnectionSnapshot, account: SandboxAccount) -> None:
        self._feed.add(YOU, "A backend requests a new token.", domain=account.host)
        await self._ask(connection)

    async def _rejected(self, connection: ConnectionSnapshot, account: SandboxAccount) -> None:
        text = f"{_BACKENDS} backends report at the same time that amoCRM responded with 401."
        self._feed.add(YOU, text, domain=account.host)
        before = len(self._sandbox.fake.ledger.refreshes())
        answers = await self._backend.reject(connection.id, times=_BACKENDS)
        asked = len(self._sandbox.fake.ledger.refreshes()) - before
        tokens = {answer.content["access_token"] for answer in answers if answer.status == 200}
        text = (
            f"Responses: {len(answers)}; different access tokens: {len(tokens)}; refresh requests to amoCRM: {asked}."
        )
        if not tokens:
            text = f"No access token was returned. The first response: {answers[0].status}, {answers[0].words}."
        self._feed.add(YOU, text, domain=account.host)

    async def _lose(self, fault: Fault, text: str, connection: ConnectionSnapshot, account: SandboxAccount) -> None:
        """Refresh the connection while `fault` drops a request or response; remove the fault if no request was sent."""
        faults = self._sandbox.faults
        if faults.persistent is not None:
            self._feed.add(
                YOU,
                "amoCRM is unreachable: make it reachable, then run this scenario again.",
                domain=account.host,
            )
            return
        self._feed.add(YOU, text, domain=account.host)
        faults.add(fault)
        await self._ask(connection)
        if fault in faults.coming:
            faults.coming.remove(fault)
            self._feed.add(
                YOU, "No request was sent to amoCRM for this connection, so nothing was lost.", domain=account.host
            )

    async def _move(self, connection: ConnectionSnapshot, account: SandboxAccount) -> None:
        account.host = moved(account.host)
        self._feed.add(YOU, f"The account moves to {account.host}.", domain=connection.domain)
        await self._ask(connection)

    async def _revoke(self, connection: ConnectionSnapshot, account: SandboxAccount) -> None:
        self._feed.add(YOU, "The integration is disabled in the account.", domain=connection.domain)
        await self._sandbox.disable(account, hook=self._hook)

    async def _ask(self, connection: ConnectionSnapshot) -> None:
        answer = await self._backend.refresh(connection.id)
        self._feed.catch_up()
        self._feed.add(YOU, f"The response: {answer.status}, {answer.words}.", domain=connection.domain)


def moved(host: str) -> str:
    """Return the host after a move: a new name, or the original name if `host` is the new one."""
    label, _, rest = host.partition(".")
    return f"{label.removesuffix('-new')}.{rest}" if label.endswith("-new") else f"{label}-new.{rest}"
