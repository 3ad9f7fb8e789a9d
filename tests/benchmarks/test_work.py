"""Bounds and how they are judged."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from benchmarks.rows import WORKS
from benchmarks.work import OURS, Bound, Contestant, Result, Trial, Work, judge


def result(name: str, *seconds: float, reason: str = "", **more: float) -> Result:
    """A contestant's result with these wall times."""
    return Result(name, trials=[{"wall_s": each, **more} for each in seconds], reason=reason)


def results(*contestants: Result) -> dict[str, dict[str, Result]]:
    """Results of a row called `row`."""
    return {"row": {one.name: one for one in contestants}}


BOUND = Bound("1.5 × `ssh` + 0.1 s + an import", plus=0.1, times=1.5, of="ssh", also=["import"])


def test_a_limit_is_made_of_the_medians_of_others() -> None:
    found = results(result(OURS, 9, 3.2, 1), result("ssh", 1, 2, 100), result("import", 0.2))
    verdict = judge(BOUND, "row", found)
    assert verdict.limit == pytest.approx(0.1 + 3.0 + 0.2)
    assert verdict.value == 3.2
    assert verdict.met
    found["row"][OURS] = result(OURS, 3.31)
    assert judge(BOUND, "row", found).met is False


def test_a_bound_may_be_about_another_row() -> None:
    bound = Bound("2 × the time on five", times=2.0, of=f"five/{OURS}")
    found = results(result(OURS, 4.1))
    assert judge(bound, "row", found).met is None, "the other row was not measured"
    found["five"] = {OURS: result(OURS, 2.0)}
    assert judge(bound, "row", found).met is False


def test_a_bound_may_be_about_another_measure() -> None:
    bound = Bound("twice the memory", "memory_bytes", times=2.0, of="ssh", of_measure="memory_bytes")
    found = results(result(OURS, 1.0, memory_bytes=5.0), result("ssh", 1.0, memory_bytes=2.0))
    assert (judge(bound, "row", found).limit, judge(bound, "row", found).met) == (4.0, False)


def test_what_is_not_a_time_is_judged_by_its_greatest() -> None:
    found = results(Result(OURS, trials=[{"failed": 0}, {"failed": 1}, {"failed": 0}]))
    verdict = judge(Bound("none fails", "failed"), "row", found)
    assert (verdict.value, verdict.met) == (1, False)


def test_without_the_reference_or_the_measure_nothing_is_judged() -> None:
    missing = results(result(OURS, 1.0), Result("ssh", reason="not installed"), result("import", 0.2))
    assert judge(BOUND, "row", missing).met is None
    no_cgroups = results(result(OURS, 1.0))
    assert judge(Bound("64 MB", "memory_here_bytes", plus=64e6), "row", no_cgroups).met is None


@pytest.mark.parametrize("trials", [(), (0.5,)])
def test_whoever_fails_meets_no_bound(trials: tuple[float, ...]) -> None:
    found = results(result(OURS, *trials, reason="it broke"), result("ssh", 1.0), result("import", 0.2))
    assert judge(BOUND, "row", found).met is False


def test_those_that_bounds_are_about_are_repeated_in_full() -> None:
    def go(stage: object) -> Trial:
        return {}

    contestants = [Contestant(name, go) for name in (OURS, "ssh", "import", "clush")]
    work = Work("row", "a row", lambda ground: nullcontext([]), contestants, [BOUND])
    assert work.essential == {OURS, "ssh", "import"}


def test_every_row_is_ours_first_and_its_bounds_name_contestants_that_are_there() -> None:
    names = {work.name: {one.name for one in work.contestants} for work in WORKS}
    assert len(names) == len(WORKS) == len({work.title for work in WORKS})
    for work in WORKS:
        assert work.contestants[0].name == OURS
        assert len(names[work.name]) == len(work.contestants)
        for reference in {name for bound in work.bounds for name in bound.reads}:
            row, _, contestant = reference.rpartition("/")
            assert contestant in names[row or work.name], f"{work.name}: a bound about {reference}"
        assert all(one.lacks for one in work.contestants if not one.name.startswith((OURS, "`python", "`fab")))
