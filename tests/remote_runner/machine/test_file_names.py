"""Names that others chose, as names of files."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remote_runner.machine.file_names import safe_name


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
