"""What the sync service remembers of who signalled and waited."""

from __future__ import annotations

import json
from itertools import count

from testground.sync import journal
from testground.sync.core import SyncCore
from testground.sync.journal import Entry, Journal

KEY = "run:r1:plan:p:case:c:states:ready"


def request(number: int, **action: object) -> str:
    return json.dumps({"id": str(number), "is_cancel": False, **action})


def service() -> tuple[SyncCore, Journal]:
    ticks = count(1)
    kept = Journal(clock=lambda: float(next(ticks)))
    return SyncCore(journal=kept), kept


def test_a_wait_lasts_until_the_last_one_came() -> None:
    core, kept = service()
    one, other = core.connect(), core.connect()
    one.name, other.name = "dex #1", "rex #1"
    core.receive(one, request(1, signal_entry={"state": KEY}))
    core.receive(one, request(2, barrier={"state": KEY, "target": 2}))
    core.receive(other, request(1, barrier={"state": KEY, "target": 3}))
    core.receive(other, request(2, signal_entry={"state": KEY}))
    core.receive(other, request(3, barrier={"state": KEY, "target": 1}))
    assert kept.take("r1") == [
        Entry(1, "dex #1", "ready", seq=1),
        Entry(2, "dex #1", "ready", target=2, met_at=5),
        Entry(3, "rex #1", "ready", target=3),
        Entry(4, "rex #1", "ready", seq=2),
        Entry(6, "rex #1", "ready", target=1, met_at=7),
    ]
    assert kept.take("r1") == []


def test_a_run_that_signals_without_end_fills_no_memory() -> None:
    core, kept = service()
    client = core.connect()
    for number in range(journal.MOST_ENTRIES + 10):
        kept.signalled(client.name, KEY, number)
    assert len(kept.take("r1")) == journal.MOST_ENTRIES
