"""Directories of ours here in places that others can write to: what others made before is refused.

Those on a host: connection/bootstrap/test_handshake.py; the launcher's: integration/test_broker.py.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.errors import ControllerError
from tests.hostile_places import HOSTILE
from tests.needs import need


@pytest.fixture
def place(tmp_path: Path) -> Path:
    parent = tmp_path / "shared"
    parent.mkdir()
    return parent / "remote-runner"


def controller_at(place: Path) -> Controller:
    runtime = {"REMOTE_RUNNER_RUNTIME_DIR": str(place)}
    return Controller.from_environ({**runtime, "REMOTE_RUNNER_CACHE_DIR": str(place.parent.parent / "cache")})


def state_of(place: Path) -> object:
    """Everything around the place: names, kinds, permissions, owners."""
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_uid) for path in place.parent.rglob("*"))


@pytest.mark.parametrize("make", HOSTILE.values(), ids=HOSTILE)
def test_what_others_prepared_is_refused_and_left_alone(place: Path, make: Callable[[Path], None]) -> None:
    make(place)
    before = state_of(place)
    with pytest.raises(ControllerError) as caught:
        controller_at(place)
    assert str(place) in str(caught.value)
    assert "REMOTE_RUNNER_RUNTIME_DIR" in caught.value.next_step
    assert state_of(place) == before


def test_a_new_directory_is_ours_alone(place: Path) -> None:
    umask = os.umask(0)
    try:
        controller = controller_at(place)
        controller.lock("lock").acquire().release()
    finally:
        os.umask(umask)
    for path in (controller.runtime, controller.cache, controller.runtime / "locks"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path


def test_a_directory_that_others_may_read_is_closed(place: Path) -> None:
    place.mkdir(mode=0o755)
    controller_at(place)
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


@pytest.mark.parametrize("place_parent_mode", [0o755, 0o1775, 0o1777])
def test_a_parent_that_protects_what_is_ours_will_do(place: Path, place_parent_mode: int) -> None:
    place.parent.chmod(place_parent_mode)
    controller_at(place)


def test_a_parent_may_be_written_to_by_its_users_own_group(place: Path) -> None:
    """Many systems make a group for each user, of the same number, and a umask of 002."""
    need("netns")  # only root gives something to any group
    os.chown(place.parent, os.getuid(), os.getuid())
    place.parent.chmod(0o775)
    controller_at(place)
