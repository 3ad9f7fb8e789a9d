from __future__ import annotations

from pathlib import Path

import pytest

from remote_runner.progress import Began, Building, Built, Ended, Moved
from tasks.view.model import Counts, Model, View

MIB = 1 << 20


def model_of(count: int, group: str = "single") -> Model:
    model = Model()
    model.expect("case, run x", [(f"{group}[{number:03d}]", group) for number in range(count)], 0.0)
    return model


def place(model: Model, count: int, hosts: int, step: str = "run", at_s: float = 1.0) -> None:
    for number in range(count):
        model.take(Began(f"single[{number:03d}]", step, f"h{number % hosts}"), at_s)


def test_who_has_no_host_yet_waits_in_a_row_of_its_own() -> None:
    view = model_of(3).view(2.0, 10)
    assert [(row.name, row.step, row.counts, row.elapsed_s) for row in view.rows] == [("", "", Counts(3), 0.0)]
    assert (view.title, view.elapsed_s, view.counts) == ("case, run x", 2.0, Counts(waiting=3))


def test_counts_and_the_step_at_which_most_are() -> None:
    model = model_of(6)
    place(model, 6, 2)
    model.take(Began("single[001]", "fetch", "h1"), 2.0)
    model.take(Ended("single[000]", "ok"), 3.0)
    model.take(Ended("single[002]", "failed"), 3.0)
    model.take(Ended("single[004]", "incomplete"), 4.0)
    first, second = model.view(9.0, 10).rows
    assert (first.name, first.step, first.counts) == ("h0", "", Counts(ok=1, failed=2))
    assert first.elapsed_s == 3.0, "its time stands still when all of it has ended"
    assert (second.name, second.step, second.counts) == ("h1", "run", Counts(running=3))
    assert second.elapsed_s == 8.0
    assert model.view(9.0, 10).counts == Counts(running=3, ok=1, failed=2)


def test_of_two_steps_with_as_many_the_earlier_is_told() -> None:
    model = model_of(2)
    model.take(Began("single[000]", "run", "h0"), 1.0)
    model.take(Began("single[001]", "push", "h0"), 1.0)
    assert model.view(2.0, 10).rows[0].step == "push"


def test_groups_where_there_are_more_hosts_than_lines() -> None:
    model = model_of(40)
    place(model, 40, 8)
    assert [row.name for row in model.view(2.0, 8).rows] == [f"h{number}" for number in range(8)]
    view = model.view(2.0, 7)
    assert (view.by, [(row.name, row.counts) for row in view.rows]) == ("group", [("single", Counts(running=40))])


def test_of_hosts_alone_those_that_go_on_are_shown_where_there_is_no_room_for_all() -> None:
    model = Model()
    model.expect("", [(name, name) for name in ("a", "b", "c", "d", "e")], 0.0)
    for name in ("a", "b", "c", "d"):
        model.take(Began(name, "connect", name), 1.0)
    model.take(Ended("a", "ok"), 2.0)
    model.take(Ended("b", "failed"), 2.0)
    view = model.view(3.0, 3)
    assert [row.name for row in view.rows] == ["b", "c", "d"]
    assert (view.hidden, view.single, view.counts) == (2, True, Counts(1, 2, 1, 1))


def test_a_push_has_a_rate_of_the_last_seconds_and_a_time_left() -> None:
    model = model_of(1)
    place(model, 1, 1, "push", 0.0)
    for second in range(31):  # 1 MiB a second, and from the 20th on 3
        done = second * MIB if second <= 20 else (20 + 3 * (second - 20)) * MIB
        model.take(Moved("h0", "push", "", done, 80 * MIB), float(second))
    transfer = model.view(30.0, 10).rows[0].transfer
    assert transfer is not None
    assert (transfer.what, transfer.done_bytes, transfer.total_bytes) == ("push", 50 * MIB, 80 * MIB)
    assert transfer.bytes_per_s == 3 * MIB
    assert transfer.left_s == pytest.approx(10.0)
    model.take(Moved("h0", "push", is_over=True), 31.0)
    assert model.view(31.0, 10).rows[0].transfer is None


@pytest.mark.parametrize(("last_bytes", "left_s"), [(10 * MIB, 3.0), (None, None)])
def test_what_instances_of_a_host_fetch_is_added_up(last_bytes: int | None, left_s: float | None) -> None:
    model = model_of(2)
    place(model, 2, 1, "fetch", 0.0)
    for number, total_bytes in enumerate((10 * MIB, last_bytes)):
        model.take(Moved("h0", "fetch", f"single[{number:03d}]", 0, total_bytes), 0.0)
        model.take(Moved("h0", "fetch", f"single[{number:03d}]", 4 * MIB, total_bytes), 2.0)
    transfer = model.view(2.0, 10).rows[0].transfer
    assert transfer is not None
    assert (transfer.done_bytes, transfer.bytes_per_s, transfer.left_s) == (8 * MIB, 4 * MIB, left_s)


def test_builds_come_and_go() -> None:
    model = Model()
    assert not model.has_rows
    model.take(Building("node", "x86_64-linux", Path("log")), 1.0)
    assert model.has_rows
    assert model.view(3.5, 10).builds == (("node for x86_64-linux", 2),)
    model.take(Built("node", "x86_64-linux"), 4.0)
    assert model.view(5.0, 10).builds == ()


def test_what_stayed_on_hosts_is_that_of_who_says_so_and_of_who_came_to_no_end() -> None:
    model = model_of(5)
    place(model, 4, 2)
    model.take(Began("single[003]", "push", "h1"), 1.0)  # had not begun there
    model.take(Ended("single[000]", "ok"), 2.0)
    model.take(Ended("single[001]", "failed", "/far/runs/x-single-1"), 2.0)
    assert model.left_there() == {"h1": ["single[001]"], "h0": ["single[002]"]}


def test_events_of_nobody_who_is_expected_change_nothing() -> None:
    model = model_of(1)
    before = model.view(1.0, 10)
    model.take(Began("h0", "connect", "h0"), 1.0)
    model.take(Ended("other[000]", "ok"), 1.0)
    after: View = model.view(1.0, 10)
    assert after == before
