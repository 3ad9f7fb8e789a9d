"""`local:exec` without a daemon: start a run's instances, print what they do, and say how the run went.

The package's door to processes. One thread reads all of them; a run is over when every stdout and stderr is closed
by everyone who holds it (recordings/verdict/child-keeps-stdout-5s).
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import tempfile
import time
from base64 import b32hexencode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path
from types import FrameType
from typing import Protocol, TextIO

from testground.composition import GroupPlan, RunPlan
from testground.errors import TestgroundError
from testground.runenv import INFLUXDB_URL, RunEnv, ServiceAddress
from testground.tags import tag_of
from testground.verdict import Report, StderrReader, StdoutReader, Verdict, Word, print_line

SUBNET = "127.1.0.0/16"
PASS_THROUGH = "REMOTE_RUNNER_"
"""Variables of the caller's environment that begin so reach the instances."""

_CHUNK_BYTES = 256 * 1024
# How long a killed run's pipes may stay open in the hands of processes that left the instances' groups.
_CLOSE_S = 2.0


@dataclass(frozen=True)
class InstanceCommand:
    """What an instance is: a program with its arguments, and the directory to start it in."""

    argv: tuple[str, ...]
    cwd: Path


class Started(Protocol):
    """An instance that was started; its end is that of the two pipes that it got."""

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""

    def kill(self) -> None:
        """End it at once, with all that it has started."""

    def wait(self) -> int | None:
        """Wait for its end; its exit status, 128 + n after signal n."""


class Starter(Protocol):
    """Starts instances in another way than as a process each."""

    def start(self, environ: Mapping[str, str], stdout_fd: int, stderr_fd: int) -> Started:
        """Start one with this environment on these ends of pipes, which are its own from then on. Raises `OSError`."""


Command = InstanceCommand | Callable[["GroupPlan", int], InstanceCommand] | Starter


class Listener(Protocol):
    """Hears what the instances of a run say and do, in the thread that reads them."""

    def said(self, tag: str, reports: Sequence[Report], started_ns: int) -> None:
        """What one of them (`group[000]`) has said since the last time; the run began at `started_ns`."""

    def ending(self, living: int, *, at_once: bool) -> None:
        """So many are told to end, or are killed (`at_once`)."""


class DaemonLines:
    """Prints to `out` what the daemon would."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._encoding = getattr(out, "encoding", None) or "utf-8"

    def said(self, tag: str, reports: Sequence[Report], started_ns: int) -> None:
        """A line for each."""
        now_ns = time.time_ns()
        text = "".join(f"{print_line(report, tag, started_ns=started_ns, now_ns=now_ns)}\n" for report in reports)
        if not text.isascii():
            text = text.encode(self._encoding, "backslashreplace").decode(self._encoding)
        self._out.write(text)
        self._out.flush()

    def ending(self, living: int, *, at_once: bool) -> None:
        """The daemon says nothing of it."""


@dataclass(frozen=True)
class InstanceOutcome:
    """How one instance ended.

    `reason` is "" for a success. `exit_status` is for the reader only, Testground's verdict never looks at it:
    128 + n after signal n, None where the instance could not be started.
    """

    group: str
    number: int
    verdict: Verdict
    reason: str
    exit_status: int | None
    outputs: Path


@dataclass(frozen=True)
class GroupOutcome:
    """How many of a group's instances succeeded."""

    id: str
    ok: int
    total: int


@dataclass(frozen=True)
class RunOutcome:
    """How a run went; `cancelled` says why it was ended before its time ("" if it was not)."""

    run: str
    plan: str
    case: str
    instances: tuple[InstanceOutcome, ...]
    groups: tuple[GroupOutcome, ...]
    cancelled: str
    duration_s: float
    outputs: Path

    @property
    def ok(self) -> bool:
        """Whether every instance succeeded and the run was not cancelled."""
        return not self.cancelled and self.failed == 0

    @property
    def failed(self) -> int:
        """How many instances did not succeed."""
        return sum(instance.verdict is not Verdict.OK for instance in self.instances)


