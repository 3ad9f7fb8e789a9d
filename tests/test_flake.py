"""flake.nix, evaluated and built by real Nix from a stand-in for nixpkgs (`tests/nixpkgs_stub` says why)."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remote_runner.controller import Controller
from remote_runner.example import PARTS
from testground.runenv import RunEnv
from testground.sync.service import SyncService
from tests.brokers_end import brokers
from tests.hosts import which
from tests.nix_bed import SYSTEMS, NixHere
from tests.nix_plan import ROOT, make_plan


@pytest.fixture
def plan(nix_here: NixHere, nixpkgs_stub: Path, tmp_path: Path) -> Path:
    return make_plan(tmp_path / "plan", nix_here, nixpkgs_stub)


def evaluated(nix: NixHere, plan: Path, attribute: str, apply: str) -> Any:
    return json.loads(nix.run("nix", "eval", "--json", f"path:{plan}#{attribute}", "--apply", apply))


def drv_paths(nix: NixHere, plan: Path) -> Mapping[str, str]:
    return dict(evaluated(nix, plan, "packages", "builtins.mapAttrs (_: packages: packages.node.drvPath)"))


def test_the_lock_names_one_revision_of_nixpkgs() -> None:
    nodes = json.loads((ROOT / "flake.lock").read_text(encoding="utf-8"))["nodes"]
    assert nodes["root"] == {"inputs": {"nixpkgs": "nixpkgs"}}
    assert set(nodes) == {"root", "nixpkgs"}
    assert nodes["nixpkgs"]["locked"] == {
        "type": "github",
        "owner": "NixOS",
        "repo": "nixpkgs",
        "rev": "ac62194c3917d5f474c1a844b6fd6da2db95077d",
        "narHash": "sha256-16KkgfdYqjaeRGBaYsNrhPRRENs0qzkQVUooNHtoy2w=",
        "lastModified": 1767313136,
    }


def test_every_system_has_every_output(nix_here: NixHere, plan: Path) -> None:
    nix_here.run("nix", "flake", "check", "--no-build", f"path:{plan}")
    found = drv_paths(nix_here, plan)
    assert set(found) == set(SYSTEMS)
    assert len(set(found.values())) == len(SYSTEMS)
    assert all(nix_here.is_valid(drv) for drv in found.values())
    for outputs in ("packages", "devShells", "checks"):
        names = evaluated(nix_here, plan, outputs, "builtins.mapAttrs (_: builtins.attrNames)")
        assert set(names) == set(SYSTEMS)
        assert len({tuple(of_system) for of_system in names.values()}) == 1


def test_the_package_brings_all_parts_of_the_example() -> None:
    listed = re.search(r'only "plan" \[([^\]]*)\]', (ROOT / "flake.nix").read_text(encoding="utf-8"))
    assert listed is not None
    assert {*PARTS} <= {*listed[1].replace('"', "").split()}


def test_a_change_beside_the_application_leaves_it_as_it_is(nix_here: NixHere, plan: Path) -> None:
    before = drv_paths(nix_here, plan)
    for name in ("README.md", "remote_runner/artifact/push.py", "inventory.yaml", "pyproject.toml"):
        with (plan / name).open("a", encoding="utf-8") as file:
            file.write("\n# changed\n")
    (plan / "node" / "__pycache__").mkdir()
    (plan / "node" / "__pycache__" / "left.pyc").touch()
    assert drv_paths(nix_here, plan) == before
    with (plan / "testground" / "runenv.py").open("a", encoding="utf-8") as file:
        file.write("\n# changed\n")
    assert not set(drv_paths(nix_here, plan).values()) & set(before.values())


def test_the_application_runs_from_the_store(nix_here: NixHere, plan: Path) -> None:
    out = nix_here.build(f"path:{plan}#node")
    # Python and the application, nothing that built them.
    assert sorted(path.partition("-")[2] for path in nix_here.closure(out)) == ["node", "python3"]
    done = subprocess.run([f"{out}/bin/node"], env={}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "TEST_PLAN is not set" in done.stdout


def test_remote_runner_runs_an_instance_of_its_plan_and_knows_every_system(
    nix_here: NixHere, plan: Path, tmp_path: Path
) -> None:
    expected = evaluated(
        nix_here, plan, "packages", "builtins.mapAttrs (_: p: { drv = p.node.drvPath; out_ = p.node.outPath; })"
    )
    built_before = {named["out_"] for named in expected.values() if nix_here.is_valid(named["out_"])}  # by other tests
    out = nix_here.build(f"path:{plan}#default")
    program = Path(f"{out}/bin/remote-runner").read_bytes()
    (table,) = [path for path in nix_here.closure(out) if path.endswith("-artifacts.json")]
    assert table.encode() in program
    values = json.loads(Path(table).read_text(encoding="utf-8"))
    assert values["app"] == "node"
    assert values["systems"] == {
        system: {"drv": named["drv"], "out": named["out_"], "program": "bin/node"} for system, named in expected.items()
    }
    # Each can be built later from here, and none was.
    closure = nix_here.closure(out)
    assert not [path for path in closure if path.endswith("-go")], "what built the launcher does not come along"
    for artifact in values["systems"].values():
        assert artifact["drv"] in closure
        assert artifact["out"] not in closure
    nix_here.run("nix-store", "--add-root", str(tmp_path / "root"), "-r", out)
    nix_here.run("nix-store", "--gc")
    assert all(nix_here.is_valid(artifact["drv"]) for artifact in values["systems"].values())
    built = {artifact["out"] for artifact in values["systems"].values() if nix_here.is_valid(artifact["out"])}
    assert built <= built_before


def test_the_launcher_runs_an_instance_of_its_plan_without_evaluating_anything(
    nix_here: NixHere, plan: Path, tmp_path: Path, controller: Controller
) -> None:
    out = nix_here.build(f"path:{plan}#default")
    asked = tmp_path / "asked"
    watching = tmp_path / "bin"
    watching.mkdir()
    for name in ("nix", "nix-store"):
        (watching / name).write_text(f'#!/bin/sh\necho "{name} $*" >>"{asked}"\nexec {which(name)} "$@"\n')
        (watching / name).chmod(0o755)
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    with SyncService() as service:
        runenv = RunEnv(
            plan="remote-runner",
            case="outputs",
            run="launched",
            group_id="single",
            instance_count=1,
            group_instance_count=1,
            outputs_path=outputs,
            temp_path=tmp_path,
            sync_service_host="localhost",
            sync_service_port=service.port,
        )
        environ = {
            **runenv.to_environ(path=f"{watching}:{os.environ['PATH']}"),
            **{name: value for name, value in os.environ.items() if name.startswith("REMOTE_RUNNER_")},
            **nix_here.environ,
        }
        # Testground's daemon stands anywhere, and gives no arguments.
        done = subprocess.run(
            [f"{out}/bin/remote-runner"], cwd="/", env=environ, capture_output=True, text=True, check=False, timeout=120
        )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert "no warm process" not in done.stdout
    assert len(brokers(controller.runtime)) == 1
    assert json.loads((outputs / "remote-runner.json").read_text(encoding="utf-8"))["outcome"] == "ok"
    # It has the derivations of the table that the launcher names.
    assert "nix-store --realise" in asked.read_text()
    assert " eval " not in asked.read_text()


def test_remote_runner_with_arguments_is_the_tasks_on_the_plan_one_stands_in(
    nix_here: NixHere, plan: Path, tmp_path: Path
) -> None:
    out = nix_here.build(f"path:{plan}#remote-runner")
    (tmp_path / "inventory.yaml").write_text("hosts: {localhost: {slots: 3}}\n", encoding="utf-8")
    environ = {"PATH": "/usr/bin:/bin", "REMOTE_RUNNER_CACHE_DIR": str(tmp_path / "cache"), "HOME": str(tmp_path)}
    done = subprocess.run(
        [f"{out}/bin/remote-runner", "hosts", "--json"],
        cwd=tmp_path,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    (told,) = json.loads(done.stdout)
    assert (told["host"], told["system"], told["slots"]) == ("localhost", "x86_64-linux", 3)
