"""One instance, from `TEST_*` to exit status: choose, build, push, forward, run, fetch, clean.

A plain function that takes everything as values and knows no Fabric: `fab instance`, `python -m remote_runner`
and `local.*` all end here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from remote_runner.artifact.build import AnyArtifact, Artifact, build_for
from remote_runner.artifact.push import Pushed, already_pushed, forget_push, push, time_for_push
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.descriptors import when_unread
from remote_runner.errors import (
    ArtifactMissingError,
    DeadlineError,
    HandshakeDroppedError,
    HostLostError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    NoExitStatusError,
    PlacementError,
    RemoteRunnerError,
)
from remote_runner.host import Host
from remote_runner.hosts import open_host
from remote_runner.instance.environment import run_environment
from remote_runner.instance.forwarding import Forwarded
from remote_runner.instance.record import Record, StepClock
from remote_runner.instance.reporter import Reporter
from remote_runner.instance.services import advice_for
from remote_runner.instance.streams import LineGuard
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.kinds import OnUnreachable
from remote_runner.inventory.placement import PARAM, Placement, needs_groups, parse_entries, place, places_after
from remote_runner.inventory.systems import System
from remote_runner.job import Job, Seat, instance_id
from remote_runner.opening import Opening
from remote_runner.probe import probe_system
from remote_runner.stop import InstanceStoppedError, Stop
from remote_runner.supervisor import EventKind, RunResult, Started, SupervisorEvent, start_run, supervise
from testground.errors import TestgroundError
from testground.runenv import RunEnv

# What `on_unreachable` is about; a host that refuses a login or has another key needs somebody's attention.
UNREACHABLE = (
    HostUnresolvedError,
    HostUnreachableError,
    HostRefusedError,
    HandshakeDroppedError,
    HostLostError,
    DeadlineError,
)
CHOOSE_STATE = "choose_server"
CHOOSE_TOPIC = "choose_server_groups"
# How long a stopped instance waits for a connection that is being opened.
_LEAVE_S = 2.0


def run_instance(
    environ: Mapping[str, str], plan_dir: Path, *, stop: Stop, stdout_fd: int = 1, stderr_fd: int = 2
) -> int:
    """Run the instance that `environ` describes, of the plan in `plan_dir`; the exit status to end with.

    Nothing is raised for what can go wrong: it becomes a failure event with the reason and the next step.
    A request to `stop` ends the step that goes on; while the application runs, its far side is stopped and its outputs
    are fetched. The same happens when nobody reads stdout any more.
    """

    def unread(stream: str) -> None:
        if stream == "stdout":
            stop.request("nobody here reads the instance's stdout any more")
        else:
            reporter.message("run: nobody reads stderr any more, so what comes there is dropped from here on")

    reporter = Reporter(
        stdout_fd,
        stderr_fd,
        group_id=environ.get("TEST_GROUP_ID", ""),
        run_id=environ.get("TEST_RUN", ""),
        on_unread=unread,
    )
    try:
        runenv = RunEnv.from_environ(environ)
    except TestgroundError as error:
        reporter.failure(f"remote-runner: {error}")
        return 1
    instance = _Instance(environ, runenv, plan_dir, reporter, stop)
    try:
        with when_unread(stdout_fd, lambda: unread("stdout")) as end_watch, stop.also(end_watch):
            return instance.run()
    except (RemoteRunnerError, TestgroundError) as error:
        return instance.fail(str(error))
    except InstanceStoppedError:
        return instance.fail(instance.why_stopped())
    except Exception as error:  # noqa: BLE001 (a fault of ours must reach the verdict, whatever it is)
        import traceback

        reporter.crash(f"remote-runner: {type(error).__name__}: {error}", traceback.format_exc())
        return instance.fail(f"{type(error).__name__}: {error}", told=True)


@dataclass(frozen=True)
class _Ready:
    """What an application needs before it is started; `address` is where others reach its host."""

    host: Host
    entry: HostEntry
    artifact: AnyArtifact
    pushed: Pushed
    forwarded: Forwarded
    address: str


class _Instance:
    def __init__(
        self, environ: Mapping[str, str], runenv: RunEnv, plan_dir: Path, reporter: Reporter, stop: Stop
    ) -> None:
        self._environ = environ
        self._runenv = runenv
        self._plan_dir = plan_dir
        self._reporter = reporter
        self._stop = stop
        self._outputs = runenv.outputs_path
        self._record = Record(
            instance_id(runenv.run, runenv.group_id, runenv.outputs_path.name),
            plan=runenv.plan,
            case=runenv.case,
            run=runenv.run,
            group=runenv.group_id,
        )
        self._clock = StepClock(self._record, reporter.message)

    def run(self) -> int:
        """Every step in turn; raises what stopped one."""
        self._controller = Controller.from_environ(self._environ)
        with ExitStack() as stack:
            with self._stop.interruptible():
                ready = self._prepare(stack)
            result = self._supervise(ready)
        return self._conclude(result)

    def _prepare(self, stack: ExitStack) -> _Ready:
        """All that comes before the application's start; what stays open is closed with `stack`."""
        with self._clock.step("choose") as step:
            self._inventory = Inventory.load(self._plan_dir, cache=self._controller.cache)
            self._reporter.secrets = self._inventory.secrets(self._environ)
            placement = self._choose()
            others = places_after(self._entries, placement, self._runenv.group_id)
            while True:
                entry = self._inventory.host(placement.host)
                self._record.number, self._record.host = self._number, entry.name
                host = self._open(stack, entry)
                if entry.on_unreachable is OnUnreachable.FAIL:
                    break  # with the reason, where the connection is needed first
                try:
                    opened = self._opening.session.result().session
                    opened.wait_opened(Deadline.after(entry.timeouts.connect_s))
                    break
                except UNREACHABLE as error:
                    if not others:
                        raise
                    placement = others.pop(0)
                    reason = str(error).partition("\n")[0]
                    self._reporter.message(f"choose: {reason}; so number {self._number} goes to {placement.host}")
            system = placement.system or self._probe(host, entry)
            self._record.system = str(system)
            step.detail = f"number {self._number} runs on {entry.name} ({system})"
        if placement.message:
            self._reporter.message(placement.message)
        with self._clock.step("build") as step:
            artifact = self._build(entry, system)
            self._record.artifact = artifact.hash
            step.detail = _built_words(entry, artifact)
        with self._clock.step("push") as step:
            pushed = already_pushed(self._controller, entry, artifact) or self._push(host, entry, artifact)
            step.detail = _pushed_words(pushed)
        with self._clock.step("forward") as step:
            forwarded = self._opening.forwards.result()
            address = placement.address or entry.address or self._address(host, entry)
            self._record.address = address
            step.detail = f"{forwarded}; others reach {entry.name} at {address}"
            if host.retries:
                step.detail += f"; connected at attempt {host.retries + 1}, for its sshd dropped connections"
        return _Ready(host, entry, artifact, pushed, forwarded, address)

    def _open(self, stack: ExitStack, entry: HostEntry) -> Host:
        """Begin to connect; what is open is closed with `stack`."""
        # A stop waits until `stack` knows of all that has begun: closing a host waits for who connects to it.
        with self._stop.held_off():
            host = stack.enter_context(open_host(entry, self._controller, self._environ))
            self._seat = Seat(self._record.instance_id, entry.directory, entry.grace_s, entry.tolerate_s)
            opening = self._opening = Opening(host, entry, self._environ, self._seat)
            stack.callback(opening.close)
            stack.callback(self._hurry, stack, host, opening)
        return host

    def _hurry(self, stack: ExitStack, host: Host, opening: Opening) -> None:
        """Called first when `stack` closes: after a stop nothing is waited for that may take long."""
        if not self._stop.is_set():
            return
        host.abandon()
        if not opening.wait(_LEAVE_S):
            # It waits for what another process does. This one is about to end, which closes everything.
            stack.pop_all()

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
        self._write_record()
        return 1

    # The steps

    def _choose(self) -> Placement:
        from testground.sync.client import SyncClient

        listed = parse_entries(self._runenv.params.get(PARAM, ""))
        entries = self._inventory.entries() if listed is None else self._inventory.complete(listed)
        self._entries = entries
        group = self._runenv.group_id
        earlier: list[str] = []
        with SyncClient.from_runenv(self._runenv, self._environ) as sync:
            self._number = sync.signal_entry(CHOOSE_STATE)
            if needs_groups(entries):
                sync.publish(CHOOSE_TOPIC, {"number": self._number, "group": group})
                groups: dict[int, str] = {}
                with sync.subscribe(CHOOSE_TOPIC) as published:
                    while any(number not in groups for number in range(1, self._number)):
                        number, name = _published_group(published.next(60.0))
                        groups[number] = name
                earlier = [groups[number] for number in range(1, self._number)]
        return place(entries, self._number, group, earlier, self._inventory.spread)

    def _probe(self, host: Host, entry: HostEntry) -> System:
        self._opening.session.result()
        deadline = Deadline.after(entry.timeouts.connect_s)
        return probe_system(host, entry, controller=self._controller, deadline=deadline)

    def _build(self, entry: HostEntry, system: System) -> AnyArtifact:
        artifact = build_for(
            entry.app,
            system,
            plan_dir=self._plan_dir,
            run_id=self._runenv.run,
            controller=self._controller,
            environ=self._environ,
            deadline=Deadline.after(entry.timeouts.build_s),
            stop=self._stop,
        )
        if not isinstance(artifact, Artifact):
            from remote_runner.artifact.nix.builder import check_target

            check_target(artifact, entry)
        return artifact

    def _push(self, host: Host, entry: HostEntry, artifact: AnyArtifact) -> Pushed:
        self._opening.session.result()
        deadline = Deadline.after(time_for_push(entry, artifact))
        return push(
            host,
            entry,
            artifact,
            controller=self._controller,
            deadline=deadline,
            environ=self._environ,
            report=lambda words: self._reporter.message(f"push: {words}"),
        )

    def _address(self, host: Host, entry: HostEntry) -> str:
        if not entry.is_local:
            return host.address()
        from remote_runner.instance.addresses import own_address

        others = [self._inventory.host(other.name) for other in self._entries]
        return own_address([other for other in others if not other.is_local], self._environ)

    def _supervise(self, ready: _Ready) -> RunResult:
        host, entry, artifact = ready.host, ready.entry, ready.artifact
        given = {
            **ready.forwarded.variables,
            "REMOTE_RUNNER_NUMBER": str(self._number),
            "REMOTE_RUNNER_HOST": entry.name,
            "REMOTE_RUNNER_SYSTEM": str(artifact.system),
            "REMOTE_RUNNER_ADDRESS": ready.address,
            **dict(entry.env),
        }
        job = Job(
            instance_id=self._seat.instance_id,
            argv=(artifact.program,),
            artifact=ready.pushed.far_artifact,
            environment=run_environment(self._environ, given, entry.pass_through),
            directory=self._seat.directory,
            grace_s=self._seat.grace_s,
            tolerate_s=self._seat.tolerate_s,
            run_s=entry.timeouts.run_s,
            fetch_s=entry.timeouts.fetch_s,
            far_ports=ready.forwarded.far_ports,
            outputs_limit_bytes=entry.outputs_limit_bytes,
            record={"plan": self._runenv.plan, "run": self._runenv.run, "group": self._runenv.group_id},
        )
        guards = {
            stream: LineGuard(partial(self._reporter.lines, stream), self._outputs / f"remote-runner.{stream}.lines")
            for stream in ("stdout", "stderr")
        }
        self._seen, self._stderr = guards["stdout"].seen, guards["stderr"]
        began_s = time.monotonic()
        try:
            try:
                return self._run_waiting(host, job, guards)
            except ArtifactMissingError:
                # Its cache was cleaned since this machine pushed last.
                with self._stop.interruptible():
                    forget_push(self._controller, entry, artifact.hash)
                    pushed = self._push(host, entry, artifact)
                    self._reporter.message(f"push: {_pushed_words(pushed)}, for it was no longer there")
                    started = start_run(host, self._seat)
                return self._run_job(host, started, replace(job, artifact=pushed.far_artifact), guards)
        except BaseException as error:
            step = self._clock.begin("run", at_s=began_s)
            step.error = str(error)
            self._clock.end(step)
            raise
        finally:
            for guard in guards.values():
                guard.close()
            self._record.long_lines = sum(guard.cut_lines for guard in guards.values())

    def _run_waiting(self, host: Host, job: Job, guards: Mapping[str, LineGuard]) -> RunResult:
        try:
            return self._run_job(host, self._opening.end(), job, guards)
        except NoExitStatusError:
            # Nothing has begun there. On a slow line the signs of life queue behind what is pushed (up to 2 MiB, ssh's
            # window), on a busy machine they come late; what waits there then ends.
            self._reporter.message("run: the session that waited there had ended, so another one was opened")
            return self._run_job(host, start_run(host, self._seat), job, guards)

    def _run_job(self, host: Host, started: Started, job: Job, guards: Mapping[str, LineGuard]) -> RunResult:
        asked_s = time.monotonic()
        with started:
            result = supervise(
                started,
                job,
                stdout=guards["stdout"].feed,
                stderr=guards["stderr"].feed,
                outputs_dir=self._outputs,
                stop=self._stop,
                on_event=lambda event: self._supervisor_says(event, host, job),
                host=host,
            )
        times = result.timings
        self._step("run", asked_s, times.exited_s, _ended_words(result))
        fetched = f"{result.outputs.files} files, {result.outputs.size_bytes} bytes"
        self._step("fetch", times.exited_s, times.fetched_s, fetched, result.outputs_error)
        self._step("clean", times.fetched_s, times.cleaned_s, "kept there" if result.kept else "nothing left there")
        return result

    def _step(
        self, name: str, began_s: float, ended_s: float, detail: str, error: RemoteRunnerError | None = None
    ) -> None:
        step = self._clock.begin(name, at_s=began_s)
        step.detail, step.error = detail, "" if error is None else str(error)
        self._clock.end(step, at_s=ended_s)

    def _supervisor_says(self, event: SupervisorEvent, host: Host, job: Job) -> None:
        if event.kind is EventKind.STARTED:
            if job.far_ports:
                host.note_private()
            self._record.far_directory = event.text
            self._reporter.message(f"run: started in {event.text}")
        elif event.kind in (EventKind.VARIABLES_LEFT_OUT, EventKind.STOPPING, EventKind.FETCHED_AGAIN):
            self._reporter.message(f"run: {event.kind.value}: {event.text}")

    # The end

    def _conclude(self, result: RunResult) -> int:
        """The verdict's part that the application cannot tell, the record, and the exit status."""
        record, reporter = self._record, self._reporter
        record.exit_status, record.stopped_processes = result.exit_status, result.leftover_processes
        record.outputs_files, record.outputs_bytes = result.outputs.files, result.outputs.size_bytes
        record.left_out = [str(entry) for entry in result.outputs.left_out]
        if record.left_out:
            reporter.message(f"fetch: {len(record.left_out)} entries were left out: {'; '.join(record.left_out[:5])}")
        if record.long_lines:
            reporter.message(
                f"run: {record.long_lines} lines were too long for Testground; whole in remote-runner.*.lines"
            )
        if result.leftover_processes:
            reporter.message(f"run: {result.leftover_processes} processes outlived the application and were stopped")
        reason = self._why_failed(result)
        if result.sink_error is not None:
            if not isinstance(result.sink_error, RemoteRunnerError):
                raise result.sink_error
            reason = f"{record.host}: the application was stopped: {result.sink_error}"
        if result.outputs_error is not None:
            # Beside the run's own error, never instead of it.
            reason = f"{reason}\n{result.outputs_error}" if reason else str(result.outputs_error)
        if reason:
            return self.fail(reason)
        if result.exit_status and self._seen.success:
            reporter.message(f"run: the application succeeded and then ended with {_status_words(result)}")
        record.outcome = "failed" if self._seen.failure else "ok" if self._seen.success else "incomplete"
        self._write_record()
        return 1 if self._seen.failure else 0

    def _why_failed(self, result: RunResult) -> str:
        """Why the instance failed where the application did not say it itself, else ""."""
        host = self._record.host
        if result.reason == "timeout":
            return (
                f"{host}: the application was stopped: it ran longer than timeouts.run_s allows\n"
                f"  next: look at what it waits for, or give {host} a longer timeouts.run_s in inventory.yaml"
            )
        if result.reason == "processes":
            return (
                f"{host}: the application was killed: there were no processes left on the host to watch it with\n"
                f"  next: let it start fewer, or raise the limit there (ulimit -u, TasksMax, pids.max)"
            )
        if result.reason == "stop":
            return (
                f"{host}: the application was stopped: {self._stop.reason}\n"
                "  next: run it again; what the application had written until then is in the outputs"
            )
        if self._seen.failure or self._seen.success or not result.exit_status:
            return ""
        words = f"{host}: the application ended with {_status_words(result)} and told no reason"
        advice = advice_for(self._stderr.last, host) or "look at its last lines above, and at its outputs"
        return f"{words}\n  next: {advice}"

    def _write_record(self) -> None:
        self._record.total_s = round(self._clock.elapsed_s, 4)
        try:
            self._record.write(self._outputs, self._reporter.secrets)
        except OSError as error:
            self._reporter.message(f"the record cannot be written to {self._outputs}: {error.strerror}")


def _published_group(published: object) -> tuple[int, str]:
    """An instance's number and group, as it published them."""
    match published:
        case {"number": int(number), "group": str(group)}:
            return number, group
    raise PlacementError(
        f"topic {CHOOSE_TOPIC}: found {published!r}, expected an instance's number and group",
        next_step="run the same remote-runner for all instances, and let the application publish on other topics",
    )


def _built_words(entry: HostEntry, artifact: AnyArtifact) -> str:
    what = f"{entry.app.name} for {artifact.system}"
    if isinstance(artifact, Artifact):
        return f"{what}, {artifact.size_bytes} bytes, {artifact.hash}"
    return f"{what}, {artifact.out} ({'built here' if artifact.here else f'{entry.name} will build it'})"


def _pushed_words(pushed: Pushed) -> str:
    return f"{pushed.directory} ({pushed.words})"


def _status_words(result: RunResult) -> str:
    if result.signal is not None:
        import signal

        with suppress(ValueError):
            return signal.Signals(result.signal).name
    return f"exit status {result.exit_status}"


def _ended_words(result: RunResult) -> str:
    return "the application was stopped" if result.reason != "ended" else f"ended with {_status_words(result)}"
