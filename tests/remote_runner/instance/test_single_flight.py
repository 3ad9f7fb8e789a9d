"""Work that several want once: shared, kept, forgotten, and cancelled with its last waiter."""

from __future__ import annotations

import asyncio

import pytest

from remote_runner.instance.single_flight import SingleFlight


def test_all_who_ask_while_it_goes_on_share_one_result() -> None:
    started = 0

    async def work() -> int:
        nonlocal started
        started += 1
        await asyncio.sleep(0)
        return 7

    async def ask() -> None:
        flights = SingleFlight[str, int]()
        assert await asyncio.gather(*(flights.get("k", work) for _ in range(50))) == [7] * 50
        assert started == 1
        assert flights.peek("k") is None  # it keeps nothing
        await flights.get("k", work)
        assert started == 2

    asyncio.run(ask())


def test_results_are_kept_up_to_a_number_and_failures_only_where_that_is_said() -> None:
    async def ask() -> None:
        kept = SingleFlight[int, int](keeps=2)
        for key in range(4):
            await kept.get(key, lambda key=key: asyncio.sleep(0, key))  # type: ignore[misc]
        assert [kept.peek(key) for key in range(4)] == [None, None, 2, 3]
        kept.forget(3)
        assert kept.peek(3) is None

        async def fail() -> int:
            raise ValueError("no")

        failures = SingleFlight[int, int](keeps=2, keeps_failures=True)
        for flights in (kept, failures):
            with pytest.raises(ValueError, match="no"):
                await flights.get(9, fail)
        assert await kept.get(9, lambda: asyncio.sleep(0, 1)) == 1
        with pytest.raises(ValueError, match="no"):
            await failures.get(9, lambda: asyncio.sleep(0, 1))

    asyncio.run(ask())


def test_it_goes_on_for_the_others_and_ends_with_the_last_who_waits() -> None:
    ended: list[str] = []

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise
        return 1

    async def ask() -> None:
        flights = SingleFlight[str, int](keeps=1)
        waiting = [asyncio.create_task(flights.get("k", work)) for _ in range(3)]
        await asyncio.sleep(0.01)
        for task in waiting[:2]:
            task.cancel()
        await asyncio.sleep(0.01)
        assert not ended
        waiting[2].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await asyncio.sleep(0.01)
        assert ended == ["cancelled"]
        assert await flights.get("k", lambda: asyncio.sleep(0, 5)) == 5

    asyncio.run(ask())
