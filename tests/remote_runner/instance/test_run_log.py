"""The files that the instances of a run write together: in order, and none of them held up by another's disk."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from remote_runner.instance.run_log import InstanceLog, RunLog, run_directory


def instances(log: RunLog, directory: Path, *names: str) -> list[InstanceLog]:
    made = []
    for name in names:
        (directory / name).mkdir()
        made.append(InstanceLog(log, directory / name, name))
    return made


def test_what_came_is_there_when_it_is_flushed_in_its_order(tmp_path: Path) -> None:
    async def check() -> None:
        log = RunLog(tmp_path, None)
        one, two = instances(log, tmp_path, "one", "two")
        for number in range(100):
            one.stdout(b"%d\n" % number)
            two.stderr(b"%d\n" % number)
            if number % 30 == 0:
                assert await one.flush() == []
                assert (tmp_path / "one/stdout").read_bytes().endswith(b"\n%d\n" % number if number else b"0\n")
        assert [*await one.flush(), *await two.flush()] == []
        log.close()

    asyncio.run(check())
    lines = "".join(f"{number}\n" for number in range(100))
    assert (tmp_path / "one/stdout").read_text() == (tmp_path / "two/stderr").read_text() == lines
    assert len((tmp_path / "run.log").read_text().splitlines()) == 200


@pytest.mark.parametrize(
    ("outputs", "run", "group", "found"),
    [
        ("/o/p/r1/single/0", "r1", "single", "/o/p/r1"),
        ("/o/p/r1/a/b/12", "r1", "a/b", "/o/p/r1"),
        ("/home/test/plans/p/out/0", "test", "out", None),
        ("/home/test/out", "test", "out", None),
        ("/o/p/r1/single/first", "r1", "single", None),
        ("/o/p/r1/other/0", "r1", "single", None),
        ("/o/p//single/0", "", "single", None),
    ],
)
def test_the_run_is_above_its_groups_alone(outputs: str, run: str, group: str, found: str | None) -> None:
    assert run_directory(Path(outputs), run, group) == (found and Path(found))


@pytest.mark.parametrize("directory", [True, False], ids=["with run.log", "without"])
def test_a_disk_that_hangs_holds_up_its_own_instance_alone(tmp_path: Path, directory: bool) -> None:
    async def check() -> None:
        log = RunLog(tmp_path if directory else None, None)
        hangs, *others = instances(log, tmp_path, "hangs", *"abcdef")
        fifo = tmp_path / "hangs/stdout"
        os.mkfifo(fifo)  # to open it waits until somebody reads
        began_s = time.monotonic()
        for number in range(3):
            for one in (others[0], hangs, *others[1:]):
                one.stdout(b"%d\n" % number)
            for one in others:
                assert await one.flush() == []
        assert time.monotonic() - began_s < 5
        flushing = asyncio.create_task(hangs.flush())
        await asyncio.sleep(0.3)
        assert not flushing.done()
        read = await asyncio.to_thread(read_all, fifo, len(b"0\n1\n2\n"))
        assert await flushing == []
        assert read == b"0\n1\n2\n"
        log.close()

    asyncio.run(check())
    for name in "abcdef":
        assert (tmp_path / name / "stdout").read_bytes() == b"0\n1\n2\n"


def read_all(fifo: Path, size: int) -> bytes:
    """So many bytes, however often the pipe is opened for them."""
    fd = os.open(fifo, os.O_RDWR)  # which keeps it open between its writers
    try:
        data = b""
        while len(data) < size:
            data += os.read(fd, size)
        return data
    finally:
        os.close(fd)


def test_a_line_on_stderr_without_an_end_is_not_kept_in_memory(tmp_path: Path) -> None:
    async def check() -> None:
        log = RunLog(tmp_path, None)
        (one,) = instances(log, tmp_path, "one")
        for _ in range(40):
            one.stderr(b"x" * 4096)
        await one.flush()
        assert (tmp_path / "run.log").stat().st_size > 64 * 1024
        log.close()

    asyncio.run(check())
