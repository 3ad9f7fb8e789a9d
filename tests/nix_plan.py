"""The example plan with its own flake.nix, built by real Nix from a stand-in for nixpkgs (`tests/nixpkgs_stub`)."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from remote_runner.connection.bootstrap.program import find_go
from tests.hosts import which
from tests.nix_bed import NixHere

ROOT = Path(__file__).parent.parent
# What remote-runner and the application import.
_DISTRIBUTIONS = ("asyncssh", "fabric", "invoke", "pyyaml", "rich", "tomli")
# What the flake's shell and checks need; nothing here builds those.
_NAMED_ONLY = ("hypothesis", "mypy", "pytest", "pytest-xdist", "setuptools", "types-pyyaml", "websockets")


def make_stub(directory: Path, arm_tree: Path | None = None) -> Path:
    """The stand-in at `directory`, with this machine's programs, and those of an aarch64 tree if there is one."""
    shutil.copytree(ROOT / "tests" / "nixpkgs_stub", directory)
    _programs(directory / "x86_64-linux", Path(which("busybox")), Path("/usr/bin/python3"))
    go = directory / "x86_64-linux" / "go"
    cache = shlex.quote(os.environ["GOCACHE"])
    go.write_text(f'#!/bin/sh\nGOCACHE={cache} exec {find_go(os.environ)} "$@"\n', encoding="utf-8")
    go.chmod(0o755)
    if arm_tree is not None:
        _programs(directory / "aarch64-linux", arm_tree / "bin/busybox", arm_tree / "usr/bin/python3")
        (directory / "aarch64-linux" / "sysroot").write_text(str(arm_tree), encoding="utf-8")
    for name in _DISTRIBUTIONS:
        site = directory / "site-packages" / name
        for distribution in _with_requirements(name):
            for file in distribution.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    (site / file).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(str(distribution.locate_file(file)), site / file)
    for name in _NAMED_ONLY:
        (directory / "site-packages" / name).mkdir()
    return directory


def _programs(directory: Path, busybox: Path, python: Path) -> None:
    directory.mkdir()
    shutil.copy(busybox.resolve(), directory / "busybox")
    shutil.copy(python.resolve(), directory / "python3")


def _with_requirements(name: str) -> Iterator[importlib.metadata.Distribution]:
    todo, seen = [name], set[str]()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # a requirement of another Python or system
        yield distribution
        needed = [required for required in distribution.requires or () if "extra ==" not in required]
        todo += [re.split(r"[^\w.-]", required, maxsplit=1)[0] for required in needed]


def make_plan(directory: Path, nix: NixHere, stub: Path) -> Path:
    """A copy of this plan at `directory`, of what git knows of it, whose lock names the stand-in."""
    listed = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        if name and not name.startswith((".", "tests/")) and (ROOT / name).is_file():
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, directory / name)
    nix.run("nix", "flake", "lock", "--override-input", "nixpkgs", f"path:{stub}", cwd=directory)
    return directory
