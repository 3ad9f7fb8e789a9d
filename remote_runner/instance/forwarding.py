"""The forwards that an application needs: for services, and those of the inventory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from remote_runner.instance.services import services_from
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import Direction, Forward, HostEntry

if TYPE_CHECKING:
    from remote_runner.instance.shared import Shared

_LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Forwarded:
    """What is open: variables for the application, and words for the person. A context manager that lets go of it."""

    variables: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    uses: ExitStack = field(default_factory=ExitStack)

    def __str__(self) -> str:
        return ", ".join(self.words) or "nothing to forward"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.uses.close()


async def open_forwards(
    shared: Shared, entry: HostEntry, environ: Mapping[str, str], report: Callable[[str], None]
) -> Forwarded:
    """Open a way to each service that `environ` names, and the inventory's own forwards; all are asked for at once.

    On this machine the services are dialled as they are. Raises what the host raises when it refuses one.
    """
    services = services_from(environ)
    wanted = [(service.near, entry.pinned_port(service.name)) for service in services]
    wanted += [(extra.endpoint, extra.port) for extra in entry.forwards if extra.direction is Direction.TO_HOST]
    with ExitStack() as stack:
        if entry.is_local:
            there = [near for near, _ in wanted]
        else:
            asked = [shared.listener(entry, environ, near, port, report, stack) for near, port in wanted]
            opened = await asyncio.gather(*asked) if len(asked) > 1 else [await one for one in asked]
            there = [Endpoint(_LOOPBACK, listener.port) for listener in opened]
        variables: dict[str, str] = {}
        words = []
        for service, dialled in zip(services, there, strict=False):
            variables |= service.variables(dialled, environ)
            words.append(f"{service.name} {dialled} -> {service.near}")
        to_host = iter(there[len(services) :])
        for extra in entry.forwards:
            if extra.direction is Direction.TO_HOST:
                dialled = next(to_host)
                words.append(f"{extra.name or 'extra'} {dialled} -> {extra.endpoint}")
            else:
                dialled = await _from_host(shared, entry, environ, extra, stack)
                words.append(f"{extra.name or 'extra'} {dialled} here -> {extra.endpoint} there")
            if extra.variable is not None:
                variables[extra.variable] = str(dialled.port)
        return Forwarded(variables, tuple(words), stack.pop_all())


async def _from_host(
    shared: Shared, entry: HostEntry, environ: Mapping[str, str], extra: Forward, stack: ExitStack
) -> Endpoint:
    if entry.is_local:
        return extra.endpoint
    forward = await shared.near_forward(entry, environ, extra.endpoint, extra.port)
    stack.enter_context(forward.use())
    return Endpoint(_LOOPBACK, forward.port)
