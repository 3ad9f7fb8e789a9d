"""Runs on a real Slurm: its nodes are the hosts, and an allocation of the run's own goes with the run."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.integration.runs import Machine, Plan, ended, read_until, single_words, wait_for
from tests.integration.ways import ALONE, DIRECT, let_fab_start_by
from tests.needs import need
from tests.slurm_bed import SlurmBed

QUICK = 'echo "on $REMOTE_RUNNER_HOST" >"$TEST_OUTPUTS_PATH/where"; ok\n'
# What a terminal or a reader of lines would change.
BYTES = bytes(range(256)) * 64 + b"no end of a line"
CARRIED = "".join(f"\\{byte:03o}" for byte in range(256))
BINARY = (
    f"i=0; while [ $i -lt 64 ]; do printf '{CARRIED}'; i=$((i+1)); done >\"$TEST_OUTPUTS_PATH/bytes\"\n"
    "printf 'no end of a line' >>\"$TEST_OUTPUTS_PATH/bytes\"; ok\n"
)
HOLD = 'event message_event "\\"x\\":1"; echo started >&2; exec sleep 600\n'


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmBed]:
    """Three nodes with four processors each."""
    need("slurm")
    with SlurmBed.started(tmp_path_factory.mktemp("slurm"), 3) as started:
        yield started


@pytest.fixture(autouse=True)
def _all_idle(bed: SlurmBed) -> Iterator[None]:
    yield
    for job in bed.jobs():
        bed.slurm("scancel", job, check=False)
    bed.wait_idle()


def on(bed: SlurmBed, machine: Machine) -> Machine:
    """The user's machine with Slurm's programs."""
    path = f"{bed.programs}{os.pathsep}{machine.environ['PATH']}"
    return Machine({**machine.environ, **bed.environ, "PATH": path}, machine.runtime)


def plan_on(
    bed: SlurmBed,
    tmp_path: Path,
    machine: Machine,
    script: str,
    slurm: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Plan:
    plan = Plan.of_script(tmp_path / "plan", on(bed, machine), script, [])
    with_slurm(plan, bed, slurm or {}, **defaults)
    return plan


def with_slurm(plan: Plan, bed: SlurmBed, slurm: Mapping[str, Any], **defaults: Any) -> None:
    """Let the plan's hosts be nodes of that Slurm."""
    file = plan.directory / "inventory.yaml"
    inventory = json.loads(file.read_text(encoding="utf-8"))
    inventory |= {"hosts": {}, "hosts_from": [{"slurm": {"nodes": 3, "time": "10m", **slurm}}]}
    inventory["defaults"] = {"directory": str(bed.local), "tolerate_s": 10, **defaults}
    file.write_text(json.dumps(inventory), encoding="utf-8")


@pytest.mark.parametrize("way", [None, DIRECT, ALONE])
def test_a_run_allocates_shares_and_gives_back(
    bed: SlurmBed, tmp_path: Path, machine: Machine, way: str | None
) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, {"slots": 2, "partition": "p", "options": ["--constraint=ib"]})
    if way is not None:
        let_fab_start_by(plan.directory, way)
    outcome = plan.single(6).all_ok()
    assert sorted(instance.host for instance in outcome.instances) == ["n1", "n1", "n2", "n2", "n3", "n3"]
    for instance in outcome.instances:
        assert instance.text("where") == f"on {instance.host}\n"
        assert instance.record["address"] == f"10.81.0.{instance.host[1:]}"
    said = outcome.ended.stderr
    assert said.count("is allocated") == 1
    wait_for(lambda: bed.jobs() == [], 10.0)
    assert plan.fab("clean", "--json").status == 0


def test_every_byte_arrives(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    (instance,) = plan_on(bed, tmp_path, machine, BINARY).single().all_ok().instances
    assert (instance.outputs / "bytes").read_bytes() == BYTES


def test_the_nodes_of_an_allocation_are_the_hosts(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK)
    before = plan.fab("hosts")
    assert "a run allocates them" in before.stderr
    bed.slurm("salloc", "--no-shell", "--job-name=mine", "--nodes=2", "--constraint=ib")
    (job,) = bed.jobs()
    within = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "7"}
    shown = plan.fab("hosts", "--json", environ=within)
    assert [(one["host"], one["slots"], one["labels"], one["from"]) for one in json.loads(shown.stdout)] == [
        ("n1", 4, ["p", "ib"], "slurm"),
        ("n2", 4, ["p", "ib"], "slurm"),
    ]
    probed = json.loads(plan.fab("hosts", "--probe", "--json", environ=within).stdout)
    assert [one["error"] for one in probed] == [None, None]

    # Two runs at once in it.
    words = single_words(4)
    runs = [plan.start(*words, environ=within) for _ in range(2)]
    for run in runs:
        (values,) = json.loads(ended(run).stdout)
        assert [one["verdict"] for one in values["instances"]] == ["ok"] * 4
    assert bed.jobs() == [job]


def test_ctrl_c_gives_the_allocation_back(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, HOLD, grace_s=1)
    run = plan.start(*single_words(2))
    read_until(run, "started in", 2)
    assert len(bed.jobs()) == 1
    os.kill(run.pid, signal.SIGINT)
    assert ended(run).status != 0
    wait_for(lambda: bed.jobs() == [], 5.0)
