"""Runs a row: every contestant in turn, again and again; one that fails is a result with a reason."""

from __future__ import annotations

import subprocess
import sys
import time
from collections import defaultdict
from contextlib import ExitStack

from benchmarks.ground import ROOT, Ground
from benchmarks.stage import Stage, stage
from benchmarks.work import Contestant, Result, Work

ENOUGH_S = 10.0
"""A contestant that no bound is about is not repeated once it has taken so long in a row."""
_REASON_CHARACTERS = 400


def measure(work: Work, ground: Ground, repeats: int) -> dict[str, Result]:
    """The results by contestant, in their order."""
    results = {one.name: Result(one.name, one.lacks) for one in work.contestants}
    try:
        with work.setting(ground) as ways, ExitStack() as stack:
            stages: dict[str, Stage] = {}
            spent_s: dict[str, float] = defaultdict(float)
            for _ in range(min(repeats, work.repeats or repeats)):
                for place, one in enumerate(work.contestants):
                    result = results[one.name]
                    if result.reason or (spent_s[one.name] > ENOUGH_S and one.name not in work.essential):
                        continue
                    began_s = time.monotonic()
                    try:
                        if one.name not in stages:
                            limit_s = work.limit_s if one.name in work.essential else work.others_limit_s
                            name = f"{work.name}-{place}"
                            stages[one.name] = stack.enter_context(stage(ground, ways, name, limit_s))
                        _once(one, stages[one.name], result)
                    except Exception as error:  # noqa: BLE001 (whatever it is, the others go on)
                        result.reason = _words(error, ground)
                    spent_s[one.name] += time.monotonic() - began_s
    except Exception as error:  # noqa: BLE001 (as above, for the hosts and for what is left to clean)
        print(f"{work.name}: {_words(error, ground)}", file=sys.stderr)
        for result in results.values():
            result.reason = result.reason or ("" if result.trials else _words(error, ground))
    return results


def _once(contestant: Contestant, stage: Stage, result: Result) -> None:
    contestant.ready(stage)
    result.trials.append(contestant.go(stage))


def _words(error: Exception, ground: Ground) -> str:
    said = str(error) or type(error).__name__
    if isinstance(error, subprocess.CalledProcessError) and error.stderr:
        more = error.stderr if isinstance(error.stderr, str) else error.stderr.decode(errors="replace")
        said = f"{said}: {more}"
    elif not isinstance(error, RuntimeError):
        said = f"{type(error).__name__}: {said}"
    # The README may show it: no paths of this machine.
    words = " ".join(said.replace(f"{ROOT}/", "").replace(f"{ground.directory}/", "").split())
    return words if len(words) <= _REASON_CHARACTERS else f"{words[:_REASON_CHARACTERS]}…"
