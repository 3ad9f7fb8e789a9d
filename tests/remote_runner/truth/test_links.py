"""Measuring the ways between hosts: it ends when somebody stops the run, and when an application begins."""

from __future__ import annotations

import asyncio
import json
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from remote_runner.connection.agent import Agent
from remote_runner.truth import links
from remote_runner.truth.links import LINKS_FILE, Links

AGENT = cast(Agent, None)


class Ways:
    """The first way is measured, and the second one takes for ever."""

    def __init__(self) -> None:
        self.count = 0
        self.hangs = asyncio.Event()

    async def measure(self, *_: object) -> dict[str, Any]:
        self.count += 1
        if self.count == 2:
            self.hangs.set()
            await asyncio.Event().wait()
        return {"bytes_per_s": 1}


async def measuring(monkeypatch: pytest.MonkeyPatch, directory: Path) -> tuple[Links, asyncio.Task[None], Ways]:
    ways = Ways()
    monkeypatch.setattr(links, "_way", ways.measure)
    found = Links(directory, 0o027)
    for host in ("a", "b"):
        found.join(host, AGENT, host)
    await found.leave("a")
    task = asyncio.create_task(found.leave("b"))
    await asyncio.wait_for(ways.hangs.wait(), 10)
    return found, task, ways


def test_a_stop_ends_it_and_what_is_left_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def run() -> None:
        found, task, _ = await measuring(monkeypatch, tmp_path)
        found.stop()
        found.stop()
        await asyncio.wait_for(task, 10)

    asyncio.run(run())
    file = tmp_path / LINKS_FILE
    assert [way["problem"] for way in json.loads(file.read_text())] == ["", "left out: the run was stopped"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_an_application_that_begins_ends_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def run() -> None:
        found, task, _ = await measuring(monkeypatch, tmp_path)
        found.join("a", AGENT, "a")
        await asyncio.wait_for(task, 10)
        assert not (tmp_path / LINKS_FILE).exists()
        await found.leave("a")

    asyncio.run(run())
    assert [way["problem"] for way in json.loads((tmp_path / LINKS_FILE).read_text())] == ["", ""]


def test_it_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(links, "MOST_S", 0.2)

    async def run() -> None:
        _, task, _ = await measuring(monkeypatch, tmp_path)
        await asyncio.wait_for(task, 10)

    asyncio.run(run())
    assert json.loads((tmp_path / LINKS_FILE).read_text())[1]["problem"].startswith("left out: measuring")
