"""`fab run --host H -- COMMAND`: any command on a host, with an instance's supervision, forwards and outputs."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import invoke

from remote_runner.errors import HostError, RemoteRunnerError
from remote_runner.machine.shell_words import OPERATORS, shell_line
from remote_runner.machine.whose import started_from
from remote_runner.sizes import count
from tasks.command_line.input import Input
from tasks.command_line.task import Failed, task
from tasks.command_line.terminal import handed_to, window
from tasks.fetch import say_left_out
from tasks.parallel import attempt_each, raise_failed
from tasks.plan import Plan
from tasks.say import note, say, show_json
from tasks.view.display import DISPLAY
from tasks.view.lines import HostLines, Screen

if TYPE_CHECKING:
    from remote_runner.cancellation import Cancellation
    from remote_runner.connection.verbs.job import Job, Window
    from remote_runner.connection.verbs.run import Exited, Run
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.inventory import HostEntry
    from remote_runner.outputs import OutputsReport

_R = TypeVar("_R")


@task(
    shows=True,
    takes_command=True,
    help={
        "host": "a host's name, a glob or @label; as often as needed (fab -H does the same)",
        "tty": "give the command this terminal; for one host",
        "keep": "leave the run's directory on the host as well, for `fab fetch --run ID`",
        "outputs": "directory for the outputs, below it ID/HOST (default: outputs/run here)",
        "json": "print the outcome as JSON on stdout; what the command prints goes to stderr then",
        "dry_run": "print what would run where, as JSON, and run nothing",
    },
)
def run(
    c: invoke.Context,
    host: list[str] | None = None,
    tty: bool = False,
    keep: bool = False,
    outputs: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Run the command behind -- on hosts, with this stdin; what it leaves in $TEST_OUTPUTS_PATH comes home."""
    from remote_runner.runs import KeptRun, note_run
    from testground.local_exec import new_run_id

    plan = Plan.here()
    command = tuple(c.config["typed_command"])
    if not command:
        raise Failed("run: give a command behind --, for example: fab run --host localhost -- uname -a")
    entries = plan.select(host)
    if meant := next((word for word in command if word in OPERATORS), None):
        say(f"{meant} is passed to {command[0]} as it is: there is no shell; to have one: -- {shell_line(command)}")
    terminal = _terminal_for(entries) if tty else None
    run_id = new_run_id()
    jobs = [planned_job(plan, entry, run_id, command, terminal) for entry in entries]
    if dry_run:
        show_json([_planned(entry, job, keep) for entry, job in zip(entries, jobs, strict=True)])
        return
    base = (Path(outputs) if outputs else plan.directory / "outputs" / "run") / run_id
    note(f"run {run_id} on {', '.join(entry.name for entry in entries)}")
    note_run(plan.controller, KeptRun(run_id, tuple(entry.name for entry in entries)))
    results = plan.run(_run_all(plan, entries, jobs, base, keep=keep, json=json))
    if json:
        show_json([_outcome(entry, result, run_id) for entry, result in zip(entries, results, strict=True)])
    raise_failed(entries, results)
    ended = [result for result in results if isinstance(result, RanThere)]
    worst = max(result.exited.exit_status for result in ended)
    if worst or any(result.error is not None or result.exited.reason != "ended" for result in ended):
        raise Failed(None, worst or 1)


@dataclass(frozen=True)
class RanThere:
    """What became of the command on one host; `error` is why its outputs did not come whole."""

    exited: Exited
    directory: str
    outputs: Path
    report: OutputsReport
    error: RemoteRunnerError | None
    kept: bool


def _terminal_for(entries: Sequence[HostEntry]) -> Window:
    if len(entries) > 1:
        raise Failed("run: --tty: several hosts; a terminal is for one")
    if not os.isatty(0):
        raise Failed("run: --tty: standard input is not a terminal; leave --tty out, or type the line at one")
    return window()


def planned_job(
    plan: Plan, entry: HostEntry, run_id: str, command: tuple[str, ...], terminal: Window | None = None
) -> Job:
    """What a host is told to run; the forwards' variables are added when they are open."""
    from remote_runner.connection.verbs.job import Job
    from remote_runner.instance.environment import run_environment

    kind = {"TERM": plan.environ["TERM"]} if terminal and "TERM" in plan.environ else {}
    given = {"REMOTE_RUNNER_HOST": entry.name, **kind, **dict(entry.env)}
    return Job(
        instance_id=run_id,
        argv=command,
        environment=run_environment(plan.environ, given, entry.pass_through),
        grace_s=entry.grace_s,
        run_s=entry.timeouts.run_s,
        fetch_s=entry.timeouts.fetch_s,
        outputs_limit_bytes=entry.outputs_limit_bytes,
        terminal=terminal,
        cut_lines=False,  # nothing here has a limit for lines
        record={"run": run_id, "command": command[0], "from": started_from(plan.directory)},
    )


def _planned(entry: HostEntry, job: Job, keep: bool) -> dict[str, object]:
    said = {name: value for name, value in vars(job).items() if not name.startswith("_")}
    return {"host": entry.name, "directory": entry.directory, **said, "tolerate_s": entry.tolerate_s, "keep": keep}


