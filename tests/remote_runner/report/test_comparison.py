"""Several runs beside each other: which are repeats, and which differences are more than noise."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_runner.report.comparison import Compared, compare, comparison_view, variants
from remote_runner.report.noise import Verdict
from remote_runner.report.reading import read_run
from remote_runner.report.values import Run
from tests.remote_runner.report.made_run import make_run


def made(directory: Path, name: str, *, factor: float, seed: int, instances: int = 30) -> Run:
    return read_run(make_run(directory / name, instances, 3, factor=factor, seed=seed))


def verdicts(found: list[Compared]) -> dict[tuple[str, str], Verdict]:
    return {(one.what, one.group): one.differences[0].verdict for one in found if one.differences[0] is not None}


def test_runs_with_the_same_inputs_are_one_variant(tmp_path: Path) -> None:
    runs = [made(tmp_path, str(seed), factor=1.0 + seed % 2, seed=seed) for seed in range(4)]
    found = variants(runs)
    assert [[run.id for run in one.runs] for one in found] == [["0", "2"], ["1", "3"]]
    assert [one.letter for one in found] == ["A", "B"]
    view = comparison_view(runs)
    assert view["repeated"]
    assert [one["differs"] for one in view["variants"]] == [{"clients: factor": "1.0"}, {"clients: factor": "2.0"}]


def test_within_one_run_each_a_clear_difference_is_found(tmp_path: Path) -> None:
    found = verdicts(compare(variants([made(tmp_path, "a", factor=1, seed=1), made(tmp_path, "b", factor=2, seed=2)])))
    assert found["rtt_ms", "clients"] is Verdict.MORE
    assert found["step run", "clients"] is Verdict.MORE
    assert found["latency p50", "clients"] is Verdict.MORE
    assert found["sent", "clients"] is Verdict.WITHIN
    assert found["rtt_ms", "server"] is Verdict.UNKNOWN  # one instance


def test_runs_that_differ_by_chance_alone_do_not_differ(tmp_path: Path) -> None:
    first, second = made(tmp_path, "a", factor=1, seed=1), made(tmp_path, "b", factor=1.0001, seed=2)
    assert Verdict.MORE not in verdicts(compare(variants([first, second]))).values()


@pytest.mark.slow
def test_with_repeats_a_run_counts_once(tmp_path: Path) -> None:
    runs = [made(tmp_path, f"{factor}-{seed}", factor=factor, seed=seed) for factor in (1, 2) for seed in range(4)]
    found = compare(variants(runs))
    rtt = next(one for one in found if (one.what, one.group) == ("rtt_ms", "clients"))
    assert rtt.values == (4, 4)
    assert rtt.differences[0] is not None
    assert rtt.differences[0].verdict is Verdict.MORE
    same = compare(variants([made(tmp_path, f"s{seed}", factor=1 + seed % 2 / 1e4, seed=seed) for seed in range(6)]))
    assert Verdict.MORE not in verdicts(same).values()
