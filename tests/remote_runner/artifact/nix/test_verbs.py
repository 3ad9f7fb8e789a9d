"""The exact command lines, and what is made of Nix's answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_runner.artifact.nix import verbs
from remote_runner.artifact.nix.build_machines import BuildMachines
from remote_runner.artifact.nix.here import Nix
from remote_runner.artifact.nix.verbs import NixConfig, Package, derivation_system

NIX = Nix("/bin/nix", "/bin/nix-store", "/bin/nix-instantiate", {})
HASH = "lkyfm145g4r8vlwpaps9cncfhi249k00"
DRV, OUT = f"/nix/store/{HASH}-node-1.0.drv", f"/nix/store/{HASH}-node-1.0"
PACKAGE = Package(DRV, OUT, "out", "bin/node")
FLAKES = ("--extra-experimental-features", "nix-command flakes")


def test_evaluation_asks_for_one_package_of_one_system() -> None:
    argv = verbs.evaluate_argv(NIX, "github:some/where?dir=x", "aarch64-darwin", "node")
    assert argv[:-1] == (
        "/bin/nix", *FLAKES, "eval", "--json", "github:some/where?dir=x#packages.aarch64-darwin.node", "--apply",
    )  # fmt: skip
    assert "drvPath" in argv[-1]


def test_a_dot_in_a_name_is_no_step_of_the_attributes_path() -> None:
    assert verbs.attribute(".", "x86_64-linux", "my.app") == '.#packages.x86_64-linux."my.app"'


def test_the_other_verbs() -> None:
    root = Path("/cache/out")
    assert verbs.packages_argv(NIX, ".")[:-1] == ("/bin/nix", *FLAKES, "eval", "--json", ".#packages", "--apply")
    assert verbs.realise_argv(NIX, PACKAGE, root) == (
        "/bin/nix-store", "--realise", "--add-root", "/cache/out", f"{DRV}!out",
    )  # fmt: skip
    assert verbs.missing_argv(NIX, PACKAGE) == ("/bin/nix-store", "--realise", "--dry-run", f"{DRV}!out")
    assert verbs.is_valid_argv(NIX, OUT) == ("/bin/nix-store", "--check-validity", OUT)
    assert verbs.deriver_argv(NIX, OUT) == ("/bin/nix-store", "--query", "--deriver", OUT)
    assert verbs.root_derivation_argv(NIX, DRV, root)[:4] == (
        "/bin/nix-instantiate", "--add-root", "/cache/out", "--expr",
    )  # fmt: skip
    assert verbs.config_argvs(NIX) == (
        ("/bin/nix", *FLAKES, "show-config", "--json"),
        ("/bin/nix", *FLAKES, "config", "show", "--json"),
    )


def test_a_package_whose_output_is_not_known_has_all_of_them_made() -> None:
    assert Package(DRV, OUT, "", "bin/node").installable == DRV


def test_a_dry_run_names_what_is_built_and_what_is_fetched() -> None:
    said = (
        "warning: something\n"
        "these 2 derivations will be built:\n"
        f"  {DRV}\n"
        f"  /nix/store/{HASH}-other.drv\n"
        "these 2 paths will be fetched (0.1 MiB download, 0.4 MiB unpacked):\n"
        f"  {OUT}\n"
        f"  /nix/store/{HASH}-glibc-2.40\n"
    )
    assert verbs.parse_missing(said) == (DRV, f"/nix/store/{HASH}-other.drv")
    assert verbs.parse_missing("") == ()


def test_the_settings_are_read_as_every_version_prints_them() -> None:
    settings = {
        "system": {"value": "x86_64-linux"},
        "extra-platforms": {"value": ["i686-linux"]},
        "max-jobs": {"value": 4},
        "builders": {"value": "@/etc/nix/machines"},
        "sandbox": {"value": "relaxed"},
    }
    assert verbs.parse_config(json.loads(json.dumps(settings))) == NixConfig(
        "x86_64-linux", ("i686-linux",), 4, "@/etc/nix/machines"
    )


@pytest.mark.parametrize(
    ("text", "system"),
    [
        (f'Derive([("out","{OUT}","","")],[],[],"x86_64-linux","/bin/sh",["-c","x"],[("a","b")])', "x86_64-linux"),
        (
            f'Derive([("dev","/d","",""),("out","{OUT}","","")],[("{DRV}",["dev","out"]),("/x",["out"])],'
            f'["/nix/store/{HASH}-a","/b"],"aarch64-darwin","builtin:fetchurl",[],[])',
            "aarch64-darwin",
        ),
        (r'Derive([("out","),(\"]\\","","")],[],[],"builtin","x",["\n\"],"],[])', "builtin"),
    ],
)
def test_the_system_of_a_derivation(text: str, system: str) -> None:
    assert derivation_system(text) == system


def test_what_is_no_derivation_has_no_system() -> None:
    with pytest.raises(ValueError, match="no derivation"):
        derivation_system("ELF")


# Who builds what.


def machines(builders: str = "", *, max_jobs: int = 2, extra: tuple[str, ...] = ()) -> BuildMachines:
    return BuildMachines.from_config(NixConfig("x86_64-linux", extra, max_jobs, builders))


def test_this_machine_builds_its_own_system_and_its_extra_platforms() -> None:
    own = machines(extra=("i686-linux", "aarch64-linux"))
    assert own.why_not(["x86_64-linux", "aarch64-linux", "builtin"]) == ""
    assert own.why_not(["x86_64-linux", "aarch64-darwin"]) == (
        "aarch64-darwin is needed; this machine builds x86_64-linux, i686-linux, aarch64-linux, "
        "and it has no remote builders"
    )


def test_a_machine_without_jobs_builds_nothing_itself() -> None:
    assert "this machine builds nothing (max-jobs = 0), and its remote builders build aarch64-linux" in machines(
        "ssh://pi aarch64-linux", max_jobs=0
    ).why_not(["x86_64-linux"])


def test_remote_builders_are_read_as_nix_reads_them(tmp_path: Path) -> None:
    (tmp_path / "machines").write_text(
        "# ours\n\nssh://mac x86_64-darwin,aarch64-darwin /key 4 1 big-parallel\n  ssh://like-here  # no system\n"
    )
    text = f"ssh://a aarch64-linux ; ssh://b -\n@{tmp_path}/machines\n@{tmp_path}/absent\n# ssh://c riscv64-linux"
    assert machines(text, max_jobs=0).remote == ("aarch64-linux", "x86_64-linux", "x86_64-darwin", "aarch64-darwin")
    assert machines(text, max_jobs=0).why_not(["aarch64-darwin", "x86_64-linux"]) == ""
    assert machines(text).why_not(["riscv64-linux"]) != ""
