"""Whole plans on a real Slurm of 20 nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hosts import which
from tests.integration.runs import ROOT, Machine, Outcome, Plan, wait_for
from tests.needs import need
from tests.slurm_bed import SlurmBed

NODES = 20


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmBed]:
    need("slurm")
    with SlurmBed.started(tmp_path_factory.mktemp("slurm"), NODES, cpus=2) as started:
        yield started


def on_all_nodes(plan: Plan, bed: SlurmBed, app: dict[str, Any]) -> None:
    inventory = {
        "app": app,
        "defaults": {"directory": str(bed.local)},
        "hosts_from": [{"slurm": {"nodes": NODES, "partition": "p", "time": "30m", "options": ["--constraint=ib"]}}],
    }
    (plan.directory / "inventory.yaml").write_text(json.dumps(inventory), encoding="utf-8")


def check(outcome: Outcome, bed: SlurmBed) -> None:
    """All ended well, two on each node, and nothing is left in Slurm."""
    outcome.all_ok()
    assert sorted(instance.host for instance in outcome.instances) == sorted(2 * [f"n{n}" for n in range(1, NODES + 1)])
    wait_for(lambda: bed.jobs() == [], 15.0)


@pytest.fixture
def user(bed: SlurmBed, machine: Machine) -> Machine:
    """The user's machine with Slurm's programs."""
    path = f"{bed.programs}{os.pathsep}{machine.environ['PATH']}"
    return Machine({**machine.environ, **bed.environ, "PATH": path}, machine.runtime)


def test_the_example_plan(bed: SlurmBed, tmp_path: Path, user: Machine) -> None:
    plan = Plan.of_node(tmp_path / "plan", user, [])
    app = {"name": "node", "builder": "command", "command": "{python} node/build.py {out}", "program": "bin/node"}
    on_all_nodes(plan, bed, app)
    check(plan.single(2 * NODES, "server-client"), bed)


def test_a_plan_in_go(bed: SlurmBed, tmp_path: Path, user: Machine) -> None:
    need("go")
    directory = tmp_path / "plan"
    shutil.copytree(ROOT / "tests" / "plans" / "go", directory)
    environ = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run([which("go"), "build", "-o", "application", "."], cwd=directory, env=environ, check=True)
    plan = Plan(directory, user, "go")
    on_all_nodes(plan, bed, {"name": "go", "builder": "command", "command": "cp application {out}"})
    check(plan.single(2 * NODES, "sync"), bed)
