"""A link to an agent: streams, cuts, silence, and what is said when it is given up."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest

from remote_runner.connection.link import Link, Stream, StreamClosed
from remote_runner.connection.transports.ssh import SshTransport
from remote_runner.connection.transports.transport import CommandTransport
from remote_runner.errors import FarShellError, HostError, HostLostError, HostUnreachableError, NoFarDirectoryError
from tests.hosts import UserSshd
from tests.remote_runner.connection.far import by_ssh, linked, local, run, small_agent
from tests.remote_runner.connection.peer import LINE


def process(link: Link) -> int:
    """The pid of what carries the link at this moment."""
    assert link._pipes is not None
    return link._pipes._process.pid


async def read_lines(link: Link, count: int) -> None:
    """That many lines come as they should."""
    stream = await link.request({"verb": "lines", "count": count})
    came = bytearray()
    number = 0
    while data := await stream.read(1):
        came += data
        *lines, last = came.split(b"\n")
        for line in lines:
            assert line + b"\n" == LINE % number
            number += 1
        came = last
    assert number == count
    assert (await stream.receive()).head == {"lines": count}
    with pytest.raises(StreamClosed) as closed:
        await stream.receive()
    assert closed.value.kind == ""


async def echo(link: Link, data: bytes, *, bulk: bool = False) -> None:
    """The data comes back as it went."""
    stream = await link.request({"verb": "echo"})

    async def send() -> None:
        left = memoryview(data)
        while left:
            size = random.randrange(1, 200_000)
            await stream.write(0, bytes(left[:size]), bulk=bulk)
            left = left[size:]
        await stream.end(0)

    sending = asyncio.create_task(send())
    came = bytearray()
    while part := await stream.read(0):
        came += part
    await sending
    assert bytes(came) == data
    await stream.close()
    await stream.wait_closed()


def test_requests_are_answered_with_their_fields(tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path)) as link:
            assert str(link.greeting.base) == f"{tmp_path}/home/.cache/remote-runner"
            assert link.address == "127.0.0.1"
            assert link.attempts == 1
            fields = (b"sh", b"", "naïve".encode(), b"\xff\xfe")
            stream = await link.request({"verb": "say", "text": "ü\n"}, *fields)
            message = await stream.receive()
            assert message.head == {"said": {"verb": "say", "text": "ü\n"}}
            assert message.fields == fields
            assert await stream.read(1) == b""
            stream = await link.request({"verb": "fail"})
            with pytest.raises(StreamClosed) as closed:
                await stream.receive()
            assert (closed.value.kind, closed.value.text, closed.value.more) == ("room", "no room", {"path": "/x"})
            with pytest.raises(StreamClosed):
                await stream.write(0, b"x")
            await asyncio.gather(*(read_lines(link, n) for n in (0, 1, 1000, 50_000)))
            await asyncio.gather(*(echo(link, os.urandom(1 << 20), bulk=n % 2 == 0) for n in range(4)))
        with pytest.raises(HostLostError):
            await link.request({"verb": "say"})

    run(check())


def test_streams_of_the_agent_are_handed_over(tmp_path: Path) -> None:
    async def check() -> None:
        opened: asyncio.Queue[Stream] = asyncio.Queue()
        async with linked(local(tmp_path), small_agent(tmp_path), on_open=opened.put_nowait) as link:
            request = await link.request({"verb": "open"})
            stream = await opened.get()
            assert stream.head == {"accepted": request.id}
            assert stream.id % 2 == 0
            await stream.write(0, b"hello")
            assert await stream.read(0) == b"hello"
            await stream.end(0)
            assert await stream.read(0) == b""
            await request.close()

    run(check())


def test_who_does_not_read_stops_no_other_stream(tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path)) as link:
            stopped = await link.request({"verb": "lines", "count": 100_000})
            await read_lines(link, 20_000)
            assert sum(len(chunk) for chunk in stopped._state.inward[1].chunks) <= 256 << 10
            await stopped.close()
            await stopped.wait_closed()

    run(check())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_killed_connections_are_not_noticed(tmp_path: Path, user_sshd: UserSshd, number: int) -> None:
    """ssh dies every 0.3 s while streams run both ways: each is byte for byte, each request answered once."""

    async def check() -> None:
        told: list[str] = []
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path), told=told.append) as link:
            kills = 0

            async def kill() -> None:
                nonlocal kills
                while True:
                    await asyncio.sleep(0.3)
                    if link._pipes is not None:
                        os.kill(process(link), number)
                        kills += 1

            killer = asyncio.create_task(kill())
            try:
                began = time.monotonic()
                while kills < 4 or time.monotonic() - began < 2:
                    await asyncio.gather(
                        read_lines(link, 40_000),
                        echo(link, os.urandom(2 << 20)),
                        echo(link, os.urandom(1 << 20), bulk=True),
                    )
            finally:
                killer.cancel()
            assert link.attempts >= 4
            assert any("is back" in text for text in told)
        assert list((tmp_path / "logs").iterdir()) == []

    run(check())


def test_a_stopped_connection_is_replaced(tmp_path: Path, user_sshd: UserSshd) -> None:
    async def check() -> None:
        told: list[str] = []
        transport = by_ssh(user_sshd.target, tmp_path, tolerate_s=8)
        async with linked(transport, small_agent(tmp_path), tolerate_s=8, told=told.append) as link:
            before = process(link)
            os.kill(before, signal.SIGSTOP)
            await read_lines(link, 1000)
            assert link.attempts == 2
            assert "nothing was heard for" in told[0]
            with pytest.raises(ProcessLookupError):
                os.kill(before, 0)

    run(check())


def test_a_host_that_stays_away_is_given_up(tmp_path: Path, user_sshd: UserSshd) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path), tolerate_s=2) as link:
            stream = await link.request({"verb": "wait"})
            user_sshd.kill()
            began = time.monotonic()
            with pytest.raises(HostLostError, match="nothing listens at its ssh port"):
                await stream.read(1)
            assert time.monotonic() - began < 6
            assert isinstance(link.lost.result(), HostLostError)
            for ask in (link.request({}), stream.receive(), stream.write(0, b"x"), stream.send({})):
                with pytest.raises(HostLostError):
                    await ask

    run(check())


def test_a_host_that_comes_back_in_time_goes_on(tmp_path: Path, user_sshd: UserSshd) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path)) as link:
            pid = (await (await link.request({"verb": "pid"})).receive()).head
            server = user_sshd.server
            assert server is not None
            server.kill()  # its children go on; so the connection is ended as well
            server.wait()
            os.kill(process(link), signal.SIGKILL)
            asked = asyncio.create_task(read_lines(link, 1000))
            await asyncio.sleep(1)
            user_sshd.boot()
            await asked
            assert (await (await link.request({"verb": "pid"})).receive()).head == pid

    run(check())


def test_an_agent_that_is_gone_is_told(tmp_path: Path, user_sshd: UserSshd) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path)) as link:
            stream = await link.request({"verb": "kill"})
            with pytest.raises(HostLostError, match="its agent is gone"):
                await stream.receive()

    run(check())


@pytest.mark.slow
def test_a_process_that_stood_still_says_so(tmp_path: Path) -> None:
    """As after SIGSTOP: the host has given us up meanwhile."""

    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path), tolerate_s=2) as link:
            pid = (await (await link.request({"verb": "pid"})).receive()).head["pid"]
            stream = await link.request({"verb": "wait"})
            await asyncio.sleep(0.1)
            time.sleep(5)
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(HostLostError, match="this process was suspended for"):
                await stream.receive()

    run(check())


@pytest.mark.slow
def test_a_process_that_stood_still_for_too_long_says_so(tmp_path: Path) -> None:
    """The end of the connection is what it sees first."""

    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path), tolerate_s=2) as link:
            pid = (await (await link.request({"verb": "pid"})).receive()).head["pid"]
            stream = await link.request({"verb": "wait"})
            await asyncio.sleep(0.1)
            os.kill(pid, signal.SIGKILL)
            time.sleep(5)
            with pytest.raises(HostLostError, match="this process was suspended for"):
                await stream.receive()

    run(check())


@pytest.mark.slow
def test_a_process_that_stood_still_goes_on_where_the_host_waited(tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path), tolerate_s=2) as link:
            time.sleep(5)
            await read_lines(link, 100)
            assert link.attempts == 1

    run(check())


def test_a_program_that_was_cut_off_is_sent_again(tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(local(tmp_path), small_agent(tmp_path)) as link:
            agents = Path(link.greeting.base) / "agents"
        (program,) = [path for path in agents.iterdir() if "-" in path.name]
        for content in (b"", b"#!/bin/sh\nexit 0\n", b"\x7fELF", b"#!/no/such/interpreter\n"):
            program.write_bytes(content)
            async with linked(local(tmp_path), small_agent(tmp_path)) as link:
                await read_lines(link, 10)
                assert link.attempts == 2

    run(check())


def test_a_program_that_never_greets_ends_in_a_sentence(tmp_path: Path) -> None:
    async def check() -> None:
        program = tmp_path / "program"
        program.write_text("#!/bin/sh\necho cannot run here >&2\nexit 3\n")

        async def find(system: object) -> Path:
            return program

        with pytest.raises(FarShellError, match=r"ended with status 3 as it began(.|\n)*cannot run here"):
            async with linked(local(tmp_path), find):
                pass

    run(check())


def test_a_directory_that_will_not_do_is_told(tmp_path: Path) -> None:
    async def check() -> None:
        (tmp_path / "file").touch()
        with pytest.raises(NoFarDirectoryError, match="no directory there will do"):
            async with linked(local(tmp_path), small_agent(tmp_path), directory=str(tmp_path / "file")):
                pass

    run(check())


@pytest.mark.parametrize(
    ("script", "error", "words"),
    [
        ("echo no way in; exit 7", HostError, r"ended with status 7(.|\n)*no way in"),
        ("exec sleep 100", HostError, "did not answer in time"),
        ("exec yes", HostUnreachableError, "banners without end"),
    ],
)
def test_a_command_that_reaches_no_shell_is_told(
    tmp_path: Path, script: str, error: type[Exception], words: str
) -> None:
    async def check() -> None:
        transport = CommandTransport("box", ("sh", "-c", script), os.environ)
        with pytest.raises(error, match=words):
            async with linked(transport, small_agent(tmp_path), connect_s=2):
                pass

    run(check())


def test_a_command_reaches_a_shell_behind_noise(tmp_path: Path) -> None:
    async def check() -> None:
        home = tmp_path / "home"
        home.mkdir()
        script = f"echo welcome to {{host}}; printf 'no newline'; HOME={home} exec sh"
        transport = CommandTransport("box", ("sh", "-c", script), os.environ)
        async with linked(transport, small_agent(tmp_path)) as link:
            await read_lines(link, 100)

    run(check())


def test_nothing_is_left_open(tmp_path: Path, user_sshd: UserSshd) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    async def once(transport: SshTransport) -> None:
        async with linked(transport, small_agent(tmp_path)) as link:
            await read_lines(link, 10)

    async def check() -> None:
        await once(by_ssh(user_sshd.target, tmp_path))
        before = opened()
        for _ in range(3):
            await once(by_ssh(user_sshd.target, tmp_path))
        assert opened() <= before

    run(check())
