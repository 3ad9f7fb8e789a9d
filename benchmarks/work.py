"""What a row is: work, its bounds, and the contestants that do it; pure values, and the order in which they run."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.ground import Ground, Way
    from benchmarks.stage import Stage

OURS = "remote-runner"

Trial = Mapping[str, float]
"""One measurement: `wall_s`, `failed`, `cpu_here_s`, …; what could not be measured is not there."""


@dataclass(frozen=True)
class Bound:
    """At most `plus` + `times` the `of_measure` of the contestant `of` + once the wall time of each in `also`.

    A name may be that of a contestant of another row (`row/contestant`). Times are judged by the median, all else by
    the greatest. `words` says it for the table.
    """

    words: str
    measure: str = "wall_s"
    plus: float = 0.0
    times: float = 0.0
    of: str = ""
    of_measure: str = "wall_s"
    also: Sequence[str] = ()

    @property
    def reads(self) -> set[str]:
        """The contestants whose results it needs, beside ours."""
        return {*filter(None, [self.of]), *self.also}


@dataclass(frozen=True)
class Contestant:
    """Somebody who does the work of a row.

    `go` does it and is measured (most of all by `Stage.measure`); `ready` comes before each, unmeasured. `lacks` says
    what it does not do that remote-runner does. What either raises is the contestant's reason for having no result.
    """

    name: str
    go: Callable[[Stage], Trial]
    ready: Callable[[Stage], None] = lambda stage: None
    lacks: str = ""


@dataclass(frozen=True)
class Work:
    """One row. `setting` makes hosts and files ready and gives the ways to the hosts, in the order of use.

    `repeats`: how often at most, where it is heavy. `limit_s`: what takes longer is killed, and counts as failed;
    `others_limit_s` the same for contestants that no bound is about.
    """

    name: str
    title: str
    setting: Callable[[Ground], AbstractContextManager[Sequence[Way]]]
    contestants: Sequence[Contestant]
    bounds: Sequence[Bound] = ()
    repeats: int | None = None
    limit_s: float = 180.0
    others_limit_s: float = 30.0

    @property
    def essential(self) -> set[str]:
        """Contestants that are repeated in full, since bounds are about them."""
        return {self.contestants[0].name}.union(*(bound.reads for bound in self.bounds))


@dataclass
class Result:
    """What a contestant's measurements gave; `reason` says why there are none, or no more."""

    name: str
    lacks: str = ""
    trials: list[Trial] = field(default_factory=list)
    reason: str = ""

    def values(self, measure: str) -> list[float]:
        """All values of a measure."""
        return [trial[measure] for trial in self.trials if measure in trial]

    def judged(self, measure: str) -> float | None:
        """What counts: the median of a time, the greatest of anything else; None where it was not measured."""
        values = self.values(measure)
        if not values:
            return None
        return statistics.median(values) if measure.endswith("_s") else max(values)


@dataclass(frozen=True)
class Verdict:
    """A bound with its value, what was measured against it, and whether it is met (None: could not be judged)."""

    words: str
    measure: str
    limit: float | None
    value: float | None
    met: bool | None


def judge(bound: Bound, row: str, results: Mapping[str, Mapping[str, Result]]) -> Verdict:
    """Judge our result in a row by a bound; `results` are by row and contestant."""

    def value(name: str, measure: str) -> float | None:
        where, _, who = name.rpartition("/")
        found = results.get(where or row, {}).get(who)
        return found.judged(measure) if found else None

    parts = [(bound.times, value(bound.of, bound.of_measure))] if bound.of else []
    parts += [(1.0, value(name, "wall_s")) for name in bound.also]
    known = [times * part for times, part in parts if part is not None]
    limit = bound.plus + sum(known) if len(known) == len(parts) else None
    ours = results[row][OURS]
    mine = ours.judged(bound.measure)
    met = None if limit is None or (mine is None and not ours.reason) else not ours.reason and (mine or 0.0) <= limit
    return Verdict(bound.words, bound.measure, limit, mine, met)
