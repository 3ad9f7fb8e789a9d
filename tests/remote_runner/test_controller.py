"""This machine's own directories: where they may lie, and a lock whose directory vanishes or is full."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from remote_runner import controller
from remote_runner.controller import Controller, home_directory, own_directory
from remote_runner.errors import ControllerError
from tests.needs import need

OTHER_USER = 4242


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory that anybody may add to, as /tmp."""
    need("netns")  # only root gives something away
    place = tmp_path / "root"
    place.mkdir()
    place.chmod(0o1777)
    return place


def owned_by_other(root: Path) -> Path:
    (root / "other").mkdir()
    os.chown(root / "other", OTHER_USER, OTHER_USER)
    return root / "other"


def above_owned_by_other(root: Path) -> Path:
    owned_by_other(root)
    (root / "other" / "ours").mkdir(mode=0o700)
    return root / "other" / "ours"


def link_of_other(root: Path) -> Path:
    (root / "real").mkdir(mode=0o700)
    (root / "link").symlink_to(root / "real")
    os.chown(root / "link", OTHER_USER, OTHER_USER, follow_symlinks=False)
    return root / "link"


def link_through_link_of_other(root: Path) -> Path:
    (root / "ours").symlink_to(link_of_other(root).name)
    return root / "ours"


def link_to_owned_by_other(root: Path) -> Path:
    (root / "link").symlink_to(owned_by_other(root))
    return root / "link"


def up_from_owned_by_other(root: Path) -> Path:
    (root / "other" / "below").mkdir(parents=True)
    (root / "to").symlink_to(root / "other" / "below")
    os.chown(root / "other", OTHER_USER, OTHER_USER)
    return root / "to" / ".."


def writable_by_all(root: Path) -> Path:
    (root / "all").mkdir()
    (root / "all").chmod(0o777)
    return root / "all"


def writable_by_a_group(root: Path) -> Path:
    (root / "group").mkdir()
    os.chown(root / "group", os.getuid(), OTHER_USER)
    (root / "group").chmod(0o775)
    return root / "group"


def a_link_to_itself(root: Path) -> Path:
    (root / "loop").symlink_to("loop")
    return root / "loop"


def below_a_file(root: Path) -> Path:
    (root / "file").write_text("")
    return root / "file"


WRONG = (
    owned_by_other,
    above_owned_by_other,
    link_of_other,
    link_through_link_of_other,
    link_to_owned_by_other,
    up_from_owned_by_other,
    writable_by_all,
    writable_by_a_group,
    a_link_to_itself,
    below_a_file,
)


@pytest.mark.parametrize("deeper", ["rt", "further/down/rt"])
@pytest.mark.parametrize("make", WRONG)
def test_below_what_another_user_may_change_nothing_is_made(
    root: Path, make: Callable[[Path], Path], deeper: str
) -> None:
    parent = make(root)
    before = sorted(root.rglob("*"))
    with pytest.raises(ControllerError) as caught:
        own_directory(parent / deeper)
    assert str(parent / deeper) in str(caught.value)
    assert "REMOTE_RUNNER_RUNTIME_DIR" in caught.value.next_step
    assert sorted(root.rglob("*")) == before


def test_links_of_ours_and_parents_that_are_missing_will_do(root: Path) -> None:
    (root / "real").mkdir(mode=0o700)
    (root / "link").symlink_to(root / "real")
    umask = os.umask(0)
    try:
        made = own_directory(root / "link" / "a" / "b")
    finally:
        os.umask(umask)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)} == {0o700}


def test_in_a_user_namespace_the_owner_of_what_is_outside_cannot_be_told(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = owned_by_other(root)
    monkeypatch.setattr(controller, "_trusted_owners", lambda: {0, os.getuid(), OTHER_USER})
    assert own_directory(parent / "rt").is_dir()


def nobody(uid: int) -> pwd.struct_passwd:
    raise KeyError(f"getpwuid(): uid not found: {uid}")


@pytest.mark.parametrize(
    ("environ", "home"), [({"HOME": "/some/home"}, "/some/home"), ({}, None), ({"HOME": "relative"}, None)]
)
def test_a_user_whom_passwd_does_not_know(
    monkeypatch: pytest.MonkeyPatch, environ: Mapping[str, str], home: str | None
) -> None:
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert home_directory(environ) == home
    cache = controller._default_cache(environ, os.getuid())
    assert cache == (f"{home}/.cache/remote-runner" if home else f"/tmp/remote-runner-cache-{os.getuid()}")


def test_a_lock_outlives_its_directory(tmp_path: Path) -> None:
    """logind removes /run/user/UID when the user's last session ends."""
    found = Controller(tmp_path / "run", tmp_path / "cache")
    with found.lock("a"):
        shutil.rmtree(tmp_path / "run")
        with found.lock("b"):
            assert (tmp_path / "run" / "locks" / "b").exists()


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system without room for a file."""
    need("netns")  # root, who may mount
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=2,mode=700", "none", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_full_disk_is_named_with_the_next_step(full: Path) -> None:
    environ = {"REMOTE_RUNNER_RUNTIME_DIR": str(full / "a" / "b"), "REMOTE_RUNNER_CACHE_DIR": str(full)}
    with pytest.raises(ControllerError, match=f"^{full}/a/b: cannot be made: No space left on device"):
        Controller.from_environ(environ)
    with pytest.raises(
        ControllerError, match=f"^{full}/locks/x: cannot be locked: No space left .*\n  next: make room"
    ):
        Controller(full, full).lock("x").acquire()
