"""Notifications to systemd, the sockets that it passes, and detection of its journal."""

import io
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from amo_callback.errors import ConfigurationError
from amo_callback.observe.systemd import Notifier, inherited_sockets, is_journal
from tests.wait_limit import WAIT_LIMIT

NAMES = ("public", "private")


@pytest.fixture(params=["path", "abstract"])
def notify_socket(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as systemd does, at a path or at an abstract name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0amo-callback-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(WAIT_LIMIT)
        yield listener


def _address(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name)


def test_notifier_sends_facts_in_one_datagram(notify_socket: socket.socket) -> None:
    """All facts are in one datagram, a line each, because systemd might receive only one of two."""
    notifier = Notifier({"NOTIFY_SOCKET": _address(notify_socket)}, pid=1)
    notifier("RELOADING=1", "MONOTONIC_USEC=5")
    notifier("READY=1")
    assert notifier.enabled
    assert [notify_socket.recv(100), notify_socket.recv(100)] == [b"RELOADING=1\nMONOTONIC_USEC=5", b"READY=1"]


def test_notifier_full_queue_is_sent_with_next_message(notify_socket: socket.socket) -> None:
    """Unsent facts are sent before the next message, in order, and repeated ones once."""
    notifier = Notifier({"NOTIFY_SOCKET": _address(notify_socket)}, pid=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)  # noqa: FBT003 -- because it takes no names
        other.connect(notify_socket.getsockname())
        filling = 0
        with suppress(BlockingIOError):
            while True:
                other.send(b"x")
                filling += 1
        for facts in (("RELOADING=1", "MONOTONIC_USEC=5"), ("READY=1",), ("WATCHDOG=1",), ("WATCHDOG=1",)):
            notifier(*facts)
        assert [notify_socket.recv(100) for _ in range(filling)] == [b"x"] * filling
    notifier("STOPPING=1")
    received = [notify_socket.recv(100) for _ in range(4)]
    assert received == [b"RELOADING=1\nMONOTONIC_USEC=5", b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_notifier_without_socket_sends_nothing() -> None:
    """The service runs without systemd, and continues if the socket is missing."""
    quiet = Notifier({}, pid=1)
    quiet("READY=1")
    assert (quiet.enabled, quiet.watchdog) == (False, None)
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}, pid=1)("READY=1")


def test_notifier_unsupported_address_raises() -> None:
    """An unsupported address fails the start, because systemd would never receive a notification."""
    with pytest.raises(ConfigurationError, match="NOTIFY_SOCKET"):
        Notifier({"NOTIFY_SOCKET": "vsock:2:1234"}, pid=1)


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({}, None),
    ],
    ids=["any process", "this process", "other process", "none"],
)
def test_notifier_watchdog_is_for_named_process_only(environ: dict[str, str], seconds: float | None) -> None:
    """Microseconds are returned as seconds; a watchdog of another process is ignored."""
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}, pid=7).watchdog == seconds


def _environ(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "public:private", **more}


@pytest.fixture
def first_descriptor() -> Iterator[int]:
    """Open two listening sockets with adjacent descriptors and return the first descriptor."""
    one, two = socket.create_server(("127.0.0.1", 0)), socket.create_server(("127.0.0.1", 0))
    first = 200
    for number, listener in enumerate((one, two)):
        os.dup2(listener.fileno(), first + number)
        listener.close()
    yield first
    for number in (first, first + 1):
        try:
            os.close(number)
        except OSError:
            continue


def test_inherited_sockets_are_assigned_by_name(first_descriptor: int) -> None:
    """Each listener gets its own sockets, and child processes do not inherit them."""
    found = inherited_sockets(_environ(), pid=7, names=NAMES, first=first_descriptor)
    [public], [private] = found["public"], found["private"]
    with public, private:
        assert (public.fileno(), private.fileno()) == (first_descriptor, first_descriptor + 1)
        assert not public.get_inheritable()
        assert public.getsockname() != private.getsockname()


def test_inherited_sockets_may_be_several_per_listener(first_descriptor: int) -> None:
    """A listener may have sockets for IPv4 and IPv6."""
    found = inherited_sockets(_environ(LISTEN_FDNAMES="public:public"), pid=7, names=NAMES, first=first_descriptor)
    assert [len(listeners) for listeners in found.values()] == [2]
    for listener in found["public"]:
        listener.close()


def test_inherited_sockets_of_other_process_are_ignored() -> None:
    """A shell between systemd and this process passes on the variables but no sockets."""
    assert inherited_sockets(_environ(LISTEN_PID="8"), pid=7, names=NAMES) == {}
    assert inherited_sockets({}, pid=7, names=NAMES) == {}


@pytest.mark.parametrize("names", ["public:backdoor", "public", ""])
def test_inherited_sockets_unknown_name_raises(first_descriptor: int, names: str) -> None:
    """No listener would answer on the socket, so the start fails and names the expected setting."""
    with pytest.raises(ConfigurationError, match="FileDescriptorName"):
        inherited_sockets(_environ(LISTEN_FDNAMES=names), pid=7, names=NAMES, first=first_descriptor)


def test_is_journal_needs_variable_of_same_stream(tmp_path: Path) -> None:
    """A process of the same unit with redirected output has the variable as well."""
    with (tmp_path / "here").open("w") as here, (tmp_path / "other").open("w") as other:
        status = os.fstat(here.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(here, environ)
        assert not is_journal(other, environ)
        assert not is_journal(here, {})
        assert not is_journal(here, {"JOURNAL_STREAM": "nonsense"})


def test_is_journal_of_memory_or_closed_stream_is_false(tmp_path: Path) -> None:
    """A stream in memory or a closed stream is not the journal."""
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
    with (tmp_path / "closed").open("w") as closed:
        pass
    assert not is_journal(closed, {"JOURNAL_STREAM": "1:2"})
