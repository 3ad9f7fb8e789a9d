"""The page's views of a run as JSON: tables of columns, small enough for a thousand instances."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote_runner.records.barriers import unmet_barriers
from remote_runner.report.metrics import SINGLE_VALUES
from remote_runner.report.noise import box, median, quantile
from remote_runner.report.usage import HOST, INSTANCE, Measure, told
from remote_runner.report.values import Host, Instance, MetricKey, Run, Series
from remote_runner.sizes import listed

Table = dict[str, Any]
# A page has so many of each, whatever the run: it opens within 3 s.
MOST_SERIES = 120
MOST_TIME_BINS = 60
MOST_LINES = 12
MOST_DOTS = 300
_EXTREME_DOTS = 15
_ECDF_POINTS = 41
MOST_BARRIERS = 200
_MOST_MISSING = 10


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Rows under their columns. Texts stand once in `words`, and their cells hold the place there."""
    places: dict[str, int] = {}
    texts: list[str] = []
    told: list[Sequence[object]] = []
    for name, cells in zip(columns, zip(*rows, strict=True), strict=False):  # where there are no rows, no columns come
        kinds = set(map(type, cells))
        if str in kinds:
            texts.append(name)
            told.append([places.setdefault(str(cell), len(places)) for cell in cells])
        else:
            told.append(list(map(_short, cells)) if float in kinds else cells)
    return {
        "columns": list(columns),
        "texts": texts,
        "words": list(places),
        "rows": list(map(list, zip(*told, strict=True))),
    }


def _short(value: object) -> object:
    """Six digits tell everything that a picture can show."""
    if isinstance(value, float):
        value = float(f"{value:.6g}")
        return int(value) if value.is_integer() else value
    return value


def run_view(run: Run) -> dict[str, Any]:
    """All views of a run."""
    ordered = sorted(range(len(run.instances)), key=_place(run))
    instances = [run.instances[number] for number in ordered]
    return {
        "id": run.id,
        "plan": run.plan,
        "case": run.case,
        "directory": str(run.directory),
        "started_at": run.started_at,
        "duration_s": _short(run.duration_s),
        "outcome": run.outcome,
        "cancelled": run.cancelled,
        "doubts": run.doubts,
        "lacking": run.lacking,
        "provenance": run.provenance,
        "instances": table(
            ("name", "group", "host", "system", "outcome", "reason", "start", "end"),
            (
                (one.name, one.group, one.host, one.system, one.outcome, one.reason, one.start_s, one.end_s)
                for one in instances
            ),
        ),
        "steps": table(
            ("i", "name", "start", "end", "detail", "failed"),
            (
                (number, step.name, step.start_s, step.end_s, step.detail, int(step.failed))
                for number, one in enumerate(instances)
                for step in one.steps
            ),
        ),
        "stages": table(
            ("i", "name", "start", "end", "failed"),
            (
                (number, stage.name, stage.start_s, stage.end_s, int(stage.failed))
                for number, one in enumerate(instances)
                for stage in one.stages
            ),
        ),
        "outcomes": _outcomes(instances),
        "durations": _durations(instances),
        **_barriers(run, {one.name: number for number, one in enumerate(instances)}),
        "metrics": _explored(_metrics(instances), run.duration_s),
        "usage": _explored(_usage(instances), run.duration_s),
        "hosts": _explored(_host_usage(run), run.duration_s),
        "truth": [_truth(host) for host in run.hosts],
        "links": table(
            ("source", "target", "address", "median_s", "p90_s", "bytes_per_s", "problem"),
            (
                (one.source, one.target, one.address, one.median_s, one.p90_s, one.bytes_per_s, one.problem)
                for one in run.links
            ),
        ),
    }


def _truth(host: Host) -> dict[str, Any]:
    """What was measured of a host; of a counter how much it grew during the run."""
    truth = {key: value for key, value in host.truth.items() if key not in ("host", "run")}
    before, after = truth.get("before"), truth.get("after")
    if isinstance(before, dict) and isinstance(after, dict):
        counters = [key for key, measure in HOST.items() if measure.counts and _are_numbers(before, after, key)]
        truth["during"] = {key: after[key] - before[key] for key in counters if after[key] >= before[key]}
        for when, state in (("before", before), ("after", after)):
            truth[when] = {key: value for key, value in state.items() if key not in (*counters, "at")}
    return {"name": host.name, "system": host.system, **truth}


def _are_numbers(before: Mapping[str, Any], after: Mapping[str, Any], key: str) -> bool:
    return isinstance(before.get(key), int | float) and isinstance(after.get(key), int | float)


def _place(run: Run) -> Callable[[int], tuple[int, str, int]]:
    """By host, in the order of the record, then by name."""
    hosts = {name: place for place, name in enumerate(dict.fromkeys(one.host for one in run.instances))}

    def place(number: int) -> tuple[int, str, int]:
        one = run.instances[number]
        return hosts[one.host], one.group, one.index

    return place


