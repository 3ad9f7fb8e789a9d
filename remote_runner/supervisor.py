"""The controller's side of one run: one session from the first byte of the script to the removal of the directory.

`supervisor.sh` says what the other side does and what goes over the wire.
"""

from __future__ import annotations

import enum
import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Self

from remote_runner import far_faults, far_shell
from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import (
    DamagedOutputsError,
    DeadlineError,
    FarShellError,
    HostError,
    HostLostError,
    NoExitStatusError,
    OutputsLimitError,
    RemoteRunnerError,
    SupervisorLostError,
)
from remote_runner.host import Host, Session
from remote_runner.job import Job, Seat, compose, prepare
from remote_runner.marks import AbandonedError, Mark, MarkedReader, mark_for, widen_pipe
from remote_runner.outputs import OutputsReport, unpack

Sink = Callable[[bytes], None]

# How much of what a host says around our own lines is kept, for error messages.
_KEPT_NOISE_BYTES = 4096
# How soon a stop that was asked for from another thread is seen.
_POLL_S = 0.1
# A session that takes no script is none; its pipe holds all of that, unless the user's share of pipe memory is used up.
_SEND_S = 30.0
# How long a stop waits for a start that is on its way.
_START_AFTER_STOP_S = 5.0


class EventKind(enum.Enum):
    """What a supervised run tells while it goes on."""

    STARTED = "started"
    VARIABLES_LEFT_OUT = "variables left out"
    STOPPING = "stopping"
    EXITED = "exited"
    FETCHED = "fetched"
    FETCHED_AGAIN = "fetched again"
    CLEANED = "cleaned"
    KEPT = "kept"


@dataclass(frozen=True)
class SupervisorEvent:
    """One step of a run, with a few words about it."""

    kind: EventKind
    text: str


@dataclass(frozen=True)
class Timings:
    """Points on the monotonic clock, in seconds: application started, ended, outputs here, directory gone."""

    started_s: float
    exited_s: float
    fetched_s: float
    cleaned_s: float


@dataclass(frozen=True)
class RunResult:
    """How a run ended.

    exit_status: as sh says it, so 128 + n for signal n.
    reason: "ended", "stop" (it was asked to end from here), "timeout" (the job's `run_s` was over), "processes" (the
        host had none left to watch it with).
    leftover_processes: how many were still there when the main one had ended; they have been ended.
    outputs_error: why the outputs are not whole; the host then keeps them in `far_directory`.
    sink_error: what `stdout` or `stderr` raised; the application was stopped for it.
    """

    exit_status: int
    reason: str
    leftover_processes: int
    outputs: OutputsReport
    outputs_error: RemoteRunnerError | None
    timings: Timings
    far_directory: str
    kept: bool
    sink_error: BaseException | None = None

    @property
    def signal(self) -> int | None:
        """The signal that ended the application, as far as its exit status tells."""
        return self.exit_status - 128 if 128 < self.exit_status <= 192 else None


class Started:
    """A session in which a host has made ready for a run and waits for the job; `supervise` goes on with it.

    Until then `beat` has to be called every `beat_s` seconds. A context manager that closes the session.
    """

    def __init__(self, session: Session, seat: Seat, shell: str) -> None:
        self.session = session
        self.nonce = far_shell.new_nonce()
        self.beat_s = max(0.3, seat.tolerate_s / 5)
        self.send(prepare(seat, self.nonce, os.urandom(8).hex(), shell), Deadline.after(_SEND_S))

    def beat(self) -> None:
        """Tell the host that somebody is there."""
        with suppress(BrokenPipeError):  # the other streams tell why
            os.write(self.session.stdin_fd, b"beat\n")

    def send(self, data: bytes, deadline: Deadline) -> None:
        """Send the script, or more of it. Raises `DeadlineError`."""
        poll = select.poll()
        poll.register(self.session.stdin_fd, select.POLLOUT)
        view = memoryview(data)
        while view:
            timeout_s = deadline.timeout_s
            if not poll.poll(None if timeout_s is None else timeout_s * 1000):
                deadline.check(f"{self.session.host}: sending the supervisor")
                continue
            try:
                # A pipe that is ready takes at least PIPE_BUF bytes at once.
                view = view[os.write(self.session.stdin_fd, view[: select.PIPE_BUF]) :]
            except BrokenPipeError:
                return  # the reason comes on the other streams

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()


