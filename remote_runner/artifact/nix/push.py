"""Pushing what Nix built into a host's Nix store, or into a store of the user's own there.

Instead of `nix copy`: a local `nix-store --serve` sends the paths, one on the host receives them (`serve.py`), over one
of our streams. The server there holds what it was asked for with `lock`, and what was added, as long as it runs;
before it ends, the agent makes a permanent root. So no garbage collection takes a path in between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from types import TracebackType
from typing import Self

from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.here import find_nix
from remote_runner.artifact.nix.progress import Moved, Progress, told_while_waiting
from remote_runner.artifact.nix.serve import PathInfo, ServeClient, in_dependency_order
from remote_runner.artifact.nix.source import LocalServer
from remote_runner.artifact.push import Pushed
from remote_runner.connection.agent import Agent
from remote_runner.connection.link import Stream, StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.connection.verbs.validation import nonsense, words
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    FarBuildFailedError,
    HostError,
    NotTrustedError,
    PushFailedError,
    no_nix,
)
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.kinds import BuildOn, StoreChoice

_NO_ROOM = "there is no room for the artifact"
_MAKE_ROOM = "make room in its Nix store, for example with nix-collect-garbage there"
_MAKE_WRITABLE = "make its Nix store writable"
_SERVER_STDIN, _SERVER_STDOUT = 0, 1
_CHUNK_BYTES = 256 << 10
# A daemon's message for a path that it takes from no user, or from trusted users only (Nix 2.8; 2.12 and later).
_UNSIGNED = ("lacks a valid signature", "lacks a signature by a trusted key")


async def push_to_store(
    agent: Agent,
    entry: HostEntry,
    artifact: StoreArtifact,
    *,
    environ: Mapping[str, str],
    deadline: Deadline,
    report: Callable[[str], None],
    moved: Moved | None = None,
) -> Pushed:
    """Make sure that a store on the host has the artifact, valid and rooted; only missing paths are sent.

    `environ` is where this machine's Nix is looked for; `report` and `moved` are told how far a long copy is. Raises
    `HostError` where the host has no store to which the user may add, `PushFailedError` and its kinds,
    `LocalProgramError`, `RemoteRunnerError` where this machine has no Nix, `DeadlineError`, and what the connection
    raises.
    """
    push = _StorePush(agent, entry, artifact, environ, deadline, report, moved)
    if entry.store is StoreChoice.USER:
        return await push.into_user_store("hosts.store is user")
    if not artifact.here:
        return await push.into_nix_store(build=True)
    try:
        return await push.into_nix_store()
    except NotTrustedError as error:
        return await push.built_there_instead(error)


@dataclass
class _StorePush:
    agent: Agent
    entry: HostEntry
    artifact: StoreArtifact
    environ: Mapping[str, str]
    deadline: Deadline
    report: Callable[[str], None]
    moved: Moved | None
    user: str = ""  # as whom the host's Nix knows us
    unsigned: list[str] = field(default_factory=list)  # the missing paths that an untrusted user may not add

    async def into_nix_store(self, *, build: bool = False) -> Pushed:
        """Into the host's own store; `build`: the derivation goes there, and the host builds it."""
        name = self.agent.name
        head = {
            "verb": "nix",
            "out": self.artifact.out,
            "drv": self.artifact.drv if build else "",
            "substitute": self.entry.substitute,
        }
        async with (
            _Limit(f"push to {name}", self.deadline) as limit,
            self.agent.asked(limit.what, head, failed=self._failed, within_s=None) as stream,
        ):
            answer = (await stream.receive()).head
            if "asks" in answer:
                ask = f"ssh {name} nix-store --check-validity {self.artifact.out}"
                limit.what += f": asking its Nix whether it has {self.artifact.app}"
                limit.next_step = (
                    f"see whether `{ask}` ends, whatever it says (a nix-daemon that hangs?); "
                    "if it does, give it longer: `timeouts.push_s` in inventory.yaml"
                )
                answer = (await stream.receive()).head
            if words(answer.get("have")):
                return self._there()
            if access := words(answer.get("serve")):
                self.user = words(answer.get("user"))
                limit.what, limit.next_step = f"push to {name}", ""
                return await self._serve(stream, limit, access, build=build)
        why = words(answer.get("why"))
        reasons = {
            "none": "there is no Nix",
            "foreign": "its Nix store is another user's, and no nix-daemon listens",
            "refused": f"its nix-daemon does not serve this user ({why})",
        }
        reason = reasons.get(words(answer.get("access")))
        if reason is None:
            raise nonsense(name, answer)
        if self.entry.store is StoreChoice.NIX:
            raise HostError(
                name,
                f"{reason}, and hosts.{name}.store in inventory.yaml is nix",
                next_step="set store: auto or user (a store of the user's own), or have Nix set up there for this user",
            )
        return await self.into_user_store(reason)

    async def into_user_store(self, why: str) -> Pushed:
        """Into the store under the user's own directory; `why` not into the host's own."""
        name = self.agent.name
        if not self.artifact.here:
            raise HostError(
                name,
                f"it would have to build {self.artifact.app} itself ({self.artifact.why_not_here}), which it cannot: "
                f"{why}",
                next_step=f"let this machine build for {self.artifact.system} (a remote builder, or extra-platforms "
                f"in nix.conf), or have Nix set up on {name} for this user",
            )
        from remote_runner.artifact.nix.user_store import push_user_store

        async with _Limit(f"push to {name}", self.deadline), self._source() as source:
            client = ServeClient(source)
            await client.greet()
            closure = await client.closure(self.artifact.out)
        return await push_user_store(
            self.agent,
            self.entry,
            self.artifact,
            closure,
            deadline=self.deadline,
            report=self.report,
            moved=self.moved,
        )

    async def built_there_instead(self, error: NotTrustedError) -> Pushed:
        """What the host does not take from this user it may build itself; else `error`, with what can be done."""
        if not self.artifact.drv or self.entry.app.build_on is BuildOn.LOCAL:
            raise error
        name = self.agent.name
        self.report(f"{name}: its Nix does not trust this user, so it builds {self.artifact.app} itself")
        try:
            return await self.into_nix_store(build=True)
        except FarBuildFailedError as failed:
            said = str(failed.args[0]).partition(": ")[2]
            raise NotTrustedError(
                name, f"{error.args[0].partition(': ')[2]}; {said}", next_step=error.next_step
            ) from failed

    def _source(self) -> LocalServer:
        nix = find_nix(self.environ)
        if nix is None:
            raise no_nix(f"{self.artifact.out}, as a store path,")
        return LocalServer(nix)

    async def _serve(self, stream: Stream, limit: _Limit, access: str, *, build: bool) -> Pushed:
        """The closure to the server there, then the root."""
        artifact = self.artifact
        async with self._source() as source:
            copy = _Copy(source, _FarServer(self.agent.name, stream), self.report, self.moved)
            await copy.find_missing(
                artifact.drv if build else artifact.out, substitute=self.entry.substitute and not build
            )
            self.unsigned = copy.unsigned
            if access == "untrusted" and self.unsigned:
                raise self._not_trusted()
            await copy.send()
        await copy.wait()
        await self._realise(stream, limit, build=build)
        return replace(
            self._there(),
            present=False,
            sent_bytes=copy.sent_bytes,
            sent_paths=len(copy.infos),
            paths=copy.paths,
            built=build,
        )

    def _there(self) -> Pushed:
        out = PurePosixPath(self.artifact.out)
        return Pushed(Store.NIX, out, out / self.artifact.program, self.artifact.hash, present=True)

    async def _realise(self, stream: Stream, limit: _Limit, *, build: bool) -> None:
        """Have the paths that were sent rooted there, or built and rooted."""
        name, app = self.agent.name, self.artifact.app
        if build:
            self.report(f"{name}: builds {app} now")
            limit.what = f"build of {app} on {name}"
            if self.artifact.here:  # then no build was expected
                limit.begin_anew(self.entry.timeouts.build_s)
        async with told_while_waiting(f"{name}: still {'builds' if build else 'roots'} {app}", self.report):
            await stream.send({"realise": True})
            answer = (await stream.receive()).head
        if "unbuilt" in answer:
            raise FarBuildFailedError(
                name,
                f"it could not build {self.artifact.drv} (status {words(str(answer['unbuilt']))})",
                stderr=words(answer.get("said")),
                next_step=f"see `nix log {self.artifact.drv}` there",
            )
        if not words(answer.get("rooted")):
            raise nonsense(name, answer)

    def _failed(self, closed: StreamClosed) -> HostError:
        if closed.kind != "nix":
            return faults.push_fault(self.agent.name, closed)
        if any(said in closed.text for said in _UNSIGNED):
            return self._not_trusted()
        return _nix_fault(self.agent.name, words(closed.text))

    def _not_trusted(self) -> NotTrustedError:
        name, user = self.agent.name, self.user
        which = f" (such as {self.unsigned[0]})" if self.unsigned else ""
        return NotTrustedError(
            name,
            f"its nix-daemon does not trust user {user} and accepts no unsigned path{which}",
            next_step=f"one of these ways:\n"
            f"    - let {name} build it itself: build_on: target under app in inventory.yaml\n"
            f"    - sign what is sent: nix key generate-secret --key-name {user}-1 > KEY; "
            f"nix store sign --recursive --key-file KEY {self.artifact.out}; on {name}, in /etc/nix/nix.conf: "
            f"extra-trusted-public-keys = (what `nix key convert-secret-to-public < KEY` prints), "
            f"then restart its nix-daemon\n"
            f"    - trust this user, on {name}, in /etc/nix/nix.conf: extra-trusted-users = {user}, "
            f"then restart its nix-daemon\n"
            f"    - or do without its store: store: user for {name} in inventory.yaml",
        )


