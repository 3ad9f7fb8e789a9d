"""What the sync service saw, as lines of a file."""

from __future__ import annotations

import json
from pathlib import Path

from remote_runner.connection.verbs.forwards import Relayed
from remote_runner.records.sync_log import SYNC_FILE, ClientNames, write_sync_log
from testground.sync.journal import Entry


def test_clients_are_named_by_their_host_and_counted_there() -> None:
    name = ClientNames()
    name.by_port[40001] = Relayed("dex")
    assert [name(port) for port in (40001, 40002, 40001)] == ["dex #1", "localhost #1", "dex #2"]
    name.by_port[40001].instance_id = "r-g-0"
    assert name.instance_of("dex #2", {"r-g-0": "g[0]"}) == "g[0]"
    assert name.instance_of("localhost #1", {"r-g-0": "g[0]"}) == "localhost #1"
    assert name.instance_of("rex #1", {}) == "rex #1"


def test_signals_and_barriers_are_lines(tmp_path: Path) -> None:
    entries = [
        Entry(1.0000001, "dex #1", "ready", seq=1),
        Entry(2.0, "dex #1", "ready", target=2, met_at=3.5),
        Entry(2.5, "rex #1", "ready", target=9),
        Entry(4.0, "dex #1", "hidden", seq=1),
    ]
    write_sync_log(tmp_path, entries, ClientNames(), {}, without="hidden")
    lines = [json.loads(line) for line in (tmp_path / SYNC_FILE).read_text().splitlines()]
    assert lines == [
        {"at": 1.0, "client": "dex #1", "state": "ready", "seq": 1},
        {"at": 2.0, "client": "dex #1", "state": "ready", "target": 2, "met_at": 3.5},
        {"at": 2.5, "client": "rex #1", "state": "ready", "target": 9, "met_at": None},
    ]


def test_nothing_to_tell_is_no_file(tmp_path: Path) -> None:
    write_sync_log(tmp_path, [Entry(4.0, "dex #1", "hidden", seq=1)], ClientNames(), {}, without="hidden")
    assert list(tmp_path.iterdir()) == []
