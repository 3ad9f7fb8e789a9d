"""Nothing of ours is reached from elsewhere: listeners on loopback alone, sockets for us alone, keys checked."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.runs import Machine, Place, Plan, ended, localhost, place_on, read_until

# Waits, at most 30 s, until the test has looked around.
WAIT = 'n=0; while ! [ -e "$GO" ] && [ $n -lt 300 ]; do sleep 0.1; n=$((n + 1)); done; ok\n'
LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def listeners(process: int) -> dict[str, set[int]]:
    """TCP ports that are listened on in that process's network, by address (hexadecimal, as the kernel has it)."""
    found: dict[str, set[int]] = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{process}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                address, _, port = fields[1].partition(":")
                found.setdefault(address, set()).add(int(port, 16))
    return found


def inodes_of(word: str) -> set[str]:
    """The sockets of processes here that have this word in their command line or environment."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if word.encode() in (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes():
                found |= {os.readlink(fd) for fd in (entry / "fd").iterdir()}  # noqa: PTH115 (no path)
    return {link[8:-1] for link in found if link.startswith("socket:[")}


def own_listeners(word: str) -> dict[str, set[int]]:
    """As `listeners`, of such processes on this machine."""
    inodes = inodes_of(word)
    found: dict[str, set[int]] = {}
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, _, port = fields[1].partition(":")
                found.setdefault(address, set()).add(int(port, 16))
    return found


@pytest.fixture(params=["no", "clientspecified", "yes"])
def gateway_host(request: pytest.FixtureRequest, lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    config = [f"GatewayPorts {request.param}"]
    with NetnsHost.start(lan, tmp_path / "gw", name="gw", keys=keys, config=config) as host:
        yield host


def test_listeners_are_on_loopback_alone_and_sockets_are_ours_alone(
    gateway_host: NetnsHost, machine: Machine, tmp_path: Path
) -> None:
    """Also where sshd's GatewayPorts, and the user's own, would open forwards to the network."""
    ssh_config = next(Path(part) / "config" for part in machine.environ["PATH"].split(os.pathsep))
    ssh_config.write_text("GatewayPorts yes\n", encoding="ascii")
    forwards: list[dict[str, object]] = [{"to_host": 9, "port": 0}, {"from_host": 22}]
    place = place_on(gateway_host, forwards=forwards, service_ports={"sync": 7777}, env={"GO": "/root/go"})
    here = localhost(tmp_path / "base", env={"GO": str(tmp_path / "go")})
    plan = Plan.of_script(tmp_path / "plan", machine, WAIT, [place, here])
    assert gateway_host.server is not None
    before = listeners(gateway_host.server.pid)
    process = plan.start("local.single", "--testcase", "case", "--instances", "2", "--json", "-v")
    try:
        read_until(process, "run: started in", 2)
        there = listeners(gateway_host.server.pid)
        mine = own_listeners(str(machine.runtime))
        paths = [machine.runtime, *machine.runtime.rglob("*"), place.base, *(place.base / "agents").rglob("*")]
        found = {path: path.lstat() for path in paths if path.exists()}
    finally:
        (gateway_host.home / "go").touch()
        (tmp_path / "go").touch()
        said = ended(process)
    assert said.status == 0, str(said)
    opened = {address: ports - before.get(address, set()) for address, ports in there.items()}
    assert len(set().union(*opened.values())) == 2  # sync at its fixed port and the extra one: there is no Redis
    assert 7777 in opened["0100007F"]
    assert {address for address, ports in opened.items() if ports} <= LOOPBACK
    assert len(set().union(*mine.values())) >= 2  # the sync service, and the forward from the host
    assert set(mine) <= LOOPBACK
    assert [path for path, state in found.items() if stat.S_ISSOCK(state.st_mode)], "no agent's socket"
    for path, state in found.items():
        if stat.S_ISDIR(state.st_mode) or stat.S_ISSOCK(state.st_mode):
            assert not state.st_mode & 0o077, f"{path}: {state.st_mode:o}"
        assert state.st_uid == os.getuid()


def test_a_neighbour_cannot_reach_the_forwards_of_a_host(
    gateway_host: NetnsHost, machine: Machine, tmp_path: Path
) -> None:
    place = place_on(gateway_host, service_ports={"sync": 7778}, env={"GO": "/root/go"})
    plan = Plan.of_script(tmp_path / "plan", machine, WAIT, [place])
    process = plan.start("local.single", "--testcase", "case", "--json", "-v")
    try:
        read_until(process, "run: started in")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((gateway_host.address, 7778), timeout=5).close()
    finally:
        (gateway_host.home / "go").touch()
        said = ended(process)
    assert said.status == 0, str(said)


# Connects as another user, and says what becomes of it: a service here would wait for words of ours.
OTHER_USER = """
import os, socket
os.setuid(4242)
with socket.socket() as connection:
    connection.settimeout(20)
    try:
        connection.connect((b"127.0.0.1", 7778))
        connection.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
        print(connection.recv(1))
    except ConnectionError as error:
        print(type(error).__name__)
