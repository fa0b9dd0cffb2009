"""Fakes for tests: a clock, an observer, and stores that fail."""

import asyncio
import errno
import inspect
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

from amo_callback.amo.rate_limiter import RateLimiter
from amo_callback.errors import StoreUnavailable
from amo_callback.events import Event
from amo_callback.rate_limit import Priority
from amo_callback.refresh.rescue import RAW, RescueFolder
from amo_callback.store import Store
from tests.wait_limit import WAIT_LIMIT

Step: TypeAlias = asyncio.Event | Exception | Callable[..., object]


START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


class FakeClock:
    """A clock that only a test advances."""

    def __init__(self) -> None:
        self._monotonic = 1000.0
        self._step = timedelta(0)
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []
        self._somebody_slept = asyncio.Event()

    def now(self) -> datetime:
        return START + self._step + timedelta(seconds=self._monotonic - 1000.0)

    def monotonic(self) -> float:
        return self._monotonic

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._monotonic + seconds, until))
        self._somebody_slept.set()
        await until

    def sleeping(self) -> list[float]:
        """Return the remaining seconds of each sleeping task, in order."""
        self._sleepers = [(at, until) for at, until in self._sleepers if not until.done()]
        return sorted(at - self._monotonic for at, _ in self._sleepers)

    async def until_sleeping(self, seconds: float | None = None) -> None:
        """Wait until a task sleeps, with `seconds` remaining if given."""
        while not any(seconds is None or abs(left - seconds) < 1e-6 for left in self.sleeping()):
            self._somebody_slept.clear()
            await asyncio.wait_for(self._somebody_slept.wait(), WAIT_LIMIT)

    def advance(self, seconds: float) -> None:
        """Advance the time, and wake the tasks whose sleep has ended."""
        self._monotonic += seconds
        for at, until in self._sleepers:
            if at <= self._monotonic and not until.done():
                until.set_result(None)

    async def tick(self, seconds: float, times: int = 1) -> None:
        """Advance by `seconds` several times, each time after a task sleeps with `seconds` remaining."""
        for _ in range(times):
            await self.until_sleeping(seconds)
            self.advance(seconds)

    def step(self, delta: timedelta) -> None:
        self._step += delta


class ShiftedClock:
    """The machine's clock, which a test can advance; sleeps of at most 0.25 s end at once, such as a drain's."""

    def __init__(self) -> None:
        self._ahead = timedelta(0)
        self._sleepers: list[tuple[float, float, asyncio.Future[None]]] = []
        self._somebody_slept = asyncio.Event()

    def now(self) -> datetime:
        return datetime.now(UTC) + self._ahead

    def monotonic(self) -> float:
        return asyncio.get_running_loop().time() + self._ahead.total_seconds()

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0.25:
            await asyncio.sleep(0)
            return
        until: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        sleeper = (seconds, self.monotonic() + seconds, until)
        self._sleepers.append(sleeper)
        self._somebody_slept.set()
        try:
            await asyncio.wait({until}, timeout=seconds)
        finally:
            self._sleepers.remove(sleeper)

    async def until_sleeping(self, seconds: float) -> None:
        """Wait until a task sleeps whose requested time is `seconds`, or less than 2 s shorter."""
        while not any(seconds - 2 < wanted <= seconds for wanted, _, until in self._sleepers if not until.done()):
            self._somebody_slept.clear()
            await asyncio.wait_for(self._somebody_slept.wait(), WAIT_LIMIT)

    def advance(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)
        for _, at, until in self._sleepers:
            if at <= self.monotonic() and not until.done():
                until.set_result(None)


