"""Launchers and brokers end or stand still, at every step: far away everything ends, what was written is kept."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.brokers_end import brokers, connections, is_gone
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration import holding
from tests.integration.failing import FailingPlan
from tests.integration.holding import Held, HeldPlans, fetched_later
from tests.integration.runs import listening, wait_for
from tests.integration.ways import ALONE, DIRECT, LAUNCHER

STEPS = ("choose", "build", "push", "forward", "run", "fetch")
GRACE_S = 10.0


@pytest.fixture
def cut(lan: Lan, tmp_path: Path, keys: Keys) -> Iterator[NetnsHost]:
    """A second machine, t2, whose cable will be pulled."""
    with NetnsHost.start(lan, tmp_path / "t2", name="t2", keys=keys) as host:
        yield host


@pytest.fixture
def plans(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    controller: Controller,
    netns_host: NetnsHost,
    cut: NetnsHost,
    known_by_name: Callable[[TestHost], str],
) -> Iterator[HeldPlans]:
    """Instances held at each step; the parameter says how they are started."""
    for host in (netns_host, cut):
        known_by_name(host)
    way = getattr(request, "param", DIRECT)
    with HeldPlans.made(tmp_path / "plans", controller, netns_host, cut, way) as made:
        yield made


def all_gone(plans: HeldPlans, held: list[Held]) -> bool:
    """Whether no instance, no build and no far process is left."""
    ended = all(each.process.poll() is not None for each in held)
    return ended and is_gone(int(plans.builder.read_text())) and plans.host.processes() == []


def is_reusable(plans: HeldPlans) -> None:
    """The next instance on the host has nothing in its way, and what was left there goes with `fab clean`."""
    plan = plans.plan("next", plans.host)
    ended = plans.start("next", plan).end()
    assert ended.status == 0, ended.stdout
    clean = [str(Path(sys.executable).parent / "remote-runner"), "clean", "--host", plans.host.name]
    done = subprocess.run(clean, cwd=plan.directory, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    base = plans.host.home / ".cache" / "remote-runner"
    assert list((base / "runs").iterdir()) == [], done.stdout + done.stderr
    assert list((base / "artifacts").glob(".tmp-*")) == []
    assert plans.host.processes() == []


def the_fault(plans: HeldPlans, clock: FaultClock, happen: Callable[[Held], None]) -> list[Held]:
    """Let it happen to an instance at each step, and wait until all is over there and here."""
    held = plans.hold_all()
    assert [each.step for each in held] == list(STEPS)
    assert len(plans.host.processes()) >= 4
    clock.start()
    for each in held:
        happen(each)
    plans.release()
    wait_for(lambda: all_gone(plans, held), 2 * GRACE_S)
    clock.stop(GRACE_S)
    return held


def runs_there(plans: HeldPlans) -> dict[str, bool]:
    """The runs that lie on the host, by their step; whether what they had written is there."""
    runs = (plans.host.home / ".cache" / "remote-runner" / "runs").iterdir()
    return {run.name.split("-")[1]: (run / "outputs" / "partial").exists() for run in runs}


@pytest.mark.parametrize("plans", [DIRECT, LAUNCHER], indirect=True)
@fault(
    "a launcher is killed (SIGKILL; Testground's cancel), at any step",
    "its output ends at once; its instance stops the application, brings the outputs home and leaves nothing there",
    "`grace_s`",
)
def test_sigkill_of_the_launcher_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    held = the_fault(plans, clock, lambda held: held.process.send_signal(signal.SIGKILL))
    for each in held:
        each.reader.join(1)
        assert not each.reader.is_alive()
        wait_for((each.plan.outputs / "remote-runner.json").exists, GRACE_S)
        if each.step in ("run", "fetch"):
            assert (each.plan.outputs / "partial").read_text() == "partial\n"
    assert "its launcher was killed" in str(held[STEPS.index("run")].plan.record()["error"])
    wait_for(lambda: runs_there(plans) == {}, GRACE_S)
    is_reusable(plans)


@fault(
    "the broker is killed (SIGKILL), at any step of its instances",
    "each launcher says so and how to get what is there; what was started there and here ends by itself; outputs stay "
    "there under their record until `fab fetch` and `fab clean`",
    "`grace_s`",
)
def test_sigkill_of_the_broker_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    pids: list[int] = []

    def kill(held: Held) -> None:
        for pid in brokers(plans.controller.runtime) if not pids else ():
            pids.append(pid)
            os.kill(pid, signal.SIGKILL)

    for held in the_fault(plans, clock, kill):
        held.end().failure("the broker that ran this instance ended", f"fab fetch --run held-{held.step}")
    assert len(pids) == 1
    nobody_fetched(plans)


def nobody_fetched(plans: HeldPlans, within_s: float = GRACE_S) -> None:
    left = runs_there(plans)
    assert left == {"run": True, "fetch": True}
    wait_for(lambda: connections(plans.controller.runtime, plans.host.name) == [], GRACE_S)
    wait_for(lambda: len(listening(plans.host)) == 1, within_s)  # its sshd's own: no forward is left
    is_reusable(plans)


@pytest.mark.parametrize("plans", [ALONE], indirect=True)
@fault(
    "an instance without a broker (`REMOTE_RUNNER_BROKER=off`) is killed with its process group, at any step",
    "the same, but that nobody says so",
    "`grace_s`",
)
def test_sigkill_of_an_instance_by_itself_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    the_fault(plans, clock, lambda held: os.killpg(held.process.pid, signal.SIGKILL))
    # Its ssh is killed as well: where sshd closes both streams at once, that is a lost connection, which may come back.
    nobody_fetched(plans, holding.TOLERATE_S + GRACE_S)


@fault(
    "an instance gets SIGTERM or SIGINT (Ctrl-C), at any step",
    "the step ends, the failure says at which step and why; the application is stopped, its outputs come home, "
    "nothing is left there",
    "`grace_s`",
)
def test_signals_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    numbers = dict(zip(STEPS, [signal.SIGTERM, signal.SIGINT] * 3, strict=True))
    for held in the_fault(plans, clock, lambda held: held.process.send_signal(numbers[held.step])):
        ended = held.end()
        if held.step != "fetch":
            ended.failure("stopped", numbers[held.step].name)
        if held.step in ("run", "fetch"):
            assert (ended.outputs / "partial").read_text() == "partial\n"
    assert runs_there(plans) == {}
    is_reusable(plans)


@fault(
    "whoever reads an instance's output is gone (the daemon died), at any step",
    "the same, though nobody hears the reason but the record",
    "`grace_s`",
)
def test_a_daemon_that_is_gone_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    held = the_fault(plans, clock, Held.stop_reading)
    assert "nobody here reads" in str(held[STEPS.index("run")].plan.record()["error"])
    assert runs_there(plans) == {}
    is_reusable(plans)


# Standing still


@pytest.fixture
def running(
    failing_plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str]
) -> Iterator[Held]:
    """An instance on t1, of little patience, whose application goes on until /root/go is there."""
    plan = failing_plan
    plan.on(known_by_name(netns_host))
    plan.hosts = f"  t1: {{system: x86_64-linux, grace_s: 2, tolerate_s: {TOLERATE_S}}}\n"
    plan.own_directory = False
    plan.write_application(WAITS)
    plan.write_inventory()
    with SyncService() as service, Held.started("run", plan, plan.environ(service.port)) as held:
        held.wait_for(b"ready\n")
        yield held


TOLERATE_S = 6.0
WAITS = """#!/bin/sh
echo partial >"$TEST_OUTPUTS_PATH/partial"
echo ready
setsid sleep 4321 &
until [ -e /root/go ]; do sleep 0.1; done
printf '{"ts":1,"msg":"","event":{"success_event":{"group":"single"}}}\\n'
"""


@fault("a launcher stands still (SIGSTOP)", "nothing: it tells the status when it goes on", "10 s")
def test_a_stopped_launcher(running: Held, netns_host: NetnsHost, clock: FaultClock) -> None:
    os.kill(running.process.pid, signal.SIGSTOP)
    clock.start()
    netns_host.here("/root/go").touch()
    wait_for((running.plan.outputs / "remote-runner.json").exists, 10)
    os.kill(running.process.pid, signal.SIGCONT)
    assert running.end().status == 0, running.said
    clock.stop(10)
    assert (running.plan.outputs / "partial").exists()
    assert netns_host.processes() == []


@fault(
    "the broker stands still (SIGSTOP)",
    "for up to half of `tolerate_s` nothing; past it its hosts end the applications, and the instances say so when it "
    "goes on; outputs: `fab fetch --run ID`",
    "2 `tolerate_s` + 10 s",
)
def test_a_stopped_broker(running: Held, netns_host: NetnsHost, controller: Controller, clock: FaultClock) -> None:
    (broker,) = brokers(controller.runtime)
    os.kill(broker, signal.SIGSTOP)
    time.sleep(TOLERATE_S / 2)  # the length of the silence is what is tested
    os.kill(broker, signal.SIGCONT)
    time.sleep(1)
    assert len([process for process in netns_host.processes() if "sleep 4321" in process.command]) == 1
    clock.start()
    os.kill(broker, signal.SIGSTOP)
    wait_for(lambda: netns_host.processes() == [], 2 * TOLERATE_S + 10)
    clock.stop(2 * TOLERATE_S + 10)
    time.sleep(TOLERATE_S)  # so that it is the agent that has given up, whoever was first
    os.kill(broker, signal.SIGCONT)
    running.end().failure("t1: ", "tolerate_s", "fab fetch")
    fetched_later(running.plan, netns_host)


# Our directories


@pytest.mark.parametrize("mode", [None, 0])
@fault(
    "our runtime directory and our cache here are removed (or `chmod 0`) during a run",
    "the application ends well, its outputs come home; the next run makes them anew (or says which to mend)",
    "10 s",
)
def test_our_directories_here_are_gone(
    running: Held, netns_host: NetnsHost, controller: Controller, clock: FaultClock, mode: int | None
) -> None:
    pids = brokers(controller.runtime)
    clock.start()
    for place in (controller.runtime, controller.cache):
        if mode is None:
            shutil.rmtree(place)
        else:
            place.chmod(mode)
    netns_host.here("/root/go").touch()
    ended = running.end()
    clock.stop(10)
    for place in (controller.runtime, controller.cache) if mode is not None else ():
        place.chmod(0o700)
    assert ended.status == 0, ended.stdout
    assert (ended.outputs / "partial").exists()
    assert netns_host.processes() == []
    if mode is None:
        plan = running.plan
        with SyncService() as service:
            assert plan.run_with(plan.environ(service.port, TEST_RUN="next")).status == 0
        for pid in pids:  # which nobody finds any more
            os.kill(pid, signal.SIGTERM)
        wait_for(lambda: all(map(is_gone, pids)), 10)
