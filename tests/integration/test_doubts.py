"""Each doubt that can be made to happen, on a real host; and a quiet host, of which there is none."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.delay import DelayProxy
from tests.hosts import TestHost, UserSshd, which
from tests.hosts_netns import NetnsHost
from tests.integration.runs import Machine, Outcome, Place, Plan, place_on

LIMIT_S = 60.0
_CPU = Path("/sys/fs/cgroup/cpu")


def doubts_of(outcome: Outcome) -> list[str]:
    """What the run's record has, which its summary and report show as well."""
    directory = outcome.instances[0].outputs.parent.parent
    found: list[str] = json.loads((directory / "run.json").read_text(encoding="utf-8"))["doubts"]
    return found


def reached(host: TestHost, port: int, base: Path) -> Place:
    """The host through another port."""
    place, target = place_on(host, base), host.through(port)
    entry: dict[str, Any] = dict(place.entry or {})
    ssh = {**entry["ssh"], "host": target.host, "port": target.port, "options": dict(target.options)}
    return Place(place.name, {**entry, "ssh": ssh}, base)


def started_by(command: list[str], base: Path) -> Place:
    """This machine, its agent started by that."""
    return Place("tiny", {"connect": {"command": command}, "address": "127.0.0.1", "directory": str(base)}, base)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "plan"


def test_a_quiet_host_gives_no_reason(directory: Path, machine: Machine, netns_host: NetnsHost) -> None:
    plan = Plan.of_script(directory, machine, "sleep 3\nok\n", [place_on(netns_host)])
    found = doubts_of(plan.single().all_ok())
    # The load and the processors are those of the machine that runs the tests, for its hosts are on it.
    of_the_machine = ("was busy before the run", "its hypervisor gave", "swapped", "slowed down for their heat")
    assert [doubt for doubt in found if not any(words in doubt for words in of_the_machine)] == []


@contextmanager
def spinning(core: str, count: int) -> Iterator[None]:
    """So many programs that want this core; each ends by itself after half a minute of it."""
    script = "ulimit -t 30; while :; do :; done"
    argv = [which("taskset"), "-c", core, "sh", "-c", script]
    programs = [subprocess.Popen(argv) for _ in range(count)]
    try:
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()


def is_busy() -> bool:
    """As the kernel tells, and so the agent."""
    load = float(Path("/proc/loadavg").read_text(encoding="ascii").split()[0])
    pressure = Path("/proc/pressure/cpu")
    waited = pressure.read_text(encoding="ascii").split()[1] if pressure.exists() else "avg10=100"
    return load > 0.7 and float(waited.partition("=")[2]) > 8


@pytest.mark.slow
def test_a_host_that_was_busy_before(directory: Path, machine: Machine) -> None:
    core = str(min(os.sched_getaffinity(0)))
    place = started_by([which("taskset"), "-c", core, "/bin/sh"], directory / "base")
    plan = Plan.of_script(directory, machine, "ok\n", [place])
    with spinning(core, 4):
        until_s = time.monotonic() + LIMIT_S
        while not is_busy():
            assert time.monotonic() < until_s
            time.sleep(0.5)  # the kernel counts every few seconds
        found = doubts_of(plan.single().all_ok())
    assert any(doubt.startswith("tiny was busy before the run: its load was ") for doubt in found), found


@pytest.mark.slow
def test_a_host_with_a_limit_that_held_it_back(directory: Path, machine: Machine) -> None:
    group = _CPU / f"rr-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("30000")  # of 100000: less than a third of a core
    except OSError as error:
        pytest.skip(f"needs control groups of version 1 that can be made: {error}")
    try:
        script = f"echo $$ >{group}/cgroup.procs && exec /bin/sh"
        place = started_by(["sh", "-c", script], directory / "base")
        spin = "(ulimit -t 2; while :; do :; done)\nok\n"
        found = doubts_of(Plan.of_script(directory, machine, spin, [place]).single().all_ok())
    finally:
        until_s = time.monotonic() + LIMIT_S
        while (group / "cgroup.procs").read_text():
            assert time.monotonic() < until_s
            time.sleep(0.05)  # the agent ends with its connection
        group.rmdir()
    expected = "tiny was throttled: a limit on its control group held programs back for "
    assert any(doubt.startswith(expected) for doubt in found), found


@pytest.mark.slow
def test_a_host_that_lost_packets(directory: Path, machine: Machine, netns_host: NetnsHost) -> None:
    lines = "head -c 2000000 /dev/zero | tr '\\0' x | fold -w 1000\necho\nok\n"
    plan = Plan.of_script(directory, machine, lines, [place_on(netns_host)])
    with netns_host.losing_packets():
        found = doubts_of(plan.single().all_ok())
    assert any(doubt.startswith(f"{netns_host.name} lost packets: TCP sent ") for doubt in found), found


def test_a_clock_that_is_not_well_known(directory: Path, machine: Machine, user_sshd: UserSshd) -> None:
    with DelayProxy(user_sshd.address, user_sshd.port, 0.4) as proxy:
        place = reached(user_sshd, proxy.port, directory / "base")
        found = doubts_of(Plan.of_script(directory, machine, "ok\n", [place]).single().all_ok())
    expected = f"the clock of {place.name} is known to ±0.2"
    assert any(doubt.startswith(expected) for doubt in found), found
