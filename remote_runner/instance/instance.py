"""One instance, from `TEST_*` to exit status: choose, build, push, forward, run, fetch, clean.

A coroutine that takes everything as values and knows no Fabric: the broker, `python -m remote_runner` and `local.*` all
run this one. The steps themselves are in `steps.py`; here is their order, and what surrounds them: the clock, the
record, being stopped.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.cancellation import Cancellation
from remote_runner.connection.verbs.job import Job, instance_id
from remote_runner.connection.workers import FILES
from remote_runner.errors import (
    ArtifactMissingError,
    DeadlineError,
    HandshakeDroppedError,
    HostLostError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    RemoteRunnerError,
    no_room_here,
)
from remote_runner.instance import steps
from remote_runner.instance.environment import run_environment
from remote_runner.instance.record import Record, StepClock
from remote_runner.instance.reporter import Reporter
from remote_runner.instance.run_log import InstanceLog, RunLog, run_directory
from remote_runner.instance.services import advice_for
from remote_runner.instance.shared import Shared
from remote_runner.instance.writer import Writer
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.kinds import OnUnreachable
from remote_runner.inventory.known import known_of
from remote_runner.inventory.placement import is_shared_evenly
from remote_runner.inventory.systems import System
from remote_runner.machine.whose import started_from
from remote_runner.progress import Began, Ended, Moved
from remote_runner.sizes import count
from testground.errors import TestgroundError
from testground.runenv import RunEnv
from testground.tags import as_tag, tag_of

if TYPE_CHECKING:
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.artifact.push import Pushed
    from remote_runner.connection.agent import Agent
    from remote_runner.connection.verbs.run import Exited, Run
    from remote_runner.instance.forwarding import Forwarded
    from remote_runner.outputs import OutputsReport
    from remote_runner.truth.observation import Seat

MANY_OBJECTS = 10_000
"""How many objects a process of many instances makes before it looks for garbage among them: with Python's 700 that was
13 % of the CPU of a hundred at once, with this it is 2 %."""
# Digits of an instance's number.
_LONGEST_NUMBER = 9

# What `on_unreachable` is about; a refused login or a changed host key needs attention.
UNREACHABLE = (
    HostUnresolvedError,
    HostUnreachableError,
    HostRefusedError,
    HandshakeDroppedError,
    HostLostError,
    DeadlineError,
)


class InstanceStoppedError(Exception):
    """The instance was ended on request before its application had started."""


async def run_instance(
    environ: Mapping[str, str],
    plan_dir: Path,
    *,
    shared: Shared,
    stop: Cancellation,
    stdout: Writer,
    stderr: Writer,
    umask: int | None = None,
) -> int:
    """Run the instance that `environ` describes, of the plan in `plan_dir`; the exit status to end with.

    Nothing is raised for what can go wrong: it becomes a failure event with the reason and the next step. `stop` ends
    the step that goes on; while the application runs, it is stopped there and its outputs are fetched. The same happens
    when nobody reads stdout any more. The writers stay the caller's. `umask` holds for the outputs (`None`: that of the
    process).
    """

    def unread(why: str) -> None:
        said = f"the instance's stdout cannot be written any more: {why}"
        stop.cancel(said if why else "nobody here reads the instance's stdout any more")

    def stderr_unread(why: str) -> None:
        said = f"stderr cannot be written any more ({why})" if why else "nobody reads stderr any more"
        reporter.message(f"run: {said}, so what comes there is dropped from here on")

    reporter = Reporter(stdout, stderr, group_id=environ.get("TEST_GROUP_ID", ""), run_id=environ.get("TEST_RUN", ""))
    stdout.on_unread, stderr.on_unread = unread, stderr_unread
    if shared.debug_log:
        reporter.message(f"debug log: {shared.debug_log}")
    status = await _run(environ, plan_dir, shared, stop, reporter, umask)
    reporter.end_of_stdout()
    await reporter.flush()
    return status


async def _run(
    environ: Mapping[str, str],
    plan_dir: Path,
    shared: Shared,
    stop: Cancellation,
    reporter: Reporter,
    umask: int | None,
) -> int:
    try:
        runenv = RunEnv.from_environ(environ)
    except TestgroundError as error:
        reporter.failure(f"remote-runner: {error}")
        return 1
    instance = _Instance(environ, runenv, plan_dir, shared, stop, reporter, umask)
    outputs = runenv.outputs_path
    with shared.run_log(run_directory(outputs, runenv.run, runenv.group_id), umask) as log:
        instance.log = log
        written = f"{runenv.group_id}[{outputs.name}]"
        reporter.log = InstanceLog(log, outputs, as_tag(written) or written)
        status = await _to_its_end(instance, reporter)
        reporter.end_of_stdout()
        await reporter.log.flush()
    return status


async def _to_its_end(instance: _Instance, reporter: Reporter) -> int:
    try:
        status = await instance.run()
    except (RemoteRunnerError, TestgroundError) as error:
        status = instance.fail(str(error))
    except InstanceStoppedError:
        status = instance.fail(instance.why_stopped())
    except Exception as error:  # noqa: BLE001 (a fault of ours must reach the verdict, whatever it is)
        import traceback

        full = no_room_here(error) if isinstance(error, OSError) else None
        if full is not None:
            status = instance.fail(str(full))
        else:
            reporter.crash(f"remote-runner: {type(error).__name__}: {error}", traceback.format_exc())
            status = instance.fail(f"{type(error).__name__}: {error}", told=True)
    await instance.write_record()
    return status


@dataclass(frozen=True)
class _Ready:
    """What an application needs before it is started; `address` is where others reach its host."""

    agent: Agent
    entry: HostEntry
    artifact: AnyArtifact
    pushed: Pushed
    forwarded: Forwarded
    address: str
    seat: Seat


@dataclass(frozen=True)
class _Ended:
    """How the application ended, and what came home.

    error: why its outputs are not whole. why: what else than itself ended it, as far as the way to the host tells.
    """

    exited: Exited
    outputs: OutputsReport
    error: RemoteRunnerError | None
    why: str = ""


class _Instance:
    def __init__(
        self,
        environ: Mapping[str, str],
        runenv: RunEnv,
        plan_dir: Path,
        shared: Shared,
        stop: Cancellation,
        reporter: Reporter,
        umask: int | None,
    ) -> None:
        self.log: RunLog | None = None
        self._umask = umask
        self._environ = environ
        self._runenv = runenv
        self._plan_dir = plan_dir
        self._shared = shared
        self._stop = stop
        self._reporter = reporter
        name = runenv.outputs_path.name
        number = int(name) if name.isdecimal() and len(name) <= _LONGEST_NUMBER else None
        self._record = Record(
            instance_id(runenv.run, runenv.group_id, name),
            plan=runenv.plan,
            case=runenv.case,
            run=runenv.run,
            group=runenv.group_id,
            index=number,
        )
        self._clock = StepClock(self._record, reporter.step)
        self._left_there = ""
        self._who = runenv.group_id if number is None else tag_of(runenv.group_id, number)

    async def run(self) -> int:
        """Every step in turn; raises what stopped one."""
        with ExitStack() as stack:
            ready = await self._until_stopped(stack)
            ended = await self._supervise(ready)
            self._record.doubts = list(await ready.seat.settle(self._stop))
            self._record.clock = ready.seat.clock_value
        return self._conclude(ended)

    async def _until_stopped(self, stack: ExitStack) -> _Ready:
        """All that comes before the application's start; a stop ends it wherever it waits."""
        task = asyncio.current_task()
        assert task is not None
        try:
            with self._stop.telling(task.cancel):
                return await self._prepare(stack)
        except asyncio.CancelledError:
            if not self._stop.is_set:
                raise
            task.uncancel()
            raise InstanceStoppedError from None

    async def _prepare(self, stack: ExitStack) -> _Ready:
        shared, environ, reporter = self._shared, self._environ, self._reporter
        self._begins("choose")
        with self._clock.step("choose") as step:
            inventory = await shared.inventory(self._plan_dir, self._runenv, environ, self._tells("choose"), stack)
            reporter.secrets = inventory.secrets(environ)
            entry, system = await self._choose(inventory, stack)
            self._record.system = str(system)
            step.detail = f"number {self._number} runs on {entry.name} ({system})"
        if self._placed.message:
            is_even = is_shared_evenly(self._entries, self._runenv.instance_count)
            (reporter.step if is_even else reporter.message)(self._placed.message)
        # Imported here: it is loaded during the first login.
        from remote_runner.artifact.build import Artifact

        self._begins("build")
        with self._clock.step("build") as step:
            artifact = await steps.build(
                shared, entry, system, plan_dir=self._plan_dir, run_id=self._runenv.run, environ=environ
            )
            self._record.artifact = artifact.hash
            if not isinstance(artifact, Artifact):
                self._record.derivation = artifact.drv
            step.detail = _built_words(entry, artifact)
        self._begins("push", entry)
        with self._clock.step("push") as step:
            agent = await shared.agent(entry, environ)
            self._begins("push")
            seat = stack.enter_context(self._observe(entry, agent, links=inventory.links))
            # Both need nothing but the connection, so a far host is asked for both at once.
            forwarding = asyncio.ensure_future(steps.forward(shared, entry, environ, self._tells("forward")))
            stack.callback(_let_go, forwarding)
            pushed = await steps.push(shared, entry, artifact, environ, self._push_says)
            step.detail = _pushed_words(pushed)
        self._begins("forward")
        with self._clock.step("forward") as step:
            forwarded = await forwarding
            address = self._placed.address or entry.address or await self._address(agent, entry, inventory)
            self._record.address = address
            step.detail = f"{forwarded}; others reach {entry.name} at {address}"
            if agent.attempts > 1:
                step.detail += f"; connected at attempt {agent.attempts}, since its sshd dropped connections"
        return _Ready(agent, entry, artifact, pushed, forwarded, address, seat)

    def _observe(self, entry: HostEntry, agent: Agent, *, links: bool) -> Seat:
        """From here on the host is looked at, beside all that follows."""
        from remote_runner.truth.observation import RunOn

        runenv, url = self._runenv, self._environ.get("INFLUXDB_URL", "")
        directory = None if self.log is None else self.log.directory
        run_on = RunOn(entry.name, runenv.run, runenv.plan, runenv.case, directory, self._umask)
        observation = self._shared.observe(entry, run_on, url, self._reporter.message, links=links)
        append = None if self.log is None else self.log.add
        return observation.seat(
            self._shared.watch(entry, agent), append, runenv.outputs_path, self._record.instance_id, runenv.group_id
        )

    async def _choose(self, inventory: Inventory, stack: ExitStack) -> tuple[HostEntry, System]:
        """The host and its system; the connection opens meanwhile, and is waited for only where that is needed."""
        chosen = await steps.choose(self._shared, inventory, self._runenv, self._environ)
        self._number, self._entries = chosen.number, chosen.entries
        placement = chosen.placement
        while True:
            self._placed = placement
            entry = inventory.host(placement.host)
            self._record.number, self._record.host = self._number, entry.name
            self._begins("choose", entry)
            try:
                system = placement.system or known_of(self._shared.controller, entry).system
                if entry.on_unreachable is OnUnreachable.NEXT or system is None:
                    system = placement.system or (await self._shared.agent(entry, self._environ)).system
                else:
                    await self._shared.agent_ahead(entry, self._environ, stack)
            except UNREACHABLE as error:
                following = next(chosen.others, None) if entry.on_unreachable is OnUnreachable.NEXT else None
                if following is None:
                    raise
                placement = following
                reason = str(error).partition("\n")[0]
                self._reporter.message(f"choose: {reason}; so number {self._number} goes to {placement.host}")
                continue
            return entry, system

    def _begins(self, step: str, needs: HostEntry | None = None) -> None:
        """Tell of a step; first of the connection, where it needs one to that host and there is none yet."""
        if needs is not None and self._shared.open_agent(needs) is None:
            step = "connect"
        self._shared.tell(Began(self._who, step, self._record.host))

    def _tells(self, step: str) -> Callable[[str], None]:
        return lambda words: self._reporter.message(f"{step}: {words}")

    def _push_says(self, words: str) -> None:
        self._reporter.step(f"push: {words}")

    async def _address(self, agent: Agent, entry: HostEntry, inventory: Inventory) -> str:
        if not entry.is_local:
            return agent.address
        from remote_runner.instance.addresses import own_address

        others = [inventory.host(other.name) for other in self._entries]
        remote = [other for other in others if not other.is_local]
        return await asyncio.to_thread(own_address, remote, self._environ) if remote else "127.0.0.1"

    # The application

    def _job(self, ready: _Ready) -> Job:
        entry = ready.entry
        given = {
            **ready.forwarded.variables,
            "REMOTE_RUNNER_NUMBER": str(self._number),
            "REMOTE_RUNNER_HOST": entry.name,
            "REMOTE_RUNNER_SYSTEM": str(ready.artifact.system),
            "REMOTE_RUNNER_ADDRESS": ready.address,
            **dict(entry.env),
        }
        return Job(
            instance_id=self._record.instance_id,
            argv=(ready.artifact.program,),
            artifact=ready.pushed.far_artifact,
            environment=run_environment(self._environ, given, entry.pass_through),
            grace_s=entry.grace_s,
            run_s=entry.timeouts.run_s,
            fetch_s=entry.timeouts.fetch_s,
            outputs_limit_bytes=entry.outputs_limit_bytes,
            record={
                "plan": self._runenv.plan,
                "run": self._runenv.run,
                "group": self._runenv.group_id,
                "from": started_from(self._plan_dir),
            },
        )

    async def _supervise(self, ready: _Ready) -> _Ended:
        began_s = time.monotonic()
        self._begins("run")
        try:
            run = await self._start(ready, self._job(ready))
            self._record.far_directory = self._left_there = run.directory
            ready.seat.begin(ready.address)
            if self._reporter.log is not None:
                self._reporter.log.start()
            self._reporter.step(f"run: started in {run.directory}")
            exited = await steps.follow(run, self._reporter.stdout, self._reporter.stderr, self._stop)
        except BaseException as error:
            step = self._clock.begin("run", at_s=began_s)
            step.error = str(error)
            self._clock.end(step)
            raise
        exited_s = time.monotonic()
        ready.seat.end(exited.cpu_s or 0.0)
        self._record.cpu_s, self._record.max_rss_bytes = exited.cpu_s, exited.max_rss_bytes
        # Before the outputs come, which may have files of the same names.
        await self._reporter.end_of_streams()
        self._step("run", began_s, exited_s, _ended_words(exited))
        ended = await self._bring_home(run, ready, exited, exited_s)
        seen = self._reporter.seen
        if exited.exit_status and ended.error is None and not (seen.failure or seen.success):
            return replace(ended, why=await ready.agent.why_ended_there())
        return ended

    async def _start(self, ready: _Ready, job: Job) -> Run:
        try:
            return await steps.run(ready.agent, job)
        except ArtifactMissingError:
            # The cache there was cleaned since this machine pushed last.
            self._shared.forget_push(ready.entry, ready.artifact)
            pushed = await steps.push(self._shared, ready.entry, ready.artifact, self._environ, self._push_says)
            self._reporter.message(f"push: {_pushed_words(pushed)}, since it was missing or had changed")
            return await steps.run(ready.agent, replace(job, artifact=pushed.far_artifact))

    async def _bring_home(self, run: Run, ready: _Ready, exited: Exited, exited_s: float) -> _Ended:
        from remote_runner.connection.verbs.run import Left
        from remote_runner.outputs import OutputsReport

        entry, outputs, error = ready.entry, OutputsReport(), None
        self._begins("fetch")

        def taken(size_bytes: int) -> None:
            self._shared.tell(Moved(entry.name, "fetch", self._who, size_bytes, exited.outputs_bytes))

        try:
            outputs = await steps.fetch(run, self._runenv.outputs_path, entry.outputs_limit_bytes, self._umask, taken)
        except RemoteRunnerError as failed:
            error = failed
        ready.seat.is_home.set()
        self._shared.tell(Moved(entry.name, "fetch", self._who, is_over=True))
        fetched_s = time.monotonic()
        self._step("fetch", exited_s, fetched_s, f"{count(outputs.files, 'file')}, {outputs.size_bytes} bytes", error)
        left, problem = Left.UNSEEN, None
        self._begins("clean")
        try:
            left = await steps.clean(run, keep=error is not None)
        except RemoteRunnerError as failed:  # not part of the result, which is here
            problem = failed
            self._reporter.message(f"clean: {failed}")
        if left is Left.NOTHING:
            self._left_there = ""
        self._step("clean", fetched_s, time.monotonic(), left.value, problem)
        return _Ended(exited, outputs, error)

    def _step(
        self, name: str, began_s: float, ended_s: float, detail: str, error: RemoteRunnerError | None = None
    ) -> None:
        step = self._clock.begin(name, at_s=began_s)
        step.detail, step.error = detail, "" if error is None else str(error)
        self._clock.end(step, at_s=ended_s)

    # The end

    def why_stopped(self) -> str:
        """What to say when the instance was stopped before the application's start."""
        step = self._record.steps[-1].name if self._record.steps else "start"
        host = f"{self._record.host}: " if self._record.host else ""
        words = f"{host}stopped before the application's start, at the step {step}: {self._stop.reason}"
        return f"{words}\n  next: run it again"

    def fail(self, reason: str, *, told: bool = False) -> int:
        """End as a failure with this reason; the exit status."""
        if not told:
            self._reporter.failure(f"remote-runner: {reason}")
        self._record.outcome, self._record.error = "failed", reason
        return 1

    def _conclude(self, ended: _Ended) -> int:
        """The verdict's part that the application cannot tell, the record, and the exit status."""
        record, reporter, exited = self._record, self._reporter, ended.exited
        record.exit_status, record.stopped_processes = exited.exit_status, exited.leftover_processes
        record.outputs_files, record.outputs_bytes = ended.outputs.files, ended.outputs.size_bytes
        record.left_out = [str(entry) for entry in ended.outputs.left_out]
        record.long_lines = exited.cut_lines
        if record.left_out:
            reporter.message(
                f"fetch: left out {count(len(record.left_out), 'entry', 'entries')}: {'; '.join(record.left_out[:5])}"
            )
        if ended.outputs.far_messages:
            reporter.message(f"fetch: {'; '.join(ended.outputs.far_messages[:5])}")
        if record.long_lines:
            reporter.message(f"run: {record.long_lines} lines were too long for Testground, and say where the whole is")
        if exited.leftover_processes:
            outliving = count(exited.leftover_processes, "process", "processes")
            reporter.message(f"run: stopped {outliving} that outlived the application")
        if exited.untold_processes:
            stray = count(exited.untold_processes, "process", "processes")
            reporter.message(f"run: found and stopped {stray} without a run")
        reason = self._why_failed(exited, ended.why)
        if ended.error is not None:
            # Beside the run's own error, never instead of it.
            reason = f"{reason}\n{ended.error}" if reason else str(ended.error)
        if reason:
            return self.fail(reason)
        seen = reporter.seen
        if exited.exit_status and seen.success:
            reporter.message(f"run: the application succeeded and then ended with {_status_words(exited)}")
        record.outcome = "failed" if seen.failure else "ok" if seen.success else "incomplete"
        if record.outcome == "incomplete":
            reporter.message(
                "run: the application ended without a success event, so Testground counts it as failed; docs/events.md "
                "has what to print"
            )
        return 1 if seen.failure else 0

    def _why_failed(self, exited: Exited, why: str) -> str:
        """Why the instance failed where the application did not say it itself, else ""."""
        host, seen = self._record.host, self._reporter.seen
        if exited.reason == "timeout":
            return (
                f"{host}: the application was stopped: it ran longer than timeouts.run_s allows\n"
                f"  next: look at what it waits for, or give {host} a longer timeouts.run_s in inventory.yaml"
            )
        if exited.reason == "processes":
            return (
                f"{host}: the application was killed: there were no processes left on the host to watch it with\n"
                f"  next: let it start fewer, or raise the limit there (ulimit -u, TasksMax, pids.max)"
            )
        if exited.reason == "stop":
            return (
                f"{host}: the application was stopped: {self._stop.reason}\n"
                "  next: run it again; what the application had written until then is in the outputs"
            )
        if exited.reason != "ended":
            return (
                f"{host}: the application was stopped there: nothing was heard from here for longer than tolerate_s\n"
                f"  next: run it again, or give {host} a longer tolerate_s in inventory.yaml"
            )
        if seen.failure or seen.success or not exited.exit_status:
            return ""
        words = f"{host}: the application ended with {_status_words(exited)} and reported no failure event"
        if why:
            return f"{words}; {why}\n  next: run it again; what it had written until then is in the outputs"
        advice = advice_for(self._reporter.last_stderr, host) or "look at its last lines, and at its outputs"
        return f"{words}\n  next: {advice}"

    async def write_record(self) -> None:
        """Leave the record in the outputs; in a thread, since their disk may hang."""
        self._record.duration_s = round(self._clock.elapsed_s, 6)
        self._shared.tell(Ended(self._who, self._record.outcome, self._left_there))
        outputs = self._runenv.outputs_path
        try:
            await FILES.run(partial(self._record.write, outputs, self._reporter.secrets, self._umask))
        except (OSError, RemoteRunnerError) as error:
            self._reporter.message(f"the record cannot be written to {outputs}: {error}")


def _let_go(forwarding: asyncio.Future[Forwarded]) -> None:
    if forwarding.done() and not forwarding.cancelled() and forwarding.exception() is None:
        forwarding.result().uses.close()
    else:
        forwarding.cancel()


def _built_words(entry: HostEntry, artifact: AnyArtifact) -> str:
    from remote_runner.artifact.build import Artifact

    what = f"{entry.app.name} for {artifact.system}"
    if isinstance(artifact, Artifact):
        return f"{what}, {artifact.size_bytes} bytes, {artifact.hash}; {artifact.choice}"
    where = "built here" if artifact.here else f"{entry.name} will build it"
    return f"{what}, {artifact.out} ({where}); {artifact.choice}"


def _pushed_words(pushed: Pushed) -> str:
    return f"{pushed.directory} ({pushed.words})"


def _status_words(exited: Exited) -> str:
    if exited.signal is not None:
        import signal

        with suppress(ValueError):
            return signal.Signals(exited.signal).name
    return f"exit status {exited.exit_status}"


def _ended_words(exited: Exited) -> str:
    return "the application was stopped" if exited.reason != "ended" else f"ended with {_status_words(exited)}"