def start_run(host: Host, seat: Seat, shell: str = far_shell.SHELL) -> Started:
    """Open the session of a run; that does not wait for the host. Raises what connecting to it raises."""
    session = host.start_session(far_shell.far_stdin(shell))
    try:
        return Started(session, seat, shell)
    except BaseException:
        session.close()
        raise


def supervise(
    started: Started,
    job: Job,
    *,
    stdout: Sink,
    stderr: Sink,
    outputs_dir: Path,
    stop: threading.Event,
    on_event: Callable[[SupervisorEvent], None] = lambda event: None,
    host: Host | None = None,
) -> RunResult:
    """Run a job in a session that was started for its `seat`.

    `stdout` and `stderr` are called from a thread each, with the application's bytes as they come; while one does
    not return, no more is read of its stream. `stop` set ends the application (TERM, grace, KILL) and fetches
    what there is. With `host`, outputs that arrive damaged are fetched again in a session of its own.

    Raises what keeps the application from starting (`ArtifactMissingError`, `ProgramUnusableError`,
    `NoFarDirectoryError`, `NoRoomError`, `InstanceExistsError`, …), and `SupervisorLostError` when the session ends
    while the application runs. What goes wrong later, or in a sink, is in the result.
    """
    run = _Run(started, job, stdout, stderr, outputs_dir, on_event, stop)
    result = run.run()
    if host is not None and isinstance(result.outputs_error, DamagedOutputsError):
        result = _fetch_again(host, job, outputs_dir, on_event, result)
    return result


@dataclass
class _Progress:
    """What the host has said so far; points on the monotonic clock, 0 until then."""

    started_s: float = 0.0
    exited_s: float = 0.0
    fetched_s: float = 0.0
    exit_status: int = 0
    leftover: int = 0
    reason: str = ""
    problem: str = ""
    report: OutputsReport = field(default_factory=OutputsReport)
    outputs_error: RemoteRunnerError | None = None
    kept: bool = True
    stopping: str = ""
    is_done: bool = False


