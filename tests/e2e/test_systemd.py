"""The service under a real systemd: installation, faults, restarts under load, restrictions and removal.

The tests need a command, named by TEST_SYSTEMD, that boots a separate systemd.
It accepts `start`, `sh COMMAND…` (inside) and `stop`. The tests share the machine and begin with a running service.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from amo_callback.amo.sandbox.fake_amo import SandboxIntegration
from amo_callback.deploy import units
from tests.e2e.guest_commands import FOLDER, PROBES, SHARED_MEMORY
from tests.e2e.systemd_machine import AMO, CONFIG, ETC, PRIVATE, PUBLIC, Lab, booted, until

pytestmark = pytest.mark.timeout(900)  # the first test also builds, installs and boots

UNIT = f"/etc/systemd/system/{units.SERVICE}"
DROP_IN = "/run/systemd/system/amo-callback.service.d/test.conf"
SOCKET_DROP_IN = "/run/systemd/system/amo-callback-public.socket.d/test.conf"
TOKEN = f"http://{PRIVATE}/connections/account:31920194/token"
RESTARTS = 7
PYTHON = Path("/usr/bin/python3").resolve()
STATE = "/var/lib/amo-callback"


@pytest.fixture(scope="module")
def machine() -> Iterator[Lab]:
    """Return a machine with the installed service, AMO's stand-in and a connected account."""
    with booted() as lab:
        known = SandboxIntegration()
        lab.write(f"{ETC}/config.toml", CONFIG)
        lab.write(f"{ETC}/credentials/amo.client_secret", known.client_secret)
        amo = [lab.python, str(lab.program), "amo", AMO, known.redirect_uri]
        lab.sh("systemd-run", "--quiet", "--unit=amo", *amo)
        lab.sh(lab.amo_callback, "systemd", "install")
        lab.sh("systemctl", "enable", "--now", "amo-callback")
        until(lambda: lab.ask(f"http://{AMO}/")["status"] == 404)
        lab.connect()
        yield lab


@pytest.fixture
def lab(machine: Lab) -> Iterator[Lab]:
    """Return the machine with a running service, and restore that state for the next test."""
    yield machine
    machine.write(f"{ETC}/config.toml", CONFIG)
    machine.sh("rm", "-f", DROP_IN, SOCKET_DROP_IN)
    machine.sh("systemctl", "daemon-reload")
    if machine.state() != "active":
        machine.sh("systemctl", "start", "amo-callback")


def test_installation_answers_and_refreshes(machine: Lab, record_property: Callable[[str, object], None]) -> None:
    """The installed service accepts a callback, hands out a token and refreshes it on request."""
    times = machine.show(
        "amo-callback", "ActiveEnterTimestampMonotonic", "InactiveExitTimestampMonotonic", "Type", "NRestarts"
    )
    machine.connect()
    token = json.loads(machine.ask(TOKEN, machine.key())["text"])
    rejected = json.dumps({"rejected_access_token": token["access_token"]})
    refresh = machine.ask(TOKEN.replace("/token", "/refresh"), machine.key(), method="POST", body=rejected)
    refreshed = json.loads(refresh["text"])
    assert (times["Type"], times["NRestarts"]) == ("notify", "0")
    assert token["account_id"] == refreshed["account_id"] == "31920194"
    assert token["access_token"] != refreshed["access_token"]
    began, ready = (int(times[f"{name}TimestampMonotonic"]) for name in ("InactiveExit", "ActiveEnter"))
    record_property("seconds_to_ready", round((ready - began) / 1e6, 2))


def test_units_pass_systemd_analyze_on_machine(machine: Lab, record_property: Callable[[str, object], None]) -> None:
    """Systemd verifies the installed units, with an exposure of 1.1 of 10 or lower."""
    files = [f"/etc/systemd/system/{name}" for name in units.UNITS]
    verified = machine.sh("systemd-analyze", "verify", "--recursive-errors=no", *files)
    rated = machine.sh("systemd-analyze", "security", "--offline=true", "--threshold=11", "--no-pager", UNIT)
    assert verified.out + verified.err == ""
    record_property("exposure", rated.out.rpartition("service: ")[2].split()[0])


