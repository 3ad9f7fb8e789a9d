"""Threads for what a disk may keep waiting."""

from __future__ import annotations

import asyncio
import threading
import time
from functools import partial

import pytest

from remote_runner.connection.workers import Workers


def test_work_and_its_result() -> None:
    async def main() -> None:
        workers = Workers()
        assert await asyncio.gather(*(workers.run(partial(pow, number, 2)) for number in range(50))) == [
            number**2 for number in range(50)
        ]
        with pytest.raises(ZeroDivisionError):
            await workers.run(lambda: 1 // 0)

    asyncio.run(main())


def test_what_hangs_delays_others_by_less_than_a_second() -> None:
    over = threading.Event()

    async def main() -> None:
        workers = Workers()
        hanging = [workers.run(over.wait) for _ in range(40)]
        began_s = time.monotonic()
        assert await workers.run(lambda: "there") == "there"
        assert time.monotonic() - began_s < 1
        over.set()
        assert all(await asyncio.gather(*hanging))

    asyncio.run(main())


def test_another_loop_and_what_nobody_waits_for() -> None:
    workers = Workers()
    over = threading.Event()

    async def leave() -> None:
        for _ in range(10):
            workers.run(over.wait)
        await asyncio.sleep(0)

    async def stay() -> int:
        return await workers.run(lambda: 7)

    asyncio.run(leave())
    assert asyncio.run(stay()) == 7
    over.set()
