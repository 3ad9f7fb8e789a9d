"""An observation is there as long as instances are, and hears the connection of each."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller
from remote_runner.errors import HostError
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import HostEntry
from remote_runner.truth.observation import HOSTS_DIRECTORY, Observation, RunOn, run_doubts
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


class SaysNothing:
    greeting = None

    async def facts(self, *_: str) -> None:
        raise HostError("dex", "says nothing")


@pytest.mark.slow
def test_its_files_have_the_mode_that_the_instance_asks_for(tmp_path: Path) -> None:
    async def run() -> None:
        watch = FakeWatch()
        watch.agent = SaysNothing()
        observation = Observation(RunOn("dex", "r", "p", "c", tmp_path, 0o027), None, None)
        with observation.seat(cast(Watch, watch), None, tmp_path, "1", "g") as seat:
            seat.begin("address")
            seat.end(1.0)
            await seat.settle(Cancellation())
        await observation.close()

    asyncio.run(run())
    directory = tmp_path / "remote-runner.hosts"
    assert stat.S_IMODE(directory.stat().st_mode) == 0o750
    assert stat.S_IMODE((directory / "dex.json").stat().st_mode) == 0o640


def test_one_whose_instances_are_on_their_way_is_not_made_twice(tmp_path: Path) -> None:
    async def run() -> None:
        shared = Shared(Controller(tmp_path / "runtime", tmp_path / "cache"))
        entries = [
            SimpleNamespace(name=str(n), ssh=(), directory="", tolerate_s=1, connect="", job="", by_step=False)
            for n in range(80)
        ]

        def observe(entry: object) -> Observation:
            return shared.observe(cast(HostEntry, entry), RunOn("h", "r", "p", "c", None), "", print, links=False)

        first = observe(entries[0])
        with first.seat(cast(Watch, FakeWatch()), None, tmp_path, "1", "g"):
            for entry in entries[1:]:
                observe(entry)
            assert observe(entries[0]) is first
        await shared.close()

    asyncio.run(run())


def test_what_cannot_be_read_is_a_doubt(tmp_path: Path) -> None:
    (tmp_path / HOSTS_DIRECTORY).mkdir()
    for name, text in (("dex", '{"host": "dex", "doubts": ["one", 2]}'), ("rex", '{"doubts'), ("tex", "{}")):
        (tmp_path / HOSTS_DIRECTORY / f"{name}.json").write_text(text)
    one, *others = run_doubts(tmp_path)
    assert one == "one"
    assert [words.partition(":")[0] for words in others] == ["rex", "tex"]


def test_the_same_of_many_hosts_is_one_doubt(tmp_path: Path) -> None:
    (tmp_path / HOSTS_DIRECTORY).mkdir()
    for number in range(11):
        busy, swapped = f"h{number} was busy: its load was {number}.5", f"h{number} swapped"
        value = {"host": f"h{number}", "doubts": [busy, *([swapped] if number == 7 else [])]}
        (tmp_path / HOSTS_DIRECTORY / f"{number:02d}.json").write_text(json.dumps(value))
    assert run_doubts(tmp_path) == (
        "h0 was busy: its load was 0.5; likewise h1, h2, h3, h4, h5 and 5 more",
        "h7 swapped",
    )
