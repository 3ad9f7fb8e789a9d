"""The controller's processes end in every way, at every step: far away everything ends, what was written is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.holding import Held, HeldPlans
from tests.integration.runs import wait_for
from tests.integration.ways import DIRECT, LAUNCHER
from tests.launcher import children, is_gone, warm_processes

STEPS = ("choose", "build", "push", "forward", "run", "fetch", "clean")
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


def connecting(controller: Controller) -> list[str]:
    """ssh processes that are no master in use yet: they have been asked to connect to the cut host."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and not is_gone(int(entry.name)):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            sockets = [Path(os.fsdecode(word)) for word in words if word.startswith(os.fsencode(controller.runtime))]
            if sockets and not any(path.is_socket() for path in sockets):
                found.append(b" ".join(words).decode())
    return found


def instances_of_warm_processes(plans: HeldPlans) -> list[int]:
    """The process ids of the instances that launchers have handed over and that have not ended."""
    return [pid for warm in warm_processes(plans.controller.runtime) for pid in children(warm)]


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
    assert len(plans.host.processes()) >= 10
    clock.start()
    for each in held:
        happen(each)
    plans.release()
    wait_for(lambda: all_gone(plans, held), 2 * GRACE_S)
    clock.stop(GRACE_S)
    # A connection that was being made ends by its own time at the latest (10 s are connect_s here).
    wait_for(lambda: not connecting(plans.controller), 12)
    return held


def runs_there(plans: HeldPlans) -> dict[str, bool]:
    """The runs that lie on the host, by their step; whether what they had written is there."""
    runs = (plans.host.home / ".cache" / "remote-runner" / "runs").iterdir()
    return {run.name.split("-")[1]: (run / "outputs" / "partial").exists() for run in runs}


@fault(
    "an instance's own process is killed (SIGKILL), at any step",
    "what it had started ends there and here by itself; its outputs stay there under its record until `fab fetch` "
    "and `fab clean`",
    "`grace_s`",
)
def test_sigkill_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    the_fault(plans, clock, lambda held: held.process.send_signal(signal.SIGKILL))
    left = runs_there(plans)
    assert left["run"]
    assert left["fetch"]
    assert set(left) <= {"run", "fetch", "clean"}
    is_reusable(plans)


@fault(
    "an instance's whole process group is killed (SIGKILL), at any step",
    "the same; the connection stays for others",
    "`grace_s`",
)
def test_sigkill_of_the_group_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    the_fault(plans, clock, lambda held: os.killpg(held.process.pid, signal.SIGKILL))
    assert runs_there(plans)["run"]
    is_reusable(plans)


@fault(
    "a launcher is killed (SIGKILL; Testground's cancel), at any step",
    "its output ends at once; its instance stops the application, brings the outputs home and leaves nothing there",
    "`grace_s`",
)
@pytest.mark.parametrize("plans", [LAUNCHER], indirect=True)
def test_sigkill_of_the_launcher_at_every_step(plans: HeldPlans, clock: FaultClock) -> None:
    held = the_fault(plans, clock, lambda held: held.process.send_signal(signal.SIGKILL))
    wait_for(lambda: instances_of_warm_processes(plans) == [], GRACE_S)
    for each in held:
        each.reader.join(0)
        assert not each.reader.is_alive()
        if each.step in STEPS[STEPS.index("run") :]:
            assert (each.plan.outputs / "partial").read_text() == "partial\n"
    assert "its launcher was killed" in str(held[STEPS.index("run")].plan.record()["error"])
    assert runs_there(plans) == {}
    is_reusable(plans)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@fault(
    "an instance gets SIGTERM or SIGINT (Ctrl-C), at any step",
    "the step ends, the failure says at which step and why; the application is stopped, its outputs come home, "
    "nothing is left there",
    "`grace_s`",
)
def test_signals_at_every_step(plans: HeldPlans, clock: FaultClock, number: signal.Signals) -> None:
    for held in the_fault(plans, clock, lambda held: held.process.send_signal(number)):
        ended = held.end()
        if held.step in STEPS[: STEPS.index("run") + 1]:
            ended.failure("stopped", number.name)
        if held.step in STEPS[STEPS.index("run") :]:
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