class StopRequest:
    """Asks a run to end: once, and every instance gets SIGTERM and a grace time; twice, and they are killed at once.

    `request` may be called from any thread and from a signal handler.
    """

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._read_fd, False)
        os.set_blocking(self._write_fd, False)
        self._closed = False
        self.count = 0
        self.signal: signal.Signals | None = None
        """The first signal that was a request."""

    def request(self) -> None:
        """Ask for the end, or for a quicker one."""
        self.count += 1
        if not self._closed:
            with suppress(BlockingIOError):  # a full pipe wakes the reader as well
                os.write(self._write_fd, b"s")

    def fileno(self) -> int:
        """Readable once a stop was requested."""
        return self._read_fd

    def drain(self) -> None:
        """Forget that it is readable; `count` stays."""
        with suppress(BlockingIOError):
            os.read(self._read_fd, 4096)

    def close(self) -> None:
        """Give the pipe back."""
        if not self._closed:
            self._closed = True
            os.close(self._read_fd)
            os.close(self._write_fd)

    @contextmanager
    def on_signals(self, *numbers: signal.Signals) -> Iterator[StopRequest]:
        """Within the block these signals (default: SIGINT, SIGTERM) are requests. For the main thread."""

        def handle(number: int, frame: FrameType | None) -> None:
            self.signal = self.signal or signal.Signals(number)
            self.request()

        with ExitStack() as stack:
            for number in numbers or (signal.SIGINT, signal.SIGTERM):
                stack.callback(signal.signal, number, signal.signal(number, handle))
            yield self


def new_run_id() -> str:
    """A run id in the form of Testground's: 20 characters, base32hex in lower case; later ones sort behind."""
    now_ns = time.time_ns()
    seconds, rest_ns = divmod(now_ns, 1_000_000_000)
    number = seconds.to_bytes(4, "big") + (rest_ns * 2**24 // 1_000_000_000).to_bytes(3, "big") + os.urandom(5)
    return b32hexencode(number).decode().rstrip("=").lower()


def outputs_root(outputs: Path, plan: str, run: str) -> Path:
    """Where a run's outputs are: below it `<group>/<number>/`, as testground's daemon has it in `<home>/data`."""
    return outputs / "outputs" / "local_exec" / plan / run


@dataclass
class _Instance:
    group: str
    number: int
    outputs: Path
    started: Started | None = None
    exit_status: int | None = None
    stdout: StdoutReader = field(default_factory=StdoutReader)
    stderr: StderrReader = field(default_factory=StderrReader)
    why_not_started: str = ""

    @property
    def tag(self) -> str:
        return tag_of(self.group, self.number)

    def outcome(self) -> InstanceOutcome:
        if self.started is None:
            return InstanceOutcome(
                self.group, self.number, Verdict.INCOMPLETE, self.why_not_started, None, self.outputs
            )
        return InstanceOutcome(
            group=self.group,
            number=self.number,
            verdict=self.stdout.verdict,
            reason=self.stdout.reason,
            exit_status=self.exit_status,
            outputs=self.outputs,
        )


def run(
    plan: RunPlan,
    *,
    command: Command,
    outputs: Path,
    environ: Mapping[str, str],
    sync_service: ServiceAddress,
    listener: Listener,
    influxdb_url: str = INFLUXDB_URL,
    redis_host: str = "localhost",
    run_id: str | None = None,
    stop: StopRequest | None = None,
    grace_s: float = 10.0,
    timeout_s: float | None = None,
    temp: Path | None = None,
) -> RunOutcome:
    """Run all of the plan's instances at once, to the end; `listener` gets what they say.

    `outputs` is what Testground calls `<home>/data`; `environ` is the caller's environment, of which only `PATH` and
    `REMOTE_RUNNER_*` go on; `temp` holds the temporary directories (default: the system's), which go with the run.
    After a request to stop, or `timeout_s`, each instance gets SIGTERM, and after `grace_s` SIGKILL with its group.
    An instance that cannot be started is an outcome, not an error. Raises `TestgroundError` where the outputs
    directory cannot be made, and for parameters that cannot be handed over.
    """
    run_id = run_id or new_run_id()
    root = outputs_root(outputs.absolute(), plan.plan, run_id)
    passed_on = {name: value for name, value in environ.items() if name.startswith(PASS_THROUGH)}
    with ExitStack() as stack:
        if stop is None:
            stop = StopRequest()
            stack.callback(stop.close)
        ready = []
        for group in plan.groups:
            for number in range(group.instances):
                instance = _Instance(group.id, number, root / group.directory / str(number))
                temp_path = _temp_directory(temp)
                stack.callback(shutil.rmtree, temp_path, ignore_errors=True)  # `fab clean` finds and tells what stays
                runenv = RunEnv(
                    plan=plan.plan,
                    case=plan.case,
                    run=run_id,
                    group_id=group.id,
                    instance_count=plan.instances,
                    group_instance_count=group.instances,
                    outputs_path=_directory(instance.outputs),
                    temp_path=temp_path,
                    params=group.params,
                    start_time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    subnet=SUBNET,
                    disable_metrics=plan.disable_metrics,
                    capture_profiles=group.profiles,
                    sync_service_host=sync_service.host,
                    sync_service_port=sync_service.port,
                    influxdb_url=influxdb_url,
                    redis_host=redis_host,
                )
                starter = _starter(command, group, number)
                ready.append((instance, starter, runenv.to_environ(path=environ.get("PATH", os.defpath)) | passed_on))
        running = _Running(listener, stop, grace_s, timeout_s)
        stack.callback(running.close)
        for instance, starter, given in ready:
            running.start(instance, starter, given)
        running.read_to_the_end()
        return RunOutcome(
            run=run_id,
            plan=plan.plan,
            case=plan.case,
            instances=tuple(instance.outcome() for instance in running.instances),
            groups=tuple(running.group_outcome(group.id) for group in plan.groups),
            cancelled=running.cancelled,
            duration_s=(time.time_ns() - running.started_ns) / 1e9,
            outputs=root,
        )


def _directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        next_step = "make room or access there, or name another directory: --outputs DIR"
        raise TestgroundError(f"{path}: cannot be made: {error.strerror}", next_step=next_step) from error
    return path


def _temp_directory(parent: Path | None) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f"testground-{os.getpid()}-", dir=parent))
    except OSError as error:
        where = parent or os.environ.get("TMPDIR") or "/tmp"  # gettempdir() fails where all are full
        problem = f"{where}: no directory can be made in it: {error.strerror}"
        raise TestgroundError(problem, next_step="set TMPDIR to a directory with room") from error


