"""A run's record, `run.json` in its directory: what was run, where, and how it went (docs/outputs.md)."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

from remote_runner.errors import RunRecordError
from remote_runner.instance.record import RECORD_FILE, Record, read_record
from remote_runner.machine.files import safe_name, write_atomically
from remote_runner.secrets import MASK, Secrets

RUN_FILE = "run.json"
FORMAT = 1
RUNNING = "running"


@dataclass(frozen=True)
class RunRecord:
    """The record as it stands in its file; what is nested is JSON values.

    task: what ran it, `local.single` and the like, or `testground`. name: the run's in its composition.
    outcome: running, ok, failed, cancelled (`cancelled` says why). Times are seconds since the epoch by this machine's
    clock. doubts: why the numbers of this run may not be believed, a sentence each.
    """

    run: str
    plan: str
    case: str
    name: str
    task: str
    started_at: float
    outcome: str = RUNNING
    cancelled: str = ""
    ended_at: float | None = None
    duration_s: float | None = None
    doubts: Sequence[str] = ()
    inputs: Mapping[str, Any] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()
    hosts: Sequence[Mapping[str, Any]] = ()
    artifacts: Sequence[Mapping[str, Any]] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    instances: Sequence[Mapping[str, Any]] = ()
    format: int = FORMAT

    def write(self, directory: Path, secrets: Secrets | None) -> None:
        """Write it into the run's directory, whole or not at all, without the secrets. Raises `ControllerError`.

        Where it is not known yet what is secret (`None`), the parameters stand there without their values.
        """
        write_atomically(directory / RUN_FILE, self.to_text(secrets).encode(), mode=0o644)

    def to_text(self, secrets: Secrets | None) -> str:
        """JSON with a line for each value, and for each element of a list."""
        values = dict(vars(self))
        if secrets is None:
            values["groups"] = [{**one, "params": dict.fromkeys(one["params"], MASK)} for one in self.groups]
        else:
            values = secrets.hide_in(values)
        lines = []
        for name, value in values.items():
            if isinstance(value, list | tuple) and value:
                text = "[\n" + ",\n".join(f"    {json.dumps(one)}" for one in value) + "\n  ]"
            else:
                text = json.dumps(value)
            lines.append(f'  "{name}": {text}')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The record in a run's directory, or `None` where there is none. Raises `RunRecordError`."""
        path, run = directory / RUN_FILE, directory.name
        try:
            values = json.loads(path.read_bytes())
            found = cls(**{one.name: values[one.name] for one in fields(cls) if one.name in values})
            time.gmtime(found.started_at + 0.0)  # raises for an invalid time
            is_whole = _has_shape(values)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise RunRecordError(path, error.strerror or str(error), run=run) from error
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            is_whole = False
        if not is_whole:
            raise RunRecordError(path, "it is cut off, or no record of a run", run=run)
        if found.format != FORMAT:
            raise RunRecordError(path, f"another version of remote-runner wrote it ({found.format})", run=run)
        return found


# What readers of a record take for there.
_TEXTS = ("run", "plan", "case", "name", "task", "outcome")
_LISTS = {
    "groups": {"id", "instances", "ok", "params", "profiles"},
    "hosts": {"name", "system"},
    "artifacts": {"system", "hash", "derivation"},
    "instances": {"group", "index", "host", "outcome", "reason", "duration_s"},
}


def _has_shape(values: Mapping[str, Any]) -> bool:
    are_listed = (
        isinstance(one, dict) and keys <= one.keys() for name, keys in _LISTS.items() for one in values.get(name, ())
    )
    return (
        all(isinstance(values.get(name, ""), str) for name in _TEXTS)
        and all(isinstance(values.get(name, {}), dict) for name in ("inputs", "provenance"))
        and all(are_listed)
    )


@dataclass(frozen=True)
class Ended:
    """How an instance ended for who ran it; `outcome` and `reason` are Testground's verdict where it is known."""

    group: str
    index: int | None
    outputs: Path
    outcome: str = ""
    reason: str = ""


def completed(
    record: RunRecord, directory: Path, instances: Sequence[tuple[Ended, Record | None]], provenance: Mapping[str, Any]
) -> RunRecord:
    """The record of a run in this directory with all that its instances left there, and what made it."""
    from remote_runner.truth.observation import run_doubts

    records = [one for _, one in instances if one is not None]
    return replace(
        record,
        doubts=run_doubts(directory),
        hosts=with_facts(directory, hosts_of(records)),
        artifacts=artifacts_of(records),
        provenance=provenance,
        instances=[instance_value(directory, ended, one) for ended, one in instances],
    )


def instance_value(directory: Path, ended: Ended, record: Record | None) -> dict[str, Any]:
    """An instance as it stands in `instances`."""
    outputs = ended.outputs.relative_to(directory) if ended.outputs.is_relative_to(directory) else ended.outputs
    value: dict[str, Any] = {
        "group": ended.group,
        "index": ended.index,
        "number": None,
        "host": None,
        "system": None,
        "outcome": ended.outcome or "failed",
        "reason": ended.reason,
        "exit_status": None,
        "started_at": None,
        "duration_s": None,
        "outputs": str(outputs),
        "outputs_bytes": 0,
        "steps": [],
    }
    if record is None:
        return value
    return value | {
        "number": record.number or None,
        "host": record.host or None,
        "system": record.system or None,
        "outcome": ended.outcome or record.outcome or "failed",
        "reason": ended.reason or record.error,
        "exit_status": record.exit_status,
        "started_at": record.started_at,
        "duration_s": record.duration_s,
        "outputs_bytes": record.outputs_bytes,
        "steps": [
            {"name": step.name, "started_at": step.started_at, "duration_s": step.duration_s, "ok": not step.error}
            for step in record.steps
        ],
    }


def hosts_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """The hosts that instances were on, in the order of their names, as they stand in `hosts`."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        if record.host:
            host = found.setdefault(
                record.host,
                {"name": record.host, "system": record.system or None, "address": record.address or None}
                | {"instances": 0},
            )
            host["instances"] += 1
    return [found[name] for name in sorted(found)]


def with_facts(directory: Path, hosts: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The same with what each host said of itself, as it stands in the run's directory (`None`: it said nothing)."""
    from remote_runner.truth.observation import HOSTS_DIRECTORY

    found = []
    for host in hosts:
        facts: Any = None
        with suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
            path = directory / HOSTS_DIRECTORY / f"{safe_name(host['name'])}.json"
            facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
        found.append({**host, "facts": facts if isinstance(facts, dict) else None})
    return found


def artifacts_of(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What was run, once for each system, as it stands in `artifacts`."""
    found = {(one.system, one.artifact): one.derivation or None for one in records if one.artifact}
    return [{"system": system, "hash": hash_, "derivation": found[system, hash_]} for system, hash_ in sorted(found)]


def records_below(directory: Path) -> list[tuple[Path, Record]]:
    """The records of a run's instances, each with its directory."""
    found = []
    for place, directories, files in os.walk(directory):
        directories.sort()
        if RECORD_FILE in files:
            directories.clear()  # an application's outputs
            record = read_record(Path(place))
            if record is not None:
                found.append((Path(place), record))
    return found
