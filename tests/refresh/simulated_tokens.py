"""The refresh tokens of a simulation: what became of each, and what may be presented."""

from dataclasses import dataclass

from amo_callback.amo.sandbox.fake_amo import SandboxAccount
from amo_callback.model import Reason, TokenState

DAY = 86_400.0
_LONG = 18 * 3600.0
"""Seconds after an access token's expiry. The service waits a day for a silent look-up; its clock may be stepped."""


@dataclass
class Token:
    """A refresh token, as the simulation knows it."""

    parent: str | None
    generation: int
    """Which of its connection's grants it comes from."""
    number: int
    access_token: str
    account: SandboxAccount
    born: float
    """When AMO has issued it (monotonic)."""
    spent_by: str | None = None
    answered: bool = False
    """Whether its successor has been stored."""
    open: bool = False
    """Whether it was presented, and no answer has told what became of it."""
    asked: bool = False
    """Whether AMO was asked about it since then, and has answered."""
    unheard: bool = False
    """Whether AMO was asked about it since then, and has not answered."""
    settled: bool = False
    """Whether its terminal answer is stored, and introspection has not accepted it since."""
    refused: bool = False
    """Whether its connection was given up as refused."""
    given_up: bool = False
    """Whether its connection was ever given up with it."""
    gone: bool = False
    """Whether its account was gone when it was last presented."""
    lies: int = 0
    """How often AMO has called it revoked although it was good."""
    times: int = 0
    """How often it was presented."""
    presented_at: float = -DAY

    @property
    def age(self) -> tuple[int, int]:
        return self.generation, self.number

    def present(self, *, at: float, lifetime: float, steady: bool) -> None:
        """Check that it may be presented; `steady` says that no clock is stepped."""
        assert not self.answered, "a token was presented although its successor had been stored"
        assert not self.settled, "a token was presented again after its terminal answer had been stored"
        silent = self.unheard and (at > self.born + lifetime + _LONG or not steady)
        assert not self.open or self.asked or silent, "a possibly spent token was presented before AMO was asked"
        if self.refused and steady:
            assert at - self.presented_at >= DAY - 60, "the token of a refused connection was presented twice in a day"
        self.open, self.presented_at = True, at
        self.times += 1
        self.asked = self.unheard = False

    def looked_up(self, state: TokenState) -> None:
        """Note what introspection has told of it."""
        if state in {TokenState.VALID, TokenState.REJECTED}:
            self.asked = True
        else:
            self.unheard = True
        if state is TokenState.VALID:
            self.settled = self.refused = False

    def settle(self, reason: Reason | None) -> None:
        """Note that its terminal answer is stored."""
        self.refused = reason is Reason.REFUSED
        self.settled = not self.refused


class Budget:
    """How many probes may leave while AMO blocks the address and the store knows it."""

    def __init__(self, *, every: float) -> None:
        self._every = every
        self.began: float | None = None
        """When the block was stored (monotonic)."""
        self._probes = self._steps = 0

    def begin(self, at: float) -> None:
        """Note that the block is stored."""
        if self.began is None:
            self.began, self._probes, self._steps = at, 0, 0

    def end(self) -> None:
        """Note that the store knows of no block."""
        self.began = None

    def step(self) -> None:
        """Note that the clock was stepped, by which the next probe may come at once."""
        self._steps += 1

    def probe(self, at: float) -> None:
        """Count a probe."""
        assert self.began is not None
        self._probes += 1
        allowed = (at - self.began) // self._every + self._steps
        assert self._probes <= allowed, f"{self._probes} probes left a blocked address, {allowed:.0f} may"
