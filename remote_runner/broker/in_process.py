"""Instances as coroutines in a thread of this process, for `fab local.*`, instead of a process for each."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Self

from remote_runner.background import Background
from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller
from remote_runner.instance.environment import around_instances
from remote_runner.instance.instance import MANY_OBJECTS, run_instance
from remote_runner.instance.shared import Shared
from remote_runner.instance.writer import Writer
from remote_runner.progress import Tell, nobody
from remote_runner.records.sync_log import ClientNames
from testground.local_exec import Started

_CLOSE_S = 60.0  # Slurm may take 20 s to say that it does not answer


class InProcess:
    """A `testground.local_exec.Starter`; a context manager that ends its connections.

    `environ` is that of the user who started it: builds and ssh have it. `tell` hears what goes on, in its threads.
    """

    def __init__(self, plan_dir: Path, controller: Controller, environ: Mapping[str, str], tell: Tell = nobody) -> None:
        self._plan_dir = plan_dir
        self._around = around_instances(environ)
        self._background = Background("instances")
        self._shared = Shared(controller, tell)

    def __enter__(self) -> Self:
        gc.freeze()
        gc.set_threshold(MANY_OBJECTS)
        self._background.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._background.do(self._shared.close(), _CLOSE_S)
        finally:
            self._background.__exit__()

    def start(self, environ: Mapping[str, str], stdout_fd: int, stderr_fd: int) -> Started:
        """Run an instance with this environment on these descriptors, which are closed at its end."""
        stop = Cancellation()
        return _Instance(self._background.begin(self._run(environ, stdout_fd, stderr_fd, stop)), stop)

    def tell_whose(self, service_port: int, names: ClientNames) -> None:
        """Have these names know which instance has each connection to the service of this process at that port."""
        self._shared.asking[service_port] = names.by_port
        names.ask = lambda port, relayed: self._background.begin(self._shared.note_whose(port, service_port, relayed))

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
