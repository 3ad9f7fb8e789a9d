"""Sizes as words."""

from __future__ import annotations

import pytest

from remote_runner.sizes import count, listed, size


@pytest.mark.parametrize(
    ("size_bytes", "words"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (10 << 10, "10 KiB"),
        (3 << 19, "1.5 MiB"),
        (5 << 40, "5.0 TiB"),
        (5 << 50, "5120 TiB"),
    ],
)
def test_a_size_is_in_its_largest_unit(size_bytes: int, words: str) -> None:
    assert size(size_bytes) == words


@pytest.mark.parametrize(
    ("between", "words"), [(", ", "a, b and 2 more"), ("; ", "a; b; and 2 more"), ("\n", "a\nb\nand 2 more")]
)
def test_of_a_long_list_the_first_are_named(between: str, words: str) -> None:
    assert listed(["a", "b", "c", "d"], 2, between) == words
    assert listed(["a", "b"], 2, between) == f"a{between}b"


def test_one_of_something_is_one() -> None:
    assert [count(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
