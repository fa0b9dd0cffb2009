"""The refresh tokens of a simulation, with the rules for their presentation."""

from dataclasses import dataclass

from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from amo_callback.model import Reason, TokenState

DAY = 86_400.0
_LONG = 18 * 3600.0
"""Seconds after an access token's expiry during which an unanswered introspection permits no presentation.

The service waits a day. This limit is lower, because the service's clock may be stepped.
"""


@dataclass
class Token:
    """A refresh token and its history in the simulation."""

    parent: str | None
    generation: int
    """The number of the grant, within its connection, that the token descends from."""
    number: int
    access_token: str
    account: SandboxAccount
    issued_at: float
    """The monotonic time at which AMO issued the token."""
    spent_by: str | None = None
    answered: bool = False
    """Whether its successor has been stored."""
    open: bool = False
    """Whether it was presented, and no answer has been received."""
    asked: bool = False
    """Whether an introspection since the presentation was answered."""
    unheard: bool = False
    """Whether an introspection since the presentation was not answered."""
    settled: bool = False
    """Whether its terminal answer is stored, and introspection has not accepted the token since."""
    refused: bool = False
    """Whether its connection is `needs_reauth` with the reason `refused`."""
    was_needs_reauth: bool = False
    """Whether its connection was ever `needs_reauth` with this token."""
    account_deleted: bool = False
    """Whether its account was deleted at the last presentation."""
    false_revocations: int = 0
    """The number of false `revoked` answers of AMO for this token."""
    times: int = 0
    """The number of presentations."""
    presented_at: float = -DAY

    @property
    def age(self) -> tuple[int, int]:
        return self.generation, self.number

    def present(self, *, at: float, lifetime: float, steady: bool) -> None:
        """Check that the token may be presented, and record it; `steady` means that no clock was stepped."""
        assert not self.answered, "a token was presented although its successor had been stored"
        assert not self.settled, "a token was presented again after its terminal answer had been stored"
        silent = self.unheard and (at > self.issued_at + lifetime + _LONG or not steady)
        assert not self.open or self.asked or silent, "a possibly spent token was presented before AMO was asked"
        if self.refused and steady:
            assert at - self.presented_at >= DAY - 60, "the token of a refused connection was presented twice in a day"
        self.open, self.presented_at = True, at
        self.times += 1
        self.asked = self.unheard = False

    def introspected(self, state: TokenState) -> None:
        """Record the result of an introspection."""
        if state in {TokenState.VALID, TokenState.REJECTED}:
            self.asked = True
        else:
            self.unheard = True
        if state is TokenState.VALID:
            self.settled = self.refused = False

    def settle(self, reason: Reason | None) -> None:
        """Record that the token's terminal answer is stored."""
        self.refused = reason is Reason.REFUSED
        self.settled = not self.refused


class ProbeBudget:
    """The number of probes that are allowed while AMO blocks the address and the store contains the block."""

    def __init__(self, *, every: float) -> None:
        self._every = every
        self.began: float | None = None
        """The monotonic time at which the block was stored."""
        self._probes = self._steps = 0

    def begin(self, at: float) -> None:
        """Record that the block is stored."""
        if self.began is None:
            self.began, self._probes, self._steps = at, 0, 0

    def end(self) -> None:
        """Record that the store contains no block."""
        self.began = None

    def step(self) -> None:
        """Record a clock step, after which the next probe may be sent at once."""
        self._steps += 1

    def probe(self, at: float) -> None:
        """Count a probe."""
        assert self.began is not None
        self._probes += 1
        allowed = (at - self.began) // self._every + self._steps
        assert self._probes <= allowed, f"{self._probes} probes left a blocked address, {allowed:.0f} may"
