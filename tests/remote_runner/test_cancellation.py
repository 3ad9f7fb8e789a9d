"""A cancellation flag: polled, waited for, called back."""

from __future__ import annotations

import asyncio
import select
import threading

import pytest

from remote_runner.cancellation import Cancellation, WorkCancelledError, in_thread


def test_only_the_first_reason_counts_and_each_callback_is_called_once() -> None:
    calls: list[str] = []
    with Cancellation() as stop:
        forgotten = lambda: calls.append("forgotten")  # noqa: E731
        stop.then(lambda: calls.append("before"))
        stop.then(forgotten)
        stop.forget(forgotten)
        stop.check()
        stop.cancel("first")
        stop.cancel("second")
        stop.then(lambda: calls.append("after"))
        assert (stop.is_set, stop.reason, calls) == (True, "first", ["before", "after"])
        with pytest.raises(WorkCancelledError, match="first"):
            stop.check()


@pytest.mark.parametrize("early", [True, False])
def test_a_thread_that_waits_for_its_descriptor_is_woken(early: bool) -> None:
    with Cancellation() as stop:
        if early:
            stop.cancel("now")
        fd = stop.fileno()
        if not early:
            threading.Timer(0.01, stop.cancel, ["now"]).start()
        assert select.select([fd], [], [], 30)[0] == [fd]


def test_work_in_a_thread_ends_before_its_task_does() -> None:
    ended = threading.Event()

    def work(cancellation: Cancellation) -> None:
        select.select([cancellation.fileno()], [], [], 30)
        ended.set()
        cancellation.check()

    async def cancelled() -> None:
        task = asyncio.create_task(in_thread(work, "nobody waits"))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended.is_set()

    asyncio.run(cancelled())


@pytest.mark.parametrize("leaves_first", [True, False])
def test_a_call_never_comes_behind_the_body_that_it_is_for(leaves_first: bool) -> None:
    called: list[bool] = []

    async def work() -> None:
        cancellation = Cancellation()
        with cancellation.telling(lambda: called.append(True)):
            cancellation.cancel("stop")
            if not leaves_first:
                await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(work())
    assert called == ([] if leaves_first else [True])
