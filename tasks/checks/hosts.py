"""Checks of a host: login, disk space, clock, limits, from its agent's facts."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from remote_runner.errors import (
    HostKeyChangedError,
    HostKeyUnknownError,
    NoFarDirectoryError,
    RemoteRunnerError,
)
from tasks.checks.finding import Finding, fail, failure, ok, warn
from tasks.checks.here import room

if TYPE_CHECKING:
    from remote_runner.connection.agent import Agent
    from remote_runner.connection.verbs.facts import HostFacts
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.inventory import HostEntry

_CLOCK_WARN_S, _CLOCK_FAIL_S = 0.1, 30.0
_FEW_FILES, _FEW_PROCESSES = 1024, 256
# Beyond the application an instance has pipes, a listener, relayed connections.
_FILES_PER_SLOT = 64


async def check_host(
    shared: Shared, entry: HostEntry, environ: Mapping[str, str]
) -> tuple[Agent | None, list[Finding]]:
    """The connection to the host, where there is one, and what was found; raises nothing that a host can cause."""
    began_s = time.monotonic()
    try:
        agent = await shared.agent(entry, environ)
    except RemoteRunnerError as error:
        return None, [_not_connected(entry, error)]
    took_s = time.monotonic() - began_s
    found = [*_connected(entry, agent, took_s)]
    try:
        facts = await agent.host_facts()
    except RemoteRunnerError as error:
        return None, [*found, failure(entry.name, "facts", error)]
    return agent, [*found, *judge(entry, facts)]


def _not_connected(entry: HostEntry, error: RemoteRunnerError) -> Finding:
    kinds: dict[type[RemoteRunnerError], str] = {
        HostKeyUnknownError: "host key",
        HostKeyChangedError: "host key",
        NoFarDirectoryError: "directory",
    }
    return failure(entry.name, kinds.get(type(error), "login"), error)


def _connected(entry: HostEntry, agent: Agent, took_s: float) -> Iterable[Finding]:
    name, greeting = entry.name, agent.greeting
    user = f"as {greeting.user} on {greeting.hostname}, in {took_s:.2f} s"
    if agent.attempts > 1:
        step = "raise MaxStartups there, or connect less at once"
        yield warn(name, "login", f"{user}, at attempt {agent.attempts}: its sshd dropped connections", step)
    else:
        yield ok(name, "login", user)
    if entry.by_ssh is not None:
        yield ok(name, "host key", "known")
    yield ok(name, "directory", str(greeting.base))
    if entry.system is not None and not greeting.system.runs(entry.system):
        step = f"correct `system` of {name} in inventory.yaml, or leave it out"
        yield fail(name, "agent", f"for {greeting.system}; inventory.yaml says {entry.system}", step)
    else:
        yield ok(name, "agent", f"for {greeting.system}, at {agent.address or 'an unknown address'}")


def judge(entry: HostEntry, facts: HostFacts) -> Iterable[Finding]:
    """What the facts mean for a run; pure."""
    from remote_runner.inventory.kinds import Builder

    name = entry.name
    if facts.free_bytes is not None:
        yield room(name, "space", facts.free_bytes, "", f"make room there (fab clean -H {name}), or name another place")
    yield _clock(name, facts)
    yield _limits(entry, facts)
    needs_nix = entry.app.builder is Builder.NIX
    if facts.user_namespaces is None:
        yield warn(name, "namespaces", "it did not say")
    elif facts.user_namespaces:
        yield ok(name, "namespaces", "a user may make them")
    else:
        yield ok(name, "namespaces", f"a user may make none ({facts.user_namespaces_problem or 'no reason given'})")
    nix = facts.nix
    if nix is None:
        yield warn(name, "Nix", "it did not say")
    elif needs_nix and facts.closure_way() is None:
        (why, *_) = facts.remarks(None)
        step = "set up Nix there for this user, or let it give out user namespaces"
        yield fail(name, "Nix", why, step)
    else:
        ways = {"nix": "takes closures", "build": "builds what it is sent", "user": "keeps a store of the user's own"}
        yield ok(name, "Nix", f"{nix.version or nix.access.value}: {ways.get(facts.closure_way() or '', 'takes none')}")


def _clock(name: str, facts: HostFacts) -> Finding:
    clock = facts.clock
    if clock is None:
        return warn(name, "clock", "it did not say")
    way = "ahead" if clock.offset_s >= 0 else "behind"
    found = f"{abs(clock.offset_s):.3f} s {way} (±{clock.uncertainty_s:.3f})"
    off_s = abs(clock.offset_s) - clock.uncertainty_s
    if off_s <= _CLOCK_WARN_S:
        return ok(name, "clock", found)
    step = "let both machines keep time by NTP (chrony, systemd-timesyncd)"
    return (fail if off_s > _CLOCK_FAIL_S else warn)(name, "clock", found, step)


def _limits(entry: HostEntry, facts: HostFacts) -> Finding:
    files, processes = facts.most_files, facts.most_processes
    found = f"{files or 'any number of'} files, {processes or 'any number of'} processes"
    few_files = files is not None and files < max(_FEW_FILES, _FILES_PER_SLOT * entry.slots)
    if few_files or (processes is not None and processes < max(_FEW_PROCESSES, 8 * entry.slots)):
        step = "raise them there (ulimit -n, ulimit -u, /etc/security/limits.conf), or give the host fewer slots"
        return warn(entry.name, "limits", found, step)
    return ok(entry.name, "limits", found)
