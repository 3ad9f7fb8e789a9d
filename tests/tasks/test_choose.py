"""`fab choose`."""

from __future__ import annotations

import pytest

from tests.tasks.fab import PlanDirectory


def test_choose_follows_list_slots_and_groups(plan: PlanDirectory) -> None:
    plan.inventory("hosts:\n  a: {slots: 2}\n  b:\n  c: {groups: [others]}\n")

    def chosen(*words: str) -> list[str]:
        return [one["host"] for one in plan.ok("choose", "--json", *words).data]

    assert chosen("--instances", "5") == ["a", "a", "b", "a", "a"]
    assert chosen("--group", "first=1", "--group", "others=3") == ["a", "c", "a", "b"]
    listed = '[{"name": "x", "arch": "aarch64-linux"}, {"name": "b"}]'
    assert chosen("--instances", "3", "--remote-runners", listed) == ["x", "b", "x"]
    table = plan.ok("choose", "--instances", "3", "--remote-runners", listed)
    assert [line.split()[2] for line in table.out.splitlines()] == ["host", "x", "b", "x"]
    assert "more instances than slots" in table.words


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_choose_refuses_an_odd_number(plan: PlanDirectory, given: str) -> None:
    ran = plan.fab("choose", f"--instances={given}")
    assert (ran.status, ran.out) == (1, "")
    assert "expected a whole number" in ran.words


def test_choose_refuses_more_than_any_run_has(plan: PlanDirectory) -> None:
    ran = plan.fab("choose", "--instances", "1000000")
    assert (ran.status, ran.out) == (1, "")
    assert "--instances: 1000000 instances; expected at most 100000" in ran.words
