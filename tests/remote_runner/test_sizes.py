"""Sizes as words."""

from __future__ import annotations

import pytest

from remote_runner.sizes import size


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
