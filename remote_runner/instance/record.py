"""An instance's record: its steps and outcome, and the file in its outputs (`remote-runner.json`)."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_runner.machine.files import write_atomically
from remote_runner.secrets import Secrets

_log = logging.getLogger(__name__)
RECORD_FILE = "remote-runner.json"
STEPS = ("choose", "build", "push", "forward", "run", "fetch", "clean")


@dataclass
class Step:
    """One step: when it began (this machine's clock, as seconds since the epoch), how long it took, what came of it."""

    name: str
    started_at: float
    duration_s: float = 0.0
    detail: str = ""
    error: str = ""


@dataclass
class Record:
    """An instance's record; every field goes into the file under its own name (docs/outputs.md).

    index: its number in its group, as Testground counts; number: the one that the sync service gave it for its place.
    clock: how far its host's is ahead of this machine's (`offset_s`), and how sure that is (`uncertainty_s`).
    """

    instance_id: str
    plan: str = ""
    case: str = ""
    run: str = ""
    group: str = ""
    index: int | None = None
    number: int = 0
    host: str = ""
    system: str = ""
    address: str = ""
    artifact: str = ""
    derivation: str = ""
    far_directory: str = ""
    exit_status: int | None = None
    outcome: str = ""
    error: str = ""
    outputs_files: int = 0
    outputs_bytes: int = 0
    left_out: list[str] = field(default_factory=list)
    long_lines: int = 0
    stopped_processes: int = 0
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    clock: dict[str, float] | None = None
    doubts: list[str] = field(default_factory=list)
    started_at: float = 0.0
    duration_s: float = 0.0
    steps: list[Step] = field(default_factory=list)

    def write(self, outputs_dir: Path, secrets: Secrets, umask: int | None = None) -> None:
        """Write the file, whole or not at all, without the secrets."""
        write_atomically(outputs_dir / RECORD_FILE, self.to_text(secrets).encode(), mode=0o644, umask=umask)

    def to_text(self, secrets: Secrets) -> str:
        """JSON with a line for each value and each step (json's own `indent` is not written in C: 1 ms more)."""
        values = secrets.hide_in({**vars(self), "steps": [vars(step) for step in self.steps]})
        steps = ",\n".join(f"    {json.dumps(step)}" for step in values.pop("steps"))
        lines = [f'  "{name}": {json.dumps(value)}' for name, value in values.items()]
        return "{\n" + ",\n".join([*lines, f'  "steps": [\n{steps}\n  ]']) + "\n}\n"

    def step(self, name: str) -> Step | None:
        """The step of that name, or `None` where the instance did not get there."""
        return next((step for step in self.steps if step.name == name), None)


def read_record(outputs_dir: Path) -> Record | None:
    """The record in an instance's outputs, or `None` where there is none, or none that can be read."""
    try:
        values: dict[str, Any] = json.loads((outputs_dir / RECORD_FILE).read_text(encoding="utf-8"))
        values["steps"] = [Step(**step) for step in values["steps"]]
        return Record(**values)
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


class StepClock:
    """Times the steps into a record and tells each one's end in a sentence."""

    def __init__(self, record: Record, tell: Callable[[str], None]) -> None:
        self._record = record
        self._tell = tell
        # In this order: where the process has to wait in between, moments come out early, and none after the run's end.
        record.started_at = round(time.time(), 6)
        self._start_s = time.monotonic()

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self._start_s

    @contextmanager
    def step(self, name: str) -> Iterator[Step]:
        """Time the body as one step; `detail` is reported at its end, an error is recorded and raised again."""
        step = self.begin(name)
        try:
            yield step
        except BaseException as error:
            step.error = str(error) or type(error).__name__
            raise
        finally:
            self.end(step)

    def begin(self, name: str, *, at_s: float | None = None) -> Step:
        """Start a step now, or at a point of the monotonic clock."""
        step = Step(name, round(self._at(at_s), 6))
        self._record.steps.append(step)
        return step

    def end(self, step: Step, *, at_s: float | None = None) -> None:
        """End it now, or at a point of the monotonic clock, and tell."""
        step.duration_s = round(max(0.0, self._at(at_s) - step.started_at), 6)
        _log.debug(
            "instance %s: step %s on %s took %.3f s%s",
            *(self._record.instance_id, step.name, self._record.host or "-", step.duration_s),
            ": it failed" if step.error else "",
        )
        if not step.error:
            self._tell(f"{step.name}: {step.detail or 'done'} ({step.duration_s:.3f} s)")

    def _at(self, monotonic_s: float | None) -> float:
        """A moment by the clock that all times of the record are of: this machine's, as it was at the start."""
        elapsed_s = self.elapsed_s if monotonic_s is None else monotonic_s - self._start_s
        return self._record.started_at + elapsed_s
