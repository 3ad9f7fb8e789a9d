"""A run's provenance: the plan's revision, versions, this machine, and the inventory as used."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from remote_runner.connection.bootstrap.program import identity
from remote_runner.connection.frames import PROTOCOL
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.sources.source import CommandSource
from remote_runner.inventory.systems import System
from remote_runner.machine.process import run
from remote_runner.secrets import Secrets

_ROOT = Path(__file__).parent.parent.parent
_ASK_S = 10.0
_MOST_CHANGES = 50


def provenance(plan_dir: Path, environ: Mapping[str, str], *, testground: bool = False) -> dict[str, Any]:
    """All that is known without asking a host; starts `git` and the like, so it is for a thread.

    `testground`: Testground's daemon runs it, so its version is asked for as well.
    """
    return {
        # The demo's plan and one in Testground's home are made of links.
        "plan": revision((plan_dir / "manifest.toml").resolve().parent, environ),
        "versions": dict(_versions(environ.get("PATH", os.defpath), testground)),
        "machine": {
            "name": platform.node(),
            "system": f"{platform.machine()}-{platform.system().lower()}",
            "kernel": platform.release(),
            "cores": os.cpu_count(),
        },
    }


def revision(directory: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The git commit of a directory and whether it was clean; `revision` is `None` outside of a repository.

    changes: what differs from the commit, as `git status --porcelain` has it, the first 50 of them.
    """
    commit = _said(environ, "git", "-C", str(directory), "rev-parse", "HEAD")
    if commit is None:
        return {"revision": None, "clean": None, "changes": []}
    state = _said(environ, "git", "--no-optional-locks", "-C", str(directory), "status", "--porcelain", "--", ".")
    changes = [] if state is None else state.splitlines()
    return {
        "revision": commit.strip(),
        "clean": None if state is None else not changes,
        "changes": changes[:_MOST_CHANGES],
    }


@functools.cache
def _versions(path: str, testground: bool) -> Mapping[str, Any]:
    """Asked for once in a process: a broker has many short runs."""
    from importlib.metadata import PackageNotFoundError, version

    environ = {"PATH": path}
    try:
        own = version("testground-remote-runner")
    except PackageNotFoundError:
        own = None
    found: dict[str, Any] = {
        "remote-runner": own,
        "revision": revision(_ROOT, environ)["revision"],
        "agent": identity(),
        "protocol": PROTOCOL,
        "python": platform.python_version(),
        "ssh": _first_line(_said(environ, "ssh", "-V", words_on_stderr=True)),
        "nix": _first_line(_said(environ, "nix", "--version")),
    }
    if testground:
        found["testground"] = _first_line(_said(environ, "testground", "version"))
    return found


def _first_line(said: str | None) -> str | None:
    return said.strip().partition("\n")[0] if said else None


def _said(environ: Mapping[str, str], *argv: str, words_on_stderr: bool = False) -> str | None:
    """What a program here prints, `None` where it is not there or fails."""
    program = shutil.which(argv[0], path=environ.get("PATH", os.defpath))
    if program is None:
        return None
    try:
        done = run([program, *argv[1:]], deadline=Deadline.after(_ASK_S), environ=environ)
    except (LocalProgramError, DeadlineError):
        return None
    if done.status:
        return None
    return (done.stderr if words_on_stderr else done.stdout).decode("utf-8", "replace")


def inventory_of_run(plan_dir: Path, run_id: str, controller: Controller, environ: Mapping[str, str]) -> Inventory:
    """The inventory with the hosts that its sources named for this run. Raises what reading them raised."""
    inventory = Inventory.load(plan_dir, cache=controller.cache)
    if not inventory.sources:
        return inventory
    from remote_runner.inventory.sources.program import Asking
    from remote_runner.inventory.sources.reading import kept_for_run

    asking = Asking(plan_dir, controller, environ, inventory.source_s)
    listings = kept_for_run(inventory.sources, asking, run_id)
    return inventory if listings is None else inventory.with_hosts(listings, cache=controller.cache)


def secrets_of_run(inventory: Inventory, environ: Mapping[str, str]) -> Secrets | None:
    """What a run's record does not show; `None` while a source was not read whose hosts may name more of it."""
    if any(isinstance(source, CommandSource) for source in inventory.sources):
        return None
    return inventory.secrets(environ)


def inventory_value(inventory: Inventory, used: Iterable[str]) -> dict[str, Any]:
    """The inventory as it was used, as JSON values: the list of hosts, and all settings of those that had an instance.

    Secrets still stand in it.
    """
    names = sorted(set(used))
    return {
        "file": str(inventory.file),
        "spread": _plain(inventory.spread),
        "listed": [{"name": entry.name, "slots": entry.slots} for entry in inventory.hosts],
        "hosts": {name: _entry_value(inventory.host(name)) for name in names},
    }


def _entry_value(entry: HostEntry) -> dict[str, Any]:
    value = {one.name: _plain(getattr(entry, one.name)) for one in fields(entry) if one.name != "nearest"}
    return value | {"env": dict(entry.env), "service_ports": dict(entry.service_ports)}


def _plain(value: Any) -> Any:
    """Values of the inventory as JSON values."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, PurePath | System):
        return str(value)
    if is_dataclass(value):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return value
