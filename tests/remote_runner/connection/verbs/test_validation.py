"""What a host reports is checked before it is used."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_runner.connection.verbs.validation import nonsense, pairs, part, real, texts, whole, words
from remote_runner.errors import FarShellError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(JSON)
def test_whatever_it_is_nothing_is_raised_and_kinds_are_as_promised(value: object) -> None:
    assert all(character.isprintable() for character in words(value))
    assert whole(value) is None or whole(value) == value
    found = real(value)
    assert found is None or (math.isfinite(found) and found >= 0)
    assert all(text.isprintable() for text in texts(value))
    assert all(len(pair) == 2 for pair in pairs(value))
    assert isinstance(nonsense("dex", value), FarShellError)


def test_numbers_are_no_booleans_and_within_their_bounds() -> None:
    assert [whole(value, 10) for value in (True, -1, 0, 10, 11, 1.0, "1")] == [None, None, 0, 10, None, None, None]
    assert [real(value, -1, 1) for value in (True, -1, 0.5, 2, math.nan, "1")] == [None, -1.0, 0.5, None, None, None]


def test_texts_lose_control_characters_and_keep_names_that_are_no_utf_8() -> None:
    assert words("a\x1b[31m\nb") == "a [31m b"
    assert words("\udcff") == "\udcff"
    assert words("x" * 5000) == "x" * 4096
    assert pairs([["/a", "why"], ["/b"], "c", ["/d", 3]]) == (("/a", "why"), ("/d", ""))


def test_a_message_without_its_part_is_none_of_ours() -> None:
    assert part("dex", {"exited": {"status": 0}}, "exited") == {"status": 0}
    with pytest.raises(FarShellError, match="dex: unexpected answer from the agent there"):
        part("dex", {"exited": 3}, "exited")
