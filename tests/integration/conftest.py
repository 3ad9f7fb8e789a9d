"""Fixtures of the integration tests."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.faults import FaultClock
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import SMALL_MIB, FailingPlan
from tests.integration.runs import Machine
from tests.integration.ways import DIRECT, LAUNCHER, instance_argv
from tests.needs import need


@pytest.fixture
def failing_plan(tmp_path: Path, controller: Controller) -> FailingPlan:
    """A plan on this machine, to be made to fail."""
    return FailingPlan(tmp_path / "plan", controller)


@pytest.fixture(params=[DIRECT, LAUNCHER])
def launched_plan(failing_plan: FailingPlan, request: pytest.FixtureRequest) -> FailingPlan:
    """The same, its instances started directly or by the launcher."""
    failing_plan.argv = instance_argv(failing_plan.directory, request.param)
    return failing_plan


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A machine of the user's for this test."""
    with Machine.made(tmp_path / "machine") as made:
        yield made


@pytest.fixture
def clock(request: pytest.FixtureRequest) -> FaultClock:
    """Measures the fault that the test's mark names."""
    mark = request.node.get_closest_marker("fault")
    assert mark is not None, "the test has no mark of tests.faults.fault"
    return FaultClock(mark.args[0], request.node.nodeid)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB, which is /srv on `host`."""
    need("netns")
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SMALL_MIB}m,mode=0755", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def host(
    lan: Lan, tmp_path: Path, keys: Keys, small_disk: Path, known_by_name: Callable[[TestHost], str]
) -> Iterator[NetnsHost]:
    """A machine known by its name t1; /srv there is the small file system."""
    with NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys, binds={"/srv": small_disk}) as started:
        known_by_name(started)
        yield started
