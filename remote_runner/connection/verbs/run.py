"""One application on a host, from its start to the removal of its directory."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from remote_runner.cancellation import Cancellation
from remote_runner.connection.link import Link, Stream, StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.command import STDERR_LANE, STDIN_LANE, STDOUT_LANE, status_of
from remote_runner.connection.verbs.fetch import Allowance, Source, receive_outputs
from remote_runner.connection.verbs.job import Job, Window
from remote_runner.connection.verbs.validation import nonsense, part, real, whole, words
from remote_runner.errors import DeadlineError, HostError, HostLostError, RemoteRunnerError
from remote_runner.outputs import OutputsReport

Sink = Callable[[bytes], Awaitable[None]]

_REASONS = ("ended", "stop", "timeout", "lost", "processes")
# How long the host may take to end processes and say so, beyond TERM, grace and KILL.
_ENDING_S = 30.0
# A stream that has said so much may have as much on its way.
_MUCH_BYTES = 1 << 20


class Left(enum.Enum):
    """What is left of a run's directory on its host, as far as the host has looked."""

    NOTHING = "nothing left there"
    KEPT = "kept there"
    UNSEEN = "not removed there"


_LEFT = {"kept": Left.KEPT, "gone": Left.NOTHING, "unseen": Left.UNSEEN}


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
    outputs_bytes: how many bytes come for its outputs, about, where the host said so.
    sink_error: what `stdout` or `stderr` raised; the application was stopped for it.
    """

    exit_status: int
    reason: str
    leftover_processes: int
    untold_processes: int = 0
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    cut_lines: int = 0
    outputs_bytes: int | None = None
    sink_error: Exception | None = None

    @property
    def signal(self) -> int | None:
        """The signal that ended the application, as far as its exit status tells."""
        return self.exit_status - 128 if 128 < self.exit_status <= 192 else None


def exited_of(host: str, said: Mapping[str, Any], sink_error: Exception | None = None) -> Exited:
    """The end that a message describes. Raises `FarShellError` if it does not describe one."""
    reason = said.get("reason")
    if reason not in _REASONS:
        raise nonsense(host, said)
    used_s = [real(said.get(key)) for key in ("utime_s", "stime_s")]
    cut = said.get("cut")
    counts = [whole(count) or 0 for count in cut.values()] if isinstance(cut, dict) else []
    return Exited(
        status_of(host, said),
        reason,
        whole(said.get("left")) or 0,
        whole(said.get("untold")) or 0,
        None if None in used_s else sum(used for used in used_s if used is not None),
        whole(said.get("max_rss")),
        sum(counts),
        whole(said.get("outputs")),
        sink_error,
    )


def _look_at(task: asyncio.Task[None]) -> None:
    """The reader of the other stream reports its error."""
    if not task.cancelled():
        task.exception()


class Run:
    """An application that a host has started. `directory` is the run's there."""

    def __init__(self, host: str, job: Job, stream: Stream, base: str, allowance: Allowance) -> None:
        self._host = host
        self._job = job
        self._stream = stream
        self._allowance = allowance
        self._sink_error: Exception | None = None
        self._is_stopping = False
        self._is_asking = False  # the host waits for the word whether the directory shall go
        self._follow_limit: asyncio.Timeout | None = None
        self.directory = f"{base}/runs/{job.instance_id}"

    @classmethod
    async def start(cls, link: Link, job: Job, base: str, allowance: Allowance, *, stdin: bool = False) -> Self:
        """Ask for the application and return once it runs.

        Raises what keeps it from starting (`ArtifactMissingError` or another `HostError`), `HostLostError`,
        `DeadlineError` after the job's `start_s`.
        """
        head, fields = job.request(stdin=stdin)
        stream: Stream | None = None
        try:
            async with asyncio.timeout(job.start_s):
                stream = await link.request(head, *fields)
                part(link.name, (await stream.receive()).head, "started")
        except BaseException as error:
            if stream is not None:
                await stream.close()
            if isinstance(error, StreamClosed):
                raise faults.run_fault(link.name, job, error) from error
            if isinstance(error, TimeoutError):
                raise DeadlineError(f"{link.name}: starting the application", job.start_s) from error
            raise
        return cls(link.name, job, stream, base, allowance)

    async def follow(self, stdout: Sink, stderr: Sink, stop: Cancellation | None = None) -> Exited:
        """Hand on what the application says until it, and all that it left, has ended; `stop` ends it.

        While a sink does not return, no more is taken of its stream; where one raises, the application is stopped.
        Raises `HostLostError` when nobody can tell how it ended, `HostError` where it could not be started.
        """
        other = asyncio.create_task(self._pass_on(STDERR_LANE, stderr))
        with ExitStack() as stack:
            other.add_done_callback(_look_at)
            stack.callback(other.cancel)
            if stop is not None:
                stack.enter_context(self._stopped_by(stop))
            try:
                async with asyncio.timeout(self._may_take_s()) as self._follow_limit:
                    await self._pass_on(STDOUT_LANE, stdout)
                    await other
                    said = part(self._host, (await self._stream.receive()).head, "exited")
            except TimeoutError:
                raise self._lost("the application should have ended, and nobody there says that it did") from None
            except StreamClosed as closed:
                raise self._failed(closed) from closed
            except HostLostError as error:
                raise self._lost(error) from error
            finally:
                self._follow_limit = None
        if problem := faults.problem_of(said.get("problem")):
            built = self._job.artifact is not None
            raise faults.program_error(self._host, problem, self._job.words, built=built)
        return exited_of(self._host, said, self._sink_error)

    async def fetch(
        self,
        outputs_dir: Path,
        *,
        limit_bytes: int | None = None,
        umask: int | None = None,
        taken: Callable[[int], None] | None = None,
    ) -> OutputsReport:
        """Bring the outputs into `outputs_dir`, once the application has ended; `umask` holds for what is made.

        taken: hears how many bytes have come, where they are many.

        Raises an `OutputsError` where not all of them came, `HostLostError`; the host then keeps them.
        """
        source = Source(self._host, self._job.instance_id, f"{self.directory}/outputs", umask)
        limit_bytes = self._job.outputs_limit_bytes if limit_bytes is None else limit_bytes
        try:
            async with asyncio.timeout(self._job.fetch_s):
                return await receive_outputs(
                    self._stream, source, outputs_dir, limit_bytes, self._allowance, taken, self._has_sent
                )
        except TimeoutError:
            raise self._lost(f"the outputs did not come within {self._job.fetch_s:g} s") from None
        except HostLostError as error:
            raise self._lost(error) from error

    def _has_sent(self) -> None:
        self._is_asking = True

    async def clean(self) -> Left:
        """Have the host remove the run's directory."""
        await self._conclude("clean", "cleaned")
        return Left.NOTHING

    async def keep(self) -> Left:
        """Leave the run's directory on the host, whether its outputs have come or not; what is there then."""
        if self._is_asking:
            return _LEFT[await self._conclude("keep", *_LEFT)]
        await self._stream.close()
        return Left.UNSEEN

    async def stop(self, reason: str) -> None:
        """End the application: TERM, the job's `grace_s`, KILL. `follow` then tells how it ended."""
        if not self._is_stopping:
            self._is_stopping = True
            if self._follow_limit is not None:
                self._follow_limit.reschedule(asyncio.get_running_loop().time() + self._ending_s)
            with suppress(StreamClosed):  # `follow` tells why
                await self._stream.send({"stop": reason})

    async def write_stdin(self, data: bytes) -> None:
        """Hand bytes to the application, which was started with `stdin`."""
        await self._stream.write(STDIN_LANE, data)

    async def end_stdin(self) -> None:
        await self._stream.end(STDIN_LANE)

    async def resize(self, window: Window) -> None:
        """Tell the application's terminal its new size."""
        with suppress(StreamClosed, HostLostError):  # `follow` tells why
            await self._stream.send({"window": window._asdict()})

    async def close(self) -> None:
        """Let go of it: what still runs is ended, and its directory stays."""
        await self._stream.close()

    @property
    def _ending_s(self) -> float:
        return 4 * self._job.grace_s + _ENDING_S

    def _may_take_s(self) -> float | None:
        if self._is_stopping:
            return self._ending_s
        return None if self._job.run_s is None else self._job.run_s + self._ending_s

    async def _pass_on(self, lane: int, sink: Sink) -> None:
        size_bytes = granted_bytes = 0
        try:
            while data := await self._stream.read(lane):
                size_bytes += len(data)
                if not granted_bytes and size_bytes > _MUCH_BYTES:
                    granted_bytes = self._allowance.take(_MUCH_BYTES)
                    self._stream.grant(lane, granted_bytes)
                if self._sink_error is None:
                    try:
                        await sink(data)
                    except Exception as error:  # noqa: BLE001 (told when the application has ended)
                        self._sink_error = error
                        await self.stop("stop")
        finally:
            self._allowance.give_back(granted_bytes)

    @contextmanager
    def _stopped_by(self, stop: Cancellation) -> Iterator[None]:
        """In the body, `stop` stops the application."""
        tasks: list[asyncio.Task[None]] = []
        try:
            with stop.telling(lambda: tasks.append(asyncio.create_task(self.stop(stop.reason)))):
                yield
        finally:
            for task in tasks:
                task.cancel()

    async def _conclude(self, request: str, *answers: str) -> str:
        try:
            async with asyncio.timeout(self._job.fetch_s):
                await self._stream.send({request: True})
                head = (await self._stream.receive()).head
        except TimeoutError:
            what = "removing" if request == "clean" else "leaving"
            raise DeadlineError(f"{self._host}: {what} {self.directory}", self._job.fetch_s) from None
        except StreamClosed as closed:
            raise faults.run_fault(self._host, self._job, closed) from closed
        finally:
            await self._stream.close()
        if problem := words(head.get("problem")):
            raise HostError(
                self._host,
                f"{self.directory} cannot be removed there",
                stderr=problem,
                next_step=f"fab clean -H {self._host} --run {self._job.instance_id} tries it again",
            )
        if answer := next((one for one in answers if head.get(one)), ""):
            return answer
        raise nonsense(self._host, head)

    def _failed(self, closed: StreamClosed) -> RemoteRunnerError:
        if closed.kind in ("", "ended"):
            return self._lost("the agent there ended")
        return faults.run_fault(self._host, self._job, closed)

    def _lost(self, why: str | HostLostError) -> HostLostError:
        first, *lines = str(why).splitlines()
        said = "\n".join(line.removeprefix("  | ") for line in lines if line.startswith("  | "))
        of_run = f"-H {self._host} --run {self._job.instance_id}"
        return HostLostError(
            self._host,
            f"{first.removeprefix(f'{self._host}: ')}; what the application wrote was in {self.directory}",
            stderr=said,
            next_step=f"fab fetch {of_run} brings what is there, fab clean {of_run} removes it",
        )