def _is_stdout(key: selectors.SelectorKey) -> bool:
    return key.data is not None and isinstance(key.data[1], StdoutReader)


@dataclass
class _Processes:
    """Starts instances as processes by one command."""

    command: InstanceCommand

    def start(self, environ: Mapping[str, str], stdout_fd: int, stderr_fd: int) -> Started:
        # A session of its own: Ctrl-C at the terminal is the run's to handle, and stray children can be found.
        process = subprocess.Popen(
            self.command.argv,
            cwd=self.command.cwd,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=stdout_fd,
            stderr=stderr_fd,
            start_new_session=True,
        )
        os.close(stdout_fd)
        os.close(stderr_fd)
        return _Process(process)


@dataclass
class _Process:
    """One of them. It is not reaped (Popen.send_signal would) before `wait`: so long its group can be named."""

    process: subprocess.Popen[bytes]

    def terminate(self) -> None:
        os.kill(self.process.pid, signal.SIGTERM)

    def kill(self) -> None:
        with suppress(PermissionError):  # macOS, where all that is left of the group is its dead leader
            os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self) -> int | None:
        status = self.process.wait()
        return 128 - status if status < 0 else status


def _starter(command: Command, group: GroupPlan, number: int) -> Starter:
    if isinstance(command, InstanceCommand):
        return _Processes(command)
    if callable(command):
        return _Processes(command(group, number))
    return command


class _Stage(Enum):
    """How far a run is towards its end."""

    RUNNING = auto()
    TERMINATED = auto()  # every instance got SIGTERM
    KILLED = auto()  # every instance's group got SIGKILL


