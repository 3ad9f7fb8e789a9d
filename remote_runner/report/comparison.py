"""Comparing runs: what differs between them, and whether it is more than noise. Pure.

Runs with the same inputs are repeats of one variant. Where a variant was repeated, noise is what differs between its
runs, and a run counts as one value; else it is what differs between the instances of a run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any

from remote_runner.report.noise import CONFIDENCE, Difference, Estimate, difference, median, median_of, of_repeats
from remote_runner.report.usage import INSTANCE, told
from remote_runner.report.values import Instance, Run
from remote_runner.report.views import table, unit_of, value_of
from remote_runner.typed import as_typed

MOST_COMPARED = 400


@dataclass(frozen=True)
class Variant:
    """Runs with the same inputs; `letter` is its name on the page."""

    letter: str
    runs: tuple[Run, ...]
    inputs: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """One measure of one group: each variant's median, and each later one's difference from the first."""

    what: str
    group: str
    unit: str
    estimates: tuple[Estimate | None, ...]
    values: tuple[int, ...]
    differences: tuple[Difference | None, ...]


def variants(runs: Sequence[Run]) -> list[Variant]:
    """The runs by their inputs, in the order in which they were given."""
    found: dict[str, tuple[Mapping[str, str], list[Run]]] = {}
    for run in runs:
        inputs = inputs_of(run)
        found.setdefault(json.dumps(inputs), (inputs, []))[1].append(run)
    letters = [*ascii_uppercase, *(f"{first}{second}" for first in ascii_uppercase for second in ascii_uppercase)]
    return [
        Variant(letter, tuple(those), inputs) for letter, (inputs, those) in zip(letters, found.values(), strict=False)
    ]


def inputs_of(run: Run) -> dict[str, str]:
    """What makes a run the repeat of another: case, groups, parameters, revision, artifacts, hosts."""
    plan = _mapping(_mapping(run.provenance.get("provenance")).get("plan"))
    inputs = {"plan": run.plan, "case": run.case}
    for group in run.groups:
        name = str(group.get("id"))
        inputs[f"{name}: instances"] = str(group.get("instances"))
        inputs |= {f"{name}: {key}": str(value) for key, value in sorted(_mapping(group.get("params")).items())}
    if not run.groups:
        inputs["instances"] = str(len(run.instances))
    inputs["revision"] = str(plan.get("revision") or "") + ("" if plan.get("clean") in (True, None) else " and changes")
    artifacts = run.provenance.get("artifacts")
    inputs["artifacts"] = ", ".join(
        sorted(str(one.get("hash")) for one in artifacts if isinstance(one, dict))
        if isinstance(artifacts, list)
        else []
    )
    inputs["hosts"] = ", ".join(host.name for host in run.hosts)
    return inputs


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def compare(compared: Sequence[Variant]) -> list[Compared]:
    """Every measure that the first variant shares with another; intervals hold for all differences together."""
    repeated = any(len(variant.runs) > 1 for variant in compared)
    by_variant = [[_measures(run) for run in variant.runs] for variant in compared]
    keys = dict.fromkeys(key for runs in by_variant for run in runs for key in run)
    shared = [
        key
        for key in keys
        if any(key in run for run in by_variant[0]) and any(key in run for runs in by_variant[1:] for run in runs)
    ][:MOST_COMPARED]
    together = max(1, len(shared) * (len(compared) - 1))
    strict = 1 - (1 - CONFIDENCE) / together
    found = []
    for key in shared:
        values = [[run[key] for run in runs if key in run] for runs in by_variant]
        shown = _estimates(values, repeated, CONFIDENCE)
        sure = _estimates(values, repeated, strict)
        first = sure[0]
        differences = tuple(None if first is None or other is None else difference(first, other) for other in sure[1:])
        what, group, unit = key
        counts = tuple(len(runs) if repeated else sum(map(len, runs)) for runs in values)
        found.append(Compared(what, group, unit, tuple(shown), counts, differences))
    return found


def _estimates(values: Sequence[Sequence[Sequence[float]]], repeated: bool, confidence: float) -> list[Estimate | None]:
    """For each variant, from the values of each of its runs."""
    if not repeated:
        return [median_of(sorted(runs[0]), confidence) if runs else None for runs in values]
    having = [[median(run) for run in runs] for runs in values if runs]
    estimates = iter(of_repeats(having, confidence))
    return [next(estimates) if runs else None for runs in values]


def _measures(run: Run) -> dict[tuple[str, str, str], list[float]]:
    """Each instance's number, by measure, group and unit: durations, metrics, and what its processes used."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for one in run.instances:
        for what, unit, value in _numbers(one):
            found.setdefault((what, one.group, unit), []).append(value)
    return found


