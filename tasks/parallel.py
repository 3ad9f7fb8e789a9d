"""The same work for several hosts at once; each host's failure is reported, and stops no other host."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

import invoke

from remote_runner.errors import RemoteRunnerError
from tasks.command_line.task import Failed
from tasks.plan import Plan
from tasks.say import say
from tasks.view.display import DISPLAY

if TYPE_CHECKING:
    from remote_runner.connection.agent import Agent
    from remote_runner.inventory.inventory import HostEntry

_R = TypeVar("_R")


class Named(Protocol):
    """Anything with a host's name: a connection, an inventory entry."""

    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=Named)


async def on_each(items: Sequence[_T], work: Callable[[_T], Awaitable[_R]]) -> list[_R]:
    """Do `work` for every item, all at once; the results in the items' order.

    Connections begin as many at a time as the machine can do (`connection/link.py`).
    Raises `Failed` when any of them failed, after all have ended and each failed host's reason was said.
    """
    if len(items) == 1:
        DISPLAY.expect("", [(items[0].name, items[0].name)])
        return [await work(items[0])]
    results = await attempt_each(items, work)
    raise_failed(items, results)
    return [result for result in results if not isinstance(result, RemoteRunnerError)]


async def attempt_each(items: Sequence[_T], work: Callable[[_T], Awaitable[_R]]) -> list[_R | RemoteRunnerError]:
    """The same, with the error in the place of a failed item's result; it is said as soon as it is known."""
    from remote_runner.progress import Began, Ended

    async def attempt(item: _T) -> _R | RemoteRunnerError:
        outcome = "failed"
        try:
            DISPLAY.tell(Began(item.name, "", item.name))
            result = await work(item)
            outcome = "ok"
            return result
        except RemoteRunnerError as error:
            say(str(error))
            return error
        except (invoke.Failure, invoke.Exit) as error:  # of a user's own task
            say(f"{item.name}: {error}".rstrip())
            return RemoteRunnerError(str(error))
        finally:
            DISPLAY.tell(Ended(item.name, outcome))

    DISPLAY.expect("", [(item.name, item.name) for item in items])
    return list(await asyncio.gather(*map(attempt, items)))


def ask_each(
    plan: Plan, entries: Sequence[HostEntry], work: Callable[[Agent, HostEntry], Awaitable[_R]]
) -> list[_R | RemoteRunnerError]:
    """A task's whole work: `work` with every host's agent, as `attempt_each` does it."""

    async def ask() -> list[_R | RemoteRunnerError]:
        async with plan.shared() as shared:

            async def ask_one(entry: HostEntry) -> _R:
                return await work(await shared.agent(entry, plan.environ), entry)

            return await attempt_each(entries, ask_one)

    return plan.run(ask())


def raise_failed(items: Sequence[_T], results: Sequence[object]) -> None:
    """Raise `Failed` if any result of `attempt_each` is an error."""
    failed = [item.name for item, result in zip(items, results, strict=True) if isinstance(result, RemoteRunnerError)]
    if failed:
        raise Failed(f"{len(failed)} of {len(items)} hosts failed: {', '.join(failed)}" if len(items) > 1 else None)
