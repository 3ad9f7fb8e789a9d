"""An instance's record while it goes on."""

from __future__ import annotations

from itertools import count
from types import SimpleNamespace

import pytest

from remote_runner.instance import record
from remote_runner.instance.record import Record, StepClock


def test_no_step_begins_later_than_now_however_slow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    now = count(1000.0)  # both clocks, on a machine that takes a second to read one
    monkeypatch.setattr(record, "time", SimpleNamespace(time=lambda: next(now), monotonic=lambda: next(now)))
    kept = Record("i")
    clock = StepClock(kept, lambda _: None)
    step = clock.begin("choose")
    assert kept.started_at <= step.started_at <= next(now) - 1
