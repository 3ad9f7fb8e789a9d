"""Files are written whole or not at all, and named by any text."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_runner.errors import ControllerError
from remote_runner.machine.files import safe_name, write_atomically


def test_it_takes_the_place_of_what_was_there_with_its_own_mode(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file"
    assert write_atomically(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert write_atomically(path, b"new", mode=0o666, umask=0o027)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_what_cannot_be_written_leaves_nothing_and_is_told_unless_it_is_optional(tmp_path: Path) -> None:
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "below").touch()
    assert not write_atomically(tmp_path / "place", b"x", optional=True)
    with pytest.raises(ControllerError, match="place: cannot be written: Is a directory"):
        write_atomically(tmp_path / "place", b"x")
    assert [each.name for each in tmp_path.iterdir()] == ["place"]


@given(st.text(), st.text())
def test_a_name_is_one_file_of_a_directory_and_another_texts_is_another(one: str, other: str) -> None:
    name = safe_name(one)
    assert name not in ("", ".", "..")
    assert "/" not in name
    assert not name.startswith((".", "-"))
    assert len(name.encode()) <= 113
    assert (name == safe_name(other)) == (one == other)


def test_a_name_that_will_do_stays() -> None:
    assert safe_name("run-1_a.b") == "run-1_a.b"
