"""`fab run --host H -- COMMAND`: any command on a host, with an instance's supervision, forwards and outputs."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import FrameType
from typing import Protocol

import invoke

from remote_runner.descriptors import write_all
from remote_runner.errors import RemoteRunnerError
from remote_runner.instance.environment import run_environment
from remote_runner.instance.forwarding import open_forwards
from remote_runner.inventory.inventory import HostEntry
from remote_runner.job import Job
from remote_runner.runs import KeptRun, note_run
from remote_runner.supervisor import RunResult, start_run, supervise
from tasks.parallel import attempt_each, raise_failed
from tasks.plan import Plan
from tasks.say import say, show_json
from tasks.task import Failed, task
from testground.local_exec import new_run_id

_HELD_BYTES = 1 << 16


@task(
    takes_command=True,
    help={
        "host": "a host's name, a glob or @label; as often as needed (fab -H does the same)",
        "keep": "leave the run's directory on the host as well, for `fab fetch --run ID`",
        "outputs": "directory for the outputs, below it ID/HOST (default: outputs/run here)",
        "json": "print the outcome as JSON on stdout; what the command prints goes to stderr then",
        "dry_run": "print what would run where, as JSON, and run nothing",
    },
)
def run(
    c: invoke.Context,
    host: list[str] | None = None,
    keep: bool = False,
    outputs: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the command behind -- on hosts; what it leaves in $TEST_OUTPUTS_PATH comes home."""
    plan = Plan.here()
    command = tuple(c.config["typed_command"])
    if not command:
        raise Failed("run: give a command behind --, for example: fab run --host localhost -- uname -a")
    entries = plan.select(host)
    run_id = new_run_id()
    if dry_run:
        show_json(
            [{"host": entry.name, **_shown(planned_job(plan, entry, run_id, command, keep))} for entry in entries]
        )
        return
    base = (Path(outputs) if outputs else plan.directory / "outputs" / "run") / run_id
    say(f"run {run_id} on {', '.join(entry.name for entry in entries)}")
    note_run(plan.controller, KeptRun(run_id, tuple(entry.name for entry in entries)))
    stop = threading.Event()

    def run_there(entry: HostEntry) -> RunResult:
        job = planned_job(plan, entry, run_id, command, keep)
        sinks = [_sink(entry, 2 if json else 1, len(entries)), _sink(entry, 2, len(entries))]
        result = _run_there(plan, entry, job, sinks, base / entry.name, stop)
        say(_told(entry, result, base / entry.name, run_id))
        return result

    with _stopped_by_signals(stop):
        results = attempt_each(entries, run_there)
    if json:
        show_json(
            [_outcome(entry, result, run_id, base / entry.name) for entry, result in zip(entries, results, strict=True)]
        )
    raise_failed(entries, results)
    ended = [result for result in results if isinstance(result, RunResult)]
    worst = max(result.exit_status for result in ended)
    if worst or any(result.outputs_error is not None or result.reason != "ended" for result in ended):
        raise Failed(None, worst or 1)


def planned_job(plan: Plan, entry: HostEntry, run_id: str, command: tuple[str, ...], keep: bool) -> Job:
    """What a host is told to run; the forwards' variables are added when they are open."""
    given = {"REMOTE_RUNNER_HOST": entry.name, **dict(entry.env)}
    return Job(
        instance_id=run_id,
        argv=command,
        environment=run_environment(plan.environ, given, entry.pass_through),
        directory=entry.directory,
        keep=keep,
        grace_s=entry.grace_s,
        tolerate_s=entry.tolerate_s,
        run_s=entry.timeouts.run_s,
        fetch_s=entry.timeouts.fetch_s,
        outputs_limit_bytes=entry.outputs_limit_bytes,
        record={"run": run_id, "command": command[0]},
    )


def _shown(job: Job) -> dict[str, object]:
    return {**asdict(job), "argv": [str(word) for word in job.argv]}