class _Limit:
    """The time within which something has to be done; `what` and `next_step` say it in the error when it was not."""

    def __init__(self, what: str, deadline: Deadline) -> None:
        self.what = what
        self.next_step = ""
        self._budget_s = deadline.budget_s
        self._timeout = asyncio.timeout(deadline.timeout_s)

    async def __aenter__(self) -> Self:
        await self._timeout.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._timeout.__aexit__(kind, value, trace)
        except TimeoutError as error:
            raise DeadlineError(self.what, self._budget_s, next_step=self.next_step or None) from error

    def begin_anew(self, seconds: float) -> None:
        """Have that much time from now on."""
        self._budget_s = seconds
        self._timeout.reschedule(asyncio.get_running_loop().time() + seconds)


class _FarServer:
    """The server on the host; a `Stream` for `ServeClient`."""

    def __init__(self, host: str, stream: Stream) -> None:
        self.host = host
        self._stream = stream

    async def write(self, data: bytes, *, bulk: bool = False) -> None:
        await self._stream.write(_SERVER_STDIN, data, bulk=bulk)

    async def read_some(self, count: int) -> bytes:
        """The next bytes, however many."""
        data = await self._stream.read(_SERVER_STDOUT)
        if not data:
            said = await self._stream.receive()  # raises why
            raise nonsense(self.host, said.head)
        return data