def test_second_installation_changes_nothing(machine: Lab) -> None:
    """Files and secrets are unchanged, and the same process continues."""
    look = [
        "sh",
        "-c",
        f"stat -c '%n %i %Y %a %U' /etc/systemd/system/amo* {ETC} {ETC}/credentials {ETC}/credentials/*",
    ]
    before, process = machine.sh(*look).out, machine.show("amo-callback", "MainPID")
    result = machine.sh(machine.amo_callback, "systemd", "install").out
    assert (machine.sh(*look).out, machine.show("amo-callback", "MainPID")) == (before, process)
    assert result.count(": unchanged") == 4
    secrets = {
        line.rpartition("/")[2].split()[0]: line.split()[3:] for line in before.splitlines() if "credentials" in line
    }
    assert secrets == {
        "credentials": ["700", "root"],
        "amo.client_secret": ["600", "root"],
        "api.keys": ["600", "root"],
        "storage.encryption_keys": ["600", "root"],
    }


def test_metrics_include_process_figures(machine: Lab) -> None:
    """In spite of the unit's restrictions, the metrics include memory and open files."""
    text = machine.ask(f"http://{PRIVATE}/metrics")["text"]
    assert "\nprocess_resident_memory_bytes " in text
    assert "\nprocess_open_fds " in text


def test_check_as_root_finds_installation_ok(machine: Lab) -> None:
    """Root's `amo-callback check` finds unit, sockets, secrets and database OK."""
    result = json.loads(machine.sh(machine.amo_callback, "check", "--json", check=False).out)
    found = {one["check"]: one for one in result["findings"]}
    assert found["systemd"]["message"] == "amo-callback.service is active and its socket is listening"
    ours = ("systemd", "service", "secrets", "disk", "store", "keys")
    assert {name: found[name]["severity"] for name in ours} == dict.fromkeys(ours, "ok")


def test_sockets_keep_backlog_of_4096(machine: Lab) -> None:
    """The sockets keep the backlog of their units although the service listens on them."""
    lines = [line.split() for line in machine.sh("ss", "-Hltn").out.splitlines()]
    queues = {line[3]: line[2] for line in lines}
    assert (queues[PUBLIC], queues[PRIVATE]) == ("4096", "4096")


def test_invalid_configuration_is_not_restarted(lab: Lab) -> None:
    """The service exits with status 78, has failed, and is not restarted."""
    lab.write(f"{ETC}/config.toml", CONFIG + "\n[log]\nlevel = 'loud'\n")
    lab.sh("systemctl", "restart", "amo-callback", check=False)
    until(lambda: lab.state() == "failed")
    result = lab.show("amo-callback", "ExecMainStatus", "NRestarts", "Result")
    assert result == {"ExecMainStatus": "78", "NRestarts": "0", "Result": "exit-code"}
    assert "log.level: 'loud'" in lab.journal()


def test_connections_with_invalid_configuration_hit_trigger_limit(lab: Lab) -> None:
    """A waiting client starts the service until the socket's trigger limit; after the fix, a restart succeeds."""
    lab.write(SOCKET_DROP_IN, "[Socket]\nTriggerLimitBurst=3\nTriggerLimitIntervalSec=300\n")
    lab.sh("systemctl", "daemon-reload")
    lab.sh("systemctl", "stop", *units.UNITS)
    lab.write(f"{ETC}/config.toml", CONFIG + "\n[log]\nlevel = 'loud'\n")
    lab.sh("systemctl", "start", *units.SOCKETS)
    assert lab.ask(f"http://{PUBLIC}/healthz")["status"] == 0
    until(lambda: lab.show(units.SOCKETS[0], "Result") == {"Result": "trigger-limit-hit"})
    until(lambda: lab.state() == "failed")
    lab.write(f"{ETC}/config.toml", CONFIG)
    lab.sh("rm", SOCKET_DROP_IN)
    lab.sh("systemctl", "daemon-reload")
    lab.sh("systemctl", "restart", "amo-callback")
    assert lab.ask(f"http://{PUBLIC}/healthz")["status"] == 200


def test_stopped_process_is_replaced_by_watchdog(lab: Lab) -> None:
    """A stopped process is killed after WatchdogSec, and a new one answers."""
    lab.write(DROP_IN, "[Service]\nWatchdogSec=8\n")
    lab.sh("systemctl", "daemon-reload")
    lab.sh("systemctl", "restart", "amo-callback")
    process = lab.show("amo-callback", "MainPID")["MainPID"]
    lab.sh("kill", "-STOP", process)
    assert lab.ask(TOKEN, lab.key())["status"] == 200
    result = lab.show("amo-callback", "MainPID", "NRestarts")
    assert result["NRestarts"] == "1"
    assert result["MainPID"] != process
    assert "Watchdog timeout" in lab.journal()