class _Running:
    """The instances of one run while they run."""

    def __init__(self, listener: Listener, stop: StopRequest, grace_s: float, timeout_s: float | None) -> None:
        self.instances: list[_Instance] = []
        self.cancelled = ""
        self.started_ns = time.time_ns()
        self._listener = listener
        self._stop = stop
        self._stops_seen = 0
        self._grace_s = grace_s
        self._timeout_s = timeout_s
        self._stage = _Stage.RUNNING
        self._stage_ends_s = None if timeout_s is None else time.monotonic() + timeout_s
        self._open_pipes = 0
        self._selector = selectors.DefaultSelector()
        self._selector.register(stop, selectors.EVENT_READ)

    def start(self, instance: _Instance, starter: Starter, environ: Mapping[str, str]) -> None:
        self.instances.append(instance)
        pipes: list[int] = []
        try:
            for _ in range(2):
                pipes += os.pipe()
            instance.started = starter.start(environ, pipes[1], pipes[3])
        except (OSError, ValueError) as error:  # ValueError: a NUL byte in a parameter
            for fd in pipes:
                os.close(fd)
            instance.why_not_started = f"failed to start: {error}"
            self._print(instance, [Report(Word.INCOMPLETE, instance.why_not_started)])
            return
        for fd, reader in ((pipes[0], instance.stdout), (pipes[2], instance.stderr)):
            os.set_blocking(fd, False)
            self._selector.register(fd, selectors.EVENT_READ, (instance, reader))
            self._open_pipes += 1

    def read_to_the_end(self) -> None:
        while self._open_pipes:
            wait_s = None if self._stage_ends_s is None else max(0.0, self._stage_ends_s - time.monotonic())
            # stderr first: what an instance said before it ended stands before the word that it has ended.
            for key, _ in sorted(self._selector.select(wait_s), key=lambda ready: _is_stdout(ready[0])):
                if key.data is None:
                    self._stop.drain()
                else:
                    self._read(key, *key.data)
            if self._stop.count > self._stops_seen:
                self._stops_seen = self._stop.count
                self.cancelled = self.cancelled or "stopped"
                self._hurry(at_once=self._stops_seen > 1)
            elif self._stage_ends_s is not None and time.monotonic() >= self._stage_ends_s:
                self.cancelled = self.cancelled or f"timed out after {self._timeout_s:g} s"
                self._hurry(at_once=False)
        # Like the daemon: an instance that has closed both streams is not waited for.
        self._kill_all()
        self._reap()

    def group_outcome(self, group: str) -> GroupOutcome:
        found = [instance.outcome().verdict for instance in self.instances if instance.group == group]
        return GroupOutcome(group, found.count(Verdict.OK), len(found))

    def close(self) -> None:
        """Leave no process and no pipe behind, whatever happened."""
        self._kill_all()
        self._reap()
        for key in self._pipes():
            self._close(key)
        self._selector.close()

    def _pipes(self) -> list[selectors.SelectorKey]:
        return [key for key in self._selector.get_map().values() if key.data is not None]

    def _read(self, key: selectors.SelectorKey, instance: _Instance, reader: StdoutReader | StderrReader) -> None:
        try:
            data = os.read(key.fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        self._print(instance, reader.feed(data) if data else reader.end())
        if reader.done or not data:
            # Where the daemon stops reading it closes its end as well: the instance's next write fails.
            self._close(key)

    def _close(self, key: selectors.SelectorKey) -> None:
        self._selector.unregister(key.fileobj)
        self._open_pipes -= 1
        os.close(key.fd)

    def _hurry(self, *, at_once: bool) -> None:
        """Go one step towards the end; `at_once` leaves out the grace time."""
        now_s = time.monotonic()
        if self._stage is _Stage.RUNNING and not at_once:
            self._stage, self._stage_ends_s = _Stage.TERMINATED, now_s + self._grace_s
            self._listener.ending(self._heard(), at_once=False)
            for instance in self._living():
                instance.terminate()
        elif self._stage is not _Stage.KILLED:
            self._stage, self._stage_ends_s = _Stage.KILLED, now_s + _CLOSE_S
            self._listener.ending(self._heard(), at_once=True)
            self._kill_all()
        elif self._stage_ends_s is not None and now_s >= self._stage_ends_s:
            # Processes that left the instances' groups hold these; a run that was told to end does not wait for them.
            for key in self._pipes():
                instance, reader = key.data
                self._print(instance, reader.end())
                self._close(key)

    def _kill_all(self) -> None:
        for started in self._living():
            started.kill()

    def _reap(self) -> None:
        for instance in self.instances:
            if instance.started is not None and instance.exit_status is None:
                instance.exit_status = instance.started.wait()

    def _heard(self) -> int:
        """How many have not closed their streams yet."""
        return len({id(key.data[0]) for key in self._pipes()})

    def _living(self) -> list[Started]:
        return [each.started for each in self.instances if each.started is not None and each.exit_status is None]

    def _print(self, instance: _Instance, reports: list[Report]) -> None:
        if reports:
            self._listener.said(instance.tag, reports, self.started_ns)
