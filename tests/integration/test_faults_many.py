"""What instances do to each other, and what happens to what they share: sshd, sync service, brokers, hosts."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from testground.sync.service import SyncService
from tests.brokers_end import brokers, end_brokers
from tests.delay import DelayProxy
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost, free_port, which
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import APPLICATION, FailingPlan
from tests.integration.holding import Held
from tests.integration.runs import (
    ROOT,
    Machine,
    Outcome,
    Place,
    Plan,
    ended,
    nothing_left,
    place_on,
    processes_of,
    read_until,
    single_words,
    wait_for,
)
from tests.integration.ways import DIRECT, let_fab_start_by
from tests.needs import need

GRACE_S, TOLERATE_S = 2.0, 6.0
WRITES = '#!/bin/sh\necho partial >"$TEST_OUTPUTS_PATH/partial"\n'
QUICK = 'echo done >"$TEST_OUTPUTS_PATH/done"; ok\n'
WAITS = 'event message_event \'"message":"I am ready"\'; until [ -e /root/go ]; do sleep 0.1; done; ' + QUICK


@pytest.fixture
def place(netns_host: NetnsHost) -> Place:
    """A machine with a stock sshd, of little patience."""
    return place_on(netns_host, slots=100, grace_s=GRACE_S, tolerate_s=TOLERATE_S)


@fault(
    "100 instances at once on one stock sshd",
    "none fails; connections that sshd drops are tried again, which the step's message counts",
    "120 s",
)
def test_many_instances_on_one_sshd(place: Place, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place])
    clock.start()
    outcome = plan.single(100).all_ok()
    clock.stop(120)
    assert isinstance(place.host, NetnsHost)
    wait_for(lambda: place.host.processes() == [], GRACE_S)  # type: ignore[union-attr]
    nothing_left(outcome.run, [place])


@fault(
    "an sshd drops connections before the login (MaxStartups)",
    "connecting is tried again after growing, random pauses; the step's message says how often",
    "`timeouts.connect_s`",
)
def test_connections_that_are_dropped(
    plan: FailingPlan, netns_host: NetnsHost, ssh_config: Path, clock: FaultClock
) -> None:
    with DelayProxy(netns_host.address, netns_host.port, 0.0, drops=3) as proxy:
        ssh_config.write_text(netns_host.reached_at("127.0.0.1", proxy.port).config_block(), encoding="utf-8")
        clock.start()
        done = plan.run()
        clock.stop(plan.timeouts["connect_s"])
    assert done.status == 0, done.stdout
    assert [message for message in done.messages if "connected at attempt 4" in message], done.messages


@pytest.fixture
def newer_code(tmp_path: Path) -> Path:
    """A directory from which another version of remote-runner, with another agent, is imported."""
    need("go")
    code = tmp_path / "newer"
    for package in ("remote_runner", "testground", "tasks", "agent"):
        shutil.copytree(ROOT / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    with (code / "agent" / "main.go").open("a", encoding="utf-8") as file:
        file.write("\n// Another version.\n")
    words = [sys.executable, "-m", "remote_runner.connection.bootstrap.program"]
    subprocess.run(words, cwd=code, env={**os.environ, "PYTHONPATH": str(code)}, check=True, capture_output=True)
    return code


@fault(
    "runs of two users, two brokers and two versions of remote-runner at once on the same host",
    "none notices the other",
    "60 s",
)
def test_users_brokers_and_versions_at_once(
    lan: Lan, keys: Keys, tmp_path: Path, newer_code: Path, clock: FaultClock
) -> None:
    with ExitStack() as stack:
        ann = stack.enter_context(Machine.made(tmp_path / "ann"))
        bob = stack.enter_context(Machine.made(tmp_path / "bob"))
        newer = Machine({**ann.environ, "PYTHONPATH": str(newer_code)}, ann.runtime)
        host = stack.enter_context(NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys, ordinary_user=True))
        go = host.here("/tmp/go")
        place = place_on(host, slots=100, grace_s=GRACE_S, tolerate_s=TOLERATE_S)
        root = copy.copy(host)
        root.user = "root"
        as_root = place_on(root, slots=100, grace_s=GRACE_S, tolerate_s=TOLERATE_S)
        plans = []
        for number, (user, where) in enumerate(
            [(ann, place), (ann, place), (bob, place), (newer, place), (bob, as_root)]
        ):
            plan = Plan.of_script(tmp_path / f"plan{number}", user, WAITS.replace("/root/go", "/tmp/go"), [where])
            if user is not newer:
                let_fab_start_by(plan.directory, DIRECT)
            plans.append(plan)
        running = [plan.start(*single_words(2)) for plan in plans]
        for fab in running:
            read_until(fab, "I am ready", 2)
        # Ann's two runs share one.
        assert len(host.agents()) == len(plans) - 1
        assert len({path.name for path in (place.base / "agents").glob("*-Linux-*")}) == 2
        clock.start()
        go.touch()
        outcomes = [Outcome.of(ended(fab)).all_ok() for fab in running]
        clock.stop(60)
        assert len({outcome.run for outcome in outcomes}) == len(plans)
        for outcome in outcomes:
            nothing_left(outcome.run, [place, as_root])


# Floods, and disks that hang

FLOODS = 50
FLOOD_LINES = 300_000
SPELT = "".join(f"{number}\n" for number in range(1, FLOOD_LINES + 1)).encode()
WINDOWS_KIB = 64 << 10
"""What broker and agent may each take beyond what they have anyhow; the connection's window is 16 MiB each way."""


