"""What this machine knows of a host without asking it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.controller import Controller
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry, host_key
from remote_runner.inventory.systems import System
from remote_runner.probe import known_system


@dataclass(frozen=True)
class Known:
    """system: as the inventory says or as found in the last day; is_connected: whether a control master is up (`None`
    for this machine); last_contact_s: how long ago a connection was made or something was pushed (`None`: never)."""

    system: System | None
    is_connected: bool | None
    last_contact_s: float | None


def known_of(controller: Controller, entry: HostEntry, host: Host) -> Known:
    """What is known of the host behind that door."""
    from remote_runner.masters import SshHost

    system = known_system(controller, entry)
    if not isinstance(host, SshHost):
        return Known(system, None, None)
    contacts = []
    for path in (host._places.log_path(0), *_marks(controller, entry)):
        with suppress(FileNotFoundError):
            contacts.append(path.stat().st_mtime)
    last_s = max(0.0, time.time() - max(contacts)) if contacts else None
    return Known(system, host.is_running(0), last_s)


def _marks(controller: Controller, entry: HostEntry) -> Iterator[Path]:
    key = host_key(entry)
    yield controller.runtime / "systems" / key
    yield from (controller.runtime / "pushed").glob(f"{key}-*")
