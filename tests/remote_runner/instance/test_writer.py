"""Writing to every kind of descriptor without blocking the loop and without touching its flags."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import socket
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from remote_runner.instance.writer import HELD_BYTES, Writer

DATA = os.urandom(1 << 20)


def read_all(fd: int) -> tuple[threading.Thread, bytearray]:
    """A reader in a thread of its own, and what it has read."""
    got = bytearray()

    def read() -> None:
        with suppress(OSError):  # a terminal whose other end is closed
            while data := os.read(fd, 1 << 16):
                got.extend(data)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread, got


def write(fd: int, *pieces: bytes) -> list[str]:
    """Feed the pieces, wait until all is written; what `on_unread` was told."""
    told: list[str] = []

    async def run() -> None:
        writer = Writer(fd)
        writer.on_unread = told.append
        for piece in pieces:
            writer.feed(piece)
            await writer.drain()
        await writer.flush()
        writer.close()

    asyncio.run(run())
    return told


@pytest.mark.parametrize("kind", ["pipe", "file", "socket", "null"])
def test_all_of_it_arrives_in_order_and_the_flags_stay(kind: str, tmp_path: Path) -> None:
    if kind == "pipe":
        read_fd, fd = os.pipe()
        thread, got = read_all(read_fd)
    elif kind == "socket":
        near, far = socket.socketpair()
        read_fd, fd = far.detach(), near.detach()
        thread, got = read_all(read_fd)
    else:
        path = tmp_path / "file" if kind == "file" else Path(os.devnull)
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        read_fd, thread, got = -1, None, bytearray()
    before = fcntl.fcntl(fd, fcntl.F_GETFL)
    assert write(fd, DATA, b"", b"x", DATA) == []
    assert fcntl.fcntl(fd, fcntl.F_GETFL) == before
    os.close(fd)
    if thread is not None:
        thread.join(10)
        os.close(read_fd)
        assert bytes(got) == DATA + b"x" + DATA
    elif kind == "file":
        assert (tmp_path / "file").read_bytes() == DATA + b"x" + DATA


def test_a_terminal_gets_it() -> None:
    master, slave = pty.openpty()
    thread, got = read_all(master)
    write(slave, b"hello\n")
    for _ in range(500):
        if b"hello" in got:
            break
        thread.join(0.01)
    assert b"hello" in got
    os.close(slave)


def test_who_reads_slowly_makes_its_feeder_wait_but_nobody_else() -> None:
    read_fd, fd = os.pipe()

    async def run() -> int:
        writer = Writer(fd)
        for _ in range(3):
            writer.feed(DATA)
        assert writer._held_bytes > HELD_BYTES
        draining = asyncio.create_task(writer.drain())
        turns = 0
        for _ in range(100):
            await asyncio.sleep(0.0001)
            turns += not draining.done()
        assert turns == 100
        thread, got = read_all(read_fd)
        await writer.flush()
        assert draining.done()
        writer.close()
        os.close(fd)
        thread.join(10)
        return len(got)

    assert asyncio.run(run()) == 3 * len(DATA)


def test_it_is_told_when_the_last_reader_goes_though_nothing_is_written() -> None:
    read_fd, fd = os.pipe()
    told: list[str] = []

    async def run() -> None:
        writer = Writer(fd)
        gone = asyncio.Event()
        writer.on_unread = lambda why: (told.append(why), gone.set())[0]  # type: ignore[func-returns-value]
        os.close(read_fd)
        await asyncio.wait_for(gone.wait(), 5)
        writer.feed(b"dropped")
        await writer.flush()
        writer.close()

    asyncio.run(run())
    os.close(fd)
    assert told == [""]


def test_a_full_device_is_told_with_its_reason() -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    told = write(fd, b"x", b"y")
    os.close(fd)
    assert told == ["No space left on device"]
