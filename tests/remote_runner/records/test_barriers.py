"""Barriers that were never met: how many came, and who did not, where that can be known."""

from __future__ import annotations

import pytest

from remote_runner.records.barriers import Unmet, arrivals_and_waits, unmet_barriers

GROUPS = {"a[000]": "a", "a[001]": "a", "b[000]": "b", "b[001]": "b", "b[002]": "b"}


def unmet(*seen: tuple[str, int | None], target: int = 5, met_at: float | None = None) -> list[Unmet]:
    """What is told of a barrier where these clients came; who has a number waited too, for so many."""
    lines: list[dict[str, object]] = []
    for seq, (client, waited) in enumerate(seen, 1):
        lines.append({"at": 1.0, "client": client, "state": "ready", "seq": seq})
        if waited:
            lines.append({"at": 1.0, "client": client, "state": "ready", "target": waited, "met_at": met_at})
    hosts = [("a[000]", "dex"), ("a[001]", "rex"), ("b[000]", "fir"), ("b[001]", "fir"), ("b[002]", "fir")]
    return list(unmet_barriers(*arrivals_and_waits(lines, hosts), GROUPS))


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        ([("a[000]", 5), ("a[001]", 5), ("b[000]", 5), ("b[002]", 5)], Unmet("ready", 5, 4, ("b[001]",))),
        # A barrier of one group.
        ([("b[000]", 3), ("b[002]", 3)], Unmet("ready", 3, 2, ("b[001]",))),
        # It says of its one host only.
        ([("a[000]", 5), ("rex #4", 5), ("b[000]", 5), ("b[002]", 5)], Unmet("ready", 5, 4, ("b[001]",))),
        # Which of the host's three is not known, nor who is meant by four, nor who has come only once.
        ([("a[000]", 5), ("a[001]", 5), ("b[000]", 5), ("fir #2", 5)], Unmet("ready", 5, 4, ())),
        ([("a[000]", 4), ("b[000]", 4)], Unmet("ready", 4, 2, ())),
        ([("a[000]", 5), ("a[000]", None)], Unmet("ready", 5, 2, ())),
    ],
)
def test_who_did_not_come_is_told_where_it_is_known(seen: list[tuple[str, int | None]], told: Unmet) -> None:
    assert unmet(*seen) == [told]


def test_a_barrier_that_was_met_or_waited_at_by_nobody_is_none() -> None:
    assert unmet(("a[000]", 2), ("a[001]", 2), met_at=2.0) == []
    assert unmet(("a[000]", None)) == []
    # Who waited for one more had given up when it came.
    assert unmet(("a[000]", 2), ("a[001]", None)) == [Unmet("ready", 2, 2, ())]