class _Copy:
    """What is missing of a closure there, from one store to the other."""

    def __init__(self, near: LocalServer, far: _FarServer, report: Callable[[str], None], moved: Moved | None) -> None:
        self._near = near
        self._far = far
        self._source = ServeClient(near)
        self._sink = ServeClient(far)
        self._report = report
        self._moved = moved
        self.paths = 0
        self.infos: list[PathInfo] = []
        self.sent_bytes = 0

    @property
    def unsigned(self) -> list[str]:
        """The missing paths that an untrusted user may not add."""
        return [info.path for info in self.infos if not info.ca and not info.signatures]

    async def find_missing(self, path: str, *, substitute: bool) -> None:
        """Ask both stores; from here on all of the closure that is there, or will be, is held there."""
        await self._source.greet()
        closure = await self._source.closure(path)
        await self._sink.greet()
        async with told_while_waiting(
            f"{self._far.host}: still looks for what it has or can fetch itself", self._report
        ):
            valid = await self._sink.valid_paths(closure, lock=True, substitute=substitute)
        missing = [path for path in closure if path not in valid]
        self.infos = in_dependency_order(await self._source.path_infos(missing)) if missing else []
        self.paths = len(closure)

    async def send(self) -> None:
        """Send what is missing, without waiting for an answer."""
        total_bytes = sum(info.nar_bytes for info in self.infos)
        progress = Progress(self._far.host, len(self.infos), self._report, self._moved, total_bytes=total_bytes)
        number = 0
        async for info in self._source.dump(self.infos):
            number += 1
            await self._sink.add(info)
            left = info.nar_bytes
            while left:
                data = await self._near.read_some(min(left, _CHUNK_BYTES))
                await self._far.write(data, bulk=True)
                left -= len(data)
                progress.sent(len(data), number)
        self.sent_bytes = progress.sent_bytes

    async def wait(self) -> None:
        """Return once all that was sent is there."""
        for _ in self.infos:
            await self._sink.added()


def _nix_fault(host: str, said: str) -> PushFailedError:
    """The error for words of the host's Nix."""
    for text, what, next_step in (
        ("no space left", _NO_ROOM, _MAKE_ROOM),
        ("quota exceeded", _NO_ROOM, _MAKE_ROOM),
        ("read-only file system", "the file system there is read-only", _MAKE_WRITABLE),
    ):
        if text in said.lower():
            return PushFailedError(host, what, stderr=said, next_step=next_step)
    return PushFailedError(host, "its Nix store did not take the artifact", stderr=said)
