"""What goes wrong on a host: disks, directories, processes, the application, our agent, the clock, sshd, the power."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.cgroups import Cgroup, NoCgroupError
from remote_runner.instance.record import read_record
from testground.sync.service import SyncService
from tests.brokers_end import end_brokers
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import APPLICATION, FailingPlan
from tests.integration.holding import Held, fetched_later
from tests.integration.runs import wait_for

GRACE_S, TOLERATE_S = 2.0, 6.0
WRITES = '#!/bin/sh\necho partial >"$TEST_OUTPUTS_PATH/partial"\n'
WAITS = f"{WRITES}echo ready\nuntil [ -e /root/go ]; do sleep 0.1; done\n" + APPLICATION.partition("\n")[2]


@pytest.fixture
def plan(failing_plan: FailingPlan, host: NetnsHost) -> FailingPlan:
    """The plan on t1, of little patience."""
    on(failing_plan, host)
    return failing_plan


def on(plan: FailingPlan, host: NetnsHost, **more: object) -> None:
    words = {"system": "x86_64-linux", "grace_s": GRACE_S, "tolerate_s": TOLERATE_S, **more}
    plan.own_directory = False
    plan.host = host.name
    plan.hosts = f"  {host.name}: {{{', '.join(f'{key}: {value}' for key, value in words.items())}}}\n"


@pytest.fixture
def start(plan: FailingPlan) -> Iterator[Callable[[], Held]]:
    """Call it: the instance runs, and its application has said `ready`."""
    with SyncService() as service:
        started: list[Held] = []

        def begin() -> Held:
            plan.write_inventory()
            held = Held.start("run", plan, plan.environ(service.port))
            started.append(held)
            held.wait_for(b"ready\n")
            return held

        yield begin
        for held in started:
            held.close()


def base(host: NetnsHost) -> Path:
    return host.home / ".cache" / "remote-runner"


def nothing_there(place: Path, host: NetnsHost) -> None:
    assert [*place.glob("runs/*"), *place.glob("artifacts/.tmp-*")] == []
    assert host.processes() == []


def application(host: NetnsHost, name: str = "sleep 4321") -> int:
    """The process id of what the application runs."""
    (found,) = [process.pid for process in host.processes() if name in process.command]
    return found


# The disk


@fault(
    "the host's disk is full during the push",
    "the instance fails and says so; what was half pushed is removed",
    "10 s",
)
def test_a_full_disk_during_the_push(plan: FailingPlan, host: NetnsHost, small_disk: Path, clock: FaultClock) -> None:
    on(plan, host, directory="/srv/rr")
    plan.write_application(APPLICATION.encode() + b"exit 0\n" + os.urandom(6 << 20))
    clock.start()
    plan.run().failure("t1: there is no room for the artifact", "no space left", "inventory.yaml")
    clock.stop(10)
    nothing_there(small_disk / "rr", host)


@fault(
    "the host's disk becomes full during the run, and is full during the fetch",
    "the application is told by its own writes; what it had written comes home, nothing is left there",
    "10 s",
)
def test_a_full_disk_during_run_and_fetch(
    plan: FailingPlan, host: NetnsHost, small_disk: Path, clock: FaultClock
) -> None:
    on(plan, host, directory="/srv/rr")
    plan.write_application(f'{WRITES}cat /dev/zero >"$TEST_OUTPUTS_PATH/filling" || exit 4\n')
    clock.start()
    ended = plan.run()
    clock.stop(10)
    ended.failure("t1: the application ended with exit status 4")
    assert (ended.outputs / "partial").read_text() == "partial\n"
    assert (ended.outputs / "filling").stat().st_size > 1 << 20
    nothing_there(small_disk / "rr", host)


@fault(
    "there is no space here for the outputs",
    "the instance fails and says so; the host keeps them for `fab fetch --run ID`",
    "10 s",
)
def test_no_space_here(plan: FailingPlan, host: NetnsHost, clock: FaultClock) -> None:
    plan.write_application(f'{WRITES}head -c 3000000 /dev/zero >"$TEST_OUTPUTS_PATH/large"\n')
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "small", plan.outputs], check=True)
    try:
        clock.start()
        ended = plan.run()
        clock.stop(10)
    finally:
        subprocess.run(["umount", plan.outputs], check=True)
    ended.failure("t1: outputs: ", "large", "No space left on device", "make room", "fab fetch")
    assert host.processes() == []
    fetched_later(plan, host, "large")


# Processes


@pytest.fixture
def process_limit(host: NetnsHost) -> Iterator[Callable[[int], None]]:
    """Call it with how many processes the host may have from now on."""
    group = Path(f"/sys/fs/cgroup/pids/rr-{os.getpid()}-{host.namespace}")
    if not group.parent.is_dir():
        pytest.skip("needs a pids cgroup: mount -t cgroup -o pids pids /sys/fs/cgroup/pids")
    group.mkdir()
    assert host.server is not None
    (group / "cgroup.procs").write_text(str(host.server.pid))

    def limit(count: int) -> None:
        (group / "pids.max").write_text(str(count))

    yield limit
    host.kill()
    wait_for(lambda: not (group / "cgroup.procs").read_text(), 10)
    group.rmdir()


@fault(
    "the host has no processes left, from the start",
    "the instance fails and says so; nothing is left there",
    "`timeouts.connect_s` + 5 s",
)
def test_no_processes_at_the_start(
    plan: FailingPlan, host: NetnsHost, process_limit: Callable[[int], None], clock: FaultClock
) -> None:
    plan.timeouts["connect_s"] = 10
    process_limit(5)
    clock.start()
    plan.run().failure("t1: ")
    clock.stop(10 + 5)
    process_limit(1000)
    wait_for(lambda: host.processes() == [], 10)


# Takes every process that becomes free; none of them heeds TERM.
TAKES_ALL = """#!/usr/bin/env python3
import os, signal, time
with open(os.path.join(os.environ["TEST_OUTPUTS_PATH"], "partial"), "w") as file:
    file.write("partial")
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
while True:
    try:
        if os.fork() == 0:
            time.sleep(4321)
    except OSError:
        time.sleep(0.001)
