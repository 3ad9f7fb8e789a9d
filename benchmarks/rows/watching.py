"""What it costs to see a run: live view, samples and page together, and the samples alone."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.ground import LIVE_S, PAUSE_S, ROOT
from benchmarks.ours import COMMAND, PYTHON, Plan
from benchmarks.rows.settings import five, one
from benchmarks.stage import Stage
from benchmarks.stand import Job
from benchmarks.work import OURS, Bound, Contestant, Trial, Work

HUNDRED, FIFTY = 100, 50
_PROGRAM = [str(Path(sys.executable).with_name("remote-runner"))]
_TERMINAL = [sys.executable, "-S", "-E", str(ROOT / "benchmarks" / "terminal.py")]
_BLIND = [sys.executable, str(ROOT / "benchmarks" / "blind.py")]
_UNSEEN = "with `-q`, without samples and page"
_WINDOW_S = 40.0
_NONE_FAILS = Bound("none fails", "failed")


def _job(stage: Stage, count: int, case: str, argv: Sequence[str]) -> Job:
    """`local.single` of so many instances, by this program."""
    plan: Plan = stage.kept["plan"]
    job = plan.fab("local.single", f"--testcase={case}", f"--instances={count}")
    return replace(job, argv=[*argv, *job.argv[1:]], environ={**job.environ, "TERM": "xterm-256color"})


def _ready(stage: Stage, count: int) -> None:
    if "plan" not in stage.kept:
        stage.kept["plan"] = Plan.make(stage, PYTHON, app=COMMAND, slots=count // len(stage.ways))
    stage.kept["plan"].cold()


def _hundred(name: str, case: str, program: Sequence[str], *words: str, pages: int, lacks: str = "") -> Contestant:
    def go(stage: Stage) -> Trial:
        job = _job(stage, HUNDRED, case, [*_TERMINAL, *program])
        trial, _ = stage.measure([replace(job, argv=[*job.argv, *words])], starts=HUNDRED)
        outputs = job.cwd / "outputs"
        found = len(list(outputs.glob("*/*/*/report.html")))
        shutil.rmtree(outputs)
        if found != pages:
            raise RuntimeError(f"{found} pages were written; expected {pages}")
        return trial

    return Contestant(name, go, lambda stage: _ready(stage, HUNDRED), lacks)


def _seen(name: str, title: str, case: str) -> Work:
    return Work(
        name,
        title,
        five,
        (
            _hundred(OURS, case, _PROGRAM, pages=1),
            _hundred(_UNSEEN, case, _BLIND, "--quiet", pages=0, lacks="shows nothing, looks at nothing"),
        ),
        (Bound("1.05 × that without", times=1.05, of=_UNSEEN), _NONE_FAILS),
    )


def _sampled(stage: Stage) -> Trial:
    """What a second of 50 applications that sleep costs, here and there, as shares of a core."""
    shares: dict[str, float] = {}

    def during() -> None:
        until_s = time.monotonic() + LIVE_S - _WINDOW_S - 5
        while len(stage.started()) < FIFTY and time.monotonic() < until_s:
            time.sleep(0.2)  # each look counts files; without a pause that would be measured as well
        time.sleep(3.0)  # looks at the host ahead of the first sample
        groups = {"here": stage.stand.cgroup, "there": stage.ground.there}
        began_s, before = time.monotonic(), {side: group.cpu_s() for side, group in groups.items() if group}
        time.sleep(_WINDOW_S)  # what is measured
        took_s = time.monotonic() - began_s
        shares.update(
            {f"{side}_share": (group.cpu_s() - before[side]) / took_s for side, group in groups.items() if group}
        )

    trial, _ = stage.measure([_job(stage, FIFTY, "live", _PROGRAM)], starts=FIFTY, during=during)
    return {**trial, **shares}


WORKS = (
    _seen("seen", "100 instances at once on 5 hosts, seen in a terminal, with samples and page", "nothing"),
    _seen("seen-longer", f"the same, each living {PAUSE_S} s", "pause"),
    Work(
        "samples",
        f"50 instances on one host, each living {LIVE_S} s: what samples cost each second",
        one,
        (Contestant(OURS, _sampled, lambda stage: _ready(stage, FIFTY)),),
        (
            Bound("0.5 % of a core there", "there_share", plus=0.005),
            Bound("0.5 % of a core here", "here_share", plus=0.005),
            _NONE_FAILS,
        ),
        repeats=1,
    ),
)
