"""Asking a host what system it is."""

from __future__ import annotations

import os
import time
from pathlib import Path

from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import FarShellError, UnknownSystemError, WrongSystemError
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry, host_key
from remote_runner.inventory.systems import System

_TRUSTED_S = 86400.0  # a machine behind a name is replaced now and then
_SCRIPT = 'printf \'\\n%s system %s\\n\' "$nonce" "$(uname -s) $(uname -m) $(getconf LONG_BIT 2>/dev/null || echo 0)"'


def probe_system(host: Host, entry: HostEntry, *, controller: Controller, deadline: Deadline) -> System:
    """The host's system: as the inventory says, as found in the last day, else by one brief session.

    Raises `FarShellError` for an answer that names no known system, `DeadlineError`, and what the connection raises.
    """
    if entry.system is not None:
        return entry.system
    if entry.is_local:
        return System.local()
    kept = _kept(controller, entry)
    found = _recent(kept)
    if found is not None:
        return found
    # Of several processes one asks.
    with controller.lock(f"probe-{kept.name}").acquire(deadline):
        system = _recent(kept) or _ask(host, deadline)
        remember_system(controller, entry, system)
    return system


def remember_system(controller: Controller, entry: HostEntry, system: System) -> None:
    """Keep what the host was found to be, for the next who wants to know."""
    kept = _kept(controller, entry)
    aside = kept.with_name(f"{kept.name}.{os.getpid()}")
    aside.write_text(str(system), encoding="utf-8")
    aside.replace(kept)


def known_system(controller: Controller, entry: HostEntry) -> System | None:
    """What is known of the host's system without asking it."""
    return entry.system or (System.local() if entry.is_local else _recent(_kept(controller, entry)))


def forget_system(controller: Controller, entry: HostEntry) -> None:
    """Forget what the host was found to be."""
    _kept(controller, entry).unlink(missing_ok=True)


def wrong_system(entry: HostEntry, wanted: System, said: str, *, controller: Controller) -> WrongSystemError:
    """The error for a host that is not what an artifact is for; `said` is base.sh's `rr_system`.

    What was remembered of the host is forgotten.
    """
    words = " ".join(said.split(":")[:2])
    try:
        found = f"{System.from_said(said)} (uname -sm: {words})"
    except UnknownSystemError:
        found = words
    if entry.system == wanted:
        why = f"inventory.yaml says that it is {wanted}"
        next_step = f"correct `system` of {entry.name} in inventory.yaml, or leave it out: then the host is asked"
    elif entry.system is None and known_system(controller, entry) == wanted:
        why = f"it was {wanted} when it was last asked"
        next_step = "run it again: the host is asked anew"
    else:
        why = f"the artifact is for {wanted}"
        next_step = f"correct --arch, or `arch` of {entry.name} in the remote-runners param, or leave it out"
    forget_system(controller, entry)
    return WrongSystemError(entry.name, why, str(wanted), found, next_step=next_step)


def _ask(host: Host, deadline: Deadline) -> System:
    with BriefSession(host, _SCRIPT, {}, deadline, f"asking {host.name} what system it is") as session:
        _, answer = session.answer()
        session.finish()
    sysname, _, rest = answer.partition(" ")
    machine, _, bits = rest.partition(" ")
    try:
        return System.from_uname(sysname, machine, int(bits) if bits.isdecimal() else 0)
    except UnknownSystemError as error:
        next_step = f"set hosts.{host.name}.system in inventory.yaml"
        raise FarShellError(host.name, f"it says that it is {error.found}", next_step=next_step) from error


def _kept(controller: Controller, entry: HostEntry) -> Path:
    directory = controller.runtime / "systems"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / host_key(entry)


def _recent(kept: Path) -> System | None:
    try:
        age_s = time.time() - kept.stat().st_mtime
        return System.parse(kept.read_text(encoding="utf-8")) if 0 <= age_s < _TRUSTED_S else None
    except FileNotFoundError:
        return None
