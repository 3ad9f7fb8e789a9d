"""What Testground starts for each instance, built as it builds it: launchers, and the broker behind them all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.leftovers_here import list_stale, remove_stale
from testground.sync.service import SyncService
from tests.brokers_end import brokers, connections, end_brokers, is_gone
from tests.hosts import TestHost
from tests.hosts_netns import NetnsHost
from tests.integration.failing import APPLICATION, FailingPlan
from tests.integration.runs import ROOT, listening, processes_with, wait_for
from tests.integration.ways import LAUNCHER, instance_argv

GRACE_S = 1  # of the plan's hosts
SOON_S = 8.0  # far below what each of these would take by itself


@pytest.fixture
def plan(failing_plan: FailingPlan) -> FailingPlan:
    """A plan on this machine whose instances are started by the launcher."""
    failing_plan.argv = instance_argv(failing_plan.directory, LAUNCHER)
    failing_plan.write_inventory()
    return failing_plan


def test_instances_on_a_host_are_run_by_one_broker(
    plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str], controller: Controller
) -> None:
    plan.on(known_by_name(netns_host))
    plan.own_directory = False
    for _ in range(2):
        ended = plan.run()
        assert (ended.status, ended.failures, ended.stderr) == (0, [], "")
        assert not any(message.startswith("start:") for message in ended.messages)
        assert (plan.outputs / "written").read_text() == "written\n"
        assert plan.record()["host"] == netns_host.name
    assert len(brokers(controller.runtime)) == 1
    assert len(connections(controller.runtime)) == 1
    assert netns_host.processes() == []


def test_where_the_plan_names_no_python_fab_becomes_the_broker(plan: FailingPlan) -> None:
    (plan.directory / "exec-go" / "command").unlink()
    (plan.directory / "fabfile.py").write_text("from tasks import ns  # noqa: F401\n", encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for _ in range(2):
        ended = plan.run(PATH=path)
        assert (ended.status, ended.failures, ended.stderr) == (0, [], "")
        assert not any(message.startswith("start:") for message in ended.messages)
    (broker,) = brokers(plan.controller.runtime)
    assert b"instance" in Path(f"/proc/{broker}/cmdline").read_bytes().split(b"\0")


# Has written something, has a child that nobody knows of, and does not end before it is killed.
STUBBORN = """#!/bin/sh
trap '' TERM INT HUP
cd "$TEST_OUTPUTS_PATH"
echo partial >partial
setsid sleep 1000 &
echo ready
sleep 1000
"""


def test_sigkill_of_the_launcher_ends_its_outputs_at_once_and_then_all_else(plan: FailingPlan) -> None:
    plan.write_application(STUBBORN)
    # Other tests have runs of the same name at this time.
    of_this = f"TEST_OUTPUTS_PATH={plan.far}/"
    with SyncService() as service:
        launcher = plan.start(plan.environ(service.port))
        assert launcher.stdout is not None
        while launcher.stdout.readline() != b"ready\n":
            pass
        assert len(processes_with(of_this)) >= 2
        launcher.kill()
        plan.end(launcher)  # reads to the end of both
        assert plan.far_runs(), "the daemon waits for nothing but the ends of its pipes"
        wait_for((plan.outputs / "remote-runner.json").exists, GRACE_S + SOON_S)  # the last that it does
    assert plan.far_runs() == []
    assert (plan.outputs / "partial").read_text() == "partial\n"
    assert "its launcher was killed" in str(plan.record()["error"])
    assert processes_with(of_this) == []


@dataclass(frozen=True)
class Running:
    """An instance on a host: the launcher, the broker, and the agent there."""

    launcher: subprocess.Popen[bytes]
    broker: int
    agent: int


@pytest.fixture
def on_host(
    plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str]
) -> Iterator[tuple[FailingPlan, SyncService]]:
    """The plan on a machine of its own, and the service of its runs."""
    plan.on(known_by_name(netns_host))
    plan.hosts = f"  {plan.host}: {{system: x86_64-linux, grace_s: {GRACE_S}, tolerate_s: 4}}\n"
    plan.own_directory = False
    plan.write_application(STUBBORN)
    plan.write_inventory()
    with SyncService() as service:
        yield plan, service


def running(plan: FailingPlan, service: SyncService, host: NetnsHost) -> Running:
    """An instance whose application has begun."""
    launcher = plan.start(plan.environ(service.port))
    assert launcher.stdout is not None
    while launcher.stdout.readline() != b"ready\n":
        pass
    (broker,) = brokers(plan.controller.runtime)
    (agent,) = host.agents()
    return Running(launcher, broker, agent)


PARTS = ("launcher", "broker", "agent")


@pytest.mark.parametrize("killed", [c for n in (1, 2, 3) for c in combinations(PARTS, n)], ids="-".join)
def test_sigkill_of_any_of_them_leaves_nothing(
    killed: tuple[str, ...], on_host: tuple[FailingPlan, SyncService], netns_host: NetnsHost
) -> None:
    plan, service = on_host
    each = running(plan, service, netns_host)
    for part in killed:
        os.kill(each.launcher.pid if part == "launcher" else getattr(each, part), signal.SIGKILL)

    ended = plan.end(each.launcher)
    if "launcher" not in killed:
        ended.failure("the broker that ran this instance ended" if "broker" in killed else "agent is gone", "fab fetch")
    wait_for(lambda: netns_host.processes() == [], GRACE_S + SOON_S)
    runs = netns_host.home / ".cache" / "remote-runner" / "runs"
    if killed == ("launcher",):
        wait_for(lambda: list(runs.iterdir()) == [], SOON_S)
        assert (plan.outputs / "partial").read_text() == "partial\n"
        wait_for((plan.outputs / "remote-runner.json").exists, SOON_S)
        assert "was killed" in str(plan.record()["error"])
    else:
        assert [path.read_text() for path in runs.glob("*/outputs/partial")] == ["partial\n"]
    assert is_gone(each.broker) == ("broker" in killed)

    # Nobody holds anything, and the next instance finds nothing in its way.
    plan.write_application(APPLICATION)
    ended = plan.run_with(plan.environ(service.port, TEST_RUN="next"))
    assert (ended.status, ended.failures) == (0, [])
    assert not any(message.startswith("start:") for message in ended.messages)
    wait_for(lambda: len(listening(netns_host)) == 1, SOON_S)  # its sshd's own port
    end_brokers(plan.controller.runtime)
    wait_for(lambda: [*netns_host.agents(), *netns_host.agents("serve")] == [], SOON_S)
    for stale in list_stale(plan.controller, plan.environ(service.port), older_than_s=0.0):
        assert not remove_stale(plan.controller, stale), stale
    assert list((plan.controller.runtime / "locks").iterdir()) == []
    assert connections(plan.controller.runtime) == []


# An instance that tells what its broker imports for it.
TELLS_IMPORTS = """
import os, sys
sys.path.insert(0, {root!r})
from remote_runner.__main__ import main
from remote_runner.broker import service
from remote_runner.instance.instance import run_instance
async def run(environ, *given, **more):
    before = set(sys.modules)
    status = await run_instance(environ, *given, **more)
    with open(environ["TEST_OUTPUTS_PATH"] + "/imported", "w") as file:
        file.write(" ".join(sorted(set(sys.modules) - before)))
    return status
