"""A client of a host's agent: each verb of docs/protocol.md as a method, its failures as our errors."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, Self

from remote_runner.connection.link import Greeting, Link, Stream, StreamClosed
from remote_runner.connection.transports.login import login_socket
from remote_runner.connection.transports.ssh import SshTransport
from remote_runner.connection.transports.transport import CommandTransport, LocalTransport, Transport
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.forwards import Listener, Listeners, LocalForward, Relayed
from remote_runner.connection.verbs.validation import nonsense, pairs, part, whole, words
from remote_runner.connection.workers import FILES
from remote_runner.controller import Controller
from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import DeadlineError, FarShellError, HostError
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.systems import System
from remote_runner.outputs import DEFAULT_LIMIT_BYTES
from remote_runner.progress import Building, Built, Tell, nobody

if TYPE_CHECKING:
    from remote_runner.connection.verbs.command import Command
    from remote_runner.connection.verbs.facts import HostFacts
    from remote_runner.connection.verbs.fetch import Allowance
    from remote_runner.connection.verbs.job import Job
    from remote_runner.connection.verbs.leftovers import FarRuns, LeftArtifact, Removal
    from remote_runner.connection.verbs.run import Run
    from remote_runner.outputs import OutputsReport

_LANE = 0
# What a request may take that says little; removing a large directory is slow on some disks.
_REQUEST_S = 300.0
# What a host may say in answer to one request. A run's record has less than 4 KiB.
_MOST_SAID_BYTES = 16 << 20
_CLOCK_LOOKS = 3
_FACTS_S = 20.0  # an agent gives up on what does not answer it sooner
# An artifact that is no larger goes with the question whether it is there: that is quicker than another round trip on
# lines of 2 Mbit/s and more. Each of its files has a header in the tar stream.
_AT_ONCE_BYTES = 24 << 10
_TAR_BYTES = 1 << 10

Failed = Callable[[StreamClosed], HostError]


@dataclass(frozen=True)
class FarFile:
    """A file on a host that is being read."""

    path: PurePosixPath
    mode: int
    size_bytes: int


class Elsewhere(Protocol):
    """Another way than the connection by which an artifact may come to a host."""

    @property
    def file(self) -> str:
        """What it comes to there, as a tar stream."""

    async def came(self) -> bool:
        """The host asks for it: whether it is there, which may take some time."""

    def leave(self) -> None:
        """The host does not ask for it."""


class Agent:
    """The agent of one host, connected. Methods may be called by many tasks at once."""

    def __init__(self, link: Link, listeners: Listeners, allowance: Allowance) -> None:
        self._link = link
        self._listeners = listeners
        self._allowance = allowance
        self.name = link.name

    @classmethod
    async def connect(
        cls,
        entry: HostEntry,
        controller: Controller,
        environ: Mapping[str, str],
        deadline: Deadline,
        meanwhile: Callable[[], object] | None = None,
        tell: Tell = nobody,
    ) -> Self:
        """Reach the host as the inventory says; `meanwhile` is called during the login.

        `tell` hears of the build of the agent's program, where it has to be built first. Raises the `HostError` that
        says why that is not possible.
        """

        async def program(system: System) -> Path:
            from remote_runner.cancellation import in_thread
            from remote_runner.connection.bootstrap.program import program_for

            ours = ("the agent", str(system))
            work = partial(program_for, system, controller, environ, began=lambda log: tell(Building(*ours, log)))
            try:
                return await in_thread(lambda no: work(cancellation=no), "nobody waits for the host any more")
            finally:
                tell(Built(*ours))

        listeners = Listeners()
        link = await Link.open(
            _transport(entry, controller, environ),
            name=entry.name,
            directory=entry.directory or "",
            tolerate_s=entry.tolerate_s,
            connect_s=entry.timeouts.connect_s,
            program=program,
            on_open=listeners.accept,
            meanwhile=meanwhile,
            deadline=deadline,
        )
        from remote_runner.connection.verbs.fetch import Allowance

        return cls(link, listeners, Allowance())

    @property
    def greeting(self) -> Greeting:
        """What the agent said of itself."""
        return self._link.greeting

    @property
    def system(self) -> System:
        return self._link.greeting.system

    async def why_ended_there(self) -> str:
        """Why the way to the host, such as a Slurm job, ended what ran there; "" where it did not."""
        return await self._link.why_ended_there()

    @property
    def address(self) -> str:
        """The address by which this machine reached the host."""
        return self._link.address

    @property
    def attempts(self) -> int:
        """How often a login was tried."""
        return self._link.attempts

    @property
    def is_lost(self) -> bool:
        """Whether the connection has been given up."""
        return self._link.lost.done()

    def check_system(self, entry: HostEntry, wanted: System) -> None:
        """Raise `HostError` unless the host runs what is built for that system."""
        if self.system.runs(wanted):
            return
        if entry.system == wanted:
            why = f"inventory.yaml says that it is {wanted}"
            next_step = f"correct `system` of {entry.name} in inventory.yaml, or leave it out: then the host is asked"
        else:
            why = f"the artifact is for {wanted}"
            next_step = (
                f"correct --arch, or `arch` of {entry.name} in the remote-runners param, or leave it out; "
                "where neither says so, run it again: it was that system when it was last asked"
            )
        raise HostError(entry.name, f"{why}, and the host says that it is {self.system}", next_step=next_step)

    def reconnect_with(self, environ: Mapping[str, str]) -> None:
        """After a cut, connect anew with these variables: the youngest instance's ssh agent is the one that lives."""
        self._link.reconnect_with(environ)

    async def close(self) -> None:
        """End the connection; what still runs there is ended."""
        await self._link.close()

    # --- instances ---

    async def start_run(self, job: Job, *, stdin: bool = False) -> Run:
        """Start an application; see `Run.start` for what is raised."""
        from remote_runner.connection.verbs.run import Run

        return await Run.start(self._link, job, str(self.greeting.base), self._allowance, stdin=stdin)

    async def push_artifact(
        self,
        artifact_hash: str,
        size_bytes: int,
        files: int,
        limit_bytes: int,
        chunks: Callable[[], Iterator[bytes]],
        *,
        deadline: Deadline = NEVER,
        sent: Callable[[int], None] | None = None,
        elsewhere: Elsewhere | None = None,
    ) -> tuple[PurePosixPath, bool, int]:
        """Bring content to the host, unless it has it: where it lies, whether it did before, how many bytes were sent.

        chunks: makes the tar stream of `tar_content(…, prefix="c")`, read in a thread; sent: told how many bytes of it
        are on their way. Raises a `PushFailedError`, `DeadlineError`, and what `chunks` raises.
        """
        head = {"verb": "artifact", "hash": artifact_hash, "size": size_bytes, "files": files, "limit": limit_bytes}
        if elsewhere is not None:
            head["file"] = elsewhere.file
        failed = partial(faults.push_fault, self.name)
        async with self.asked(f"push to {self.name}", head, failed=failed, within_s=deadline.timeout_s) as stream:
            sent_bytes = 0
            if size_bytes + files * _TAR_BYTES <= _AT_ONCE_BYTES:
                with suppress(StreamClosed):  # it is there, or cannot be taken
                    sent_bytes = await send_chunks(stream, chunks(), sent)
            answer = (await stream.receive()).head
            if elsewhere is not None and answer.get("waits") is True:
                elsewhere.leave()
                answer = (await stream.receive()).head
            if answer.get("send") is True:
                if elsewhere is not None and await elsewhere.came():
                    await stream.end(_LANE)
                    sent_bytes = size_bytes
                else:
                    sent_bytes = sent_bytes or await send_chunks(stream, chunks(), sent)
                answer = (await stream.receive()).head
        present = "done" not in answer
        path = words(answer.get("have" if present else "done"))
        if not path:
            raise nonsense(self.name, answer)
        return PurePosixPath(path), present, 0 if present else sent_bytes

    # --- forwards ---

    async def listen(
        self,
        near: Endpoint,
        port: int = 0,
        *,
        any_user: bool = False,
        everywhere: bool = False,
        told: Callable[[str], None] = lambda words: None,
        by_port: dict[int, Relayed] | None = None,
    ) -> Listener:
        """Make `near`, dialled from this machine, reachable at a port (0: any) of the host's loopback.

        everywhere: at all its addresses instead, for whoever reaches these (with `any_user`).
        told: gets words about who was not let in, and why dialling failed.
        by_port: is kept to who is behind each connection, by its port here; the host then says of which run it is.
        Raises `PortTakenError`.
        """
        head = {"verb": "listen", "port": port, "any_user": any_user}
        if everywhere:
            head["everywhere"] = True
        if by_port is not None:
            head["tell_runs"] = True
        stream = await self._link.request(head)
        listener = Listener(self.name, stream, near, told, self._listeners, {} if by_port is None else by_port)
        await listener.open(port)
        return listener

    async def whose(self, port: int, service_port: int) -> str:
        """The instance (as hosts call it) whose connection over that machine's loopback this is; "" for none."""
        head = {"verb": "whose", "near": port, "far": service_port}
        async with self.asked(f"asking {self.name} whose a connection is", head) as stream:
            return words((await stream.receive()).head.get("run"))

    async def forward_local(self, far: Endpoint, port: int = 0) -> LocalForward:
        """Make `far`, dialled from the host, reachable at a port (0: any) of this machine's loopback.

        Raises `PortTakenError`.
        """
        forward = LocalForward(self._link, far)
        await forward.open(port)
        return forward

    async def dial(self, far: Endpoint, size_bytes: int, *, within_s: float) -> bytes:
        """What `far`, dialled from the host, says first, up to so many bytes; less where it ends before.

        Raises `HostError` with the host's words where it cannot be reached, `DeadlineError`.
        """

        def refused(closed: StreamClosed) -> HostError:
            return HostError(self.name, words(closed.text) or "it cannot be dialled")

        head = {"verb": "dial", "host": far.host, "port": far.port}
        async with self.asked(f"dialling {far}", head, failed=refused, within_s=within_s) as stream:
            await stream.receive()
            said = b""
            while len(said) < size_bytes and (data := await stream.read(_LANE)):
                said += data
            return said

    # --- programs ---

    async def execute(
        self, argv: Sequence[str], *, env: Mapping[str, str | bytes] | None = None, cwd: str = ""
    ) -> Command:
        """Start a program in the login's environment and `env`, in `cwd` ("" is the home)."""
        from remote_runner.connection.verbs.command import Command

        return await Command.start(self._link, argv, env or {}, cwd)

    # --- what is there ---

    async def facts(self, *what: str) -> dict[str, Any]:
        """What the host says of itself: an object for each fact of docs/protocol.md that it could tell, unchecked."""
        head = {"verb": "facts", "what": list(what)}
        async with self.asked(f"asking {self.name} what it is", head) as stream:
            return (await stream.receive()).head

    async def watch(self, every_s: float) -> Stream:
        """The stream of the verb `watch`: samples, and looks at clock and host."""
        return await self._link.request({"verb": "watch", "every_s": every_s})

    async def host_facts(self) -> HostFacts:
        """What the host is. Its clock is looked at a few times, for a line has its delays."""
        from remote_runner.connection.verbs.facts import WHAT, ClockExchange, HostFacts, clock_of

        looks = []
        try:
            async with asyncio.timeout(_FACTS_S):
                for _ in range(_CLOCK_LOOKS):
                    asked_s = time.time()
                    there_s = clock_of(await self.facts("clock"))
                    if there_s is not None:
                        looks.append(ClockExchange(asked_s, there_s, time.time()))
                return HostFacts.from_said(self.greeting, await self.facts(*WHAT), looks)
        except TimeoutError:
            raise DeadlineError(f"{self.name}: asking what it is", _FACTS_S) from None

    async def runs(self) -> FarRuns:
        """Every run that has a directory on the host, and where there may be more."""
        from remote_runner.connection.verbs.leftovers import FarRun, FarRuns

        listed, unread = await self._list("runs", "run")
        found = [FarRun.from_said(self.name, said) for said in listed]
        return FarRuns(tuple(run for run in found if run is not None), unread)

    async def fetch_run(
        self, run_id: str, outputs_dir: Path, *, limit_bytes: int = DEFAULT_LIMIT_BYTES, within_s: float | None = None
    ) -> OutputsReport:
        """Bring the outputs of an earlier run into `outputs_dir`; the host keeps its copy.

        Raises `OutputsError`, and `HostError` where the host has no such run.
        """
        from remote_runner.connection.verbs.fetch import Source, receive_outputs

        source = Source(self.name, run_id, f"{self.greeting.base}/runs/{run_id}/outputs")
        what = f"fetching {run_id} from {self.name}"
        async with self.asked(what, {"verb": "fetch", "id": run_id}, within_s=within_s) as stream:
            return await receive_outputs(stream, source, outputs_dir, limit_bytes, self._allowance)

    async def remove_runs(
        self,
        run_ids: Sequence[str] | None,
        *,
        older_than_s: float | None = None,
        end_alive: bool = False,
        grace_s: float = 10.0,
    ) -> Removal:
        """Remove these runs from the host (`None`: all), if they began `older_than_s` ago or earlier.

        One that is alive stays and is reported, unless `end_alive`: its processes get TERM, and KILL after `grace_s`.
        """
        head = {
            "verb": "remove",
            "ids": None if run_ids is None else list(run_ids),
            "older_s": older_than_s,
            "end_alive": end_alive,
            "grace_s": grace_s,
        }
        return await self._remove(head)

    async def artifacts(self) -> tuple[LeftArtifact, ...]:
        """Every artifact that was pushed to the host."""
        from remote_runner.connection.verbs.leftovers import LeftArtifact

        listed, _ = await self._list("artifacts", "artifact")
        found = [LeftArtifact.from_said(self.name, said) for said in listed]
        return tuple(artifact for artifact in found if artifact is not None)

    async def remove_artifacts(self, names: Sequence[str]) -> Removal:
        """Remove these from the host; one that a running application was started from stays and is reported.

        In its Nix store they are only let go: its own garbage collection takes what nothing else there keeps.
        """
        from remote_runner.connection.verbs.leftovers import Removal

        return await self._remove({"verb": "remove-artifacts", "names": list(names)}) if names else Removal()

    # --- files ---

    async def put(self, chunks: Iterator[bytes], path: str, *, name: str = "", mode: int | None = None) -> str:
        """Write a file on the host, whole or not at all; its path there.

        path: relative to the home; where it is a directory, the file gets the name `name` in it.
        """
        head = {"verb": "put", "path": path, "name": name, "mode": mode}
        failed = partial(faults.file_fault, self.name, path)
        async with self.asked(f"writing {path} on {self.name}", head, failed=failed, within_s=None) as stream:
            await send_chunks(stream, chunks)
            answer = (await stream.receive()).head
        if not (written := words(answer.get("written"))):
            raise nonsense(self.name, answer)
        return written

    @asynccontextmanager
    async def get(self, path: str) -> AsyncIterator[tuple[FarFile, AsyncIterator[bytes]]]:
        """A file on the host, and its bytes as they come."""
        failed = partial(faults.file_fault, self.name, path)
        head = {"verb": "get", "path": path}
        async with self.asked(f"reading {path} on {self.name}", head, failed=failed, within_s=None) as stream:
            said = (await stream.receive()).head
            mode, size_bytes = whole(said.get("mode"), 0o7777), whole(said.get("size"))
            if mode is None or size_bytes is None:
                raise nonsense(self.name, said)
            yield FarFile(PurePosixPath(words(said.get("path"))), mode, size_bytes), _bytes_of(stream, failed)

    # --- requests ---

    @asynccontextmanager
    async def asked(
        self,
        what: str,
        head: Mapping[str, Any],
        *,
        failed: Failed | None = None,
        within_s: float | None = _REQUEST_S,
    ) -> AsyncIterator[Stream]:
        """One request: its stream is closed at the end, and what the agent says of a failure becomes our error."""
        stream: Stream | None = None
        try:
            async with asyncio.timeout(within_s):
                stream = await self._link.request(head)
                yield stream
        except TimeoutError as error:
            if within_s is None:
                raise
            raise DeadlineError(what, within_s) from error
        except StreamClosed as closed:
            raise (failed or partial(faults.fault, self.name))(closed) from closed
        finally:
            if stream is not None:
                await stream.close()

    async def _list(self, verb: str, key: str) -> tuple[list[dict[str, Any]], tuple[tuple[str, str], ...]]:
        """What a verb lists under that key, and the paths that it could not read, with why."""
        found: list[dict[str, Any]] = []
        unread: tuple[tuple[str, str], ...] = ()
        size_bytes = 0
        async with self.asked(f"listing what is on {self.name}", {"verb": verb}) as stream:
            while True:
                try:
                    head = (await stream.receive()).head
                except StreamClosed as closed:
                    if closed.kind:
                        raise
                    return found, unread
                if "unread" in head:
                    unread = pairs(head["unread"])
                else:
                    found.append(part(self.name, head, key))
                size_bytes += len(repr(head))
                if size_bytes > _MOST_SAID_BYTES:
                    raise FarShellError(self.name, f"it says more than {_MOST_SAID_BYTES} bytes, and does not end")

    async def _remove(self, head: Mapping[str, Any]) -> Removal:
        from remote_runner.connection.verbs.leftovers import Removal

        async with self.asked(f"removing what is on {self.name}", head) as stream:
            return Removal.from_said((await stream.receive()).head)


