"""Instances as coroutines in a thread of this process, for `fab local.*`, instead of a process for each."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Self

from remote_runner.cancellation import Cancellation
from remote_runner.connection.verbs.forwards import Relayed
from remote_runner.controller import Controller
from remote_runner.instance.environment import around_instances
from remote_runner.instance.instance import run_instance
from remote_runner.instance.shared import Shared
from remote_runner.instance.writer import Writer
from remote_runner.progress import Tell, nobody
from testground.local_exec import Started

_CLOSE_S = 60.0  # Slurm may take 20 s to say that it does not answer


class InProcess:
    """A `testground.local_exec.Starter`; a context manager that ends its connections.

    `environ` is that of the user who started it: builds and ssh have it. `tell` hears what goes on, in its threads.
    """

    def __init__(self, plan_dir: Path, controller: Controller, environ: Mapping[str, str], tell: Tell = nobody) -> None:
        self._plan_dir = plan_dir
        self._around = around_instances(environ)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="instances", daemon=True)
        self._shared = Shared(controller, tell)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._shared.close(), self._loop).result(_CLOSE_S)
        asyncio.run_coroutine_threadsafe(_end_tasks(), self._loop).result(_CLOSE_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self, environ: Mapping[str, str], stdout_fd: int, stderr_fd: int) -> Started:
        """Run an instance with this environment on these descriptors, which are closed at its end."""
        stop = Cancellation()
        future = asyncio.run_coroutine_threadsafe(self._run(environ, stdout_fd, stderr_fd, stop), self._loop)
        return _Instance(future, stop)

    def note_whose(self, service_port: int, port: int, relayed: Relayed) -> None:
        """Find out soon which instance on this machine has that connection to a service of this process."""
        asyncio.run_coroutine_threadsafe(self._shared.note_whose(port, service_port, relayed), self._loop)

    async def _run(self, environ: Mapping[str, str], stdout_fd: int, stderr_fd: int, stop: Cancellation) -> int:
        stdout, stderr = Writer(stdout_fd), Writer(stderr_fd)
        try:
            with stop:
                return await run_instance(
                    {**self._around, **environ},
                    self._plan_dir,
                    shared=self._shared,
                    stop=stop,
                    stdout=stdout,
                    stderr=stderr,
                )
        finally:
            for writer, fd in ((stdout, stdout_fd), (stderr, stderr_fd)):
                writer.close()
                os.close(fd)


async def _end_tasks() -> None:
    """Cancel the tasks that still run, as `asyncio.run` does."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


class _Instance:
    def __init__(self, future: Future[int], stop: Cancellation) -> None:
        self._future = future
        self._stop = stop

    def terminate(self) -> None:
        self._stop.cancel("the run was stopped here")

    def kill(self) -> None:
        self._future.cancel()

    def wait(self) -> int | None:
        try:
            return self._future.result()
        except CancelledError:
            return None
