"""What this machine remembers of a host from the last connection: its system, and when that was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from remote_runner.controller import Controller
from remote_runner.errors import UnknownSystemError
from remote_runner.inventory.inventory import HostEntry, host_key
from remote_runner.inventory.systems import System
from remote_runner.machine.files import write_atomically

_TRUSTED_S = 86400.0  # a machine behind a name is replaced now and then


@dataclass(frozen=True)
class Known:
    """system: as the inventory says or as found in the last day; last_contact_s: how long ago a connection was made
    (`None`: never, or this machine itself)."""

    system: System | None
    last_contact_s: float | None


def remember_contact(controller: Controller, entry: HostEntry, system: System) -> None:
    """Note that the host was reached, and what it said that it is."""
    if not entry.is_local:
        write_atomically(_note(controller, entry), f"{system}\n".encode(), optional=True)


def known_of(controller: Controller, entry: HostEntry) -> Known:
    """What is known of the host without asking it."""
    if entry.is_local:
        return Known(System.local(), None)
    try:
        note = _note(controller, entry)
        age_s = max(0.0, time.time() - note.stat().st_mtime)
        found = System.parse(note.read_text(encoding="utf-8").strip())
    except (OSError, ValueError, UnknownSystemError):
        return Known(entry.system, None)
    return Known(entry.system or (found if age_s < _TRUSTED_S else None), age_s)


def _note(controller: Controller, entry: HostEntry) -> Path:
    return controller.runtime / "systems" / host_key(entry)
