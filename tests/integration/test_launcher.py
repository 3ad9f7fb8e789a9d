"""What Testground starts for each instance, built as it builds it: launchers, and the warm process behind them all."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.hosts import TestHost
from tests.hosts_netns import NetnsHost
from tests.integration.failing import RUN, FailingPlan
from tests.integration.runs import processes_of, wait_for
from tests.launcher import warm_processes
from tests.needs import need

GRACE_S = 1  # of the plan's hosts
SOON_S = 8.0  # far below what each of these would take by itself


@pytest.fixture
def plan(failing_plan: FailingPlan) -> FailingPlan:
    """A plan on this machine whose instances are started by the launcher."""
    need("go")
    failing_plan.start_by_launcher()
    failing_plan.write_inventory()
    return failing_plan


def test_instances_on_a_host_come_from_one_warm_process(
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
    assert len(warm_processes(controller.runtime)) == 1
    assert netns_host.processes() == []


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
    with SyncService() as service:
        launcher = plan.start(plan.environ(service.port))
        assert launcher.stdout is not None
        while launcher.stdout.readline() != b"ready\n":
            pass
        launcher.kill()
        plan.end(launcher)  # reads to the end of both
        assert plan.far_runs(), "the daemon waits for nothing but the ends of its pipes"
        wait_for(lambda: not plan.far_runs(), GRACE_S + SOON_S)
    assert (plan.outputs / "partial").read_text() == "partial\n"
    assert "its launcher was killed" in str(plan.record()["error"])
    assert processes_of(RUN) == []
