from __future__ import annotations

import os
import pwd
from pathlib import Path

import pytest

from remote_runner.artifact.nix import here
from remote_runner.artifact.nix.here import find_nix, nix_directories

HOME = pwd.getpwuid(os.getuid()).pw_dir


def install(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    for name in names or ("nix", "nix-store", "nix-instantiate"):
        (directory / name).touch(mode=0o755)
    return directory


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Two directories that stand for the usual places."""
    first, second = tmp_path / "profile/bin", tmp_path / "system/bin"
    monkeypatch.setattr(here, "nix_directories", lambda home, user: (str(first), str(second)))
    return first, second


def test_path_comes_before_the_usual_places(tmp_path: Path, places: tuple[Path, Path]) -> None:
    install(places[0])
    own = install(tmp_path / "own")
    nix = find_nix({"PATH": f"/nowhere:{own}"})
    assert nix is not None
    assert (nix.nix, nix.nix_store) == (f"{own}/nix", f"{own}/nix-store")
    found = find_nix({"PATH": "/nowhere"})
    assert found is not None
    assert found.nix == f"{places[0]}/nix"


def test_what_cannot_be_started_is_no_nix(places: tuple[Path, Path]) -> None:
    assert find_nix({"PATH": "/nowhere"}) is None
    install(places[0])
    (places[0] / "nix-store").chmod(0o644)
    assert find_nix({"PATH": "/nowhere"}) is None
    install(places[1])
    found = find_nix({"PATH": "/nowhere"})
    assert found is not None
    assert found.nix_store == f"{places[1]}/nix-store"


def test_nix_gets_a_home_and_the_places_where_git_and_ssh_may_be(places: tuple[Path, Path]) -> None:
    install(places[0])
    nix = find_nix({"PATH": "/nowhere", "TEST_RUN": "x"})
    assert nix is not None
    assert nix.environ == {"PATH": f"/nowhere:{places[0]}:{places[1]}", "TEST_RUN": "x", "HOME": HOME}
    again = find_nix({"PATH": "/nowhere", "HOME": "/else"})
    assert again is not None
    assert again.environ["HOME"] == "/else"
    assert find_nix({}) is not None


def test_the_usual_places_are_those_of_every_installer() -> None:
    assert nix_directories("/home/me", "me") == (
        "/nix/var/nix/profiles/default/bin",
        "/home/me/.nix-profile/bin",
        "/run/current-system/sw/bin",
        "/etc/profiles/per-user/me/bin",
        "/usr/local/bin",
        "/usr/bin",
    )
