"""Hints name the program that was typed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from remote_runner.errors import ControllerError
from remote_runner.typed import as_typed, from_where_typed, set_typed, typed_program


@pytest.fixture(autouse=True)
def typed_afterwards() -> Iterator[None]:
    yield
    set_typed("fab")


def test_fab_stays_fab() -> None:
    assert as_typed("fab hosts, then `fab clean`") == "fab hosts, then `fab clean`"
    assert typed_program() == ()


def test_every_command_in_a_hint_is_the_one_that_was_typed() -> None:
    set_typed("remote-runner -C elsewhere", "elsewhere")
    assert as_typed("`fab clean --run x` or fab fetch") == (
        "`remote-runner -C elsewhere clean --run x` or remote-runner -C elsewhere fetch"
    )
    assert as_typed("a/fab clean, my-fab clean, fab. and fab") == "a/fab clean, my-fab clean, fab. and fab"
    assert str(ControllerError("no", next_step="fab clean")) == "no\n  next: remote-runner -C elsewhere clean"
    assert from_where_typed("outputs") == "elsewhere/outputs"
    assert typed_program() == ("remote-runner",)


def test_what_was_replaced_is_not_replaced_again() -> None:
    set_typed("fab -r plans")
    assert as_typed(as_typed("fab clean")) == "fab -r plans clean"
