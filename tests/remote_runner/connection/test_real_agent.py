"""A link to the real agent: what `test_link.py` holds of the small one, and that its processes come and go."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Awaitable
from pathlib import Path

import pytest

from remote_runner.connection.link import Link
from remote_runner.connection.verbs.fetch import Allowance
from remote_runner.connection.verbs.job import Job
from remote_runner.connection.verbs.run import Run
from remote_runner.errors import HostLostError
from remote_runner.inventory.systems import System
from tests.hosts import UserSshd
from tests.remote_runner.connection.far import Program, by_ssh, linked, local, real_agent, run


@pytest.fixture(scope="module")
def program() -> Program:
    """The real agent's program."""
    path = real_agent()

    async def find(system: System) -> Path:
        return path

    return find


def process(link: Link) -> int:
    assert link._pipes is not None
    return link._pipes._process.pid


async def execute(link: Link, *argv: str, stdin: bytes = b"") -> tuple[int, bytes]:
    """Run it there: its exit status and what it said."""
    stream = await link.request(
        {"verb": "exec", "argc": len(argv), "cwd": "", "login_env": True}, *(word.encode() for word in argv)
    )
    assert "started" in (await stream.receive()).head

    async def send() -> None:
        for start in range(0, len(stdin), 100_000):
            await stream.write(0, stdin[start : start + 100_000])
        await stream.end(0)

    async def read(lane: int) -> bytes:
        came = bytearray()
        while data := await stream.read(lane):
            came += data
        return bytes(came)

    _, stdout, stderr = await asyncio.gather(send(), read(1), read(2))
    exited = (await stream.receive()).head["exited"]
    await stream.close()
    return exited["status"], stdout + stderr


def numbers(count: int) -> bytes:
    return b"".join(b"%d\n" % n for n in range(1, count + 1))


async def gone(pid: int) -> None:
    """Until that process has ended."""
    while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
        await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", ["local", "ssh"])
def test_programs_run_and_the_agent_goes_with_the_session(
    tmp_path: Path, user_sshd: UserSshd, program: Program, kind: str
) -> None:
    async def check() -> None:
        transport = local(tmp_path) if kind == "local" else by_ssh(user_sshd.target, tmp_path)
        async with linked(transport, program) as link:
            assert link.address == "127.0.0.1"
            assert link.greeting.hostname == os.uname().nodename
            data = os.urandom(3 << 20)
            assert await execute(link, "cat", stdin=data) == (0, data)
            assert await execute(link, "sh", "-c", "echo out; exit 3") == (3, b"out\n")
            lasting = await link.request({"verb": "exec", "argc": 2, "cwd": "", "login_env": True}, b"sleep", b"1000")
            pid = (await lasting.receive()).head["started"]["pid"]
        await asyncio.gather(gone(pid), gone(link.greeting.pid))
        assert list((Path(link.greeting.base) / "agents").glob("*.sock")) == []

    run(check())


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_it_is_small_with_two_hundred_applications(tmp_path: Path, program: Program) -> None:
    async def check() -> None:
        environ = {f"TEST_VARIABLE_{n}": "x" * 60 for n in range(40)}
        async with linked(local(tmp_path), program) as link:
            await link.request({"verb": "watch", "every_s": 1})
            jobs = [Job(f"run-{n}", ("sleep", "1000"), environ) for n in range(200)]
            base, allowance = str(link.greeting.base), Allowance()
            await asyncio.gather(*(Run.start(link, job, base, allowance) for job in jobs))
            status = Path(f"/proc/{link.greeting.pid}/status").read_text(encoding="ascii")
            most_kib = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))
            assert most_kib < 13 << 10, f"{most_kib} KiB"  # 11.8 MiB on a 64-bit machine with two cores

    run(check())


def test_killed_connections_are_not_noticed(tmp_path: Path, user_sshd: UserSshd, program: Program) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), program) as link:
            kills = 0

            async def kill() -> None:
                nonlocal kills
                while True:
                    await asyncio.sleep(0.3)
                    if link._pipes is not None:
                        os.kill(process(link), signal.SIGKILL)
                        kills += 1

            killer = asyncio.create_task(kill())
            expected, data = numbers(300_000), os.urandom(2 << 20)
            try:
                began = time.monotonic()
                while kills < 4 or time.monotonic() - began < 2:
                    work: list[Awaitable[tuple[int, bytes]]] = [
                        execute(link, "seq", "300000"),
                        execute(link, "cat", stdin=data),
                    ]
                    assert await asyncio.gather(*work) == [(0, expected), (0, data)]
            finally:
                killer.cancel()

    run(check())


def test_a_stopped_connection_is_replaced(tmp_path: Path, user_sshd: UserSshd, program: Program) -> None:
    async def check() -> None:
        transport = by_ssh(user_sshd.target, tmp_path, tolerate_s=8)
        async with linked(transport, program, tolerate_s=8) as link:
            os.kill(process(link), signal.SIGSTOP)
            assert await execute(link, "echo", "hello") == (0, b"hello\n")
            assert link.attempts == 2

    run(check())


def test_an_agent_that_was_killed_is_told(tmp_path: Path, user_sshd: UserSshd, program: Program) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), program) as link:
            stream = await link.request({"verb": "exec", "argc": 2, "cwd": "", "login_env": True}, b"sleep", b"1000")
            pid = (await stream.receive()).head["started"]["pid"]
            os.kill(link.greeting.pid, signal.SIGKILL)
            with pytest.raises(HostLostError, match="its agent is gone"):
                await stream.receive()
            await gone(pid)

    run(check())


def test_what_ran_goes_on_through_a_cut_and_ends_with_a_client_that_is_gone(
    tmp_path: Path, user_sshd: UserSshd, program: Program
) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), program) as link:
            stream = await link.request({"verb": "exec", "argc": 2, "cwd": "", "login_env": True}, b"sleep", b"1000")
            pid = (await stream.receive()).head["started"]["pid"]
            os.kill(process(link), signal.SIGKILL)
            assert await execute(link, "kill", "-0", str(pid)) == (0, b"")
            # Our end of ssh's input closes, as it does when this process dies.
            assert link._pipes is not None
            link._pipes._process.send_signal(signal.SIGCONT)
            os.close(link._pipes._stdin)
            link._pipes._stdin = os.open(os.devnull, os.O_RDWR)
            await gone(pid)

    run(check())