"""


@pytest.mark.parametrize("users", ["own", "any"])
def test_only_the_runs_own_user_is_let_in_to_its_forwards(
    netns_host: NetnsHost, machine: Machine, tmp_path: Path, users: str
) -> None:
    """Whoever else has an account on the host finds an open port, and nothing behind it."""
    place = place_on(netns_host, service_ports={"sync": 7778}, env={"GO": "/root/go"}, forward_users=users)
    plan = Plan.of_script(tmp_path / "plan", machine, WAIT, [place])
    process = plan.start("local.single", "--testcase", "case", "--json", "-v")
    try:
        read_until(process, "run: started in")
        assert netns_host.server is not None
        argv = ["nsenter", "-t", str(netns_host.server.pid), "-n", sys.executable, "-c", OTHER_USER]
        got = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout.strip()
    finally:
        (netns_host.home / "go").touch()
        said = ended(process)
    assert said.status == 0, str(said)
    assert (got in ("b''", "ConnectionResetError", "BrokenPipeError")) == (users == "own"), got
    assert ("user 4242" in said.stderr) == (users == "own"), str(said)


# --- host keys


def with_strictness(place: Place, value: str) -> Place:
    assert place.entry is not None
    entry = json.loads(json.dumps(place.entry))
    entry["ssh"]["options"]["StrictHostKeyChecking"] = value
    return Place(place.name, entry, place.base, place.host)


@pytest.mark.parametrize("strictness", ["yes", "accept-new", "no"])
def test_a_host_that_comes_back_with_another_key_gets_nothing(
    netns_host: NetnsHost, machine: Machine, tmp_path: Path, strictness: str
) -> None:
    """Whatever the user's StrictHostKeyChecking says; with `no`, ssh itself would go on with a warning."""
    place = with_strictness(place_on(netns_host), strictness)
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [place])
    plan.single().all_ok()
    left = sorted(path for path in netns_host.home.rglob("*") if "runs" in path.parts)
    netns_host.kill()
    other = Keys.make(tmp_path / "other").server
    (netns_host.directory / "mnt/host_key").write_bytes(other.read_bytes())
    netns_host.boot()
    log_before = len(netns_host.log.read_bytes())
    for words in (
        ["local.single", "--testcase", "case"],
        ["run", "--host", "t1", "--", "touch", "/root/touched"],
        ["push", "--host", "t1"],
        ["clean", "--host", "t1"],
        ["fetch", "--run", "x", "--host", "t1"],
    ):
        said = plan.fab(*words)
        assert said.status != 0, f"{words}: {said}"
        assert "its host key is not the one that is known" in said.stdout + said.stderr, f"{words}: {said}"
        assert "ssh-keygen -R" in said.stdout + said.stderr
    assert not (netns_host.home / "touched").exists()
    assert sorted(path for path in netns_host.home.rglob("*") if "runs" in path.parts) == left
    log = netns_host.log.read_bytes()[log_before:]
    assert b"Starting session" not in log
    assert not [path for path in machine.runtime.rglob("*") if path.is_socket()], "a master was left"
