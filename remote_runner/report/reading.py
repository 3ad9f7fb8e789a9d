"""Reading a run's directory (docs/outputs.md) into values. What is missing or malformed is left out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from remote_runner.errors import ControllerError
from remote_runner.instance.record import RECORD_FILE
from remote_runner.machine.files import safe_name
from remote_runner.outputs import SAMPLES_FILE, STREAM_FILES
from remote_runner.records.barriers import Signal, Wait, arrivals_and_waits
from remote_runner.records.run import RUN_FILE
from remote_runner.records.sync_log import SYNC_FILE
from remote_runner.report.metrics import FILES, lines_of, parsed, read_metrics, unread_words
from remote_runner.report.values import Host, Instance, Link, Run, Series, Span
from remote_runner.truth.links import LEFT_OUT, LINKS_FILE
from remote_runner.truth.observation import HOSTS_DIRECTORY
from testground.events import StageEndEvent, StageStartEvent, parse_line

# Of a run: what is beyond is thinned out evenly. Reading takes 4 µs a line.
MOST_METRIC_LINES = 400_000
_LONGEST_REASON = 600
_MOST_UNREAD = 10


def size_bytes(outputs: Path) -> int:
    """How much of an instance's outputs is read, line by line."""
    total = 0
    for path in (_events_file(outputs), *(outputs / f"{name}.out" for name in FILES), outputs / SAMPLES_FILE):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _events_file(outputs: Path) -> Path:
    """Where an instance's events are: the SDKs repeat them in a file, without one they are on stdout alone."""
    file = outputs / "run.out"
    return file if file.exists() else outputs / STREAM_FILES[0]


def read_run(directory: Path) -> Run:
    """What is in a run's directory. Raises `ControllerError` where no run left anything there."""
    unread: list[str] = []
    record = _object(directory / RUN_FILE, unread)
    instances = _list(record.get("instances")) or list(_instance_records(directory, unread))
    if not instances:
        why = "; ".join(unread[:_MOST_UNREAD]) or f"neither {RUN_FILE} nor {RECORD_FILE} of an instance"
        raise ControllerError(
            f"{directory}: no run is recorded there: {why}",
            next_step="name the directory of a run, <outputs>/<plan>/<run>, or its id",
        )
    first = instances[0]
    starts = [start for start in (_number(one.get("started_at")) for one in [record, *instances]) if start]
    reader = _Reader(directory, min(starts, default=0.0), len(instances), unread)
    hosts = tuple(reader.hosts(record, instances))
    read = tuple(reader.instance(one) for one in instances)
    signals, waits = reader.sync(read)
    end_s = max((one.end_s for one in read), default=0.0)
    return Run(
        id=_text(record.get("run")) or _text(first.get("run")) or directory.name,
        plan=_text(record.get("plan")) or _text(first.get("plan")),
        case=_text(record.get("case")) or _text(first.get("case")),
        directory=directory,
        started_at=reader.start_at,
        duration_s=max(_number(record.get("duration_s")) or 0.0, end_s),
        outcome=_text(record.get("outcome")) or ("ok" if all(one.outcome == "ok" for one in read) else "failed"),
        cancelled=_text(record.get("cancelled")),
        doubts=tuple(filter(None, map(_text, _sequence(record.get("doubts"))))),
        groups=tuple(_list(record.get("groups"))),
        provenance={
            key: record[key]
            for key in ("task", "inputs", "provenance", "artifacts", "groups", "hosts")
            if key in record
        },
        instances=read,
        hosts=hosts,
        signals=signals,
        waits=waits,
        links=tuple(reader.links()),
        lacking=tuple(reader.lacking(bool(record), read, hosts, bool(signals or waits))),
    )