async def _run_all(
    plan: Plan,
    entries: Sequence[HostEntry],
    jobs: Sequence[Job],
    base: Path,
    *,
    keep: bool,
    json: bool,
) -> list[RanThere | RemoteRunnerError]:
    from remote_runner.cancellation import Cancellation

    with Cancellation() as stop, _stopped_by_signals(stop):
        if len(entries) == 1:
            DISPLAY.end()  # the command has the terminal for itself
        screen = Screen(stop, results=json)

        given = Input(entry.name for entry in entries)
        job_of = {entry.name: job for entry, job in zip(entries, jobs, strict=True)}

        async def run_there(entry: HostEntry) -> RanThere:
            streams = screen.streams(f"{entry.name}: " if len(entries) > 1 else "")
            try:
                result = await _run_there(
                    plan, shared, entry, job_of[entry.name], given, streams, base / entry.name, stop, keep=keep
                )
            finally:
                given.forget(entry.name)
            await screen.flush()
            (say if result.error else note)(_told(entry, result, job_of[entry.name].instance_id))
            say_left_out(entry.name, result.report)
            return result

        async with plan.shared() as shared:
            results = await attempt_each(entries, run_there)
        await screen.flush()
        screen.close()
        return results


async def _run_there(
    plan: Plan,
    shared: Shared,
    entry: HostEntry,
    job: Job,
    given: Input,
    streams: tuple[HostLines, HostLines],
    outputs: Path,
    stop: Cancellation,
    *,
    keep: bool,
) -> RanThere:
    from remote_runner.instance import steps
    from remote_runner.progress import Began

    agent = await _unless_stopped(stop, entry.name, shared.agent(entry, plan.environ))
    forwarding = steps.forward(shared, entry, plan.environ, lambda words: note(f"forward: {words}"))
    with await _unless_stopped(stop, entry.name, forwarding) as forwarded:
        # What the inventory sets wins over what a forward would tell.
        job = replace(job, environment={**job.environment, **forwarded.variables, **dict(entry.env)})
        started = await steps.run(agent, job, stdin=True)
        feeding = asyncio.create_task(given.feed(entry.name, started))
        DISPLAY.tell(Began(entry.name, "run", entry.name))
        stdout, stderr = streams
        try:
            with handed_to(started, stop) if job.terminal else nullcontext():
                exited = await steps.follow(started, stdout.feed, stderr.feed, stop)
        finally:
            feeding.cancel()
            await stdout.close()
            await stderr.close()
        return await _bring_home(started, exited, outputs, entry, keep=keep)


async def _bring_home(started: Run, exited: Exited, outputs: Path, entry: HostEntry, *, keep: bool) -> RanThere:
    from remote_runner.connection.verbs.run import Left
    from remote_runner.instance import steps
    from remote_runner.outputs import OutputsReport
    from remote_runner.progress import Began, Moved

    report, error = OutputsReport(), None
    DISPLAY.tell(Began(entry.name, "fetch", entry.name))

    def taken(size_bytes: int) -> None:
        DISPLAY.tell(Moved(entry.name, "fetch", entry.name, size_bytes, exited.outputs_bytes))

    try:
        report = await steps.fetch(started, outputs, entry.outputs_limit_bytes, taken=taken)
    except RemoteRunnerError as failed:
        keep, error = True, failed
    DISPLAY.tell(Moved(entry.name, "fetch", entry.name, is_over=True))
    left = Left.UNSEEN
    try:
        left = await steps.clean(started, keep=keep)
    except RemoteRunnerError as failed:
        error = error or failed
    return RanThere(exited, started.directory, outputs, report, error, left is not Left.NOTHING)


async def _unless_stopped(stop: Cancellation, host: str, work: Coroutine[Any, Any, _R]) -> _R:
    """What comes before the command's start; a stop ends it wherever it waits. Raises `HostError` then."""
    doing = asyncio.create_task(work)
    try:
        with stop.telling(doing.cancel):
            return await doing
    except asyncio.CancelledError:
        if not stop.is_set:
            raise
        raise HostError(host, f"stopped before the command's start: {stop.reason}") from None


@contextmanager
def _stopped_by_signals(stop: Cancellation) -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM) stops what runs there and fetches its outputs; a second one ends this process."""
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def end(came: signal.Signals) -> None:
        for number in numbers:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop.cancel(f"received {came.name}")  # which gives a terminal back before this is said
        say("stopping the command; its outputs come home (again: end at once, the host then stops it by itself)")

    for number in numbers:
        loop.add_signal_handler(number, end, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _told(entry: HostEntry, result: RanThere, run_id: str) -> str:
    exited = result.exited
    words = f"{entry.name}: {_REASONS.get(exited.reason, 'stopped there,')} exit status {exited.exit_status}"
    if exited.leftover_processes:
        words += f", {exited.leftover_processes} processes outlived it and were stopped"
    if exited.untold_processes:
        words += f", {exited.untold_processes} processes without a run were found and stopped"
    if result.error is not None:
        return f"{words}\n{result.error}"
    if result.report.files:
        words += f", {count(result.report.files, 'output file')} in {os.path.relpath(result.outputs)}"
    if result.kept:
        words += f", kept there in {result.directory} (fab fetch --run {run_id})"
    return words


_REASONS = {
    "ended": "ended with",
    "stop": "stopped from here,",
    "lost": "stopped there, for nothing was heard from here for longer than tolerate_s,",
    "processes": "killed, no processes were left there to watch it with,",
    "timeout": "stopped, it ran longer than timeouts.run_s,",
}


def _outcome(entry: HostEntry, result: RanThere | RemoteRunnerError, run_id: str) -> dict[str, object]:
    if isinstance(result, RemoteRunnerError):
        return {"run": run_id, "host": entry.name, "error": str(result)}
    return {
        "run": run_id,
        "host": entry.name,
        "exit_status": result.exited.exit_status,
        "reason": result.exited.reason,
        "kept": result.kept,
        "far_directory": result.directory,
        "outputs": str(result.outputs),
        "outputs_files": result.report.files,
        "outputs_bytes": result.report.size_bytes,
        "outputs_error": None if result.error is None else str(result.error),
        "left_out": [str(left) for left in result.report.left_out],
        "leftover_processes": result.exited.leftover_processes,
    }
