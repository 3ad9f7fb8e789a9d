"""One attempt at a build: its directory, and the programs that it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_runner.cancellation import Cancellation
from remote_runner.deadline import Deadline


@dataclass(frozen=True)
class Attempt:
    """Where a build's programs run (`plan_dir`), where they leave what they say (`directory`), and their limits."""

    directory: Path
    plan_dir: Path
    environ: Mapping[str, str]
    deadline: Deadline
    cancellation: Cancellation | None = None

    @property
    def log(self) -> Path:
        """What the build itself says."""
        return self.directory / "log"

    def run(self, argv: Sequence[str], *, log: Path, environ: Mapping[str, str], stdout: Path | None = None) -> int:
        """Run a program to its end, as `process.run_logged` does; raises what that raises."""
        from remote_runner.machine.process import run_logged

        return run_logged(
            argv,
            cwd=self.plan_dir,
            environ=environ,
            log=log,
            stdout=stdout,
            deadline=self.deadline,
            cancellation=self.cancellation,
        )
