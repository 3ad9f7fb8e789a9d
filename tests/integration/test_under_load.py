"""What holds on a machine at rest holds beside a load of ten: with signals ignored and stdin closed, too."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.hosts_netns import NetnsHost
from tests.integration.runs import (
    Machine,
    Outcome,
    Place,
    Plan,
    ended,
    nothing_left,
    place_on,
    read_until,
    single_words,
)
from tests.integration.ways import LAUNCHER, let_fab_start_by

LOAD, INSTANCES = 10, 10
TOLERATE_S, GRACE_S = 6, 2
# As a background job of a script has them, or nohup's.
STARTED_OUT_OF_SIGHT = 'trap "" INT QUIT HUP; exec "$0" "$@" <&-'
QUICK = 'echo done >"$TEST_OUTPUTS_PATH/done"; ok\n'
LASTING = """echo partial >"$TEST_OUTPUTS_PATH/partial"
setsid sleep 1000 &
event message_event '"message":"I am ready"'
sleep 1000
"""


@pytest.fixture(autouse=True)
def load() -> Iterator[None]:
    """Ten processes that take all the time of the processors that they get."""
    with ExitStack() as stack:
        for _ in range(LOAD):
            busy = stack.enter_context(subprocess.Popen(["sh", "-c", "while :; do :; done"]))
            stack.callback(busy.kill)
        yield


@pytest.fixture
def place(netns_host: NetnsHost) -> Place:
    return place_on(netns_host, slots=INSTANCES, grace_s=GRACE_S, tolerate_s=TOLERATE_S)


def started(plan: Plan) -> subprocess.Popen[bytes]:
    """`fab local.single`, its instances by the launcher."""
    let_fab_start_by(plan.directory, LAUNCHER)
    fab = str(Path(sys.executable).with_name("fab"))
    return subprocess.Popen(
        ["sh", "-c", STARTED_OUT_OF_SIGHT, fab, *single_words(INSTANCES)],
        cwd=plan.directory,
        env=dict(plan.machine.environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        bufsize=0,
    )


def test_a_run_beside_a_load(place: Place, tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, QUICK, [place])
    outcome = Outcome.of(ended(started(plan))).all_ok()
    assert [instance.text("done") for instance in outcome.instances] == ["done\n"] * INSTANCES
    nothing_left(outcome.run, [place])


def test_a_run_that_is_ended_beside_a_load(place: Place, tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, LASTING, [place])
    fab = started(plan)
    read_until(fab, "I am ready", INSTANCES)
    fab.terminate()
    outcome = Outcome.of(ended(fab))
    assert outcome.ended.status != 0
    assert "Traceback" not in outcome.ended.stderr
    for instance in outcome.instances:
        assert "the application was stopped: received SIGTERM" in instance.reason, str(outcome.ended)
        assert instance.text("partial") == "partial\n"
    nothing_left(outcome.run, [place])