class _Reader:
    def __init__(self, directory: Path, start_at: float, instances: int, unread: list[str]) -> None:
        self._directory = directory
        self.start_at = start_at
        self._lines_each = max(100, MOST_METRIC_LINES // max(1, instances))
        self._offsets_s: dict[str, float] = {}
        self._thinned = 0
        self._unread = unread
        self._links = _list(_json(directory / LINKS_FILE, unread))

    def hosts(self, record: Mapping[str, Any], instances: list[dict[str, Any]]) -> Iterator[Host]:
        """The hosts that instances ran on, in order of the record."""
        listed = {_text(one.get("name")): _text(one.get("system")) for one in _list(record.get("hosts"))}
        listed |= {_text(one.get("host")): _text(one.get("system")) for one in instances}
        for name, system in listed.items():
            if not name:
                continue
            truth = _object(self._directory / HOSTS_DIRECTORY / f"{safe_name(name)}.json", self._unread)
            offset = _number(_mapping(truth.get("clock")).get("offset_s"))
            self._offsets_s[name] = offset or 0.0
            samples = self._samples(self._directory / HOSTS_DIRECTORY / f"{safe_name(name)}.samples.jsonl")
            yield Host(name, system, truth, samples)

    def instance(self, one: Mapping[str, Any]) -> Instance:
        group, index = _text(one.get("group")), int(_number(one.get("index")) or 0)
        outputs = self._directory / (_text(one.get("outputs")) or f"{group}/{index}")
        whole = _object(outputs / RECORD_FILE, self._unread)
        host = _text(one.get("host")) or _text(whole.get("host"))
        details = {_text(step.get("name")): step for step in _list(whole.get("steps"))}
        steps = tuple(self._step(step, details) for step in _list(one.get("steps")) or list(details.values()))
        began = _number(one.get("started_at")) or _number(whole.get("started_at"))
        start_s = steps[0].start_s if began is None and steps else (began or self.start_at) - self.start_at
        duration_s = _number(one.get("duration_s")) or _number(whole.get("duration_s")) or 0.0
        end_s = max([start_s + duration_s, *(step.end_s for step in steps)])
        clock_at = self.start_at + self._offsets_s.get(host, 0.0)
        metrics, thinned = read_metrics(outputs, clock_at, self._lines_each, self._unread)
        self._thinned += thinned
        return Instance(
            group=group,
            index=index,
            host=host or "-",
            system=_text(one.get("system")) or _text(whole.get("system")),
            outcome=_text(one.get("outcome")) or _text(whole.get("outcome")) or "unknown",
            reason=(_text(one.get("reason")) or _text(whole.get("error")))[:_LONGEST_REASON],
            start_s=start_s,
            end_s=end_s,
            steps=steps,
            stages=tuple(_stages(lines_of(_events_file(outputs), self._unread), clock_at, end_s)),
            metrics=metrics,
            usage=self._samples(outputs / SAMPLES_FILE),
        )

    def _step(self, step: Mapping[str, Any], details: Mapping[str, Mapping[str, Any]]) -> Span:
        name = _text(step.get("name"))
        start_s = (_number(step.get("started_at")) or self.start_at) - self.start_at
        told = details.get(name, {})
        error = _text(told.get("error"))
        failed = bool(error) or step.get("ok") is False
        end_s = start_s + (_number(step.get("duration_s")) or 0.0)
        return Span(name, start_s, end_s, (error or _text(told.get("detail")))[:_LONGEST_REASON], failed)

    def _samples(self, path: Path) -> dict[str, Series]:
        """Each number of the samples over time; a key with an object of numbers becomes one for each."""
        times: dict[str, list[float]] = {}
        values: dict[str, list[float]] = {}
        for sample in _lines(path, self._unread):
            at = _number(sample.get("at"))
            if at is None:
                continue
            for key, value in _numbers(sample):
                if key != "at":
                    times.setdefault(key, []).append(at - self.start_at)
                    values.setdefault(key, []).append(value)
        return {key: Series(tuple(times[key]), tuple(values[key])) for key in values}

    def sync(self, instances: Sequence[Instance]) -> tuple[tuple[Signal, ...], tuple[Wait, ...]]:
        """What the embedded sync service saw."""
        hosts = ((one.name, one.host) for one in instances)
        return arrivals_and_waits(_lines(self._directory / SYNC_FILE, self._unread), hosts, self.start_at)

    def links(self) -> Iterator[Link]:
        """The ways between hosts that were measured, and those that led nowhere."""
        for one in self._links:
            trips, problem = _mapping(one.get("round_trips")), _text(one.get("problem"))
            if not problem.startswith(LEFT_OUT):
                yield Link(
                    source=_text(one.get("from")),
                    target=_text(one.get("to")),
                    address=_text(one.get("address")),
                    median_s=_number(trips.get("p50_s")),
                    p90_s=_number(trips.get("p90_s")),
                    bytes_per_s=_number(one.get("bytes_per_s")),
                    problem=problem,
                )

    def lacking(
        self, recorded: bool, instances: tuple[Instance, ...], hosts: tuple[Host, ...], synced: bool
    ) -> Iterator[str]:
        """A sentence for each thing that the files do not tell."""
        if not recorded:
            yield f"There is no {RUN_FILE}, or it cannot be read: doubts, parameters and provenance are not known."
        unread = list(dict.fromkeys(self._unread))
        yield from unread[:_MOST_UNREAD]
        if len(unread) > _MOST_UNREAD:
            yield f"{len(unread) - _MOST_UNREAD} more files cannot be read."
        if self._thinned:
            yield f"{self._thinned} metric lines were left out, evenly: a run's page reads {MOST_METRIC_LINES}."
        problems = Counter(_text(one.get("problem")) for one in self._links)
        for problem, count in problems.items():
            if problem.startswith(LEFT_OUT):
                ways = "1 way between hosts was" if count == 1 else f"{count} ways between hosts were"
                yield f"{ways} {problem}."


def _stages(lines: Iterable[bytes], clock_at: float, end_s: float) -> Iterator[Span]:
    """The application's stages; one that never ended lasts until the instance's end and has failed."""
    open_since: dict[str, float] = {}
    for line in lines:
        if b'"stage_' not in line or (found := parse_line(line)) is None:
            continue
        at_s = found.ts_ns / 1e9 - clock_at
        match found.event:
            case StageStartEvent(name):
                open_since[name] = at_s
            case StageEndEvent(name) if name in open_since:
                yield Span(name, open_since.pop(name), at_s)
    for name, start_s in open_since.items():
        yield Span(name, start_s, max(start_s, end_s), "did not end", failed=True)


def _instance_records(directory: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    """What each instance left of itself, where nothing is there of the run; by group and number."""
    paths = [path for path in directory.glob(f"*/*/{RECORD_FILE}") if path.parent.name.isdecimal()]
    for path in sorted(paths, key=lambda path: (path.parent.parent.name, int(path.parent.name))):
        yield {**_object(path, unread), "group": path.parent.parent.name, "index": int(path.parent.name)}


def _lines(path: Path, unread: list[str]) -> Iterator[dict[str, Any]]:
    return (value for value in parsed(list(lines_of(path, unread))) if isinstance(value, dict))


def _json(path: Path, unread: list[str]) -> object:
    try:
        return json.loads(path.read_bytes(), parse_constant=lambda _: None)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        unread.append(unread_words(path, error))
    except (ValueError, RecursionError):
        unread.append(f"{path} is no JSON, or cut off; what it tells is not here.")
    return None


def _object(path: Path, unread: list[str]) -> dict[str, Any]:
    return _mapping(_json(path, unread))


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key} {inner}", number) for inner, number in _numbers(value))
        elif (number := _number(value)) is not None:
            yield key, number


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _list(value: object) -> list[dict[str, Any]]:
    return [one for one in _sequence(value) if isinstance(one, dict)]
