"""Commands run inside a booted machine that has amo-callback but not its tests."""

import asyncio
import ctypes
import errno
import http.client
import json
import mmap
import os
import resource
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HOST = "reforyou.amocrm.ru"
FOLDER = "run/probe"


def main(command: str, *arguments: str) -> int:
    """Run a command."""
    run: dict[str, Callable[..., int]] = {"amo": _amo, "ask": _ask, "load": _load, "probe": _probe}
    return run[command](*arguments)


def _amo(address: str, redirect_uri: str) -> int:
    from amo_callback.amo.sandbox.app import Sandbox  # noqa: PLC0415 -- probes run without the package
    from amo_callback.amo.sandbox.fake_amo import (  # noqa: PLC0415 -- likewise
        FakeAmo,
        Lifetimes,
        SandboxIntegration,
    )
    from amo_callback.clock import SystemClock  # noqa: PLC0415 -- likewise
    from amo_callback.observe.log import make_logger  # noqa: PLC0415 -- likewise
    from amo_callback.web.listener import open_listener  # noqa: PLC0415 -- likewise

    async def serve() -> None:
        clock = SystemClock()
        integration = SandboxIntegration(redirect_uri=redirect_uri)
        fake = FakeAmo(integration=integration, now=clock.now, lifetimes=Lifetimes(access=3600))
        fake.open_account(HOST)
        log = make_logger(level="error", style="json", stream=sys.stderr)
        async with open_listener(Sandbox(fake, clock=clock).app(), address, name="amo", clock=clock, log=log):
            await asyncio.Event().wait()

    asyncio.run(serve())
    return 0