def test_restarts_under_systemd_lose_no_request(lab: Lab, record_property: Callable[[str, object], None]) -> None:
    """Requests during restarts are answered, over new and over kept connections."""
    key = lab.key()
    with lab.loaded(TOKEN, clients=16) as counts:
        for _ in range(RESTARTS):
            lab.sh("systemctl", "restart", "amo-callback")
            assert lab.ask(TOKEN, key)["status"] == 200
    for name in ("new_made", "new_lost", "kept_made", "kept_lost"):
        record_property(name, counts.get(name, 0))
    assert counts["new_made"] > RESTARTS < counts["kept_made"]
    assert (counts.get("new_lost", 0), counts.get("kept_lost", 0)) == (0, 0)


def test_changed_credential_applies_after_restart(lab: Lab) -> None:
    """Systemd reads credentials at the start, so `reload` keeps the old API key and `restart` applies the new one."""
    path, old = f"{ETC}/credentials/api.keys", lab.sh("cat", f"{ETC}/credentials/api.keys").out
    before = lab.key()
    lab.write(path, f"backend:{'n' * 64}\n")
    try:
        lab.sh("systemctl", "reload", "amo-callback")
        until(lambda: "reload.done" in lab.journal())
        assert lab.state() == "active"
        assert (lab.ask(TOKEN, before)["status"], lab.ask(TOKEN, lab.key())["status"]) == (200, 401)
        lab.sh("systemctl", "restart", "amo-callback")
        assert (lab.ask(TOKEN, before)["status"], lab.ask(TOKEN, lab.key())["status"]) == (401, 200)
    finally:
        lab.write(path, old)
        lab.sh("systemctl", "restart", "amo-callback")


def test_commands_as_root_leave_files_to_service_user(lab: Lab) -> None:
    """Root's commands use a stopped service's database as its owner, with the service's secrets."""
    lab.sh("systemctl", "stop", *units.UNITS)
    listed = json.loads(lab.sh(lab.amo_callback, "connections", "list", "--json").out)
    lab.sh(lab.amo_callback, "connections", "freeze", "--all")
    lab.sh(lab.amo_callback, "connections", "thaw", "--all", "--yes")
    owners = set(lab.sh("find", STATE, "-printf", "%U\n").out.split())
    assert [each["account_id"] for each in listed] == ["31920194"]
    assert owners == {lab.sh("id", "-u", "amo-callback").out.strip()}


def test_backup_timer_makes_backup_owned_by_root(lab: Lab) -> None:
    """The backup service runs beside the service; root owns its copy and no file in the database's folder."""
    for name in ("backup.timer", "backup.service"):
        unit = lab.sh(lab.amo_callback, "systemd", "print", name).out
        lab.write(f"/etc/systemd/system/amo-callback-{name}", unit)
    lab.sh("systemctl", "daemon-reload")
    lab.sh("systemctl", "enable", "--now", "amo-callback-backup.timer")
    lab.sh("systemctl", "start", "amo-callback-backup.service")
    [copy] = lab.sh("find", "/var/backups/amo-callback", "-type", "f", "-printf", "%U %m %p\n").out.splitlines()
    assert copy.startswith("0 600 ")
    assert set(lab.sh("find", STATE, "-printf", "%U\n").out.split()) == {lab.sh("id", "-u", "amo-callback").out.strip()}
    lab.sh("systemctl", "disable", "--now", "amo-callback-backup.timer")
    lab.sh("sh", "-c", "rm /etc/systemd/system/amo-callback-backup.*")


@pytest.fixture(scope="module")
def unrestricted_probes(machine: Lab) -> dict[str, str]:
    """Return the probes' results in a root service without options."""
    for path in ("/root/.probe", "/srv/.probe", "/tmp/probe"):  # noqa: S108 -- the probe's path
        machine.write(path, "x")
    machine.sh("mkdir", "-p", f"/{FOLDER}")
    machine.sh("mkdir", "-m", "777", "/var/lib/probe")
    machine.sh("mknod", "-m", "666", "/dev/probe", "c", "1", "3")
    share = f"import ctypes; assert ctypes.CDLL(None).shmget({SHARED_MEMORY}, 4096, 0o1666) != -1"
    machine.sh(machine.python, "-c", share)
    return _probe(machine)


@pytest.fixture(scope="module")
def restricted_probes(machine: Lab, unrestricted_probes: dict[str, str]) -> dict[str, str]:
    """Return the probes' results in the service's unit, in place of the service."""
    assert unrestricted_probes
    program = f"{machine.python} {machine.program} probe"
    drop_in = f"[Service]\nType=oneshot\nWatchdogSec=0\nRestart=no\nExecStart=\nExecStart={program}\n"
    machine.write(DROP_IN, f"{drop_in}StandardOutput=truncate:/run/probes.json\n")
    machine.sh("systemctl", "daemon-reload")
    machine.sh("systemctl", "restart", "amo-callback")
    machine.sh("rm", DROP_IN)
    machine.sh("systemctl", "daemon-reload")
    machine.sh("systemctl", "restart", "amo-callback")
    return dict(json.loads(machine.sh("cat", "/run/probes.json").out))


