"""What instances do to each other, and what happens to what they share: sshd, sync service, masters, hosts."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from testground.sync.service import SyncService
from tests.delay import DelayProxy
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost, free_port
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import APPLICATION, FailingPlan
from tests.integration.holding import Held
from tests.integration.runs import (
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
from tests.masters_end import masters_in

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


@fault(
    "two users' and two runs' instances at once on the same host and controller",
    "neither notices the other",
    "60 s",
)
def test_two_users_and_two_runs_at_once(place: Place, tmp_path: Path, clock: FaultClock) -> None:
    with ExitStack() as stack:
        users = [stack.enter_context(Machine.made(tmp_path / name)) for name in ("ann", "bob")]
        plans = [
            Plan.of_script(tmp_path / f"plan{number}", user, WAITS, [place])
            for number, user in enumerate([*users, users[0]])
        ]
        running = [plan.start(*single_words(2)) for plan in plans]
        for fab in running:
            read_until(fab, "I am ready", 2)
        assert isinstance(place.host, NetnsHost)
        clock.start()
        place.host.here("/root/go").touch()
        outcomes = [Outcome.of(ended(fab)).all_ok() for fab in running]
        clock.stop(60)
        assert len({outcome.run for outcome in outcomes}) == 3
        for outcome in outcomes:
            nothing_left(outcome.run, [place])


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
    "a master is killed under its instances, which leaves a stale socket, log and locks",
    "they fail with the reason, their hosts end what runs there, outputs: `fab fetch --run ID`; the next run works",
    "`grace_s` + 5 s",
)
def test_a_master_that_is_killed(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock) -> None:
    plan.write_application(f"{WRITES}echo ready\nsetsid sleep 1000 & sleep 1000\n")
    plan.write_inventory()
    with SyncService() as service, Held.started("run", plan, plan.environ(service.port, TEST_RUN="first")) as held:
        held.wait_for(b"ready\n")
        clock.start()
        (master,) = masters_in(plan.controller.runtime)
        os.kill(master, signal.SIGKILL)
        done = held.end()
        wait_for(lambda: netns_host.processes() == [], 20)
        clock.stop(GRACE_S + 5)
        done.failure("t1: ", "fab fetch")
        assert [path for path in plan.controller.runtime.iterdir() if path.is_socket()]  # stale
    assert len(runs_there(netns_host)) == 1
    plan.write_application(APPLICATION)
    assert plan.run(TEST_RUN="second").status == 0


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
    """A step that does not end: what is said before it, what its failure says, and where the host's tar hangs."""

    after: bytes
    says: str
    tar: str = "none"


LATE = {
    "connect_s": Late(b"choose: ", "no login within the time for it"),
    "build_s": Late(b"choose: ", "`sleep 30` did not end within 2 s"),
    "push_s": Late(b"build: ", "push to t1 did not end within 2 s", "-xf"),
    "run_s": Late(b"forward: ", "it ran longer than timeouts.run_s allows"),
    "fetch_s": Late(b"forward: ", "the outputs did not come within 2 s", "-cf"),
}


@pytest.mark.parametrize("key", LATE)
@fault(
    "a step takes longer than it may: connect, build, push, run, fetch",
    "the instance fails and names the step and its time; the host gives up by itself, too",
    "`timeouts.connect_s` (`build_s`, `push_s`, `run_s`, `fetch_s`) + 5 s",
)
def test_a_step_that_takes_too_long(plan: FailingPlan, netns_host: NetnsHost, clock: FaultClock, key: str) -> None:
    late = LATE[key]
    programs = netns_host.here("/root/bin")
    programs.mkdir()
    hangs = f'#!/bin/sh\ncase "$*" in *{late.tar}*) exec sleep 30 ;; esac\nexec /usr/bin/tar "$@"\n'
    (programs / "tar").write_text(hangs, encoding="utf-8")
    (programs / "tar").chmod(0o755)
    netns_host.here("/root/.bashrc").write_text("export PATH=/root/bin:$PATH\n", encoding="utf-8")
    plan.timeouts[key] = 2
    plan.write_application((WRITES + "sleep 30\n" if key == "run_s" else APPLICATION) + "exit 0\n" + "#" * 400_000)
    if key == "build_s":
        plan.command = "sleep 30"
    assert netns_host.server is not None
    plan.write_inventory()
    if key == "connect_s":
        os.kill(netns_host.server.pid, signal.SIGSTOP)  # the kernel takes connections, and nobody speaks
    with SyncService() as service, Held.started("late", plan, plan.environ(service.port)) as held:
        held.wait_for(late.after)
        clock.start()
        held.end().failure("t1" if key != "build_s" else "failing", late.says)
        clock.stop(2 + 5)
    os.kill(netns_host.server.pid, signal.SIGCONT)
    wait_for(lambda: netns_host.processes() == [], TOLERATE_S + 15)
