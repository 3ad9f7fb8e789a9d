"""What the run's own sync service saw, as a file beside its record (docs/outputs.md)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from remote_runner.connection.verbs.forwards import Relayed
from remote_runner.machine.files import write_atomically
from testground.sync.journal import Entry

SYNC_FILE = "remote-runner.sync.jsonl"


class ClientNames:
    """Names the clients of a sync service of this process: the host that each comes from, and which of its it is.

    by_port: who is behind each relayed connection. ask: begins to find out whose another is.
    """

    def __init__(self) -> None:
        self.by_port: dict[int, Relayed] = {}
        self.ask: Callable[[int, Relayed], object] = lambda port, relayed: None
        self._clients: dict[str, int] = {}
        self._relayed: dict[str, Relayed] = {}

    def __call__(self, port: int) -> str:
        """The name of the client at this port; who is not relayed is on this machine."""
        relayed = self.by_port.get(port)
        if relayed is None:
            relayed = Relayed("localhost")
            self.ask(port, relayed)
        self._clients[relayed.host] = self._clients.get(relayed.host, 0) + 1
        name = f"{relayed.host} #{self._clients[relayed.host]}"
        self._relayed[name] = relayed
        return name

    def instance_of(self, client: str, instances: Mapping[str, str]) -> str:
        """The instance (by what hosts call it) whose client it is, where its host told that; else the client."""
        relayed = self._relayed.get(client)
        return client if relayed is None else instances.get(relayed.instance_id, client)


def write_sync_log(
    directory: Path, entries: Iterable[Entry], names: ClientNames, instances: Mapping[str, str], *, without: str
) -> None:
    """A line for each entry, but for the states called `without`; no file where nothing is to be told.

    instances: their names by what hosts call them.
    """
    lines = []
    for entry in entries:
        if entry.state == without:
            continue
        line: dict[str, object] = {
            "at": round(entry.at, 6),
            "client": names.instance_of(entry.client, instances),
            "state": entry.state,
        }
        if entry.seq is not None:
            line["seq"] = entry.seq
        else:
            line["target"] = entry.target
            line["met_at"] = None if entry.met_at is None else round(entry.met_at, 6)
        lines.append(json.dumps(line))
    if lines:
        write_atomically(directory / SYNC_FILE, ("\n".join(lines) + "\n").encode(), mode=0o644, optional=True)


def sync_lines(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines in a run's directory, none where there is no file; what is malformed is left out."""
    with suppress(OSError), (directory / SYNC_FILE).open("rb") as file:
        for line in file:
            with suppress(ValueError, RecursionError):
                value = json.loads(line)
                if isinstance(value, dict):
                    yield value
