"""The ways between a host and this machine that an application needs: services and extra forwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from remote_runner.ahead import Ahead, Later
from remote_runner.host import Endpoint, Host
from remote_runner.instance.services import Service, services_from
from remote_runner.inventory.inventory import Direction, Forward, HostEntry

_R = TypeVar("_R")


@dataclass(frozen=True)
class Forwarded:
    """What was opened: variables for the application, words for the person, the ports there that are to be checked."""

    variables: Mapping[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    far_ports: tuple[int, ...] = ()

    def __str__(self) -> str:
        return ", ".join(self.words) or "nothing to forward"


def open_forwards(host: Host, entry: HostEntry, environ: Mapping[str, str]) -> Forwarded:
    """Open a way to each service that `environ` names, and the inventory's own forwards; all are asked for at once.

    Raises what the host raises when it refuses one.
    """
    services = services_from(environ)
    free = [service for service in services if not entry.pinned_port(service.name)]
    pinned = [service for service in services if service not in free]
    others = [Ahead(_bound(_open_pinned, host, entry, service)) for service in pinned]
    extras = [Ahead(_bound(_open_extra, host, forward)) for forward in entry.forwards]
    opened: Later[list[Endpoint]] = Later()
    opened.settle(lambda: host.forward_all([one.near for one in free]) if free else [])
    for other in others:
        other.wait()
    for extra in extras:
        extra.wait()
    dialled = dict(zip(free, opened.result(), strict=True))
    dialled |= {service: other.result() for service, other in zip(pinned, others, strict=True)}
    variables: dict[str, str] = {}
    words = []
    for service in services:
        variables |= service.variables(dialled[service], environ)
        words.append(f"{service.name} {dialled[service]} -> {service.near}")
    far_ports = [endpoint.port for endpoint in dialled.values()]
    for forward, extra in zip(entry.forwards, extras, strict=True):
        told, word, endpoint = extra.result()
        variables |= told
        words.append(word)
        if forward.direction is Direction.TO_HOST:
            far_ports.append(endpoint.port)
    return Forwarded(variables, tuple(words), () if entry.is_local else host.unchecked_ports(far_ports))


def _bound(work: Callable[..., _R], *args: object) -> Callable[[], _R]:
    return lambda: work(*args)


def _open_pinned(host: Host, entry: HostEntry, service: Service) -> Endpoint:
    return host.forward_remote(service.near, entry.pinned_port(service.name))


def _open_extra(host: Host, forward: Forward) -> tuple[dict[str, str], str, Endpoint]:
    if forward.direction is Direction.TO_HOST:
        dialled = host.forward_remote(forward.endpoint, forward.port)
        word = f"{forward.name or 'extra'} {dialled} -> {forward.endpoint}"
    else:
        dialled = host.forward_local(forward.endpoint, forward.port)
        word = f"{forward.name or 'extra'} {dialled} here -> {forward.endpoint} there"
    return ({} if forward.variable is None else {forward.variable: str(dialled.port)}), word, dialled
