"""A contestant's stand: the processes it starts, in a cgroup where one can be made, measured from start to end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.cgroups import Cgroup, NoCgroupError

_SAMPLE_S = 0.02


@dataclass(frozen=True)
class Job:
    """A program to start. `stdout`: a file to append to; without it a reader drops what comes."""

    argv: Sequence[str]
    environ: Mapping[str, str]
    cwd: Path
    stdout: Path | None


@dataclass(frozen=True)
class Ended:
    """How jobs ended: exit statuses in their order (a signal's number negative), when they began by the wall clock."""

    statuses: Sequence[int]
    clock_s: float
    wall_s: float
    cpu_s: float


@dataclass
class Stand:
    """Starts jobs; made by `stand`. Daemons that they leave run until `clear` or the end."""

    log: Path
    starter: subprocess.Popen[str]
    cgroup: Cgroup | None
    own_bytes: int = 0

    def start(self, jobs: Sequence[Job], *, limit_s: float) -> None:
        """Start them, one right after the other; `wait` has to follow."""
        values = [
            {
                "argv": list(job.argv),
                "environ": dict(job.environ),
                "cwd": str(job.cwd),
                "stdout": str(job.stdout) if job.stdout else None,
            }
            for job in jobs
        ]
        assert self.starter.stdin is not None
        self.starter.stdin.write(json.dumps({"jobs": values, "log": str(self.log), "limit_s": limit_s}) + "\n")
        self.starter.stdin.flush()

    def wait(self) -> Ended:
        """Wait until all have ended. Raises RuntimeError where one could not be started."""
        answer = self._answer()
        if answer["said"]:
            raise RuntimeError(answer["said"])
        return Ended(answer["statuses"], answer["clock_s"], answer["wall_s"], answer["cpu_s"])

    def run(self, jobs: Sequence[Job], *, limit_s: float = 60.0) -> Ended:
        """Start them and wait. Raises RuntimeError with the last words of the log unless all end with 0."""
        self.start(jobs, limit_s=limit_s)
        ended = self.wait()
        if any(ended.statuses):
            raise RuntimeError(self.why(jobs, ended))
        return ended

    def why(self, jobs: Sequence[Job], ended: Ended) -> str:
        """What a failure says: the first job that failed, and the last words on stderr."""
        said = self.log.read_text(encoding="utf-8", errors="replace")[-1500:].strip() if self.log.exists() else ""
        job, status = next((job, status) for job, status in zip(jobs, ended.statuses, strict=True) if status)
        return f"`{' '.join(job.argv)[:100]}` ended with {status}: {said}"

    def clear(self) -> None:
        """End every daemon that jobs have left."""
        if self.cgroup is not None:
            self.cgroup.end(keep=self.starter.pid)

    def _answer(self) -> Any:
        assert self.starter.stdout is not None
        line = self.starter.stdout.readline()
        if not line:
            raise RuntimeError("the starter has ended")
        return json.loads(line)


@contextmanager
def stand(name: str, log: Path) -> Iterator[Stand]:
    """A stand with a cgroup called after it; without one where none can be made."""
    with ExitStack() as stack:
        try:
            cgroup = stack.enter_context(Cgroup.make(name))
        except NoCgroupError:
            cgroup = None
        program = Path(__file__).with_name("starter.py")
        starter = subprocess.Popen(
            [sys.executable, "-S", "-E", str(program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"]},
        )
        stack.enter_context(starter)
        if cgroup is not None:
            cgroup.add(starter.pid)
        made = Stand(log, starter, cgroup)
        made._answer()
        if cgroup is not None:
            made.own_bytes = cgroup.memory_bytes()
        yield made
        made.clear()


@dataclass
class Costs:
    """CPU seconds and most memory of cgroups while it is entered, by name; nothing of those that are None.

    Memory is that above `without_bytes`, else above what there was before.
    """

    groups: Mapping[str, Cgroup | None]
    without_bytes: Mapping[str, int]
    cpu_s: dict[str, float] = field(default_factory=dict)
    most_bytes: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> Costs:
        self._over = threading.Event()
        self._known = {name: group for name, group in self.groups.items() if group is not None}
        self._before = {name: group.cpu_s() for name, group in self._known.items()}
        self._without = {name: group.memory_bytes() for name, group in self._known.items()} | dict(self.without_bytes)
        self._look()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.cpu_s = {name: group.cpu_s() - self._before[name] for name, group in self._known.items()}

    def _watch(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._look()

    def _look(self) -> None:
        for name, group in self._known.items():
            now = group.memory_bytes() - self._without[name]
            self.most_bytes[name] = max(self.most_bytes.get(name, 0), now)
