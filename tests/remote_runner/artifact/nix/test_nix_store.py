"""Runs from a host's own Nix store: what they hold there, and what is not valid."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

from remote_runner.connection.verbs.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.errors import ArtifactMissingError
from remote_runner.inventory.inventory import Inventory
from tests.hosts import TestHost, which
from tests.hosts_netns import NetnsHost
from tests.nix_bed import NixHere
from tests.remote_runner.artifact.nix.far import Far

MAKE = f"mkdir -p made/bin && cp {which('dash')} made/bin/app && nix-store --add made"


@pytest.fixture(params=["root", "user of a daemon"])
def far(
    request: pytest.FixtureRequest,
    nix_here: NixHere,
    agents: Controller,
    known_by_name: Callable[[TestHost], str],
    tmp_path: Path,
) -> Iterator[tuple[Far, NetnsHost]]:
    machine: NetnsHost = request.getfixturevalue("nix_host" if request.param == "root" else "nix_daemon_host")
    known_by_name(machine)
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).host(machine.name)
    with Far.open(entry, agents, tmp_path / "outputs") as opened:
        yield opened, machine


def base(machine: NetnsHost) -> PurePosixPath:
    return PurePosixPath(machine.far_home, ".cache/remote-runner")


def test_a_run_holds_what_it_runs(far: tuple[Far, NetnsHost]) -> None:
    runner, machine = far
    path = machine.ssh(MAKE).decode().strip()
    script = "readlink /proc/$$/exe; while ! [ -e go ]; do sleep 0.05; done; exec cat /proc/$$/environ"
    with runner.start("bin/app", "-c", script, artifact=FarArtifact(Store.NIX, path)) as running:
        running.wait_for(b"\n")
        assert running.stdout.decode() == f"{path}/bin/app\n"
        roots = machine.as_root(f"nix-store -q --roots {path}")
        assert f"{running.directory}/gcroot" in roots
        machine.as_root("nix-store --gc")
        machine.here(f"{running.directory}/tmp/go").touch()
        assert running.finish().exit_status == 0
    assert runner.runs() == []
    machine.as_root("nix-store --gc")
    assert machine.as_root(f"nix-store --check-validity {path} 2>&1 || echo gone").endswith("gone")


def test_a_path_that_is_not_valid_is_missed(far: tuple[Far, NetnsHost]) -> None:
    runner, machine = far
    # What a copy that was cut off leaves: there, and not valid.
    path = "/nix/store/00000000000000000000000000000000-partial"
    machine.as_root(f"mkdir -p {path}/bin && cp {which('dash')} {path}/bin/app")
    for missing in (path, path.replace("partial", "nothing")):
        with pytest.raises(ArtifactMissingError, match="know how to build") as caught:
            runner.run("bin/app", artifact=FarArtifact(Store.NIX, missing))
        assert caught.value.artifact == missing
    assert runner.runs() == []


def test_a_nix_off_the_path_is_found(
    nix_here: NixHere,
    nix_host: NetnsHost,
    agents: Controller,
    known_by_name: Callable[[TestHost], str],
    tmp_path: Path,
) -> None:
    path = nix_host.ssh(MAKE).decode().strip()
    nix_host.as_root("mkdir /root/bin && ln -s $(ls -d /usr/bin/* | grep -v /nix) /root/bin/")
    (nix_host.home / ".bashrc").write_text("PATH=/root/bin\n")
    assert nix_host.ssh("command -v nix-store; true") == b""
    known_by_name(nix_host)
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).host(nix_host.name)
    with Far.open(entry, agents, tmp_path / "outputs", os.environ) as far:
        assert far.run("bin/app", "-c", "exit 4", artifact=FarArtifact(Store.NIX, path))[1].exit_status == 4


def test_the_roots_of_pushes_are_listed_and_let_go(far: tuple[Far, NetnsHost]) -> None:
    runner, machine = far
    unused = machine.ssh("echo b >made; nix-store --add made; rm made").decode().strip()
    used = machine.ssh(MAKE).decode().strip()
    roots = base(machine) / "nix/roots"
    for path in (used, unused):
        machine.ssh(f"mkdir -p {roots} && nix-store --add-root {roots}/{Path(path).name} -r {path}")
    with runner.start("bin/app", "-c", "echo ready; sleep 60", artifact=FarArtifact(Store.NIX, used)) as running:
        running.wait_for(b"ready")
        found = {artifact.directory: artifact for artifact in runner.artifacts()}
        places = {path: roots / Path(path).name for path in (used, unused)}
        assert {place: one.is_used for place, one in found.items()} == {places[used]: True, places[unused]: False}
        assert {one.store for one in found.values()} == {Store.NIX}
        removal = runner.remove_artifacts([one.name for one in found.values()])
        assert (removal.removed, removal.alive) == ((str(places[unused]),), (str(places[used]),))
        machine.as_root("nix-store --gc")
        assert machine.as_root(f"nix-store --check-validity {used} && echo there") == "there"
        assert machine.as_root(f"nix-store --check-validity {unused} 2>&1 || echo gone").endswith("gone")