def _outcomes(instances: Sequence[Instance]) -> Table:
    counted: dict[tuple[str, str, str], int] = {}
    for one in instances:
        key = one.host, one.group, one.outcome
        counted[key] = counted.get(key, 0) + 1
    return table(("host", "group", "outcome", "count"), ((*key, count) for key, count in counted.items()))


def _durations(instances: Sequence[Instance]) -> Table:
    """How long each step took: in all, and by host where there are few."""
    found: dict[tuple[str, str], list[float]] = {}
    for one in instances:
        for step in one.steps:
            found.setdefault((step.name, one.host), []).append(step.end_s - step.start_s)
    return table(("step", "label", *_BOX), ((step, host, *_box(values)) for (step, host), values in found.items()))


_BOX = ("n", "least", "q1", "median", "q3", "most", "low", "high")


def _box(values: Sequence[float]) -> tuple[object, ...]:
    found = box(values)
    return (
        found.count, found.least, found.low_quartile, found.median, found.high_quartile, found.most,
        found.median_low, found.median_high,
    )  # fmt: skip


def _barriers(run: Run, numbers: Mapping[str, int]) -> dict[str, Table]:
    """Which client reached each state when, which waited for the last one, and who did not come."""
    arrivals: dict[str, list[tuple[float, str]]] = {}
    for signal in run.signals:
        arrivals.setdefault(signal.state, []).append((signal.at_s, signal.client))
    waits: dict[tuple[str, int], list[float]] = {}
    for wait in run.waits:
        end_s = run.duration_s if wait.end_s is None else wait.end_s
        waits.setdefault((wait.state, wait.target), []).append(max(0.0, end_s - wait.start_s))
    groups = {one.name: one.group for one in run.instances}
    unmet = {(one.state, one.target): one.missing for one in unmet_barriers(run.signals, run.waits, groups)}
    waited_at = {state for state, _ in waits}
    rows: list[tuple[object, ...]] = []
    last_of: dict[str, str] = {}
    for state, target in [*waits, *((state, len(came)) for state, came in arrivals.items() if state not in waited_at)]:
        came = sorted(arrivals.get(state, []))[: max(target, 1)]
        waited = waits.get((state, target), [])
        if len(rows) < MOST_BARRIERS:
            first, last = (came[0], came[-1]) if came else ((None, ""), (None, ""))
            missing = unmet.get((state, target))
            if missing is None:
                last_of[state] = last[1]
            rows.append(
                (
                    state, target, len(came), int(missing is None), listed(missing or (), _MOST_MISSING), *first, *last,
                    len(waited), sum(waited), max(waited, default=0.0),
                )
            )  # fmt: skip
    return {
        "barriers": table(
            (
                "state", "target", "came", "met", "missing", "first_s", "first", "last_s", "last", "waiters",
                "waited_s", "longest_s",
            ),
            rows,
        ),
        "waits": table(
            ("i", "client", "state", "target", "start", "end", "last"),
            (
                (
                    numbers.get(wait.client, -1), wait.client, wait.state, wait.target, wait.start_s,
                    run.duration_s if wait.end_s is None else wait.end_s, last_of.get(wait.state, ""),
                )
                for wait in run.waits
            ),
        ),
        "signals": table(
            ("i", "client", "state", "seq", "at"),
            ((numbers.get(one.client, -1), one.client, one.state, one.seq, one.at_s) for one in run.signals),
        ),
    }  # fmt: skip


# Distributions and courses over time, in the same way for metrics, processes and hosts.


@dataclass(frozen=True)
class _Explored:
    """One thing that was measured: what it is, and for each that has it (name, group, host) its series."""

    source: str
    words: str
    kind: str
    measure: str
    unit: str
    each: Sequence[tuple[str, str, str, Series]]

    @property
    def by_itself(self) -> bool:
        return self.kind in SINGLE_VALUES

    def values_of(self, series: Series) -> Sequence[float]:
        """The values that make its distribution."""
        return series.values if self.by_itself else series.values[-1:]


def value_of(key: MetricKey, series: Series) -> float:
    """An instance's one number: the median of values that count by themselves, else the last summary."""
    return median(series.values) if key.type in SINGLE_VALUES else series.values[-1]


def unit_of(key: MetricKey) -> str:
    """The unit that a metric's type tells."""
    if key.type == "timer":
        return {"count": "", "meanrate": "/s"}.get(key.measure, "s")
    return "/s" if (key.type, key.measure) in (("meter", "mean"), ("ewma", "rate")) else ""


def _metrics(instances: Sequence[Instance]) -> list[_Explored]:
    keys = dict.fromkeys(key for one in instances for key in one.metrics)
    return [
        _Explored(
            key.file, key.name, key.type, key.measure, unit_of(key),
            [(one.name, one.group, one.host, one.metrics[key]) for one in instances if key in one.metrics],
        )
        for key in keys
    ]  # fmt: skip


