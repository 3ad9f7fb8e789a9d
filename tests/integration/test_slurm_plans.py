"""Whole plans on a real Slurm of 20 nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from tests.hosts import SSHD_PATH, which
from tests.hosts_netns import ORDINARY_UID
from tests.integration.runs import ROOT, Machine, Outcome, Plan
from tests.needs import need
from tests.slurm_bed import SlurmBed

NODES = 20
NODE = {"name": "node", "builder": "command", "command": "{python} node/build.py {out}", "program": "bin/node"}


@pytest.fixture(scope="module")
def bed() -> Iterator[SlurmBed]:
    need("slurm")
    with TemporaryDirectory(prefix="rr-slurm-", dir="/tmp") as name:
        Path(name).chmod(0o755)  # pytest's own are of one user
        with SlurmBed.started(Path(name), NODES, cpus=2) as started:
            yield started


def on_all_nodes(plan: Plan, bed: SlurmBed, app: dict[str, Any], directory: Path | None = None) -> None:
    inventory = {
        "app": app,
        "defaults": {"directory": str(directory or bed.local)},
        "hosts_from": [{"slurm": {"nodes": NODES, "partition": "p", "time": "30m", "options": ["--constraint=ib"]}}],
    }
    (plan.directory / "inventory.yaml").write_text(json.dumps(inventory), encoding="utf-8")


def check(outcome: Outcome, bed: SlurmBed) -> None:
    """All ended well, two on each node, and nothing is left in Slurm."""
    outcome.all_ok()
    assert sorted(instance.host for instance in outcome.instances) == sorted(2 * [f"n{n}" for n in range(1, NODES + 1)])
    bed.wait_given_back(15.0)


@pytest.fixture
def user(bed: SlurmBed, machine: Machine) -> Machine:
    """The user's machine with Slurm's programs."""
    path = f"{bed.programs}{os.pathsep}{machine.environ['PATH']}"
    return Machine({**machine.environ, **bed.environ, "PATH": path}, machine.runtime)


def test_the_example_plan(bed: SlurmBed, tmp_path: Path, user: Machine) -> None:
    plan = Plan.of_node(tmp_path / "plan", user, [])
    on_all_nodes(plan, bed, NODE)
    check(plan.single(2 * NODES, "server-client"), bed)


def test_the_example_plan_of_an_ordinary_user(bed: SlurmBed) -> None:
    # By a shell: what setpriv itself starts is found with root's rights.
    tried = subprocess.run(
        [*bed.as_tester(), "sh", "-c", 'exec "$0" -c "import tasks"', sys.executable], cwd="/", check=False
    )
    if tried.returncode:
        pytest.skip("needs a checkout, and a Python, that other users may read")
    with TemporaryDirectory(prefix="rr-", dir="/tmp") as name:
        directory = Path(name)
        runtime = directory / "runtime"
        home = directory / "home"
        runtime.mkdir(mode=0o700)
        home.mkdir()
        environ = {
            **{"PATH": f"{Path(sys.executable).parent}:{SSHD_PATH}", "HOME": str(home), "TMPDIR": "/tmp"},
            **{"REMOTE_RUNNER_RUNTIME_DIR": str(runtime), "REMOTE_RUNNER_CACHE_DIR": str(directory / "cache")},
            **bed.environ,
        }
        plan = Plan.of_node(directory / "plan", Machine(environ, runtime, bed.as_tester()), [])
        on_all_nodes(plan, bed, NODE, bed.local_of_tester)
        subprocess.run(["chown", "-R", "-h", f"{ORDINARY_UID}:{ORDINARY_UID}", directory], check=True)
        outcome = plan.single(2 * NODES, "server-client")
        check(outcome, bed)
        assert {path.stat().st_uid for one in outcome.instances for path in one.outputs.iterdir()} == {ORDINARY_UID}


def test_a_plan_in_go(bed: SlurmBed, tmp_path: Path, user: Machine) -> None:
    need("go")
    directory = tmp_path / "plan"
    shutil.copytree(ROOT / "tests" / "plans" / "go", directory)
    environ = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run([which("go"), "build", "-o", "application", "."], cwd=directory, env=environ, check=True)
    plan = Plan(directory, user, "go")
    on_all_nodes(plan, bed, {"name": "go", "builder": "command", "command": "cp application {out}"})
    check(plan.single(2 * NODES, "sync"), bed)
