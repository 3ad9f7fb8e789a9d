"""An observation is there as long as instances are, and hears the connection of each."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, cast

from remote_runner.truth.observation import Observation, RunOn
from remote_runner.truth.values import Trips
from remote_runner.truth.watch import Watch


class FakeWatch:
    agent: Any = None

    def __init__(self) -> None:
        self.runs: dict[str, object] = {}
        self.hear: set[object] = set()

    async def state(self) -> None:
        return None

    async def trips(self) -> Trips:
        return Trips()


def test_it_is_there_from_the_first_seat_to_the_last(tmp_path: Path) -> None:
    async def run() -> None:
        observation = Observation(RunOn("dex", "r", "p", "c", None), None, None)
        with observation.seat(cast(Watch, FakeWatch()), None, tmp_path, "1", "g"):
            assert not observation.is_idle
        assert observation.is_idle
        observation.abandon()

    asyncio.run(run())


def test_each_connection_is_heard_as_long_as_an_instance_uses_it(tmp_path: Path) -> None:
    async def run() -> None:
        observation = Observation(RunOn("dex", "r", "p", "c", None), None, None)
        before, anew = FakeWatch(), FakeWatch()
        places = [(before, "1"), (anew, "2"), (anew, "3")]
        seats = [observation.seat(cast(Watch, watch), None, tmp_path, name, "g") for watch, name in places]
        for seat in seats:
            seat.begin("address")
        assert before.hear
        assert anew.hear
        seats[1].end(1.0)
        assert before.hear
        assert anew.hear
        seats[0].end(1.0)
        assert anew.hear
        assert not before.hear
        seats[2].end(1.0)
        assert not anew.hear
        observation.abandon()

    asyncio.run(run())