sys.exit(service.main(os.environ.pop("REMOTE_RUNNER_BROKER"), dict(os.environ), run=run))
"""


def test_a_second_instance_imports_nothing(
    plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str]
) -> None:
    program = plan.directory / "program.py"
    program.write_text(TELLS_IMPORTS.format(root=str(ROOT)), encoding="utf-8")
    (plan.directory / "exec-go" / "command").write_text(f"{sys.executable}\n{program}\n", encoding="utf-8")
    for host in ("localhost", known_by_name(netns_host)):
        plan.on(host)
        plan.own_directory = host == "localhost"
        for run in ("first", "second"):
            ended = plan.run(TEST_RUN=run)
            assert (ended.status, ended.failures) == (0, [])
        assert (plan.outputs / "imported").read_text() == "", host


def test_a_debug_log_is_written_where_it_is_asked_for(
    plan: FailingPlan, netns_host: NetnsHost, known_by_name: Callable[[TestHost], str], controller: Controller
) -> None:
    """By a broker of its own, or by the instance itself, and named by each instance."""
    plan.on(known_by_name(netns_host))
    assert plan.run().status == 0
    for more in ({}, {"REMOTE_RUNNER_BROKER": "off"}):
        ended = plan.run(REMOTE_RUNNER_DEBUG="1", TEST_INSTANCE_PARAMS="key=hidden", **more)
        assert ended.status == 0
        (log,) = (Path(text.removeprefix("debug log: ")) for text in ended.messages if text.startswith("debug log: "))
        text = wait_for_text(log, "step clean on")
        assert log.parent == controller.cache / "debug"
        for words in (
            "ssh -T -o BatchMode=yes",
            f"{netns_host.name}: attachment 1: the agent answered after",
            "opened: run",
        ):
            assert words in text
        assert "hidden" not in text
    assert len(brokers(controller.runtime)) == 2


def wait_for_text(log: Path, words: str) -> str:
    """What the log has, once these words stand there: a thread writes it."""
    wait_for(lambda: words in log.read_text(encoding="utf-8"), SOON_S)
    return log.read_text(encoding="utf-8")
