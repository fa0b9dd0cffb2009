"""What systemd is told, the sockets that it hands over, and whether its journal reads the log."""

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
def heard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    """Listen as systemd does, at a path or at an abstract name."""
    name = str(tmp_path / "notify") if request.param == "path" else f"\0amo-callback-test-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name)
        listener.settimeout(WAIT_LIMIT)
        yield listener


def _told(listener: socket.socket) -> str:
    name = listener.getsockname()
    return f"@{name[1:].decode()}" if isinstance(name, bytes) else str(name)


def test_facts_are_told_in_one_message(heard: socket.socket) -> None:
    """One datagram holds them all, a line each: of two, systemd might hear one."""
    notifier = Notifier({"NOTIFY_SOCKET": _told(heard)}, pid=1)
    notifier("RELOADING=1", "MONOTONIC_USEC=5")
    notifier("READY=1")
    assert notifier.enabled
    assert [heard.recv(100), heard.recv(100)] == [b"RELOADING=1\nMONOTONIC_USEC=5", b"READY=1"]


def test_a_full_queue_is_not_waited_for(heard: socket.socket) -> None:
    """What did not get through comes before the next message, in its order, and what is repeated comes once."""
    notifier = Notifier({"NOTIFY_SOCKET": _told(heard)}, pid=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)  # noqa: FBT003 -- because it takes no names
        other.connect(heard.getsockname())
        filling = 0
        with suppress(BlockingIOError):
            while True:
                other.send(b"x")
                filling += 1
        for facts in (("RELOADING=1", "MONOTONIC_USEC=5"), ("READY=1",), ("WATCHDOG=1",), ("WATCHDOG=1",)):
            notifier(*facts)
        assert [heard.recv(100) for _ in range(filling)] == [b"x"] * filling
    notifier("STOPPING=1")
    told = [heard.recv(100) for _ in range(4)]
    assert told == [b"RELOADING=1\nMONOTONIC_USEC=5", b"READY=1", b"WATCHDOG=1", b"STOPPING=1"]


def test_where_nobody_listens_nothing_is_told() -> None:
    """Without systemd the service runs all the same; and where the socket has gone it goes on."""
    quiet = Notifier({}, pid=1)
    quiet("READY=1")
    assert (quiet.enabled, quiet.watchdog) == (False, None)
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}, pid=1)("READY=1")


def test_an_address_of_another_kind_is_refused() -> None:
    """A start that systemd would wait for in vain ends with a word instead."""
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
    ids=["anybody's", "ours", "another process's", "none"],
)
def test_a_watchdog_is_fed_by_the_process_that_it_is_for(environ: dict[str, str], seconds: float | None) -> None:
    """Microseconds are told as seconds; what is meant for another process is none of ours."""
    assert Notifier({"NOTIFY_SOCKET": "/run/x", **environ}, pid=7).watchdog == seconds


def _environ(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": "public:private", **more}


@pytest.fixture
def pair() -> Iterator[int]:
    """Open two listening sockets with neighbouring descriptors, and return the first one's."""
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


def test_sockets_are_taken_by_their_names(pair: int) -> None:
    """Each listener gets its own, and no child of ours would."""
    found = inherited_sockets(_environ(), pid=7, names=NAMES, first=pair)
    [public], [private] = found["public"], found["private"]
    with public, private:
        assert (public.fileno(), private.fileno()) == (pair, pair + 1)
        assert not public.get_inheritable()
        assert public.getsockname() != private.getsockname()


def test_a_door_may_have_several_sockets(pair: int) -> None:
    """IPv4 and IPv6, say."""
    found = inherited_sockets(_environ(LISTEN_FDNAMES="public:public"), pid=7, names=NAMES, first=pair)
    assert [len(listeners) for listeners in found.values()] == [2]
    for listener in found["public"]:
        listener.close()


def test_sockets_of_another_process_are_none_of_ours() -> None:
    """A shell between systemd and us inherits the variables, and hands nothing over."""
    assert inherited_sockets(_environ(LISTEN_PID="8"), pid=7, names=NAMES) == {}
    assert inherited_sockets({}, pid=7, names=NAMES) == {}


@pytest.mark.parametrize("names", ["public:backdoor", "public", ""])
def test_a_socket_that_is_no_door_is_refused(pair: int, names: str) -> None:
    """Nobody would answer there: the start ends, and says which name it wants."""
    with pytest.raises(ConfigurationError, match="FileDescriptorName"):
        inherited_sockets(_environ(LISTEN_FDNAMES=names), pid=7, names=NAMES, first=pair)


def test_the_variable_must_name_the_very_stream(tmp_path: Path) -> None:
    """A process of the same unit whose output was sent elsewhere has the variable, too."""
    with (tmp_path / "here").open("w") as here, (tmp_path / "may_be_copy").open("w") as may_be_copy:
        status = os.fstat(here.fileno())
        environ = {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
        assert is_journal(here, environ)
        assert not is_journal(may_be_copy, environ)
        assert not is_journal(here, {})
        assert not is_journal(here, {"JOURNAL_STREAM": "nonsense"})


def test_what_is_no_open_file_is_no_journal(tmp_path: Path) -> None:
    """A stream in memory, or one that was closed."""
    assert not is_journal(io.StringIO(), {"JOURNAL_STREAM": "1:2"})
    with (tmp_path / "closed").open("w") as closed:
        pass
    assert not is_journal(closed, {"JOURNAL_STREAM": "1:2"})