class RecordingObserver:
    """An observer that records events, and lets a test wait for them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._heard = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._heard.set()

    def names(self) -> list[str]:
        return [event.name for event in self.events]

    def named(self, name: str) -> list[Event]:
        return [event for event in self.events if event.name == name]

    async def until(self, name: str, *, times: int = 1) -> Event:
        """Wait until `times` events of this name have occurred; return the last one."""
        await self.until_either((name,), times=times)
        return self.named(name)[-1]

    async def until_either(self, names: tuple[str, ...], *, times: int) -> None:
        while sum(event.name in names for event in self.events) < times:
            self._heard.clear()
            await asyncio.wait_for(self._heard.wait(), WAIT_LIMIT)


class FaultyStore:
    """A store with steps before and after the methods that a test names.

    A step is an event to wait for, an exception to raise, or a function to call with the call's arguments.
    """

    def __init__(self, store: Store, clock: FakeClock, *, away: Iterable[str] = ()) -> None:
        self._store = store
        self._clock = clock
        self.away = set(away)
        """Methods that raise StoreUnavailable."""
        self.lost: set[str] = set()
        """Methods whose next call is executed, but raises StoreUnavailable instead of returning its result."""
        self.before: dict[str, Step] = {}
        self.after: dict[str, Step] = {}
        self.answers: dict[str, object] = {}
        """Results returned without calling the store, by method."""
        self.asked: Counter[str] = Counter()
        self._waiting: set[str] = set()
        self._changed = asyncio.Event()
        self.failed_at: float | None = None
        self.last_write_error: str | None = None
        self.has_shared_clock, self.clock_skew = store.has_shared_clock, store.clock_skew
        self.shared, self.clock = store.shared, store.clock
        self.on_webhook, self.observe = store.on_webhook, store.observe

    def subscribe(self, listener: Any) -> None:
        self._store.subscribe(listener)

    async def until_asked(self, name: str) -> None:
        await self._until(lambda: self.asked[name] > 0)

    async def until_waiting(self, name: str) -> None:
        """Wait until a call of this method waits for the event of its step."""
        await self._until(lambda: name in self._waiting)

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            self._changed.clear()
            await asyncio.wait_for(self._changed.wait(), WAIT_LIMIT)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)

        async def step(step: Step | None, *args: object, **kwargs: object) -> None:
            if isinstance(step, asyncio.Event):
                self._waiting.add(name)
                self._changed.set()
                await step.wait()
            elif isinstance(step, Exception):
                raise step
            elif step is not None and inspect.isawaitable(pending := step(*args, **kwargs)):
                await pending

        async def call(*args: object, **kwargs: object) -> object:
            self.asked[name] += 1
            self._changed.set()
            await step(self.before.get(name), *args, **kwargs)
            if name in self.away:
                self.failed_at = self._clock.monotonic()
                raise StoreUnavailable("SQLITE_FULL")
            if name in self.answers:
                return self.answers[name]
            result = await method(*args, **kwargs)
            await step(self.after.get(name), *args, **kwargs)
            if name in self.lost:
                self.lost.remove(name)
                raise StoreUnavailable("ConnectionDoesNotExistError")
            return result

        return call


class MemoryRescue(RescueFolder):
    """A rescue folder in memory that can be full."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.full = False
        self.age = 0.0
        """The age of the raw answers, in seconds."""

    def write(self, name: str, content: bytes) -> None:
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.files[name] = content

    def remove(self, name: str) -> None:
        self.files.pop(name, None)

    def read(self) -> Mapping[str, bytes | None]:
        return {name: content for name, content in self.files.items() if not name.endswith(RAW)}

    def read_raw(self) -> Mapping[str, bytes | None]:
        return {name: content for name, content in self.files.items() if name.endswith(RAW)}

    def has(self, name: str) -> bool:
        return name in self.files

    def raw_ages(self) -> Mapping[str, float]:
        return dict.fromkeys(self.read_raw(), self.age)

    def reserve(self) -> bool:
        return not self.full


class IdleTracker:
    """A counter of finished and running calls of the watched objects' methods."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._under_way = 0
        self._ended = asyncio.Event()

    def watch(self, watched: Any) -> Any:
        return _Watched(watched, self)

    async def through(self, name: str, call: Awaitable[object]) -> object:
        self.calls[name] += 1
        self._under_way += 1
        try:
            return await call
        finally:
            self._under_way -= 1
            self._ended.set()

    async def until_quiet(self) -> None:
        """Wait until no watched call runs for 30 iterations of the loop, so that finished calls can start others."""
        turns = 0
        while turns < 30:
            await asyncio.sleep(0)
            turns += 1
            while self._under_way:
                turns = 0
                self._ended.clear()
                await asyncio.wait_for(self._ended.wait(), WAIT_LIMIT)


class _Watched:
    def __init__(self, watched: Any, traffic: IdleTracker) -> None:
        self._watched, self._traffic = watched, traffic

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._watched, name)
        if not inspect.iscoroutinefunction(method):
            return method
        return lambda *args, **kwargs: self._traffic.through(name, method(*args, **kwargs))


class Override:
    """An object with some of its methods replaced."""

    def __init__(self, replaced: Any, **methods: Any) -> None:
        self._replaced = replaced
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replaced, name)


def answering(answer: object) -> Callable[..., Awaitable[Any]]:
    """Return a method that returns this answer, or raises it."""

    async def method(*_: object, **__: object) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return method


class InlineExecutor(ThreadPoolExecutor):
    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except OSError as error:
            done.set_exception(error)
        return done


class RecordedPace:
    """A rate limiter that records the time just before each request's first byte is sent."""

    def __init__(self, rate_limiter: RateLimiter, clock: FakeClock) -> None:
        self._rate_limiter, self._clock = rate_limiter, clock
        self.sent: list[float] = []
        self.arrived = 0
        """The number of requests with an open connection, waiting to be sent or already sent."""
        self.granted = 0
        """The number of slots acquired before a request started."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rate_limiter, name)

    async def acquire(self, priority: Priority) -> None:
        await self._rate_limiter.acquire(priority)
        self.granted += 1

    async def wait_to_send(self, priority: Priority, *, limit: float) -> bool:
        self.arrived += 1
        left = await self._rate_limiter.wait_to_send(priority, limit=limit)
        if left:
            self.sent.append(self._clock.monotonic())
        return left


def most_in_a_second(*times: float) -> int:
    """Return the largest number of these times within one second."""
    ordered = sorted(times)
    return max(sum(first <= time < first + 1 - 1e-6 for time in ordered) for first in ordered)


@contextmanager
def unseen(_label: str, _total: int) -> Iterator[Callable[[int], None]]:
    yield lambda _done: None
