"""Asking a program of this machine for hosts."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller, with_home
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError, SourceError

_MOST_BYTES = 4 << 20


@dataclass(frozen=True)
class Asking:
    """For whom hosts are looked for: the plan, the variables of the run, and how long each source may take.

    report: hears how an allocation stands in its queue.
    """

    plan_dir: Path
    controller: Controller
    environ: Mapping[str, str]
    source_s: float
    cancellation: Cancellation | None = None
    allocate_s: float = 3600.0
    report: Callable[[str], None] = lambda words: None

    def find(self, program: str) -> str | None:
        """Where a program is on PATH, if it is."""
        return shutil.which(program, path=with_home(self.environ)["PATH"])

    def ask(self, source: object, argv: Sequence[str]) -> str:
        """What it prints, having ended with 0. Raises `SourceError`, `WorkCancelledError`."""
        from remote_runner.machine.process import how_ended, last_lines, run_logged

        with TemporaryDirectory(prefix="asking-", dir=self.controller.cache) as name:
            words, printed = Path(name) / "words", Path(name) / "printed"

            def failed(reason: str, next_step: str) -> SourceError:
                return SourceError(str(source), reason, said=last_lines(words, 10), next_step=next_step)

            try:
                status = run_logged(
                    argv,
                    cwd=self.plan_dir,
                    environ=with_home(self.environ),
                    log=words,
                    stdout=printed,
                    deadline=Deadline.after(self.source_s),
                    cancellation=self.cancellation,
                )
            except LocalProgramError as error:
                where = "it is started in the plan's directory, with the PATH of the run"
                raise failed(error.args[0], error.next_step or where) from error
            except DeadlineError as error:
                raise failed(
                    f"`{' '.join(argv)[:200]}` did not end within {self.source_s:g} s",
                    "see what keeps it, or raise defaults.timeouts.source_s in inventory.yaml",
                ) from error
            if status:
                problem = f"`{' '.join(argv)[:200]}` ended with {how_ended(status)}"
                raise failed(problem, "run it by hand in the plan's directory")
            if printed.stat().st_size > _MOST_BYTES:
                raise failed(f"it prints more than {_MOST_BYTES >> 20} MiB", "let it print names, and keys of ours")
            return printed.read_text(encoding="utf-8", errors="replace")
