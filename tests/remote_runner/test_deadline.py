"""A deadline."""

from __future__ import annotations

import pytest

from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import DeadlineError


def test_one_that_never_comes() -> None:
    for deadline in (NEVER, Deadline.after(None)):
        assert deadline.timeout_s is None
        assert not deadline.expired
        deadline.check("the build")


def test_one_that_is_over_names_what_took_too_long_and_its_time() -> None:
    deadline = Deadline.after(-1.5)
    assert (deadline.remaining_s, deadline.timeout_s) == (0.0, 0.0)
    with pytest.raises(DeadlineError, match=r"the build did not end within -1\.5 s"):
        deadline.check("the build")


def test_the_time_that_is_left_is_of_the_budget() -> None:
    deadline = Deadline.after(100.0)
    assert 99.0 < deadline.remaining_s <= 100.0
    assert deadline.budget_s == 100.0
