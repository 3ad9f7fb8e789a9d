"""One `sbcast` in place of a push through the step of each node, where a whole allocation is to get an artifact.

sbcast(1) serves every node that is allocated: so all of them have to ask at about the same time, and each one's agent
knows the file before it is there, takes it if its hash is right, and removes it, whatever happens here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from tempfile import TemporaryFile
from typing import IO

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.content import tar_content
from remote_runner.cancellation import Cancellation, in_thread
from remote_runner.controller import Controller
from remote_runner.errors import ArtifactError, LocalProgramError
from remote_runner.instance.single_flight import SingleFlight
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.placement import Spread
from remote_runner.inventory.sources.slurm import slurm_environment
from remote_runner.machine.process import end, ends_within, start

_LEAST_BYTES = 4 << 20
_PATIENCE_S = 10.0  # nodes become ready one after the other; where one does not, the others get it the other way


@dataclass(eq=False)
class _Cast:
    """One file for all nodes of a job, beside the artifacts in `base`. `missing` are those that have not asked yet."""

    base: str
    missing: set[str]
    name: str = field(default_factory=lambda: f".tmp-{secrets.token_hex(8)}")
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    why_not: str | None = None
    """Why it is not made; empty where nobody need be told."""

    @property
    def is_decided(self) -> bool:
        return not self.missing or self.why_not is not None

    def asks(self, node: str) -> None:
        self.missing.discard(node)
        self.changed.set()

    def call_off(self, why: str = "") -> None:
        if not self.is_decided:
            self.why_not = why
            self.changed.set()


@dataclass
class _Offer:
    """What the push to one node has of it: see `Offer` and `Elsewhere`."""

    node: str
    cast: _Cast
    make: Callable[[], Awaitable[str | None]]
    report: Callable[[str], None]
    by: str = "sbcast"
    brought: bool = False

    @property
    def file(self) -> str:
        """Where it will lie on the node."""
        return f"{self.cast.base}/artifacts/{self.cast.name}"

    async def came(self) -> bool:
        """The node asks for it: whether it lies there now."""
        self.cast.asks(self.node)
        why_not = await self.make()
        if why_not:
            self.report(f"through the node's step, for {why_not}")
        self.brought = why_not is None
        return self.brought

    def leave(self) -> None:
        """The node needs it no more: the others get theirs through their steps."""
        self.cast.call_off()


@dataclass
class _Job:
    """Its nodes, as far as steps reach all of them; with `least` instances each of them has one."""

    nodes: frozenset[str]
    least: int
    instances: int = 0


class Sbcasts:
    """Those of one event loop."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._jobs: dict[str, _Job] = {}
        self._casts: dict[tuple[str, str], _Cast] = {}
        self._flights: SingleFlight[_Cast, str | None] = SingleFlight()

    def hold(self, hosts: Sequence[HostEntry], spread: Spread, stack: ExitStack, instances: int) -> None:
        """Until `stack` is closed, so many more instances have places on these hosts."""
        for job in {host.job for host in hosts if host.job} - self._jobs.keys():
            nodes = [index for index, host in enumerate(hosts) if host.job == job]
            before = hosts[: nodes[-1]]
            least = 1 + (len(before) if spread is Spread.ROUND else sum(host.slots for host in before))
            names = frozenset(hosts[index].name for index in nodes if hosts[index].by_step)
            self._jobs[job] = _Job(names if len(names) == len(nodes) else frozenset(), least)
        for job in {host.job for host in hosts if host.job}:
            self._jobs[job].instances += instances
            stack.callback(self._let_go, job, instances)

    def _let_go(self, job: str, instances: int) -> None:
        self._jobs[job].instances -= instances
        if not self._jobs[job].instances:
            del self._jobs[job]
            for key in [key for key in self._casts if key[0] == job]:
                del self._casts[key]

    def offer(
        self,
        entry: HostEntry,
        base: str,
        artifact: AnyArtifact,
        environ: Mapping[str, str],
        report: Callable[[str], None],
    ) -> _Offer | None:
        """That of a node, `base` being our directory there; `None` where it has to be pushed.

        A job has one for each artifact, and who comes later pushes.
        """
        job = self._jobs.get(entry.job)
        if job is None or not isinstance(artifact, Artifact) or artifact.size_bytes < _LEAST_BYTES:
            return None
        cast = self._casts.get((entry.job, artifact.hash))
        if cast is None:
            cast = self._casts[entry.job, artifact.hash] = _Cast(base, set(job.nodes))
            if len(job.nodes) < 2 or job.instances < job.least:
                cast.call_off()  # some nodes are not used, or by another process
        if cast.base != base:
            cast.call_off()
        if cast.is_decided:
            return None
        work = partial(self._work, cast, entry.job, artifact, environ)
        return _Offer(entry.name, cast, partial(self._flights.get, cast, work), report)

    async def _work(self, cast: _Cast, job: str, artifact: Artifact, environ: Mapping[str, str]) -> str | None:
        while not cast.is_decided:
            cast.changed.clear()
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await cast.changed.wait()
            except TimeoutError:
                cast.call_off(f"{len(cast.missing)} nodes of job {job} do not ask for it")
        if cast.why_not is not None:
            return cast.why_not
        argv = ["sbcast", f"--jobid={job}", "/dev/stdin", f"{cast.base}/artifacts/{cast.name}"]

        def send(cancellation: Cancellation) -> str | None:
            # Without names, so that nothing stays here.
            with TemporaryFile(dir=self._controller.cache) as file, TemporaryFile(dir=self._controller.cache) as words:
                for chunk in tar_content(artifact.path, prefix="c"):
                    cancellation.check()
                    file.write(chunk)
                file.flush()
                return _run(argv, slurm_environment(environ), file, words, cancellation)

        try:
            return await in_thread(send, "nobody waits for the artifact any more")
        except (ArtifactError, LocalProgramError, OSError) as error:
            return str(error)


def _run(
    argv: list[str], environ: Mapping[str, str], file: IO[bytes], words: IO[bytes], cancellation: Cancellation
) -> str | None:
    process = start(argv, stdin=file.fileno(), stdout=words.fileno(), stderr=words.fileno(), environ=environ, cwd="/")
    try:
        ends_within(process, None, cancellation)
        cancellation.check()
    finally:
        end(process)
    if not process.returncode:
        return None
    words.seek(0)
    said = words.read().decode(errors="replace").strip().splitlines()
    return f"sbcast ended with status {process.returncode}" + (f": {said[-1][:200]}" if said else "")
