"""The Slurm allocations of this process's runs: each is held while an instance lives, then released."""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import ControllerError, RemoteRunnerError
from remote_runner.typed import as_typed

_LINGER_S = 10.0  # for instances of the run that have not come yet
_LOOK_S = 0.2
# Slurm's controller may be started anew.
_PATIENCE_S = 60.0
_AGAIN_S = 3.0
_CLOSING_S = 5.0  # somebody waits for the end of the process
_LOCK_S = 60.0  # another process gives the last one back


@dataclass
class _Run:
    plan_dir: Path
    run_id: str
    instances: int
    environ: Mapping[str, str]
    living: int = 0
    ended: int = 0
    lock: FileLock | None = None


class Allocations:
    """For one event loop. `leave` closes the connections to a run's nodes."""

    def __init__(self, controller: Controller, leave: Callable[[Path, str], Awaitable[None]]) -> None:
        self._controller = controller
        self._leave = leave
        self._runs: dict[tuple[Path, str], _Run] = {}
        self._going: set[asyncio.Task[None]] = set()
        self._closes_s = math.inf

    def hold(self, plan_dir: Path, run_id: str, instances: int, environ: Mapping[str, str], stack: ExitStack) -> None:
        """Keep what the run has or gets until `stack` is closed, and the other instances' are."""
        key = (plan_dir, run_id)
        run = self._runs.setdefault(key, _Run(plan_dir, run_id, instances, environ))
        run.living += 1
        stack.callback(self._let_go, key, run)

    async def lock(self, plan_dir: Path, run_id: str) -> None:
        """Say to other processes that this one needs the run's allocation. Raises `DeadlineError`."""
        from remote_runner.inventory.sources.allocation import Allocation

        run = self._runs[plan_dir, run_id]
        if run.lock is None:
            lock = Allocation.of(self._controller, run_id, plan_dir).lock(shared=True)
            taking = asyncio.ensure_future(asyncio.to_thread(lock.acquire, Deadline.after(_LOCK_S)))
            # The thread continues when the last waiter is cancelled.
            taking.add_done_callback(partial(_keep, run, lock))
            await asyncio.shield(taking)

    async def close(self) -> None:
        """Return when all that is held is given back, or another process of the run has it."""
        self._closes_s = time.monotonic() + _CLOSING_S
        await asyncio.gather(*self._going, return_exceptions=True)

    def _let_go(self, key: tuple[Path, str], run: _Run) -> None:
        run.living -= 1
        run.ended += 1
        if run.living == 0:
            del self._runs[key]
            going = asyncio.ensure_future(self._give_back(key, run))
            self._going.add(going)
            going.add_done_callback(self._going.discard)

    async def _give_back(self, key: tuple[Path, str], run: _Run) -> None:
        from remote_runner.inventory.sources.allocation import Allocation
        from remote_runner.inventory.sources.slurm import slurm_environment

        if run.lock is None:
            return
        allocation = Allocation.of(self._controller, run.run_id, run.plan_dir)
        ended = 0
        try:
            with suppress(ControllerError):  # then it stays until nobody has come for a while
                ended = await asyncio.to_thread(allocation.count_ended, run.ended)
        finally:
            run.lock.release()
        until_s = time.monotonic() + (0.0 if ended >= run.instances else _LINGER_S)
        gives_up_s = until_s + _PATIENCE_S
        while key not in self._runs:
            pause_s = _LOOK_S
            try:
                if await asyncio.to_thread(allocation.is_needed) or key in self._runs:
                    break
                if time.monotonic() >= until_s:
                    await self._leave(run.plan_dir, run.run_id)
                    await asyncio.to_thread(allocation.give_back, slurm_environment(run.environ))
                    return
            except RemoteRunnerError as error:
                if time.monotonic() >= min(gives_up_s, self._closes_s):
                    _say_kept(run, error)
                    return
                pause_s = _AGAIN_S
            await asyncio.sleep(pause_s)
        if key not in self._runs:
            # Another process has it, and gives it back: who comes here later may find other nodes.
            await self._leave(run.plan_dir, run.run_id)


def _keep(run: _Run, lock: FileLock, taking: asyncio.Future[FileLock]) -> None:
    if taking.cancelled() or taking.exception() is not None:
        return
    if run.lock is None and run.living:
        run.lock = lock
    else:
        lock.release()


def _say_kept(run: _Run, error: RemoteRunnerError) -> None:
    why = str(error).partition("\n")[0]
    print(
        as_typed(f"the nodes of run {run.run_id} may still be allocated: {why}\n  next: fab clean gives them back"),
        file=sys.stderr,
        flush=True,
    )
