"""Ctrl-C, and the deaths that say no goodbye: what runs far away ends, and what it had written is not lost."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.hosts import descendants
from tests.hosts_netns import NetnsHost
from tests.integration.runs import (
    Machine,
    Outcome,
    Place,
    Plan,
    ended,
    localhost,
    nothing_left,
    place_on,
    processes_of,
    processes_with,
    read_until,
    single_words,
    wait_for,
)
from tests.integration.ways import ALONE, let_fab_start_by

# Has written something, has a child that nobody knows of, and does something when it is told to end.
PATIENT = """
cd "$TEST_OUTPUTS_PATH"
echo partial >partial
setsid sleep 1000 &
trap 'echo told >told; exit 3' TERM
event message_event '"message":"I am ready"'
sleep 1000 &
wait $!
"""
# Does not end before it is killed.
STUBBORN = """
cd "$TEST_OUTPUTS_PATH"
trap '' TERM INT HUP
echo partial >partial
event message_event '"message":"I am ready"'
sleep 1000
sleep 1000
"""
TOLERATE_S, GRACE_S = 2, 1


@pytest.fixture
def places(netns_host: NetnsHost, tmp_path: Path) -> list[Place]:
    """This machine and another one, both of little patience."""
    return [
        localhost(tmp_path / "far", tolerate_s=TOLERATE_S, grace_s=GRACE_S),
        place_on(netns_host, tolerate_s=TOLERATE_S, grace_s=GRACE_S),
    ]


def instances_of(fab: subprocess.Popen[bytes]) -> list[int]:
    """The process ids of its instances here."""
    found = []
    for pid in descendants(fab.pid):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if b"remote_runner" in words:
            found.append(pid)
    return found


def the_run(plan: Plan) -> str:
    (run,) = (plan.directory / "outputs" / "local_exec" / "script").iterdir()
    return run.name


def test_a_signal_at_any_moment_leaves_nothing(tmp_path: Path, machine: Machine) -> None:
    place = localhost(tmp_path / "far", tolerate_s=TOLERATE_S, grace_s=GRACE_S)
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [place])
    plan.single()  # builds the agent's program, if that is missing
    began_s = time.monotonic()
    plan.single()
    took_s = time.monotonic() - began_s
    seed = random.randrange(1 << 32)
    moments = random.Random(seed)
    for number in [signal.SIGTERM, signal.SIGINT] * 10:
        fab = plan.start(*single_words())
        after_s = moments.uniform(0, took_s)
        with suppress(subprocess.TimeoutExpired):
            fab.wait(after_s)
        fab.send_signal(number)
        done = ended(fab)
        what = f"{number.name} after {after_s:.3f} of {took_s:.3f} s (seed {seed}): {done}"
        assert done.status in (0, 1, 128 + number, -number), what
        # Before our first line it is Python's and Fabric's own to tell.
        assert not re.search(r'File ".*/(tasks|remote_runner|testground)/', done.stderr), what
        assert "Exception ignored" not in done.stderr, what
        assert "crash" not in (done.stdout + done.stderr).lower(), what
        wait_for(lambda: processes_with(str(tmp_path)) == [], TOLERATE_S + GRACE_S + 8)
        assert place.runs_left() == [], what


@pytest.mark.parametrize(("script", "told"), [(PATIENT, True), (STUBBORN, False)], ids=["patient", "stubborn"])
def test_ctrl_c_ends_everything_and_fetches_what_there_is(
    script: str, told: bool, places: list[Place], tmp_path: Path, machine: Machine
) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, script, places)
    fab = plan.start(*single_words(2))
    said = read_until(fab, "I am ready", 2)
    assert len(processes_of(the_run(plan))) >= 2

    os.kill(fab.pid, signal.SIGINT)
    outcome = Outcome.of(ended(fab))

    assert outcome.ended.status == 130, said
    assert "stopping 2 instances and fetching what they wrote; Ctrl-C again kills" in outcome.ended.stderr
    assert outcome.values["cancelled"] == "stopped"
    assert "Traceback" not in outcome.ended.stderr
    assert sorted(instance.host for instance in outcome.instances) == ["localhost", "t1"]
    for instance in outcome.instances:
        assert instance.verdict == "failed"
        assert "the run was stopped here" in instance.reason
        assert instance.text("partial") == "partial\n"
        assert (instance.outputs / "told").exists() == told
        assert instance.step("clean")["detail"] == "nothing left there"
    nothing_left(outcome.run, places)


def test_ctrl_c_is_said_in_the_summary(tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, PATIENT, [localhost(tmp_path / "far", grace_s=GRACE_S)])
    fab = plan.start("local.single", "--testcase", "case")
    read_until(fab, "I am ready")

    os.kill(fab.pid, signal.SIGINT)
    done = ended(fab)

    assert done.status == 130
    assert "the run was stopped; what its instances had written is here" in done.stdout
    assert "group single: 0 of 1 ok" in done.stdout
    nothing_left(the_run(plan), [localhost(tmp_path / "far")])


def test_a_second_ctrl_c_kills_and_says_what_is_still_where(
    netns_host: NetnsHost, tmp_path: Path, machine: Machine
) -> None:
    places = [localhost(tmp_path / "far", grace_s=5), place_on(netns_host, grace_s=5)]
    plan = Plan.of_script(tmp_path / "plan", machine, STUBBORN, places)
    fab = plan.start("local.single", "--testcase", "case", "--instances", "2")
    read_until(fab, "I am ready", 2)

    os.kill(fab.pid, signal.SIGINT)
    read_until(fab, "stopping 2 instances")
    os.kill(fab.pid, signal.SIGINT)
    done = ended(fab)

    run = the_run(plan)
    assert done.status == 130
    assert "killing 2 instances; what they wrote stays on the hosts" in done.stderr
    assert "what its instances had written is here" not in done.stdout
    assert "not brought from t1: what single[00" in done.stdout
    fetch, clean = (line.split() for line in done.stdout.splitlines() if line.startswith("  fab "))
    assert fetch[:4] == ["fab", "fetch", "--run", run]
    # The very commands that it says: they bring it here, and leave nothing there.
    wait_for(lambda: processes_of(run) == [], 30)
    fetched = plan.fab(*fetch[1:])
    assert fetched.status == 0, fetched
    partial = [Path(line, "partial").read_text() for line in fetched.stdout.splitlines()]
    assert partial == ["partial\n"] * 2
    assert plan.fab(*clean[1:]).status == 0
    nothing_left(run, places)


def test_a_killed_instance_ends_its_far_side_by_itself(places: list[Place], tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, STUBBORN, places)
    let_fab_start_by(plan.directory, ALONE)
    fab = plan.start(*single_words(2))
    read_until(fab, "I am ready", 2)
    run = the_run(plan)
    instances = instances_of(fab)
    assert len(instances) == 2

    for pid in instances:
        os.kill(pid, signal.SIGKILL)
    outcome = Outcome.of(ended(fab))

    assert outcome.ended.status == 1
    assert [instance.verdict for instance in outcome.instances] == ["incomplete", "incomplete"]
    wait_for(lambda: processes_of(run) == [], TOLERATE_S + GRACE_S + 5)
    far = places[1].host
    assert isinstance(far, NetnsHost)
    wait_for(lambda: far.processes() == [], 10)
    # What it had written waits there, under its record.
    for place in places:
        (left,) = place.runs_left()
        assert left.startswith(f"{run}-single-")
        assert (place.base / "runs" / left / "outputs" / "partial").read_text() == "partial\n"


def test_a_host_that_hears_nothing_ends_the_application(places: list[Place], tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, PATIENT, places[1:])
    let_fab_start_by(plan.directory, ALONE)
    fab = plan.start(*single_words(1))
    read_until(fab, "I am ready")
    run = the_run(plan)
    (instance,) = instances_of(fab)

    os.kill(instance, signal.SIGSTOP)  # its connection stays open, and says no more
    try:
        took_s = wait_for(lambda: processes_of(run) == [], TOLERATE_S + GRACE_S + 8)
    finally:
        os.kill(instance, signal.SIGCONT)
    outcome = Outcome.of(ended(fab))

    assert took_s > TOLERATE_S / 2
    assert outcome.ended.status == 1
    (found,) = outcome.instances
    assert found.verdict == "failed"
    assert "t1" in found.reason
    far = places[1].host
    assert isinstance(far, NetnsHost)
    wait_for(lambda: far.processes() == [], 10)