def _run_there(
    plan: Plan, entry: HostEntry, job: Job, sinks: Sequence[_Sink], outputs: Path, stop: threading.Event
) -> RunResult:
    with plan.host(entry) as host:
        forwarded = open_forwards(host, entry, plan.environ)
        # What the inventory sets wins over what a forward would tell.
        told = {**job.environment, **forwarded.variables, **dict(entry.env)}
        job = replace(job, environment=told, far_ports=forwarded.far_ports)
        try:
            with start_run(host, job.seat) as started:
                result = supervise(
                    started,
                    job,
                    stdout=sinks[0].feed,
                    stderr=sinks[1].feed,
                    outputs_dir=outputs,
                    stop=stop,
                    host=host,
                )
            if result.sink_error is not None:
                raise result.sink_error
            return result
        finally:
            for sink in sinks:
                sink.close()


@contextmanager
def _stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops what runs there and fetches its outputs; a second one ends this process."""

    def end(number: int, frame: FrameType | None) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)
        say("stopping the command; its outputs come home (again: end at once, the host then stops it by itself)")

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(entry: HostEntry, result: RunResult, outputs: Path, run_id: str) -> str:
    words = f"{entry.name}: {_REASONS[result.reason]} exit status {result.exit_status}"
    if result.leftover_processes:
        words += f", {result.leftover_processes} processes outlived it and were stopped"
    if result.outputs_error is not None:
        return f"{words}\n{result.outputs_error}"
    if result.outputs.files:
        files = "1 output file" if result.outputs.files == 1 else f"{result.outputs.files} output files"
        words += f", {files} in {os.path.relpath(outputs)}"
    if result.kept:
        words += f", kept there in {result.far_directory} (fab fetch --run {run_id})"
    return words


_REASONS = {
    "ended": "ended with",
    "stop": "stopped from here,",
    "processes": "killed, no processes were left there to watch it with,",
    "timeout": "stopped, it ran longer than timeouts.run_s,",
}


def _outcome(entry: HostEntry, result: RunResult | RemoteRunnerError, run_id: str, outputs: Path) -> dict[str, object]:
    if isinstance(result, RemoteRunnerError):
        return {"run": run_id, "host": entry.name, "error": str(result)}
    return {
        "run": run_id,
        "host": entry.name,
        "exit_status": result.exit_status,
        "reason": result.reason,
        "kept": result.kept,
        "far_directory": result.far_directory,
        "outputs": str(outputs),
        "outputs_files": result.outputs.files,
        "outputs_bytes": result.outputs.size_bytes,
        "outputs_error": None if result.outputs_error is None else str(result.outputs_error),
        "left_out": [str(left) for left in result.outputs.left_out],
        "leftover_processes": result.leftover_processes,
    }


def _sink(entry: HostEntry, fd: int, hosts: int) -> _Sink:
    return _Tagged(entry.name, fd) if hosts > 1 else _Plain(fd)


class _Sink(Protocol):
    def feed(self, data: bytes) -> None:
        """Print some bytes of one stream."""

    def close(self) -> None:
        """Print what was held back."""


class _Plain:
    """The command's bytes as they are: with one host nothing is put between them."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def feed(self, data: bytes) -> None:
        write_all(self._fd, data)

    def close(self) -> None:
        """Nothing is held."""


class _Tagged:
    """Whole lines with the host's name before them, so that several hosts can be told apart."""

    def __init__(self, name: str, fd: int) -> None:
        self._tag = f"{name}: ".encode()
        self._stream = sys.stdout.buffer if fd == 1 else sys.stderr.buffer
        self._held = b""

    def feed(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        if len(self._held) > _HELD_BYTES:  # a line without end is shown in pieces
            lines.append(self._held)
            self._held = b""
        if lines:
            self._stream.write(b"".join(self._tag + line + b"\n" for line in lines))
            self._stream.flush()

    def close(self) -> None:
        """The last line, if it lacks its end."""
        if self._held:
            self.feed(b"\n")