def _numbers(one: Instance) -> Iterator[tuple[str, str, float]]:
    for key, series in one.metrics.items():
        measure = "" if key.measure in ("value", "count") and key.type in ("point", "gauge", "counter") else key.measure
        yield f"{key.name} {measure}".strip(), unit_of(key), value_of(key, series)
    for step in one.steps:
        yield f"step {step.name}", "s", step.end_s - step.start_s
    for stage in one.stages:
        yield f"stage {stage.name}", "s", stage.end_s - stage.start_s
    for words, series in told(one.usage, INSTANCE).items():
        if series.values:
            yield (
                f"{words}, median",
                next((m.unit for m in INSTANCE.values() if m.words == words), ""),
                median(series.values),
            )


def comparison_view(runs: Sequence[Run]) -> dict[str, Any]:
    """The comparison of at least two runs as JSON values for the page."""
    those = variants(runs)
    compared = compare(those)
    repeated = any(len(variant.runs) > 1 for variant in those)
    differing = [
        name
        for name in dict.fromkeys(name for variant in those for name in variant.inputs)
        if len({variant.inputs.get(name, "") for variant in those}) > 1
    ]
    return {
        "how": _how(those, repeated, len(compared)),
        "repeated": repeated,
        "variants": [
            {
                "letter": variant.letter,
                "runs": [run.id for run in variant.runs],
                "differs": {name: variant.inputs.get(name, "") for name in differing},
                "ok": sum(one.outcome == "ok" for run in variant.runs for one in run.instances),
                "instances": sum(len(run.instances) for run in variant.runs),
                "durations_s": [round(run.duration_s, 3) for run in variant.runs],
            }
            for variant in those
        ],
        "estimates": table(
            ("what", "group", "unit", "variant", "n", "centre", "low", "high"),
            (
                (one.what, one.group, one.unit, variant.letter, count, estimate.centre, estimate.low, estimate.high)
                for one in compared
                for variant, estimate, count in zip(those, one.estimates, one.values, strict=True)
                if estimate is not None
            ),
        ),
        "differences": table(
            ("what", "group", "unit", "variant", "size", "low", "high", "of", "verdict"),
            (
                (one.what, one.group, one.unit, variant.letter, delta.size, delta.low, delta.high,
                 one.estimates[0].centre, delta.verdict.value)
                for one in compared
                for variant, delta in zip(those[1:], one.differences, strict=True)
                if delta is not None and one.estimates[0] is not None
            ),
        ),
    }  # fmt: skip


def _how(those: Sequence[Variant], repeated: bool, measures: int) -> str:
    """How noise was judged, for the reader."""
    if len(those) < 2:
        return (
            "All of these runs have the same inputs, so they repeat each other: there is nothing to compare, and the "
            "table shows what they have in common and how far it varies."
        )
    together = f"The intervals of differences hold together, for all {measures} measures, with 95 % confidence."
    if repeated:
        return (
            "Noise is what differs between runs that repeat each other; each run counts once, by the median of its "
            f"instances (Student's t, one spread for all variants). {together}"
        )
    return (
        "There is one run of each, so noise is what differs between the instances of a run (median, by order "
        "statistics); what differs between any two runs, whatever their inputs, is not in it: repeat them "
        f"({as_typed('fab rerun RUN')}) for that. {together}"
    )