class _Run:
    def __init__(
        self,
        started: Started,
        job: Job,
        stdout: Sink,
        stderr: Sink,
        outputs_dir: Path,
        on_event: Callable[[SupervisorEvent], None],
        stop: threading.Event,
    ) -> None:
        self._started = started
        self._session = started.session
        self._mark = mark_for(started.nonce)
        self._beat_s = started.beat_s
        self._job = job
        self._sinks = {"stdout": stdout, "stderr": stderr}
        self._outputs_dir = outputs_dir
        self._on_event = on_event
        self._stop = stop
        self._news: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._noise = {"stdout": b"", "stderr": b""}
        self._far_messages = b""
        self._sink_error: BaseException | None = None
        self._far_directory = ""
        self._has_enough = False

    def run(self) -> RunResult:
        deadline = Deadline.after(self._job.start_s)
        self._session.wait_opened(deadline)
        widen_pipe(self._session.stdout_fd)
        wake_read, wake_write = os.pipe()
        threads = [
            threading.Thread(target=self._thread, args=(body, os.dup(fd), wake_read), daemon=True)
            for body, fd in (
                (self._read_stdout, self._session.stdout_fd),
                (self._read_stderr, self._session.stderr_fd),
            )
        ]
        for thread in threads:
            thread.start()
        try:
            self._started.send(compose(self._job), deadline)
            progress = self._follow(deadline)
            if progress.is_done and not self._has_enough:
                threads[1].join(5.0)  # its last mark was written before the last one of stdout
        finally:
            os.write(wake_write, b"x")
            for thread in threads:
                thread.join(5.0)
            # A sink that hangs keeps its thread, which may come back and look at the pipe.
            if not any(thread.is_alive() for thread in threads):
                os.close(wake_read)
            os.close(wake_write)
        return self._result(progress)

    def _result(self, progress: _Progress) -> RunResult:
        said = self._far_messages.decode("utf-8", "replace")
        if progress.problem:
            raise far_faults.program_error(
                self._session.host, progress.problem, os.fsdecode(self._job.argv[0]), self._heard_last
            )
        now_s = time.monotonic()
        self._tell(EventKind.KEPT if progress.kept else EventKind.CLEANED, self._far_directory)
        return RunResult(
            progress.exit_status,
            progress.stopping or progress.reason,
            progress.leftover,
            replace(progress.report, far_messages=tuple(said.splitlines())),
            progress.outputs_error,
            Timings(progress.started_s, progress.exited_s, progress.fetched_s or now_s, now_s),
            self._far_directory,
            progress.kept,
            self._sink_error,
        )

    # --- the main thread: signs of life, stop, and the order of things ---

    def _follow(self, deadline: Deadline) -> _Progress:
        progress = _Progress()
        next_beat_s = 0.0
        while not progress.is_done:
            now_s = time.monotonic()
            if not progress.started_s and self._stop.is_set():
                # Most often the start is on its way, and an orderly end with it; a login shell that hangs is left.
                deadline = min(deadline, Deadline.after(_START_AFTER_STOP_S), key=lambda each: each.at_s)
            if progress.started_s and not progress.exited_s and not progress.stopping:
                progress.stopping = self._wish_to_stop(deadline)
                if progress.stopping:
                    next_beat_s = now_s
                    self._tell(EventKind.STOPPING, f"TERM, and KILL after {self._job.grace_s:g} s")
                    deadline = Deadline.after(4 * self._job.grace_s + self._job.tolerate_s + 10)
            if progress.started_s and now_s >= next_beat_s:
                next_beat_s = now_s + self._beat_s
                # Repeated: a signal that comes while the timer there sets up its traps is not heard.
                self._say(b"beat\nstop\n" if progress.stopping and not progress.exited_s else b"beat\n")
            running = progress.started_s and not progress.exited_s and not progress.stopping
            if deadline.expired and not running:
                self._too_late(progress, deadline)
                break
            try:
                self._session.check_carrier()
            except HostLostError as error:
                self._stands_still(progress, error)
                break
            try:
                kind, value = self._news.get(timeout=min(_POLL_S, max(0.001, deadline.remaining_s)))
            except Empty:
                continue
            before = (progress.started_s, progress.exited_s)
            try:
                self._take_news(progress, kind, value)
            except (ValueError, IndexError) as error:
                raise FarShellError(
                    self._session.host,
                    f"what the supervisor there says is not what ours says: {error}",
                    next_step="look at what runs there in its place",
                ) from error
            if progress.started_s and not before[0]:
                deadline = Deadline.after(self._job.run_s)
                next_beat_s = progress.started_s + self._beat_s
            if progress.exited_s and not before[1]:
                deadline = Deadline.after(self._job.fetch_s)
        return progress

    def _wish_to_stop(self, run_deadline: Deadline) -> str:
        if self._stop.is_set() or self._sink_error is not None:
            return "stop"
        return "timeout" if run_deadline is not NEVER and run_deadline.expired else ""

    def _take_news(self, progress: _Progress, kind: str, value: Any) -> None:
        if kind == "error":
            raise value
        if kind == "end":
            self._ended_early(progress)
        elif kind == "fault":
            raise far_faults.fault(self._session.host, self._job.instance_id, value)
        elif kind == "start":
            progress.started_s = time.monotonic()
            self._far_directory = value.rest(1)
            if self._job.unnameable:
                self._tell(EventKind.VARIABLES_LEFT_OUT, ", ".join(self._job.unnameable))
            self._tell(EventKind.STARTED, self._far_directory)
        elif kind == "exit":
            progress.exited_s = time.monotonic()
            progress.exit_status, progress.leftover = int(value.words[1]), int(value.words[2])
            progress.reason, progress.problem = value.words[3].decode(), value.rest(4)
            self._tell(EventKind.EXITED, _exit_text(progress.exit_status, progress.leftover))
        elif kind == "tar":
            mark, progress.report, progress.outputs_error = value
            progress.fetched_s = time.monotonic()
            status = int(mark.words[1])
            if status > 1 and progress.outputs_error is None:  # 1: GNU tar, a file changed while it was read
                progress.outputs_error = FarShellError(
                    self._session.host,
                    f"tar ended with status {status}, so the outputs may not be whole",
                    stderr=self._far_messages.decode("utf-8", "replace"),
                    next_step="the host keeps them: fab fetch brings what it can read",
                )
            keep = self._job.keep or progress.outputs_error is not None
            self._say(b"bye keep\n" if keep else b"bye clean\n")
            self._tell(EventKind.FETCHED, f"{progress.report.files} files, {progress.report.size_bytes} bytes")
        elif kind == "enough":
            progress.outputs_error = value
            progress.fetched_s = time.monotonic()
            self._say(b"bye keep\n")
            progress.is_done = True
        elif kind == "done":
            progress.is_done = True
            progress.kept = value.words[1] != b"cleaned"
            if not progress.fetched_s:
                progress.outputs_error = self._lost("the host heard nothing from here for too long and ended it all")

    def _tell(self, kind: EventKind, text: str) -> None:
        self._on_event(SupervisorEvent(kind, text))

    def _say(self, line: bytes) -> None:
        """A short line to the supervisor; not where nobody takes it: the other streams tell why."""
        poll = select.poll()
        poll.register(self._session.stdin_fd, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            with suppress(BrokenPipeError):
                os.write(self._session.stdin_fd, line)

    # --- the reading threads ---

    def _thread(self, body: Callable[[MarkedReader], None], fd: int, wake_fd: int) -> None:
        try:
            body(MarkedReader(fd, self._mark, wake_fd))
        except AbandonedError:
            pass
        except BaseException as error:  # noqa: BLE001 (raised again by the main thread)
            self._news.put(("error", error))
        finally:
            os.close(fd)  # its own: a thread whose sink hangs outlives the session's

    def _read_stdout(self, reader: MarkedReader) -> None:
        first = self._skip_noise("stdout", reader)
        if first is None or first.kind != "start":
            self._news.put((first.kind, first) if first else ("end", None))
            return
        self._news.put(("start", first))
        ended = self._pass_on("stdout", reader)
        if ended is None:
            self._news.put(("end", None))
            return
        self._news.put(("exit", ended))
        after: Mark | None = None
        if ended.words[3] != b"lost":
            after = self._take_outputs(reader, f"{first.rest(1)}/outputs")
            if self._has_enough:
                return
        while after is None or after.kind != "done":
            item = reader.read()
            if item is None:
                self._news.put(("end", None))
                return
            if isinstance(item, Mark):
                after = item
        self._news.put(("done", after))

    def _take_outputs(self, reader: MarkedReader, far_outputs: str) -> Mark | None:
        """Unpack what comes; tells of it, and returns the mark behind it."""
        stream = _Outputs(reader)
        chunks = iter(stream)
        report, error = OutputsReport(), None
        try:
            report = unpack(
                chunks,
                self._outputs_dir,
                host=self._session.host,
                far_outputs=far_outputs,
                limit_bytes=self._job.outputs_limit_bytes,
            )
        except HostError as problem:
            error = problem
        if isinstance(error, OutputsLimitError):
            # The rest, of which nobody knows how much it is, stays where it is.
            self._has_enough = True
            self._news.put(("enough", error))
            return None
        for _ in iter(stream):  # what was not wanted any more
            pass
        if stream.mark is not None and stream.mark.kind == "tar":
            self._news.put(("tar", (stream.mark, report, error)))
        return stream.mark

    def _read_stderr(self, reader: MarkedReader) -> None:
        if self._skip_noise("stderr", reader) is None or self._pass_on("stderr", reader) is None:
            return
        while isinstance(item := reader.read(), bytes):
            if len(self._far_messages) < _KEPT_NOISE_BYTES:
                self._far_messages += item

    def _skip_noise(self, name: str, reader: MarkedReader) -> Mark | None:
        """What a login shell says before our first line; kept for error messages."""
        while isinstance(item := reader.read(), bytes):
            self._noise[name] = (self._noise[name] + item)[-_KEPT_NOISE_BYTES:]
        return item

    def _pass_on(self, name: str, reader: MarkedReader) -> Mark | None:
        sink = self._sinks[name]
        while True:
            item = reader.read()
            if not isinstance(item, bytes):
                return item
            if name == "stderr":
                self._heard_last = item[-_KEPT_NOISE_BYTES:].decode("utf-8", "replace")
            if self._sink_error is None:
                try:
                    sink(item)
                except BaseException as error:  # noqa: BLE001 (raised by the main thread, after the application's end)
                    self._sink_error = error

    _heard_last = ""

    # --- what went wrong ---

    def _ended_early(self, progress: _Progress) -> None:
        """The streams ended before the last mark: raises why, or notes it where the application had ended."""
        try:
            status: int | None = self._session.wait_exit(Deadline.after(10.0))
        except DeadlineError:
            status = None
        except (HostLostError, NoExitStatusError) as error:
            if not progress.started_s:
                raise
            self._note_lost(progress, str(error))
            return
        how = "without a status" if status is None else f"with status {status}"
        if progress.started_s:
            self._note_lost(progress, f"the supervisor there ended {how}")
            return
        raise FarShellError(
            self._session.host,
            f"the session ended {how} before the supervisor began",
            stderr=self._said(),
            next_step=f"see what 'ssh {self._session.host} /bin/sh -c true' says: a host without a usable sh, or whose "
            "sshd_config has a ForceCommand for this login, cannot be used",
        )

    def _note_lost(self, progress: _Progress, reason: str) -> None:
        if not progress.exited_s:
            raise self._lost(reason)
        if not progress.fetched_s:
            progress.outputs_error = self._lost(reason)
        progress.is_done = True

    def _stands_still(self, progress: _Progress, error: HostLostError) -> None:
        if not progress.started_s:
            raise error
        self._note_lost(progress, str(error))

    def _too_late(self, progress: _Progress, deadline: Deadline) -> None:
        host = self._session.host
        if not progress.started_s:
            raise FarShellError(
                host,
                f"the supervisor did not begin within {deadline.budget_s:g} s",
                stderr=self._said(),
                next_step="a start-up file of the login shell there may wait for something, or a ForceCommand in its "
                "sshd_config may run something else",
            )
        if not progress.exited_s:
            raise self._lost(f"the application was told to end, and did not within {deadline.budget_s:g} s")
        if not progress.fetched_s:
            progress.outputs_error = self._lost(f"the outputs did not come within {deadline.budget_s:g} s")

    def _lost(self, reason: str) -> SupervisorLostError:
        return SupervisorLostError(self._session.host, self._far_directory, reason)

    def _said(self) -> str:
        return (self._noise["stdout"] + b"\n" + self._noise["stderr"]).decode("utf-8", "replace")


class _Outputs:
    """The bytes of the tar stream, up to the mark behind it; `mark` is that mark, or `None` at the stream's end."""

    def __init__(self, reader: MarkedReader) -> None:
        self._reader = reader
        self._is_over = False
        self.mark: Mark | None = None

    def __iter__(self) -> Iterator[bytes]:
        while not self._is_over:
            item = self._reader.read()
            if isinstance(item, bytes):
                yield item
            else:
                self.mark = item
                self._is_over = True


def _fetch_again(
    host: Host, job: Job, outputs_dir: Path, on_event: Callable[[SupervisorEvent], None], result: RunResult
) -> RunResult:
    """Outputs that came damaged (a process that got away wrote among them), in a session where nothing else writes."""
    from remote_runner.leftovers import fetch_run, remove_runs

    try:
        report = fetch_run(
            host, job.instance_id, outputs_dir, directory=job.directory, limit_bytes=job.outputs_limit_bytes
        )
    except RemoteRunnerError as error:
        return replace(result, outputs_error=error)
    fetched_s = time.monotonic()
    on_event(SupervisorEvent(EventKind.FETCHED_AGAIN, str(result.outputs_error)))
    if not job.keep:
        remove_runs(host, (job.instance_id,), end_alive=True, directory=job.directory)
        on_event(SupervisorEvent(EventKind.CLEANED, result.far_directory))
    timings = replace(result.timings, fetched_s=fetched_s, cleaned_s=time.monotonic())
    return replace(result, outputs=report, outputs_error=None, timings=timings, kept=job.keep)


def _exit_text(status: int, leftover: int) -> str:
    how = f"signal {status - 128}" if 128 < status <= 192 else f"status {status}"
    return f"{how}, {leftover} processes left behind and ended" if leftover else how
