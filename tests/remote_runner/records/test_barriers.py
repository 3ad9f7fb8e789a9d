"""Barriers that were never met: how many came, and who did not, where that can be known."""

from __future__ import annotations

import pytest

from remote_runner.records.barriers import Unmet, arrivals_and_waits, unmet_barriers

GROUPS = {"a[0]": "a", "a[1]": "a", "b[0]": "b", "b[1]": "b", "b[2]": "b"}


def unmet(*seen: tuple[str, int | None], target: int = 5, met_at: float | None = None) -> list[Unmet]:
    """What is told of a barrier where these clients came; who has a number waited too, for so many."""
    lines: list[dict[str, object]] = []
    for seq, (client, waited) in enumerate(seen, 1):
        lines.append({"at": 1.0, "client": client, "state": "ready", "seq": seq})
        if waited:
            lines.append({"at": 1.0, "client": client, "state": "ready", "target": waited, "met_at": met_at})
    hosts = [("a[0]", "dex"), ("a[1]", "rex"), ("b[0]", "fir"), ("b[1]", "fir"), ("b[2]", "fir")]
    return list(unmet_barriers(*arrivals_and_waits(lines, hosts), GROUPS))


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ([("a[0]", 5), ("a[1]", 5), ("b[0]", 5), ("b[2]", 5)], Unmet("ready", 5, 4, ("b[1]",))),
        # A barrier of one group.
        ([("b[0]", 3), ("b[2]", 3)], Unmet("ready", 3, 2, ("b[1]",))),
        # It says of its one host only.
        ([("a[0]", 5), ("rex #4", 5), ("b[0]", 5), ("b[2]", 5)], Unmet("ready", 5, 4, ("b[1]",))),
        # Which of the host's three is not known, nor who is meant by four, nor who has come only once.
        ([("a[0]", 5), ("a[1]", 5), ("b[0]", 5), ("fir #2", 5)], Unmet("ready", 5, 4, ())),
        ([("a[0]", 4), ("b[0]", 4)], Unmet("ready", 4, 2, ())),
        ([("a[0]", 5), ("a[0]", None)], Unmet("ready", 5, 2, ())),
    ],
)
def test_who_did_not_come_is_told_where_it_is_known(seen: list[tuple[str, int | None]], told: Unmet) -> None:
    assert unmet(*seen) == [told]


def test_a_barrier_that_was_met_or_waited_at_by_nobody_is_none() -> None:
    assert unmet(("a[0]", 2), ("a[1]", 2), met_at=2.0) == []
    assert unmet(("a[0]", None)) == []
    # Who waited for one more had given up when it came.
    assert unmet(("a[0]", 2), ("a[1]", None)) == [Unmet("ready", 2, 2, ())]
