"""Applications on a host, run by its agent from tests that are no coroutines."""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.job import Job
from remote_runner.connection.verbs.leftovers import LeftArtifact, Removal
from remote_runner.connection.verbs.run import Exited, Run
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.inventory.inventory import HostEntry

WAIT_S = 30.0
_R = TypeVar("_R")


@dataclass
class Running:
    """A run on its way, and what it said so far."""

    far: Far
    run: Run
    outputs: Path
    stdout: bytes = b""
    stderr: bytes = b""
    following: Future[Exited] | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)

    def finish(self) -> Exited:
        """Wait for its end; raises why there is none."""
        assert self.following is not None
        return self.following.result(2 * WAIT_S)

    @property
    def directory(self) -> str:
        return self.run.directory

    def wait_for(self, text: bytes) -> None:
        """Until the application has said this on stdout."""
        with self._news:
            assert self._news.wait_for(lambda: text in self.stdout, WAIT_S), self.stdout

    def stop(self) -> None:
        self.far.do(self.run.stop("stop"))

    async def follow(self) -> Exited:
        """To its end: the outputs are here then, and nothing of it there."""
        try:
            exited = await self.run.follow(self._take_stdout, self._take_stderr)
            await self.run.fetch(self.outputs)
            await self.run.clean()
            return exited
        finally:
            await self.run.close()

    async def _take_stdout(self, data: bytes) -> None:
        with self._news:
            self.stdout += data
            self._news.notify_all()

    async def _take_stderr(self, data: bytes) -> None:
        self.stderr += data


class Far:
    """A host's agent; its event loop is a thread's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, agent: Agent, outputs: Path) -> None:
        self.agent = agent
        self._loop = loop
        self._outputs = outputs
        self._numbers = itertools.count(1)

    @classmethod
    @contextmanager
    def open(
        cls, entry: HostEntry, controller: Controller, outputs: Path, environ: Mapping[str, str] = os.environ
    ) -> Iterator[Far]:
        """Connected until the end of the block."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            connecting = Agent.connect(entry, controller, environ, Deadline.after(WAIT_S))
            agent = asyncio.run_coroutine_threadsafe(connecting, loop).result(2 * WAIT_S)
            far = cls(loop, agent, outputs)
            try:
                yield far
            finally:
                far.do(agent.close())
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    def do(self, work: Coroutine[Any, Any, _R]) -> _R:
        """Wait for what a coroutine returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(2 * WAIT_S)

    @contextmanager
    def start(self, *argv: str, **job: Any) -> Iterator[Running]:
        """A job in the block; at the block's end it has ended."""
        running = self.begin(*argv, **job)
        running.following = asyncio.run_coroutine_threadsafe(running.follow(), self._loop)
        try:
            yield running
        finally:
            running.stop()
            running.finish()

    def run(
        self, *argv: str, environment: Mapping[str, str | bytes] | None = None, **job: Any
    ) -> tuple[Running, Exited]:
        """Run a job to its end; raises why it could not be."""
        running = self.begin(*argv, environment=environment, **job)
        return running, self.do(running.follow())

    def begin(self, *argv: str, environment: Mapping[str, str | bytes] | None = None, **job: Any) -> Running:
        """Start a job."""
        number = next(self._numbers)
        made = Job(f"run-{number}", argv, environment or {}, **{"grace_s": 5.0, **job})
        return Running(self, self.do(self.agent.start_run(made)), self._outputs / f"{number}")

    def artifacts(self) -> tuple[LeftArtifact, ...]:
        return self.do(self.agent.artifacts())

    def remove_artifacts(self, names: list[str]) -> Removal:
        return self.do(self.agent.remove_artifacts(names))

    def runs(self) -> list[str]:
        """The names of the runs that have a directory there."""
        return [run.run_id for run in self.do(self.agent.runs()).runs]
