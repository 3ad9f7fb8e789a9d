"""One application on a host, from its start to the removal of its directory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from remote_runner.connection import faults
from remote_runner.connection.job import Job
from remote_runner.connection.link import Link, Stream, StreamClosed
from remote_runner.connection.said import nonsense, part, real, whole, words
from remote_runner.connection.taking import Allowance, Source, take_outputs
from remote_runner.errors import DeadlineError, HostLostError, OutputsError, RemoteRunnerError, SupervisorLostError
from remote_runner.outputs import OutputsReport

Sink = Callable[[bytes], Awaitable[None]]

STDIN_LANE, STDOUT_LANE, STDERR_LANE = 0, 1, 2
# How long the host may take to end processes and say so, beyond TERM, grace and KILL.
_ENDING_S = 30.0


@dataclass(frozen=True)
class Exited:
    """How an application ended.

    exit_status: as sh says it, so 128 + n for signal n.
    reason: "ended", "stop" (it was asked to end from here), "timeout" (the job's `run_s` was over), "lost" (nobody
        here was heard for too long), "processes" (the host had none left to watch it with).
    leftover_processes: how many were still there when the main one had ended; they have been ended. Of `untold` others
        nobody can tell whose they are.
    cpu_s, max_rss_bytes: what it and its children used, where the host said so.
    cut_lines: how many lines were too long for whoever reads the streams; they are whole in the outputs.
    sink_error: what `stdout` or `stderr` raised; the application was stopped for it.
    """

    exit_status: int
    reason: str
    leftover_processes: int
    untold_processes: int = 0
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    cut_lines: int = 0
    sink_error: Exception | None = None

    @property
    def signal(self) -> int | None:
        """The signal that ended the application, as far as its exit status tells."""
        return self.exit_status - 128 if 128 < self.exit_status <= 192 else None


def exited_of(host: str, said: Mapping[str, Any], sink_error: Exception | None = None) -> Exited:
    """The end in a message. Raises `FarShellError` for what is none."""
    status, signal, left = whole(said.get("status"), 255), whole(said.get("signal", 0), 127), whole(said.get("left", 0))
    if status is None or signal is None or left is None:
        raise nonsense(host, said)
    used_s = [real(said.get(key)) for key in ("utime_s", "stime_s")]
    cut = said.get("cut")
    counts = [whole(count) or 0 for count in cut.values()] if isinstance(cut, dict) else []
    return Exited(
        128 + signal if signal else status,
        words(said.get("reason"), 40) or "ended",
        left,
        whole(said.get("untold")) or 0,
        None if None in used_s else sum(used for used in used_s if used is not None),
        whole(said.get("max_rss")),
        sum(counts),
        sink_error,
    )


class Run:
    """An application that a host has started. `directory` is the run's, `outputs` what of it comes home."""

    def __init__(self, host: str, job: Job, stream: Stream, base: str, allowance: Allowance) -> None:
        self._host = host
        self._job = job
        self._stream = stream
        self._allowance = allowance
        self._sink_error: Exception | None = None
        self._is_fetched = False
        self._is_closed = False
        # By names that we know; whatever the host says stands in no command that we suggest.
        self.directory = f"{base}/runs/{job.instance_id}"
        self.outputs = f"{self.directory}/outputs"
        run_s = job.run_s
        self._end = asyncio.timeout(None if run_s is None else run_s + job.grace_s + _ENDING_S)

    @classmethod
    async def start(cls, link: Link, job: Job, base: str, allowance: Allowance, *, stdin: bool = False) -> Self:
        """Ask for the application and return once it runs.

        Raises what keeps it from starting (`ArtifactMissingError`, `ProgramUnusableError`, `NoRoomError`,
        `InstanceExistsError`, …), `HostLostError`, `DeadlineError` after the job's `start_s`.
        """
        head, fields = job.request(stdin=stdin)
        run: Self | None = None
        try:
            async with asyncio.timeout(job.start_s):
                run = cls(link.name, job, await link.request(head, *fields), base, allowance)
                said = part(link.name, await run._hear(), "started")
        except TimeoutError:
            raise DeadlineError(f"{link.name}: starting the application", job.start_s) from None
        except StreamClosed as closed:
            raise faults.run_fault(link.name, job.instance_id, words(run._program), closed) from closed