def _transport(entry: HostEntry, controller: Controller, environ: Mapping[str, str]) -> Transport:
    if entry.connect is not None:
        return CommandTransport(entry.name, entry.connect, environ)
    if entry.by_step:
        from remote_runner.connection.transports.slurm import StepTransport

        return StepTransport(entry.name, entry.job, environ)
    if entry.ssh is None:
        return LocalTransport(entry.name)
    return SshTransport(
        entry.ssh,
        controller.runtime,
        environ,
        tolerate_s=entry.tolerate_s,
        connect_s=entry.timeouts.connect_s,
        login_socket=login_socket(entry.ssh, controller, environ),
        nearest=entry.nearest,
    )


async def send_chunks(stream: Stream, chunks: Iterator[bytes], sent: Callable[[int], None] | None = None) -> int:
    """Send bytes that are read in a thread, the next ones while some are sent; how many."""
    sent_bytes = 0
    ahead = FILES.run(lambda: next(chunks, b""))
    try:
        while data := await ahead:
            ahead = FILES.run(lambda: next(chunks, b""))
            await stream.write(_LANE, data, bulk=True)
            sent_bytes += len(data)
            if sent is not None:
                sent(sent_bytes)
        await stream.end(_LANE)
    finally:
        ahead.cancel()
    return sent_bytes


async def _bytes_of(stream: Stream, failed: Failed) -> AsyncIterator[bytes]:
    while data := await stream.read(_LANE):
        yield data
    try:
        await stream.receive()
    except StreamClosed as closed:
        if closed.kind:
            raise failed(closed) from closed
