"""Where one contestant does the work of one row: its hosts, its stand, and what it keeps from one time to the next."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.ground import Ground, Way
from benchmarks.stand import Costs, Ended, Job, Stand, stand


@dataclass
class Stage:
    """A contestant's stage in a row; made by `stage`. `kept` is the contestant's own."""

    ground: Ground
    ways: Sequence[Way]
    stand: Stand
    directory: Path
    stack: ExitStack
    limit_s: float
    kept: dict[str, Any] = field(default_factory=dict)
    _numbers: int = 0

    @property
    def log(self) -> Path:
        """Where jobs say what they say."""
        return self.directory / "log"

    def fresh(self, name: str) -> Path:
        """A path below the stage's directory where nothing is."""
        self._numbers += 1
        return self.directory / f"{name}-{self._numbers}"

    def job(self, argv: Sequence[str], environ: Mapping[str, str] | None = None, *, drained: bool = False) -> Job:
        """A program with the ground's environment and more; what it prints goes to the log, or to a pipe's reader."""
        return Job(argv, {**self.ground.environ, **(environ or {})}, self.directory, None if drained else self.log)

    def measure(
        self,
        jobs: Sequence[Job],
        *,
        starts: int = 0,
        during: Callable[[], None] = lambda: None,
    ) -> tuple[dict[str, float], Ended]:
        """Run jobs to their end: what it took, here and there.

        `starts`: how often the application has to start; then jobs may fail: `failed` counts those or the starts that
        are missing, and `started_s` tells when the last one was. Without it every job has to end with 0. Raises
        RuntimeError for that, and where all fail.
        """
        hosts = list({way.host.name: way for way in self.ways}.values())
        for way in hosts:
            shutil.rmtree(way.near / "ran")
            (way.near / "ran").mkdir()
        self.log.unlink(missing_ok=True)
        logs = [(way.host.log, way.host.log.stat().st_size) for way in hosts]
        groups = {"here": self.stand.cgroup, "there": self.ground.there}
        with Costs(groups, {"here": self.stand.own_bytes}) as costs:
            self.stand.start(jobs, limit_s=self.limit_s)
            try:
                during()
            finally:
                ended = self.stand.wait()
        failed = sum(status != 0 for status in ended.statuses)
        if starts:
            failed = max(failed, starts - sum(len(list((way.near / "ran").iterdir())) for way in hosts))
        if ended.wall_s >= self.limit_s:
            raise RuntimeError(f"it took longer than {self.limit_s:g} s")
        if failed >= (starts or 1):
            raise RuntimeError(self.stand.why(jobs, ended) if any(ended.statuses) else "the application did not start")
        trial = {"wall_s": ended.wall_s, "failed": float(failed)}
        trial.update({f"cpu_{side}_s": seconds for side, seconds in costs.cpu_s.items()})
        trial.update({f"memory_{side}_bytes": float(most) for side, most in costs.most_bytes.items()})
        trial.setdefault("cpu_here_s", ended.cpu_s)
        said = b"".join(_from(log, offset) for log, offset in logs)
        if starts:
            trial["started_s"] = self.started()[-1] - ended.clock_s
        trial["connections"] = float(said.count(b"Connection from "))
        trial["sessions"] = float(said.count(b"Starting session: "))
        return trial, ended

    def started(self) -> list[float]:
        """When the application started, by the wall clock, for each start of the last measurement."""
        return sorted(file.stat().st_mtime for way in self.ways for file in (way.near / "ran").iterdir())


def _from(file: Path, offset: int) -> bytes:
    with file.open("rb") as opened:
        opened.seek(offset)
        return opened.read()


@contextmanager
def stage(ground: Ground, ways: Sequence[Way], name: str, limit_s: float) -> Iterator[Stage]:
    """A stage with a directory of its own; in the end all that was started on it is ended.

    `limit_s`: what takes longer is killed, and counts as failed.
    """
    directory = ground.directory / "stages" / name
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        made = stack.enter_context(stand("rr-bench-here", directory / "log"))
        yield Stage(ground, ways, made, directory, stack, limit_s)
