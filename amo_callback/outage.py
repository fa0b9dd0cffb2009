"""A loop's failures in the log: the first of each kind, and the end of them all, not a line for each round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from amo_callback.errors import AmoCallbackError
from amo_callback.events import Event, failure_event

if TYPE_CHECKING:
    from amo_callback.clock import Clock
    from amo_callback.events import Observer


class Outage:
    """The failures of one loop since it last worked; `loop` is the first word of its events."""

    def __init__(self, loop: str, *, clock: Clock, observer: Observer) -> None:
        self._loop = loop
        self._clock = clock
        self._observer = observer
        self._since = 0.0
        self._rounds = 0
        self._kinds: set[str] = set()

    @property
    def failed_for(self) -> float:
        """Seconds for which every round has failed; 0 where the last one worked."""
        return self._clock.monotonic() - self._since if self._rounds else 0.0

    def failed(self, error: Exception, *, details: bool = True) -> None:
        """Note a failed round, and log it unless an error of this kind has been logged since the loop last worked."""
        if not self._rounds:
            self._since = self._clock.monotonic()
        self._rounds += 1
        kind = _kind(error)
        if kind not in self._kinds:
            self._kinds.add(kind)
            self._observer(failure_event(f"{self._loop}.failed", error, details=details))

    def worked(self) -> None:
        """Note a round that worked, and log for how long the loop had failed, if it had."""
        if not self._rounds:
            return
        seconds = round(self._clock.monotonic() - self._since, 1)
        fields = {"failed_for_seconds": seconds, "failed_rounds": self._rounds}
        self._rounds = 0
        self._kinds.clear()
        self._observer(Event(name=f"{self._loop}.recovered", fields=fields))


def _kind(error: Exception) -> str:
    """Return the code of an error of ours; of any other, which is a bug, its type and where it was raised."""
    if isinstance(error, AmoCallbackError):
        return error.code
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__} {place}"