"""


@fault(
    "the application takes all processes that the host has left",
    "the agent needs none to watch it: `timeouts.run_s` ends it, or Ctrl-C; its outputs come home",
    "`timeouts.run_s` + `grace_s` + 15 s",
)
def test_no_processes_during_the_run(
    plan: FailingPlan,
    host: NetnsHost,
    process_limit: Callable[[int], None],
    start: Callable[[], Held],
    clock: FaultClock,
) -> None:
    plan.write_application(TAKES_ALL)
    plan.timeouts["run_s"] = 4
    process_limit(60)
    held = start()
    clock.start()
    ended = held.end()
    clock.stop(4 + GRACE_S + 15)
    ended.failure("t1: ", "timeouts.run_s")
    assert (ended.outputs / "partial").exists()
    nothing_there(base(host), host)


@fault("the application is killed there", "the instance fails and names the signal; its outputs come home", "10 s")
def test_a_killed_application(plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 4321\n")
    held = start()
    clock.start()
    os.kill(application(host), signal.SIGKILL)
    ended = held.end()
    clock.stop(10)
    ended.failure("t1: ", "SIGKILL")
    assert (ended.outputs / "partial").exists()
    nothing_there(base(host), host)


@fault(
    "the application is stopped there (SIGSTOP)",
    "`timeouts.run_s` ends it, or Ctrl-C: KILL reaches it; its outputs come home",
    "`timeouts.run_s` + `grace_s` + 5 s",
)
def test_a_stopped_application(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 4321\n")
    plan.timeouts["run_s"] = 4
    held = start()
    clock.start()
    os.kill(application(host), signal.SIGSTOP)
    ended = held.end()
    clock.stop(4 + GRACE_S + 5)
    ended.failure("t1: ", "timeouts.run_s")
    assert (ended.outputs / "partial").exists()
    nothing_there(base(host), host)


@fault(
    "the application ignores TERM (with SIGTERM, Ctrl-C, `timeouts.run_s`)",
    "it gets KILL; its outputs come home",
    "`grace_s` + 5 s",
)
def test_an_application_that_ignores_term(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(f"{WRITES}trap '' TERM INT HUP\nsetsid sleep 4321 &\necho ready\nsleep 1000\nsleep 1000\n")
    held = start()
    clock.start()
    held.process.send_signal(signal.SIGTERM)
    ended = held.end()
    clock.stop(GRACE_S + 5)
    ended.failure("t1: ", "stopped")
    assert (ended.outputs / "partial").exists()
    nothing_there(base(host), host)


@fault(
    "the application forks a daemon, and ends before its children",
    "they get TERM, then KILL, and are counted in a message; the verdict is the application's own",
    "`grace_s` + 15 s, the whole run",
)
def test_children_that_outlive_the_application(plan: FailingPlan, host: NetnsHost, clock: FaultClock) -> None:
    daemon = "setsid sh -c 'trap \"\" TERM; setsid sleep 4321 & sleep 4321 & wait; sleep 4321' >/dev/null 2>&1 &\n"
    plan.write_application(APPLICATION.replace("echo", f"{daemon}sleep 0.3\necho", 1))
    clock.start()
    ended = plan.run()
    clock.stop(GRACE_S + 15)
    assert ended.status == 0, ended.stdout
    assert any("that outlived the application" in message for message in ended.messages)
    nothing_there(base(host), host)


FLOOD_BYTES = 1_000_000_000


@dataclass
class Flood:
    """What has come of a flood of x, piece after piece."""

    xs: int = 0
    rest: bytearray = field(default_factory=bytearray)

    def take(self, data: bytes) -> None:
        self.xs += data.count(b"x")
        self.rest += data.translate(None, b"x\n")


def flooded(plan: FailingPlan, command: str) -> tuple[int, Flood]:
    """The exit status of an instance whose application runs that command first, and what it wrote."""
    plan.write_application(APPLICATION.replace("echo", f"{command}\necho", 1))
    plan.write_inventory()
    flood = Flood()
    with SyncService() as service, plan.start(plan.environ(service.port)) as process:
        assert process.stdout is not None
        while data := process.stdout.read1(1 << 20):  # type: ignore[attr-defined]
            flood.take(data)
        return process.wait(60), flood


@fault(
    "the application floods stdout with 1 GB of lines",
    "all of it is passed on",
    "120 s",
)
def test_a_flood(plan: FailingPlan, host: NetnsHost, clock: FaultClock) -> None:
    clock.start()
    status, flood = flooded(plan, f"yes {'x' * 99} | head -c {FLOOD_BYTES}")
    clock.stop(120)
    assert status == 0, flood.rest
    assert flood.xs >= FLOOD_BYTES // 100 * 99
    nothing_there(base(host), host)


@fault(
    "the application floods stdout with one line of 1 GB",
    "the line is cut for Testground and says where it stands whole; up to 1 GiB of such lines is kept",
    "120 s",
)
def test_a_flood_in_one_line(plan: FailingPlan, host: NetnsHost, clock: FaultClock) -> None:
    plan.timeouts["fetch_s"] = 100
    clock.start()
    status, flood = flooded(plan, f"head -c {FLOOD_BYTES} /dev/zero | tr '\\0' x; echo")
    clock.stop(120)
    assert status == 0, flood.rest
    whole = plan.outputs / "remote-runner.stdout.lines"
    assert flood.xs < 1 << 20
    assert whole.name.encode() in flood.rest
    assert whole.stat().st_size >= FLOOD_BYTES
    whole.unlink()
    nothing_there(base(host), host)


# Who reads


@fault(
    "nobody reads one instance's stdout for a while, and its application floods it",
    "that application waits, and goes on when somebody reads; the others on its host do not notice",
    "30 s",
)
def test_a_slow_reader(plan: FailingPlan, host: NetnsHost, tmp_path: Path, clock: FaultClock) -> None:
    lines = 500_000
    plan.write_application(APPLICATION.replace("echo", f"seq {lines}; : >/root/done-$TEST_RUN\necho", 1))
    plan.write_inventory()
    with SyncService() as service, plan.start(plan.environ(service.port, TEST_RUN="unread")) as unread:
        assert unread.stdout is not None
        wait_for(lambda: any("seq" in process.command for process in host.processes()), 20)
        clock.start()
        (tmp_path / "other").mkdir()
        other = plan.run_with({**plan.environ(service.port), "TEST_OUTPUTS_PATH": str(tmp_path / "other")})
        clock.stop(30)
        assert other.status == 0, other.failures
        assert [line for line in other.stdout.splitlines() if line.isdigit()] == [str(n) for n in range(1, lines + 1)]
        assert host.here("/root/done-failing").exists()
        assert not host.here("/root/done-unread").exists()
        said = unread.stdout.read().decode()
        assert unread.wait(60) == 0
    assert [line for line in said.splitlines() if line.isdigit()] == [str(n) for n in range(1, lines + 1)]
    nothing_there(base(host), host)


# Our agent


@fault(
    "the agent there is killed",
    "its guardian ends all that it had started; the instance fails and says so; outputs: `fab fetch --run ID`",
    "10 s",
)
def test_a_killed_agent(plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock) -> None:
    plan.write_application(f"{WRITES}setsid sh -c 'trap \"\" TERM; sleep 4321; sleep 4321' &\necho ready\nsleep 4321\n")
    held = start()
    (agent,) = host.agents()
    clock.start()
    os.kill(agent, signal.SIGKILL)
    ended = held.end()
    wait_for(lambda: [*host.processes(), *host.agents("serve")] == [], 10)
    clock.stop(10)
    ended.failure("t1: ", "agent is gone", "fab fetch")
    fetched_later(plan, host)


@fault(
    "the agent there runs out of memory",
    "the same; the failure says that memory may have been too little",
    "10 s",
)
def test_an_agent_without_memory(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(f"{WRITES}setsid sleep 4321 &\necho ready\nuntil [ -e /root/go ]; do sleep 0.1; done\nyes\n")
    held = start()
    (agent,) = host.agents()
    with ExitStack() as stack:
        try:
            group = stack.enter_context(Cgroup.make("rr-agent"))
        except NoCgroupError as error:
            pytest.skip(f"needs a memory cgroup: {error}")
        group.add(agent)
        group.limit_memory(64 << 10)  # beyond what it has already
        clock.start()
        host.here("/root/go").touch()
        ended = held.end()
        wait_for(lambda: [*host.processes(), *host.agents("serve")] == [], 10)
        clock.stop(10)
    ended.failure("t1: ", "agent is gone", "memory", "fab fetch")
    fetched_later(plan, host)


@fault(
    "the agent there stands still (SIGSTOP) for longer than `tolerate_s`",
    "the instance fails as with a lost connection; when the agent goes on, it ends what runs there",
    "2 `tolerate_s` + 15 s",
)
def test_a_stopped_agent(plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 4321\n")
    held = start()
    (agent,) = host.agents()
    clock.start()
    os.kill(agent, signal.SIGSTOP)
    ended = held.end()
    ended.failure("t1: ", "the connection to the host was lost", "fab fetch")
    os.kill(agent, signal.SIGCONT)
    wait_for(lambda: [*host.processes(), *host.agents()] == [], 2 * TOLERATE_S + 15)
    clock.stop(2 * TOLERATE_S + 15)
    fetched_later(plan, host)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@fault("the agent's guardian is killed or stopped", "nothing: the agent goes on", "10 s")
def test_a_killed_guardian(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock, number: signal.Signals
) -> None:
    plan.write_application(WAITS)
    held = start()
    (guardian,) = host.agents("serve")
    clock.start()
    os.kill(guardian, number)
    time.sleep(1)
    host.here("/root/go").touch()
    ended = held.end()
    clock.stop(10)
    assert ended.status == 0, ended.stdout
    nothing_there(base(host), host)
    end_brokers(plan.controller.runtime)
    if number is signal.SIGSTOP:
        os.kill(guardian, signal.SIGCONT)
    wait_for(lambda: [*host.agents(), *host.agents("serve")] == [], 10)


@fault(
    "guardian and agent are both killed",
    "the applications' own processes end at once (PDEATHSIG), what these have left with `fab clean`; else as the agent",
    "10 s",
)
def test_killed_guardian_and_agent(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 4321\n")
    held = start()
    clock.start()
    for program in ("serve", "agent"):
        (pid,) = host.agents(program)
        os.kill(pid, signal.SIGKILL)
    ended = held.end()
    wait_for(lambda: host.processes() == [], 10)
    clock.stop(10)
    ended.failure("t1: ", "agent is gone", "fab fetch")
    fetched_later(plan, host)


@fault(
    "the program that holds the connection there (`session`) is killed", "nothing: another connection follows", "10 s"
)
def test_a_killed_session(plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock) -> None:
    plan.write_application(WAITS)
    held = start()
    (session,) = host.agents("session")
    clock.start()
    os.kill(session, signal.SIGKILL)
    wait_for(lambda: host.agents("session") not in ([], [session]), 10)
    host.here("/root/go").touch()
    ended = held.end()
    clock.stop(10)
    assert ended.status == 0, ended.stdout
    nothing_there(base(host), host)


@pytest.mark.parametrize("mode", [None, 0])
@fault(
    "our directory there is removed (or `chmod 0`) during a run",
    "the application ends, its verdict is told; the failure says that its outputs are not there, or cannot be read",
    "10 s",
)
def test_our_directory_there_is_gone(
    plan: FailingPlan,
    lan: Lan,
    keys: Keys,
    tmp_path: Path,
    known_by_name: Callable[[TestHost], str],
    clock: FaultClock,
    mode: int | None,
) -> None:
    plan.write_application(WAITS.replace("/root/go", "/home/tester/go"))
    with (
        NetnsHost.start(lan, tmp_path / "t2", name="t2", ordinary_user=True, keys=keys) as host,
        SyncService() as service,
    ):
        known_by_name(host)
        on(plan, host)
        plan.write_inventory()
        with Held.started("run", plan, plan.environ(service.port)) as held:
            held.wait_for(b"ready\n")
            clock.start()
            if mode is None:
                shutil.rmtree(base(host))
            else:
                base(host).chmod(mode)
            host.here("/home/tester/go").touch()
            ended = held.end()
            clock.stop(10)
        assert any("success_event" in event for event in ended.events)
        ended.failure("t2: ")
        assert host.processes() == []
        # Only what the host has seen is said of its directory.
        record = read_record(plan.outputs)
        assert record is not None
        clean = record.step("clean")
        assert clean is not None
        assert clean.detail == ("nothing left there" if mode is None else "not removed there")


# Clock, sshd, power


JUMPS = """import os, time
real, real_ns = time.time, time.time_ns
jump = lambda: 3600 * os.path.exists({flag!r})
time.time = lambda: real() + jump()
time.time_ns = lambda: real_ns() + jump() * 10**9
"""


@fault(
    "the clock here jumps by an hour, so that the host's is an hour off, during a run",
    "nothing: times are measured by clocks that do not jump, ages by the host's own",
    "10 s",
)
def test_a_clock_that_jumps(
    plan: FailingPlan, host: NetnsHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: FaultClock
) -> None:
    (tmp_path / "sitecustomize.py").write_text(JUMPS.format(flag=str(tmp_path / "jumped")), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    plan.write_application(f"{WRITES}echo ready\nuntil [ -e /root/go ]; do sleep 0.1; done\nexit 3\n")
    plan.write_inventory()
    environ = {"PYTHONPATH": str(tmp_path)}
    with SyncService() as service, Held.started("run", plan, plan.environ(service.port, **environ)) as held:
        held.wait_for(b"ready\n")
        clock.start()
        (tmp_path / "jumped").touch()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "small", plan.outputs], check=True)
        try:
            (plan.outputs / "full").write_bytes(bytes(4096))
            host.here("/root/go").touch()
            held.end().failure("exit status 3", "fab fetch")  # a run that stays there
            clock.stop(10)
        finally:
            subprocess.run(["umount", plan.outputs], check=True)
    program = str(Path(sys.executable).parent / "remote-runner")
    words = [program, "clean", "--host", "t1", "--older-than", "30m"]
    done = subprocess.run(words, cwd=plan.directory, capture_output=True, text=True, check=False, timeout=60)
    assert "nothing is left of earlier runs" in done.stderr, done.stdout + done.stderr
    assert list(base(host).glob("runs/*"))
    fetched_later(plan, host)


@fault("sshd is restarted while the application runs", "nothing: its connection stays", "10 s")
def test_an_sshd_that_is_restarted(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(WAITS)
    held = start()
    assert host.server is not None
    clock.start()
    host.server.kill()  # the one that listens; each connection has its own, as with systemd's KillMode=process
    host.server.wait()
    host.boot()
    host.here("/root/go").touch()
    ended = held.end()
    clock.stop(10)
    assert ended.status == 0, ended.stdout
    nothing_there(base(host), host)


@fault(
    "the host loses its power and boots again",
    "the instance fails with the reason once the host answers, or after `tolerate_s`; outputs: `fab fetch --run ID`",
    "`tolerate_s` + 15 s",
)
def test_a_host_that_is_rebooted(
    plan: FailingPlan, host: NetnsHost, start: Callable[[], Held], clock: FaultClock
) -> None:
    plan.write_application(f"{WRITES}echo ready\nexec sleep 4321\n")
    held = start()
    clock.start()
    host.link_down()  # no goodbye
    host.kill()
    host.link_up()
    host.boot()
    ended = held.end()
    clock.stop(TOLERATE_S + 15)
    ended.failure("t1: ", "the connection to the host was lost", "fab fetch")
    fetched_later(plan, host)