@pytest.fixture
def many(failing_plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str]) -> FailingPlan:
    """The plan on t1, for many instances at once; the host and a broker have seen one."""
    known_by_name(netns_host)
    failing_plan.host = "t1"
    failing_plan.hosts = "  t1: {system: x86_64-linux, slots: 100}\n"
    failing_plan.own_directory = False
    assert failing_plan.run(TEST_RUN="first").status == 0
    return failing_plan


@contextmanager
def instances(plan: FailingPlan, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many at once, each with outputs of its own."""
    with SyncService() as service, ExitStack() as stack:
        started = []
        for number in range(count):
            (outputs := plan.directory / f"outputs-{number}").mkdir(exist_ok=True)
            environ = plan.environ(service.port, TEST_RUN=f"run-{number}", TEST_OUTPUTS_PATH=str(outputs))
            process = stack.enter_context(plan.start(environ))
            stack.callback(process.kill)
            started.append(process)
        yield started


def peak_kib(pid: int) -> int:
    """The most memory that a process has had since it began."""
    (line,) = [text for text in Path(f"/proc/{pid}/status").read_text().splitlines() if text.startswith("VmHWM:")]
    return int(line.split()[1])


@fault(
    "50 instances flood stdout at once, and nobody reads for a while",
    "broker and agent hold no more than their windows; every line arrives when it is read",
    "60 s",
)
def test_many_floods(many: FailingPlan, netns_host: NetnsHost, clock: FaultClock) -> None:
    many.write_application(APPLICATION.replace("echo", f"seq {FLOOD_LINES}\necho", 1))
    many.write_inventory()
    (broker,) = brokers(many.controller.runtime)
    (agent,) = netns_host.agents()
    before = {pid: peak_kib(pid) for pid in (broker, agent)}
    with instances(many, FLOODS) as started:
        wait_for(lambda: sum("seq" in process.command for process in netns_host.processes()) == FLOODS, 30)
        clock.start()
        taken = {pid: peak_kib(pid) - before[pid] for pid in (broker, agent)}
        with ThreadPoolExecutor(FLOODS) as readers:
            said = list(readers.map(lambda process: process.communicate(timeout=60)[0], started))
        clock.stop(60)
        taken = {pid: max(most, peak_kib(pid) - before[pid]) for pid, most in taken.items()}
        assert {process.returncode for process in started} == {0}
    print(f"the broker took {taken[broker]} KiB, the agent {taken[agent]} KiB")
    assert max(taken.values()) < WINDOWS_KIB
    assert all(SPELT in text for text in said)
    assert netns_host.processes() == []


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own on a real disk, for `hanging`."""
    image, place = tmp_path / "disk", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    place.mkdir()
    subprocess.run([which("mkfs.ext4"), "-q", image], check=True)
    done = subprocess.run([which("mount"), "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs a loop device: {done.stderr}")
    yield place
    subprocess.run([which("umount"), place], check=True)


@contextmanager
def hanging(disk: Path) -> Iterator[None]:
    """Who writes to the disk waits within the block, and cannot be killed."""
    subprocess.run([which("fsfreeze"), "-f", disk], check=True)
    try:
        yield
    finally:
        subprocess.run([which("fsfreeze"), "-u", disk], check=True)


HANGS = """if [ $TEST_RUN = hangs ]; then echo ready; until [ -e /root/go ]; do sleep 0.1; done; fi
head -c 300000 /dev/zero >"$TEST_OUTPUTS_PATH/large"
"""


@fault(
    "the outputs directory of one instance hangs (a disk that does not answer)",
    "that instance waits for it; the others are delayed by less than 1 s",
    "1 s longer than without it",
)
def test_an_outputs_directory_that_hangs(
    many: FailingPlan, netns_host: NetnsHost, disk: Path, clock: FaultClock
) -> None:
    others = 20
    many.write_application(APPLICATION.replace("echo", f"{HANGS}echo", 1))
    many.write_inventory()

    def all_together() -> float:
        began_s = time.monotonic()
        with instances(many, others) as started, ThreadPoolExecutor(others) as readers:
            ends = list(readers.map(many.end, started))
        assert [end.status for end in ends] == [0] * others, ends
        return time.monotonic() - began_s

    usual_s = max(all_together() for _ in range(2))
    with SyncService() as service:
        environ = many.environ(service.port, TEST_RUN="hangs", TEST_OUTPUTS_PATH=str(disk))
        with Held.started("hangs", many, environ) as held:
            held.wait_for(b"ready\n")
            with hanging(disk):
                netns_host.here("/root/go").touch()
                wait_for(lambda: netns_host.processes() == [], 20)
                clock.start()
                all_together()
                clock.stop(round(usual_s + 1, 1))
                assert held.process.poll() is None
                assert runs_there(netns_host) == ["hangs-single-mounted"]
            assert held.end().status == 0
    assert (disk / "large").stat().st_size == 300_000
    assert runs_there(netns_host) == []


# One dead host among five


@pytest.fixture
def five(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[list[Place]]:
    """Five machines; the third one's cable is pulled."""
    with ExitStack() as stack:
        hosts = [
            stack.enter_context(NetnsHost.start(lan, tmp_path / f"t{number}", name=f"t{number}", keys=keys))
            for number in range(1, 6)
        ]
        hosts[2].link_down()
        yield [place_on(host, timeouts={"connect_s": 6}) for host in hosts]


@fault(
    "one dead host among five",
    "its instances fail with the reason, the others are untouched",
    "`timeouts.connect_s` + 30 s",
)
def test_one_dead_host_fails_its_own(five: list[Place], tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, five)
    clock.start()
    outcome = Outcome.of(plan.fab(*single_words(5)))
    clock.stop(6 + 30)
    assert {instance.host: instance.verdict for instance in outcome.instances} == {
        **dict.fromkeys(["t1", "t2", "t4", "t5"], "ok"),
        "t3": "failed",
    }
    (failed,) = [instance for instance in outcome.instances if instance.verdict == "failed"]
    assert "t3: no " in failed.reason
    nothing_left(outcome.run, [five[0], five[1], five[3], five[4]])


@fault(
    "the same, with `on_unreachable: next`",
    "its instances go to the next host and say so; the others are where they would be without that",
    "`timeouts.connect_s` + 30 s",
)
def test_one_dead_host_is_passed_over(five: list[Place], tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    places = [Place(each.name, {**(each.entry or {}), "on_unreachable": "next"}, each.base, each.host) for each in five]
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, places)
    clock.start()
    outcome = Outcome.of(plan.fab(*single_words(5))).all_ok()
    clock.stop(6 + 30)
    where = {int(instance.record["number"]): instance.host for instance in outcome.instances}
    assert where == {1: "t1", 2: "t2", 3: "t4", 4: "t4", 5: "t5"}
    assert "so number 3 goes to t4" in outcome.ended.stderr
    nothing_left(outcome.run, [five[0], five[1], five[3], five[4]])


# What is shared


@pytest.fixture
def plan(failing_plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str]) -> FailingPlan:
    """The plan on t1 as one instance."""
    failing_plan.on(known_by_name(netns_host))
    failing_plan.hosts = f"  t1: {{system: x86_64-linux, grace_s: {GRACE_S}, tolerate_s: {TOLERATE_S}}}\n"
    failing_plan.own_directory = False
    return failing_plan


def runs_there(host: NetnsHost) -> list[str]:
    return sorted(run.name for run in (host.home / ".cache" / "remote-runner" / "runs").iterdir())


@fault(
    "the sync service refuses, or is gone when an instance starts",
    "the instance fails and says where it looked and what starts one",
    "10 s",
)
def test_a_sync_service_that_refuses(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock) -> None:
    plan.write_inventory()
    port = free_port()
    clock.start()
    plan.run_with(plan.environ(port)).failure("sync service at", str(port), "fab local.sync-service")
    clock.stop(10)
    assert netns_host.processes() == []


@fault(
    "the sync service is restarted while the application runs",
    "its connections end; the forward stays, and connecting again reaches the new one",
    "10 s",
)
def test_a_sync_service_that_is_restarted(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock) -> None:
    plan.write_application(DIALS_TWICE)
    plan.write_inventory()
    with SyncService() as service:
        port = service.port
        held = Held.start("run", plan, plan.environ(port))
        try:
            held.wait_for(b"ready\n")
        except BaseException:
            held.close()
            raise
    try:
        clock.start()
        with SyncService(port=port):
            done = held.end()
        clock.stop(10)
    finally:
        held.close()
    assert done.status == 0, done.stdout
    assert runs_there(netns_host) == []


DIALS_TWICE = """#!/usr/bin/env python3
import os, socket, time
where = (os.environ["SYNC_SERVICE_HOST"], int(os.environ["SYNC_SERVICE_PORT"]))
ask = (b"GET / HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
       b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n")
with socket.create_connection(where) as dialled:
    dialled.sendall(ask)
    assert b"101" in dialled.recv(4096)
    print("ready", flush=True)
    while dialled.recv(4096):
        pass
for attempt in range(50):
    try:
        with socket.create_connection(where) as dialled:
            dialled.sendall(ask)
            if b"101" in dialled.recv(4096):
                break
    except OSError:
        pass
    time.sleep(0.1)
else:
    raise SystemExit(9)
print('{"ts":1,"msg":"","event":{"success_event":{"group":"single"}}}')
"""


@fault(
    "the same instance is started twice",
    "the second one fails and names the first, which is untouched",
    "30 s",
)
def test_the_same_instance_twice(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock) -> None:
    plan.write_application(
        f"{WRITES}echo ready\nuntil [ -e /root/go ]; do sleep 0.1; done\n" + APPLICATION.partition("\n")[2]
    )
    plan.write_inventory()
    with SyncService() as service, Held.started("run", plan, plan.environ(service.port)) as held:
        held.wait_for(b"ready\n")
        clock.start()
        second = plan.run_with(plan.environ(service.port))
        clock.stop(30)
        second.failure("t1: ", "is there already", "fab clean")
        netns_host.here("/root/go").touch()
        assert held.end().status == 0
    assert runs_there(netns_host) == []


@fault(
    "`fab clean` during a run (and with `--run ID`)",
    "it shows what is alive, and leaves it; `--force` ends it first",
    "30 s",
)
def test_clean_during_a_run(place: Place, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, WAITS, [place])
    fab = plan.start(*single_words(1))
    read_until(fab, "I am ready")
    (run,) = (plan.directory / "outputs" / "local_exec" / "script").iterdir()
    clock.start()
    cleaned = plan.fab("clean", "--json")
    named = plan.fab("clean", "--run", run.name)
    clock.stop(30)
    assert [one["outcome"] for one in json.loads(cleaned.stdout) if one["kind"] == "run"] == ["alive"]
    assert named.status != 0
    assert processes_of(run.name)
    assert isinstance(place.host, NetnsHost)
    place.host.here("/root/go").touch()
    outcome = Outcome.of(ended(fab)).all_ok()
    nothing_left(outcome.run, [place])


@fault(
    "`fab fetch` twice, and again after `fab clean`",
    "the same files twice; then it says that no host has them",
    "30 s",
)
def test_fetch_twice(place: Place, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place])
    kept = plan.fab("run", "--host", place.name, "--keep", "--", "sh", "-c", 'echo kept >"$TEST_OUTPUTS_PATH/kept"')
    assert kept.status == 0, str(kept)
    run = kept.stderr.split()[1]
    clock.start()
    found = []
    for number in (1, 2):
        done = plan.fab("fetch", "--run", run, "--outputs", str(tmp_path / f"fetched{number}"))
        assert done.status == 0, str(done)
        found.append({path.name: path.read_text() for path in (tmp_path / f"fetched{number}").rglob("kept")})
    assert plan.fab("clean", "--run", run).status == 0
    again = plan.fab("fetch", "--run", run)
    clock.stop(30)
    assert found == [{"kept": "kept\n"}] * 2
    assert again.status != 0
    assert "no host has outputs of run" in again.stderr


# Steps that take longer than they may


@dataclass(frozen=True)
class Late:
    """A step that does not end: what is said before it, and what its failure says."""

    after: bytes
    says: str


LATE = {
    "connect_s": Late(b"choose: ", "no login in time"),
    "build_s": Late(b"choose: ", "`sleep 30` did not end within 2 s"),
    "push_s": Late(b"build: ", "push to t1 did not end within 2 s"),
    "run_s": Late(b"forward: ", "it ran longer than timeouts.run_s allows"),
    "fetch_s": Late(b'"run: ended', "the outputs did not come within 2 s"),
}
MUCH = 'head -c 4000000 /dev/urandom >"$TEST_OUTPUTS_PATH/much"\n'


@pytest.mark.parametrize("key", LATE)
@fault(
    "a step takes longer than it may: connect, build, push, run, fetch",
    "the instance fails and names the step and its time; the host gives up by itself, too",
    "`timeouts.connect_s` (`build_s`, `push_s`, `run_s`, `fetch_s`) + 5 s",
)
def test_a_step_that_takes_too_long(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock, key: str) -> None:
    late = LATE[key]
    assert plan.run(TEST_RUN="first").status == 0  # so the agent's program is there
    end_brokers(plan.controller.runtime)
    plan.timeouts[key] = 2
    application = APPLICATION.replace("echo", (MUCH if key == "fetch_s" else "") + "echo", 1)
    application = WRITES + "sleep 30\n" if key == "run_s" else application
    plan.write_application(f"{application}exit 0\n".encode() + (os.urandom(4_000_000) if key == "push_s" else b""))
    if key == "build_s":
        plan.command = "sleep 30"
    assert netns_host.server is not None
    plan.write_inventory()
    if key == "connect_s":
        os.kill(netns_host.server.pid, signal.SIGSTOP)  # the kernel takes connections, and nobody speaks
    if key in ("push_s", "fetch_s"):
        netns_host.slow_down(4)
    with SyncService() as service, Held.started("late", plan, plan.environ(service.port)) as held:
        held.wait_for(late.after)
        clock.start()
        held.end().failure("t1" if key != "build_s" else "failing", late.says)
        clock.stop(2 + 5)
    os.kill(netns_host.server.pid, signal.SIGCONT)
    wait_for(lambda: netns_host.processes() == [], TOLERATE_S + 15)
