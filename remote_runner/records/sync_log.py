"""What the run's own sync service saw, as a file beside its record (docs/outputs.md)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from remote_runner.connection.verbs.forwards import HOST_OF_PORT
from remote_runner.machine.files import write_atomically
from testground.sync.journal import Entry

SYNC_FILE = "remote-runner.sync.jsonl"


class ClientNames:
    """Names the clients of a sync service of this process: the host that each comes from, and which of its it is."""

    def __init__(self) -> None:
        self._clients: dict[str, int] = {}

    def __call__(self, port: int) -> str:
        """The name of the client at this port; who is not relayed is on this machine."""
        host = HOST_OF_PORT.get(port, "localhost")
        self._clients[host] = self._clients.get(host, 0) + 1
        return f"{host} #{self._clients[host]}"


def write_sync_log(directory: Path, entries: Iterable[Entry], *, without: str) -> None:
    """A line for each entry, but for the states called `without`; no file where nothing is to be told."""
    lines = []
    for entry in entries:
        if entry.state == without:
            continue
        line: dict[str, object] = {"at": round(entry.at, 6), "client": entry.client, "state": entry.state}
        if entry.seq is not None:
            line["seq"] = entry.seq
        else:
            line["target"] = entry.target
            line["met_at"] = None if entry.met_at is None else round(entry.met_at, 6)
        lines.append(json.dumps(line))
    if lines:
        write_atomically(directory / SYNC_FILE, ("\n".join(lines) + "\n").encode(), mode=0o644, optional=True)
