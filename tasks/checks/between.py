"""Whether the hosts reach each other at the plan's ports and the addresses that their instances are told."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_runner.errors import PortTakenError, RemoteRunnerError
from remote_runner.sizes import listed
from tasks.checks.finding import Finding, fail, failure, ok, warn

if TYPE_CHECKING:
    from remote_runner.connection.agent import Agent
    from remote_runner.inventory.inventory import HostEntry
    from testground.manifest import Manifest

# Each host tries so many others, so that the time stays that of the slowest one.
_MOST_OTHERS = 20
_DIAL_S = 5.0
_MOST_NAMED = 5


@dataclass(frozen=True)
class Reached:
    """A host that could be connected to, and the address at which others reach its instances."""

    entry: HostEntry
    agent: Agent
    address: str


def ports_of(manifest: Manifest | None) -> tuple[int, ...]:
    """The ports that a plan's parameters name, as in `server_port = 8188`; (0,), any free one, where there are none."""
    found: dict[int, None] = {}
    for case in () if manifest is None else manifest.testcases:
        for name, param in case.params.items():
            if name.rpartition("_")[2] == "port" and isinstance(param.default, int) and 0 < param.default < 65536:
                found[param.default] = None
    return tuple(found) or (0,)


async def check_between(hosts: Sequence[Reached], ports: Sequence[int]) -> list[Finding]:
    """What each of at least two hosts reaches of the others; raises nothing that a host can cause."""
    if len(hosts) < 2:
        return []
    step = "give it an `address` (inventory.yaml) at which the others reach it; instances there are told none now"
    nowhere = [host.entry.name for host in hosts if not host.address]
    found = [warn(name, "address", "nobody knows its address", step) for name in nowhere]
    for port in ports:  # one after the other: a free port may be the next one
        async with AsyncExitStack() as stack:
            listening = await asyncio.gather(*(stack.enter_async_context(_listening(host, port)) for host in hosts))
            found += [one for at in listening for one in at.findings]
            found += await asyncio.gather(*(_reaches(host, listening, port) for host in hosts))
    return found


@dataclass(frozen=True)
class _At:
    """Where a host listens for the others (port 0: nowhere), and what it sends to those who connect."""

    host: Reached
    port: int
    token: bytes
    findings: tuple[Finding, ...] = ()


@asynccontextmanager
async def _listening(host: Reached, port: int) -> AsyncIterator[_At]:
    """An agent's listener at all addresses, behind which a server of this machine says a word that only it knows."""
    from remote_runner.inventory.endpoint import Endpoint

    token, name = os.urandom(16).hex().encode(), host.entry.name

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(token)
        writer.close()

    server = await asyncio.start_server(say, "127.0.0.1", 0)
    near = Endpoint("127.0.0.1", server.sockets[0].getsockname()[1])
    findings: list[Finding] = []
    listener = None
    for wanted in dict.fromkeys((port, 0)):
        try:
            listener = await host.agent.listen(near, wanted, any_user=True, everywhere=True)
            break
        except PortTakenError:
            step = f"see who has it there: ss -ltnp 'sport = :{wanted}' (two names for one machine have it in turn)"
            findings.append(warn(name, f"port {wanted}", "taken by another program", step))
        except RemoteRunnerError as error:
            findings.append(failure(name, f"port {wanted}", error))
            break
    async with server:
        if listener is None:
            yield _At(host, 0, token, tuple(findings))
            return
        try:
            with listener.use():
                yield _At(host, listener.port, token, tuple(findings))
        finally:
            await listener.close()


async def _reaches(host: Reached, listening: Sequence[_At], port: int) -> Finding:
    name = host.entry.name
    position = next(number for number, at in enumerate(listening) if at.host is host)
    others = [*listening[position + 1 :], *listening[:position]]
    tried = [at for at in others if at.port and at.host.address][:_MOST_OTHERS]
    problems = await asyncio.gather(*(_problem(host, at) for at in tried))
    away = [(at, problem) for at, problem in zip(tried, problems, strict=True) if problem]
    check = f"to hosts :{port}" if port else "to hosts"
    if not tried:
        return warn(name, check, "there is no other host whose address is known")
    if not away:
        return ok(name, check, f"reaches {listed([at.host.entry.name for at in tried], _MOST_NAMED)}")
    words = listed([f"{at.host.entry.name} at {at.host.address}: {problem}" for at, problem in away], _MOST_NAMED, "; ")
    step = (
        "let a firewall there pass it, or give the host that is not reached an `address` (inventory.yaml) at which "
        "the others reach it"
    )
    # Of a plan that names no port nobody knows whether its instances connect to each other.
    return (fail if port else warn)(name, check, f"does not reach {len(away)} of {len(tried)}: {words}", step)


async def _problem(host: Reached, at: _At) -> str:
    """Why this host does not reach that one, else ""."""
    from remote_runner.inventory.endpoint import Endpoint

    try:
        said = await host.agent.dial(Endpoint(at.host.address, at.port), len(at.token), within_s=_DIAL_S)
    except RemoteRunnerError as error:
        return str(error).partition("\n")[0].removeprefix(f"{host.entry.name}: ")
    return "" if said == at.token else "something else answers there"


def addresses(hosts: Sequence[tuple[HostEntry, Agent]], own: str) -> list[Reached]:
    """Each host with the address that its instances are told; `own` is this machine's."""
    return [
        Reached(entry, agent, entry.address or (own if entry.is_local else agent.address)) for entry, agent in hosts
    ]