def _ask(method: str, url: str, *headers: str) -> int:
    """Send one request with the body from standard input, and print the answer as JSON."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=120)
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    try:
        body = sys.stdin.buffer.read() or None
        connection.request(method, path, body, headers=dict(header.split(": ", 1) for header in headers))
        answer = connection.getresponse()
    except OSError as error:
        print(json.dumps({"status": 0, "text": str(error), "headers": {}}))  # noqa: T201 -- the test parses it
        return 0
    result = {"status": answer.status, "text": answer.read().decode(), "headers": dict(answer.getheaders())}
    print(json.dumps(result))  # noqa: T201 -- the test parses it
    return 0


def _load(url: str, clients: str, *headers: str) -> int:
    """Send requests continuously until standard input ends, and print their counts."""
    counts: Counter[str] = Counter()

    async def run() -> None:
        ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(0, ended.set)
        await load(url, int(clients), headers, counts=counts, ended=ended)

    asyncio.run(run())
    print(json.dumps(counts))  # noqa: T201 -- the test parses it
    return 0


async def load(url: str, clients: int, headers: Iterable[str], *, counts: Counter[str], ended: asyncio.Event) -> None:
    """Send requests until `ended` is set, half over persistent connections, and count sent and failed requests."""
    parts = urlsplit(url)
    lines = [f"GET {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *headers]

    async def client(*, keep: bool) -> None:
        kind = "kept" if keep else "new"
        request = "\r\n".join([*lines, f"Connection: {'keep-alive' if keep else 'close'}", "", ""]).encode()
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not ended.is_set():
            counts[f"{kind}_made"] += 1
            try:
                streams = streams or await asyncio.open_connection(parts.hostname, parts.port)
                again = await _exchange(*streams, request)
            except (OSError, EOFError, ValueError):
                counts[f"{kind}_lost"] += 1
                again = False
            if not again and streams is not None:
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    await asyncio.gather(*(client(keep=bool(number % 2)) for number in range(clients)))


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> bool:
    """Send a request, read its answer, and return whether the connection can be reused."""
    writer.write(request)
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    if " 200 " not in head.split("\r\n")[0]:
        raise ValueError(head)
    length = next(line for line in head.split("\r\n") if line.startswith("content-length:"))
    await reader.readexactly(int(length.partition(":")[2]))
    return "connection: close" not in head


libc = ctypes.CDLL(None, use_errno=True)
_ARM = os.uname().machine == "aarch64"
_DELETE_MODULE = 106 if _ARM else 176
_ADD_KEY = 217 if _ARM else 248
_IO_SETUP = 0 if _ARM else 206
SHARED_MEMORY = 0x616D6F
"""The key of a shared-memory segment created by another process."""


def _probe(*names: str) -> int:
    """Run probes in separate processes, and print whether the kernel permitted each."""
    print(json.dumps({name: _tried(name) for name in names or PROBES}))  # noqa: T201 -- the test parses it
    return 0


def _tried(name: str) -> str:
    reader, writer = os.pipe()
    if not (child := os.fork()):
        try:
            PROBES[name][0]()
            result = "done"
        except OSError as error:
            result = errno.errorcode.get(error.errno or 0, "unknown")
        os.write(writer, result.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        return answer.read()


def _call(name: str, *arguments: Any, reached: tuple[int, ...] = ()) -> None:
    """Make a system call.

    Some calls have invalid arguments, so that they change nothing; their `reached` errors show that they are permitted.
    """
    if getattr(libc, name)(*arguments) == -1 and (number := ctypes.get_errno()) not in reached:
        raise OSError(number, os.strerror(number))


def _own(name: str) -> Path:
    return Path(os.environ.get("STATE_DIRECTORY", f"/{FOLDER}")) / name


def _write_outside() -> None:
    path = Path("/var/lib/probe/x")
    path.touch()
    path.unlink()  # otherwise another user could not create it


def _mount() -> None:
    target = f"/{FOLDER}".encode()
    _call("mount", b"none", target, b"tmpfs", 0, None)
    _call("umount", target)


def _run() -> None:
    subprocess.run(["/bin/true"], check=True)


def _socket(family: int) -> None:
    socket.socket(family, socket.SOCK_RAW).close()


def _set_user_id_bit() -> None:
    path = _own("suid")
    path.touch()
    try:
        path.chmod(0o4700)
    finally:
        path.unlink()


def _chown() -> None:
    path = _own("owned")
    path.touch()
    try:
        os.chown(path, os.getuid(), os.getgid())
    finally:
        path.unlink()


def _gain() -> None:
    if libc.prctl(39, 0, 0, 0, 0):  # PR_GET_NO_NEW_PRIVS
        raise PermissionError(errno.EPERM, "no new privileges")


def _dump_core() -> None:
    if resource.getrlimit(resource.RLIMIT_CORE)[1] == 0:
        raise PermissionError(errno.EPERM, "no core dumps")


def _keep_a_key() -> None:
    _call("syscall", _ADD_KEY, b"user", b"probe", b"x", 1, -2)  # -2 is this process's own keyring


def _queue_input() -> None:
    _call("syscall", _IO_SETUP, 1, ctypes.byref(ctypes.c_ulong(0)))


def _claim_rights() -> None:
    header, rights = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    _call("capget", header, rights)
    _call("capset", header, rights)  # its present capabilities


def _make_cgroup() -> None:
    folder = Path("/sys/fs/cgroup/probe")
    folder.mkdir()
    folder.rmdir()


PROBES: dict[str, tuple[Callable[[], object], str]] = {
    "write outside": (_write_outside, "ProtectSystem=strict"),
    "read /root": (lambda: Path("/root/.probe").read_text(), "ProtectHome=yes"),
    "read /srv": (lambda: Path("/srv/.probe").read_text(), "InaccessiblePaths=/srv"),
    "read others' /tmp": (lambda: Path("/tmp/probe").read_text(), "PrivateTmp=yes"),  # noqa: S108 -- the probe's path
    "read the secrets' folder": (lambda: list(Path("/etc/amo-callback/credentials").iterdir()), "User=amo-callback"),
    "run a program": (_run, "NoExecPaths=/"),
    "use a device": (lambda: Path("/dev/probe").read_bytes(), "PrivateDevices=yes"),
    "see others' processes": (lambda: Path("/proc/1").stat(), "User=amo-callback ProtectProc=invisible"),
    "tune the kernel": (
        lambda: os.close(os.open("/proc/irq/default_smp_affinity", os.O_RDWR)),
        "ProtectKernelTunables=yes",
    ),
    "change cgroups": (_make_cgroup, "ProtectControlGroups=yes"),
    "open a netlink socket": (lambda: _socket(socket.AF_NETLINK), "RestrictAddressFamilies=AF_INET"),
    "open a packet socket": (lambda: _socket(socket.AF_PACKET), "RestrictAddressFamilies=AF_INET"),
    "map memory to write and execute": (lambda: mmap.mmap(-1, 4096, prot=7).close(), "MemoryDenyWriteExecute=yes"),
    "trace": (lambda: _call("ptrace", 0, 0, 0, 0), "SystemCallFilter=@system-service"),
    "become another user": (lambda: os.setuid(65534), "SystemCallFilter=~@setuid"),
    "change an owner": (_chown, "SystemCallFilter=~@chown"),
    "mount": (_mount, "CapabilityBoundingSet="),
    "change the root": (lambda: os.chroot("/"), "CapabilityBoundingSet="),
    "make a namespace": (lambda: _call("unshare", 0x10000000), "RestrictNamespaces=yes"),
    "set the host's name": (lambda: _call("sethostname", None, -1, reached=(errno.EINVAL,)), "ProtectHostname=yes"),
    "have root's rights over the machine": (
        lambda: _call("sethostname", None, -1, reached=(errno.EINVAL,)),
        "PrivateUsers=yes",
    ),
    "set the clock": (
        lambda: _call("clock_settime", 0, (ctypes.c_long * 2)(-1, 0), reached=(errno.EINVAL,)),
        "ProtectClock=yes",
    ),
    "read the kernel's log": (lambda: _call("klogctl", 10, None, 0), "ProtectKernelLogs=yes"),
    "unload a module": (
        lambda: _call("syscall", _DELETE_MODULE, b"no_such_module", 0, reached=(errno.ENOENT,)),
        "ProtectKernelModules=yes",
    ),
    "run in real time": (lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1)), "RestrictRealtime=yes"),
    "choose processors": (lambda: os.sched_setaffinity(0, os.sched_getaffinity(0)), "SystemCallFilter=~@resources"),
    "set a set-user-id bit": (_set_user_id_bit, "RestrictSUIDSGID=yes"),
    "change personality": (lambda: _call("personality", 0x0040000), "LockPersonality=yes"),
    "lock memory": (lambda: _call("mlock", ctypes.create_string_buffer(1), 1), "SystemCallFilter=~@memlock"),
    "use protection keys": (
        lambda: _call("pkey_alloc", 0, 0, reached=(errno.ENOSPC, errno.EINVAL)),
        "SystemCallFilter=~@pkey",
    ),
    "keep a key in the kernel": (_keep_a_key, "SystemCallFilter=~@keyring"),
    "queue input and output": (_queue_input, "SystemCallFilter=~@aio"),
    "claim rights": (_claim_rights, "SystemCallFilter=~@privileged"),
    "share memory with others": (lambda: _call("shmget", SHARED_MEMORY, 0, 0), "PrivateIPC=yes"),
    "gain privileges": (_gain, "NoNewPrivileges=yes"),
    "dump core": (_dump_core, "LimitCORE=0"),
}
"""Each probe, and the unit's option that forbids it even to root."""

if __name__ == "__main__":
    with suppress(BrokenPipeError):
        sys.exit(main(*sys.argv[1:]))
