"""Runs whose application Nix builds: on this machine, and on the host itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from remote_runner.instance.record import read_record
from testground.composition import plan_runs, single
from testground.local_exec import DaemonLines, InstanceCommand
from testground.local_exec import run as run_plan
from testground.manifest import Manifest
from testground.runenv import ServiceAddress
from testground.sync.service import SyncService
from tests.hosts_netns import NetnsHost
from tests.integration.runs import EVENTS, Machine, Place, Plan, localhost, nothing_left, place_on
from tests.nix_bed import NixHere, simple_flake
from tests.nix_plan import make_plan

# The application says of itself where it lies, and that it is there.
SCRIPT = 'event message_event "\\"message\\":\\"$0\\""; echo "$0" > "$TEST_OUTPUTS_PATH/where"; ok'


@pytest.fixture
def places(nix_here: NixHere, nix_host: NetnsHost, tmp_path: Path) -> list[Place]:
    """This machine and one with a Nix store of its own."""
    return [localhost(tmp_path / "near"), place_on(nix_host)]


def nix_plan(tmp_path: Path, machine: Machine, places: list[Place], *, build: str = "", **app: object) -> Plan:
    """A plan of a script, and a flake that builds it; the plan says nothing of a builder."""
    plan = Plan.of_script(tmp_path / "plan", machine, SCRIPT, places)
    (plan.directory / "application").unlink()
    simple_flake(
        plan.directory, name="application", script=EVENTS + SCRIPT, build=f": {tmp_path}\n{build}", systems=SYSTEMS
    )
    plan.write_inventory({"name": "application", **app}, places)
    return plan


SYSTEMS = ("x86_64-linux", "aarch64-darwin")
BY_NIX = "builder nix: the plan has a flake.nix, and app.command is not set"


def test_a_run_builds_here_once_and_runs_from_the_store(
    nix_here: NixHere, tmp_path: Path, machine: Machine, places: list[Place]
) -> None:
    plan = nix_plan(tmp_path, machine, places, build=f"echo x >> {tmp_path}/count\n")
    outcome = plan.single(4).all_ok()
    out = plan.fab("build").stdout.strip()
    assert nix_here.is_valid(out)
    assert {instance.host for instance in outcome.instances} == {"localhost", "nix1"}
    for instance in outcome.instances:
        assert instance.text("where") == f"{out}/bin/application\n"
        assert instance.record["artifact"] == Path(out).name
        assert instance.step("build")["detail"] == f"application for x86_64-linux, {out} (built here); {BY_NIX}"
    assert (tmp_path / "count").read_text() == "x\n"
    assert len(list(Path(machine.environ["REMOTE_RUNNER_CACHE_DIR"]).glob(f"builds/{outcome.run}/*/result.json"))) == 1
    nothing_left(outcome.run, places)


def test_a_build_on_the_target_itself(
    nix_here: NixHere, nix_host: NetnsHost, tmp_path: Path, machine: Machine, places: list[Place]
) -> None:
    plan = nix_plan(tmp_path, machine, places[1:], build="echo x >> /tmp/count\n", build_on="target")
    outcome = plan.single(2).all_ok()
    for instance in outcome.instances:
        out = instance.text("where").strip().removesuffix("/bin/application")
        assert instance.step("build")["detail"] == f"application for x86_64-linux, {out} (nix1 will build it); {BY_NIX}"
    assert nix_host.as_root(f"nix-store --check-validity {out} && echo there") == "there"
    assert not nix_here.is_valid(out)
    assert nix_host.as_root("cat /tmp/count") == "x"
    assert not Path("/tmp/count").exists()
    nothing_left(outcome.run, places[1:])


@pytest.mark.parametrize("store", ["auto", "user"])
def test_a_user_whom_the_daemon_does_not_trust_runs_it_all_the_same(
    nix_here: NixHere, nix_daemon_host: NetnsHost, tmp_path: Path, machine: Machine, store: str
) -> None:
    places = [place_on(nix_daemon_host, store=store)]
    plan = nix_plan(tmp_path, machine, places)
    outcome = plan.single(3).all_ok()
    out = plan.fab("build").stdout.strip()
    there = nix_daemon_host.ssh(f"nix-store --check-validity {out} 2>/dev/null && echo there; true").decode()
    assert there == ("there\n" if store == "auto" else "")
    details = sorted(str(instance.step("push")["detail"]) for instance in outcome.instances)
    assert details[0].startswith(
        f"{out} (built there; of its derivation " if store == "auto" else f"{out} (1 of 1 paths sent, "
    )
    assert details[1:] == [f"{out} (there already)"] * 2
    for instance in outcome.instances:
        assert instance.text("where") == f"{out}/bin/application\n"
    assert places[0].runs_left() == []
    assert [each.command for each in nix_daemon_host.processes() if "nix-daemon" not in each.command] == []


def test_fab_build_makes_the_target_build_and_prints_the_path(
    nix_here: NixHere, nix_host: NetnsHost, tmp_path: Path, machine: Machine, places: list[Place]
) -> None:
    plan = nix_plan(tmp_path, machine, places, build_on="target")
    ended = plan.fab("build", "--host", "nix1")
    assert ended.status == 0, str(ended)
    out = ended.stdout.removesuffix("\n")
    assert Path(out).parent == Path("/nix/store")
    assert nix_host.as_root(f"cat {out}/bin/application").startswith("#!/bin/sh")
    assert not nix_here.is_valid(out)


def test_a_build_that_fails_there_says_why(
    nix_here: NixHere, tmp_path: Path, machine: Machine, places: list[Place]
) -> None:
    plan = nix_plan(tmp_path, machine, places[1:], build="echo no such luck >&2; exit 7\n", build_on="target")
    ended = plan.fab("build", "--host", "nix1")
    assert (ended.status, ended.stdout) == (1, "")
    for words in ("nix1: ", "could not build /nix/store/", "no such luck"):
        assert words in ended.stderr, str(ended)


def test_a_build_that_fails_here_is_the_reason_of_each_instance(
    nix_here: NixHere, tmp_path: Path, machine: Machine, places: list[Place]
) -> None:
    plan = nix_plan(tmp_path, machine, places, build=f"echo x >> {tmp_path}/count; echo no such luck >&2; exit 7\n")
    outcome = plan.single(3)
    assert not outcome.values["ok"]
    for instance in outcome.instances:
        for words in (
            "build of application for x86_64-linux: Nix did not make",
            "no such luck",
            "exit code 7",
            "log: ",
        ):
            assert words in instance.record["error"]
    assert (tmp_path / "count").read_text() == "x\n"


def test_the_flakes_own_remote_runner_builds_without_evaluating(
    nix_here: NixHere, nixpkgs_stub: Path, tmp_path: Path, machine: Machine
) -> None:
    """As Testground's nix:generic starts it: no arguments, nobody's directory, the plan in the store."""
    directory = make_plan(tmp_path / "plan", nix_here, nixpkgs_stub)
    out = nix_here.build(f"path:{directory}#remote-runner")
    manifest = Manifest.load(directory / "manifest.toml")
    listed = json.dumps([{"name": "localhost", "slots": 2}])
    composition = single(manifest, "outputs", instances=2, test_params={"remote-runners": listed}, disable_metrics=True)
    (run,) = plan_runs(composition, manifest)
    with SyncService() as service:
        outcome = run_plan(
            run,
            command=InstanceCommand((f"{out}/bin/remote-runner",), Path("/")),
            outputs=tmp_path / "outputs",
            environ=machine.environ,
            sync_service=ServiceAddress("localhost", service.port),
            listener=DaemonLines(sys.stderr),
            timeout_s=120.0,
        )
    assert outcome.ok
    node = nix_here.build(f"path:{directory}#node")
    for instance in outcome.instances:
        record = read_record(instance.outputs)
        assert record is not None
        assert record.artifact == Path(node).name
        step = record.step("build")
        assert step is not None
        assert step.detail == (
            f"node for x86_64-linux, {node} (built here); builder nix: Testground's Nix builder made this launcher"
        )
    cache = Path(machine.environ["REMOTE_RUNNER_CACHE_DIR"])
    assert [path.name for path in cache.glob(f"builds/{outcome.run}/*/*/out")] == ["out"]
    assert not list(cache.glob("builds/*/*/*/evaluation.log"))
