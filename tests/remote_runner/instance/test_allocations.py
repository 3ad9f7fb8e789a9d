"""A run's allocation is held while its instances live, and given back behind them."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.errors import SourceError
from remote_runner.instance import allocations
from remote_runner.instance.allocations import Allocations
from remote_runner.inventory.sources import reading
from remote_runner.inventory.sources.allocation import Allocation
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.source import Listing, SlurmConnect, SlurmSource
from remote_runner.machine.files import write_atomically

PLAN = Path("/plan")


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    return Controller(tmp_path / "runtime", tmp_path / "cache")


class Left:
    def __init__(self) -> None:
        self.count = 0

    async def leave(self, plan_dir: Path, run_id: str) -> None:
        self.count += 1


def test_a_lock_that_nobody_waits_for_any_more_is_released(controller: Controller) -> None:
    needed = Allocation.of(controller, "r", PLAN).lock(shared=False)

    async def run() -> None:
        held = Allocations(controller, Left().leave)
        with ExitStack() as stack, needed:
            held.hold(PLAN, "r", 1, {}, stack)
            locking = asyncio.create_task(held.lock(PLAN, "r"))
            await asyncio.sleep(0.05)
            locking.cancel()
            with suppress(asyncio.CancelledError):
                await locking
        await held.close()
        await asyncio.get_running_loop().shutdown_default_executor()  # its thread has the lock now
        await asyncio.gather(*(asyncio.all_tasks() - {asyncio.current_task()}))
        await asyncio.sleep(0)  # what is done with a lock that has come is called next
        assert needed.try_acquire()
        needed.release()

    asyncio.run(run())


@pytest.mark.parametrize("patience_s", [10.0, 0.0])
def test_giving_back_is_tried_again_and_told_of(
    controller: Controller, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], patience_s: float
) -> None:
    tries = []

    def give_back(*_: object) -> bool:
        tries.append(1)
        if len(tries) == 1:
            raise SourceError("slurm", "scancel ended with status 1", next_step="wait")
        return True

    monkeypatch.setattr(Allocation, "give_back", give_back)
    monkeypatch.setattr(allocations, "_AGAIN_S", 0.01)
    monkeypatch.setattr(allocations, "_PATIENCE_S", patience_s)
    left = Left()

    async def run() -> None:
        held = Allocations(controller, left.leave)
        with ExitStack() as stack:
            held.hold(PLAN, "r", 1, {}, stack)
            await held.lock(PLAN, "r")
        await held.close()

    asyncio.run(run())
    assert len(tries) == (2 if patience_s else 1)
    said = capsys.readouterr().err
    assert ("run r may still be allocated" in said) == (not patience_s)
    assert left.count


def test_nodes_that_another_process_has_are_forgotten(controller: Controller) -> None:
    left = Left()

    async def run() -> None:
        held = Allocations(controller, left.leave)
        with Allocation.of(controller, "r", PLAN).lock(shared=True):
            with ExitStack() as stack:
                held.hold(PLAN, "r", 2, {}, stack)
                await held.lock(PLAN, "r")
            await held.close()

    asyncio.run(run())
    assert left.count == 1


def test_the_list_of_an_allocation_that_was_given_back_is_read_by_nobody(
    controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking = Asking(PLAN, controller, {}, 10.0)
    sources = [SlurmSource(1, "", "", (), None, SlurmConnect.SRUN)]
    allocation = Allocation.of(controller, "r", PLAN)
    listed: list[bool] = []

    def read(*_: object) -> Listing:
        listed.append(reading.kept_for_run(sources, asking, "r") is not None)
        write_atomically(allocation.record, b"{}")
        return Listing("slurm", ())

    monkeypatch.setattr(reading, "_read_in_run", read)
    for _ in range(2):
        reading.read_for_run(sources, asking, "r")
    allocation.record.unlink()  # as giving back does
    reading.read_for_run(sources, asking, "r")
    assert listed == [False, False]
