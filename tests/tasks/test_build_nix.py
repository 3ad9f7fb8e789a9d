"""`fab build` and `fab push --artifact` with real Nix: the store path on stdout, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.nix_bed import NixHere, simple_flake
from tests.tasks.fab import PlanDirectory

STORE_PATH = r"/nix/store/[0-9a-z]{32}-greeter\n"


@pytest.fixture
def nix_plan(nix_here: NixHere, plan: PlanDirectory, tmp_path: Path) -> PlanDirectory:
    """The plan with a flake, whose outputs are this test's own, and no command."""
    simple_flake(plan.path, name="greeter", build=f": {tmp_path}\n")
    plan.inventory(
        "app: {name: greeter}\nhosts:\n  localhost:\n"
        f"    directory: {tmp_path}/near\n  mac: {{system: aarch64-darwin, app: {{build_on: local}}}}\n"
    )
    return plan


def test_build_prints_the_store_path_alone(nix_here: NixHere, nix_plan: PlanDirectory) -> None:
    ran = nix_plan.ok("build")
    assert re.fullmatch(STORE_PATH, ran.out)
    assert (
        ran.words
        == "building greeter for x86_64-linux (builder nix: the plan has a flake.nix, and app.command is not set)\n"
    )
    assert nix_here.is_valid(ran.out.strip())
    (artifact,) = nix_plan.ok("build", "--json").data
    assert artifact["path"] == artifact["out"] == ran.out.strip()
    assert (artifact["program"], artifact["here"], artifact["system"]) == ("bin/greeter", True, "x86_64-linux")
    assert artifact["drv"].endswith("-greeter.drv")


def test_dry_run_prints_the_exact_command_and_builds_nothing(nix_here: NixHere, nix_plan: PlanDirectory) -> None:
    (planned,) = nix_plan.ok("build", "--dry-run").data
    assert Path(planned["argv"][0]).name == "nix-store"
    assert planned["argv"][1:3] == ["--realise", "--add-root"]
    assert planned["argv"][4:] == [f"{planned['drv']}!out"]
    assert planned["evaluation"][-3] == ".#packages.x86_64-linux.greeter"
    assert not nix_here.is_valid(planned["out"])
    assert nix_plan.ok("build").out.strip() == planned["out"]
    (planned,) = nix_plan.ok("build", "--arch", "aarch64-darwin", "--dry-run").data
    assert (planned["argv"], planned["here"]) == ([], False)
    assert "aarch64-darwin is needed" in planned["why_not_here"]


def test_a_system_that_nothing_at_hand_builds_names_the_three_ways(nix_plan: PlanDirectory) -> None:
    ran = nix_plan.fab("build", "--arch", "aarch64-darwin")
    assert (ran.status, ran.out) == (1, "")
    for words in (
        "greeter for aarch64-darwin can be built nowhere",
        "this machine builds x86_64-linux",
        "it has no remote builders",
        "no host was named that could build it",
        "fab build --host NAME",
        "extra-platforms = aarch64-darwin",
    ):
        assert words in ran.words
    ran = nix_plan.fab("build", "--host", "mac")
    assert (ran.status, ran.out) == (1, "")
    assert "on the target: app.build_on is local" in ran.words


def test_another_flake_and_another_package(nix_plan: PlanDirectory, tmp_path: Path) -> None:
    other = simple_flake(tmp_path / "other", name="other", build=f": {tmp_path}\n")
    out = nix_plan.ok("build", "--flake", str(other), "--app", "other").out
    assert out.endswith("-other\n")
    ran = nix_plan.fab("build", "--app", "other")
    assert (ran.status, ran.out) == (1, "")
    assert "the flake has no such package; it has greeter for aarch64-darwin" in ran.words
    ran = nix_plan.fab("build", "--flake", f"{other}#other")
    assert "--app" in ran.words
    assert "Traceback" not in ran.words


def test_a_store_path_given_by_hand_is_taken_as_one(nix_plan: PlanDirectory, tmp_path: Path) -> None:
    out = nix_plan.ok("build").out.strip()
    (tmp_path / "result").symlink_to(out)
    for given in (out, f"{out}/bin/greeter", str(tmp_path / "result")):
        (planned,) = nix_plan.ok("push", "--host", "localhost", "--artifact", given, "--dry-run").data
        assert (planned["out"], planned["program"]) == (out, "bin/greeter")
        assert planned["drv"].endswith("-greeter.drv")