def _probe(lab: Lab, *names: str, options: str = "") -> dict[str, str]:
    properties = [f"--property={option}" for option in options.split(" ") if option]
    if options.startswith("NoExecPaths"):
        properties.append(f"--property=ExecPaths={lab.folder} {PYTHON} /usr/lib -/lib -/lib64")
    run = ["systemd-run", "--quiet", "--collect", "--wait", "--pipe", *properties]
    return dict(json.loads(lab.sh(*run, lab.python, str(lab.program), "probe", *names).out))


@pytest.mark.parametrize("name", PROBES)
def test_unit_forbids_probe(
    machine: Lab, unrestricted_probes: dict[str, str], restricted_probes: dict[str, str], name: str
) -> None:
    """Each probe succeeds without options, and fails for root with one option and in the unit."""
    if unrestricted_probes[name] != "done":
        pytest.skip(f"this machine forbids it anyway: {unrestricted_probes[name]}")
    alone = _probe(machine, name, options=PROBES[name][1])
    assert alone[name] != "done"
    assert restricted_probes[name] != "done"


def test_unix_socket_admits_group_members_only(lab: Lab) -> None:
    """A backend's user can connect to the private API's socket only as a member of the group."""
    path = "/run/amo-callback/private.sock"
    curl = ["runuser", "-u", "shop", "--", "curl", "-sS", "--unix-socket", path, "http://localhost/healthz"]
    restart = ["systemctl", "restart", *units.UNITS]
    lab.sh("useradd", "--system", "shop")
    try:
        lab.write(f"{ETC}/config.toml", CONFIG.replace("[server]", f'[server]\nprivate = "unix:{path}"'))
        lab.sh(lab.amo_callback, "systemd", "install", "--yes")
        lab.sh(*restart)
        opened = lab.show("amo-callback-public.socket", "ActiveEnterTimestampMonotonic")
        begun = lab.show("amo-callback-private.socket", "InactiveExitTimestampMonotonic")
        assert int(*begun.values()) >= int(*opened.values())  # started together, one could fail: address in use
        assert lab.sh("stat", "-c", "%a %U %G", path).out.split() == ["660", "root", "amo-callback"]
        refused = lab.sh(*curl, check=False)
        assert refused.status == 7  # curl: failed to connect
        lab.sh("usermod", "--append", "--groups", "amo-callback", "shop")
        assert json.loads(lab.sh(*curl).out) == {"status": "ok"}
    finally:
        lab.write(f"{ETC}/config.toml", CONFIG)
        lab.sh(lab.amo_callback, "systemd", "install", "--yes")
        lab.sh(*restart)


def test_dual_stack_socket_trusts_ipv4_proxy(lab: Lab) -> None:
    """`[::]:8080` accepts IPv4, and trusts the proxy on this machine as `127.0.0.1:8080` does."""
    restart = ["systemctl", "restart", *units.UNITS]
    try:
        lab.write(f"{ETC}/config.toml", CONFIG.replace("[server]", '[server]\npublic = "[::]:8080"'))
        lab.sh(lab.amo_callback, "systemd", "install", "--yes")
        lab.sh(*restart)
        assert lab.ask(f"http://{PUBLIC}/nothing-here", "X-Forwarded-For: 198.51.100.9")["status"] == 404
        assert '"peer":"198.51.100.9"' in lab.journal()
    finally:
        lab.write(f"{ETC}/config.toml", CONFIG)
        lab.sh(lab.amo_callback, "systemd", "install", "--yes")
        lab.sh(*restart)


def test_uninstall_removes_units_only_on_machine(lab: Lab) -> None:
    """Service and sockets are removed; configuration, secrets and database stay for a new installation."""
    keys = lab.sh("cat", f"{ETC}/credentials/storage.encryption_keys").out
    result = lab.sh(lab.amo_callback, "systemd", "uninstall").out
    assert lab.sh("sh", "-c", "ls /etc/systemd/system | grep amo-callback", check=False).out == ""
    assert lab.ask(f"http://{PUBLIC}/healthz")["status"] == lab.ask(f"http://{PRIVATE}/healthz")["status"] == 0
    assert "kept" in result
    lab.sh(lab.amo_callback, "systemd", "install")
    lab.sh("systemctl", "enable", "--now", "amo-callback")
    assert lab.sh("cat", f"{ETC}/credentials/storage.encryption_keys").out == keys
    assert lab.ask(TOKEN, lab.key())["status"] == 200