def _usage(instances: Sequence[Instance]) -> list[_Explored]:
    each = [(one.name, one.group, one.host, told(one.usage, INSTANCE)) for one in instances]
    return _sampled(each, INSTANCE)


def _host_usage(run: Run) -> list[_Explored]:
    return _sampled([(host.name, host.name, host.name, told(host.usage, HOST)) for host in run.hosts], HOST)


def _sampled(
    each: Sequence[tuple[str, str, str, Mapping[str, Series]]], measures: Mapping[str, Measure]
) -> list[_Explored]:
    units = {measure.words: measure.unit for measure in measures.values()}
    found = []
    for words in dict.fromkeys(words for *_, usage in each for words in usage):
        having = [
            (name, group, host, usage[words])
            for name, group, host, usage in each
            if words in usage and usage[words].values
        ]
        found.append(_Explored("samples", words, "gauge", "value", units.get(words, ""), having))
    return [one for one in found if one.each]


def _explored(explored: list[_Explored], duration_s: float) -> dict[str, Any]:
    shown = explored[:MOST_SERIES]
    edges = _edges(duration_s)
    boxes, curves, dots, courses = [], [], [], []
    for number, one in enumerate(shown):
        for by, place in (("group", 1), ("host", 2)):
            labelled = _labelled(one, place)
            boxes += [(number, by, label, *_box(_all_values(one, those))) for label, those in labelled.items()]
            if by == "group":
                curves += [
                    (number, label, at / (_ECDF_POINTS - 1), value)
                    for label, those in labelled.items()
                    for at, value in enumerate(_curve(_all_values(one, those)))
                ]
            for label, those in _most(labelled).items():
                courses += [(number, by, label, *point) for point in _course(those, edges)]
        dots += [(number, *dot) for dot in _dots(one)]
    return {
        "series": [[one.source, one.words, one.kind, one.measure, one.unit] for one in shown],
        "left_out": len(explored) - len(shown),
        "boxes": table(("m", "by", "label", *_BOX), boxes),
        "curves": table(("m", "label", "fraction", "value"), curves),
        "dots": table(("m", "name", "group", "host", "value"), dots),
        "extremes": [number for number, one in enumerate(shown) if len(one.each) > MOST_DOTS],
        "courses": table(("m", "by", "label", "t", "low", "median", "high", "n"), courses),
    }


def _labelled(one: _Explored, place: int) -> dict[str, list[Series]]:
    found: dict[str, list[Series]] = {}
    for those in one.each:
        label = those[place]
        found.setdefault(str(label), []).append(those[3])
    return found


def _all_values(one: _Explored, those: Sequence[Series]) -> list[float]:
    return [value for series in those for value in one.values_of(series)]


def _curve(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [quantile(ordered, at / (_ECDF_POINTS - 1)) for at in range(_ECDF_POINTS)]


def _most(labelled: Mapping[str, list[Series]]) -> dict[str, list[Series]]:
    """Those with the greatest medians, where there are more than a picture can tell apart."""
    if len(labelled) <= MOST_LINES:
        return dict(labelled)
    middle = {label: median([median(series.values) for series in those]) for label, those in labelled.items()}
    kept = sorted(middle, key=lambda label: -middle[label])[:MOST_LINES]
    return {label: labelled[label] for label in kept}


def _dots(one: _Explored) -> list[tuple[str, str, str, float]]:
    """Each one's own number; of many the least and the greatest."""
    dots = [
        (name, group, host, median(series.values) if one.by_itself else series.values[-1])
        for name, group, host, series in one.each
    ]
    if len(dots) <= MOST_DOTS:
        return dots
    dots.sort(key=lambda dot: dot[3])
    return dots[:_EXTREME_DOTS] + dots[-_EXTREME_DOTS:]


def _edges(duration_s: float) -> list[float]:
    """Spans of time of at least a tenth of a second, together the run."""
    count = max(1, min(MOST_TIME_BINS, int(duration_s * 10)))
    return [duration_s * at / count for at in range(count + 1)]


def _course(those: Sequence[Series], edges: Sequence[float]) -> list[tuple[float, float, float, float, int]]:
    """For each span of time with values: its middle, their tenth, half and nine tenths, how many."""
    found: list[list[float]] = [[] for _ in edges[1:]]
    last, each = len(found) - 1, len(found) / (edges[-1] or 1.0)
    for series in those:
        for at_s, value in zip(series.times_s, series.values, strict=True):
            found[0 if at_s < 0 else min(int(at_s * each), last)].append(value)
    points = []
    for start_s, end_s, values in zip(edges, edges[1:], found, strict=False):
        if values:
            values.sort()
            low, middle, high = (quantile(values, fraction) for fraction in (0.1, 0.5, 0.9))
            points.append(((start_s + end_s) / 2, low, middle, high, len(values)))
    return points
