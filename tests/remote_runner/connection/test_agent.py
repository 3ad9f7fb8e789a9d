"""The other requests as the client makes them, beside an agent that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from remote_runner.connection.agent import Agent, FarFile
from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.connection.verbs.leftovers import FarRun, LeftArtifact, Removal
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactError,
    DeadlineError,
    FarShellError,
    HostError,
    HostLostError,
    OutputsError,
    PortTakenError,
    PushFailedError,
)
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.systems import System
from remote_runner.outputs import OutputsReport
from tests.remote_runner.connection.fake_link import FakeLink, FakeStream
from tests.remote_runner.connection.programs import Finished, run_program
from tests.remote_runner.connection.verbs.test_run import WHOLE, play, tar_of

HASH = "a" * 32


def content() -> Iterator[bytes]:
    yield from (b"one", b"two", b"three")


# --- artifacts ---


def test_an_artifact_that_is_sent() -> None:
    received = bytearray()

    async def takes(stream: FakeStream) -> None:
        assert stream.head == {"verb": "artifact", "hash": HASH, "size": 9, "files": 2, "limit": 100}
        stream.says(send=True)
        received.extend(await stream.got(0))
        stream.says(done="/b/artifacts/h/c")
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        told: list[int] = []
        pushed = await agent.push_artifact(HASH, 9, 2, 100, content, sent=told.append)
        assert pushed == (PurePosixPath("/b/artifacts/h/c"), False, 11)
        assert bytes(received) == b"onetwothree"
        assert told == [3, 6, 11]

    play(takes, test)


def test_an_artifact_that_is_there() -> None:
    async def has(stream: FakeStream) -> None:
        stream.says(have="/b/artifacts/h/c")
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        pushed = await agent.push_artifact(HASH, 9, 2, 100, content)
        assert pushed == (PurePosixPath("/b/artifacts/h/c"), True, 0)

    play(has, test)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("room", PushFailedError, "no room for the artifact"),
        ("readonly", PushFailedError, "is read-only"),
        ("hash", PushFailedError, "did not arrive whole"),
        ("busy", PushFailedError, "did not arrive whole"),
        ("breach", FarShellError, "the agent there failed: breach"),
        ("ended", HostLostError, "the agent there ended"),
    ],
)
def test_an_artifact_that_does_not_arrive(kind: str, error: type[HostError], words: str) -> None:
    async def fails(stream: FakeStream) -> None:
        stream.says(send=True)
        await asyncio.sleep(0)
        stream.fails(kind, "the words")

    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(error, match=words):
            await agent.push_artifact(HASH, 9, 2, 100, endless)
        assert link.streams[0].is_closed.is_set()

    play(fails, test)


def test_content_that_cannot_be_read_here() -> None:
    async def takes(stream: FakeStream) -> None:
        stream.says(send=True)
        await stream.got(0)

    def broken() -> Iterator[bytes]:
        yield b"x"
        raise ArtifactError("gone")

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(ArtifactError):
            await agent.push_artifact(HASH, 9, 2, 100, broken)
        assert link.streams[0].is_closed.is_set()

    play(takes, test)


def test_a_push_that_does_not_end() -> None:
    async def silent(stream: FakeStream) -> None:
        await asyncio.Event().wait()

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(DeadlineError, match="push to dex"):
            await agent.push_artifact(HASH, 9, 2, 100, content, deadline=Deadline.after(0.05))
        assert link.streams[0].is_closed.is_set()

    play(silent, test)


def test_a_host_of_another_system() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        inventory = Inventory.parse("hosts: {dex: {system: aarch64-linux}, other: {}}\n", Path("inventory.yaml"))
        dex, other = inventory.hosts
        agent.check_system(other, System("i686", "linux"))
        with pytest.raises(HostError, match="says that it is aarch64-linux, and the host says"):
            agent.check_system(dex, System("aarch64", "linux"))
        with pytest.raises(HostError, match="the artifact is for x86_64-darwin"):
            agent.check_system(other, System("x86_64", "darwin"))

    play(nothing, test)


async def nothing(stream: FakeStream) -> None:
    raise AssertionError(stream.head)


# --- programs ---


def test_a_program() -> None:
    async def cat(stream: FakeStream) -> None:
        assert stream.head == {"verb": "exec", "argc": 2, "cwd": "", "login_env": True}
        assert stream.fields == (b"cat", b"-", b"A=1")
        stream.says(started={"pid": 7})
        stream.data(1, await stream.got(0))
        stream.says(exited={"status": 130, "signal": 2})
        stream.data(2, b"late words")
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        done = await run_program(agent, ("cat", "-"), env={"A": "1"}, stdin=b"in")
        assert done == Finished(130, b"in", b"late words")
        assert link.streams[0].is_closed.is_set()

    play(cat, test)


def test_a_program_that_reads_no_input() -> None:
    async def true(stream: FakeStream) -> None:
        stream.says(started={"pid": 7})
        stream.data(1)
        stream.data(2)
        stream.says(exited={"status": 0, "signal": 0})
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        assert await run_program(agent, ("true",), stdin=bytes(100)) == Finished(0, b"", b"")

    play(true, test)


def test_a_program_that_is_not_there() -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.fails("program", "", program="nix", problem="nothing")

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(HostError, match="nix: is not there"):
            await run_program(agent, ("nix",))

    play(refuses, test)


# --- what is there ---


def test_runs_and_artifacts() -> None:
    async def lists(stream: FakeStream) -> None:
        if stream.head["verb"] == "runs":
            run = {"id": "a", "directory": "/b/runs/a", "alive": True, "size": 10, "record": {"age": "60", "id": "a"}}
            stream.says(run=run)
            stream.says(run={**run, "directory": "/"})
        else:
            stream.says(artifact={"name": "h", "directory": "/b/closures/h", "used": False, "age_s": 5, "size": 7})
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        (run,) = (await agent.runs()).runs
        record = {"age": "60", "id": "a"}
        assert run == FarRun("dex", "a", PurePosixPath("/b/runs/a"), is_alive=True, size_bytes=10, record=record)
        assert run.age_s == 60
        (artifact,) = await agent.artifacts()
        assert artifact == LeftArtifact("dex", "h", PurePosixPath("/b/closures/h"), False, 5, 7)
        assert (artifact.store, artifact.is_partial) == (Store.USER, False)

    play(lists, test)


@pytest.mark.parametrize("said", [{"run": {"directory": "/b/runs/a", "size": -1, "record": {}}}, {"run": 7}, {"x": {}}])
def test_a_list_that_is_none(said: dict[str, Any]) -> None:
    async def lies(stream: FakeStream) -> None:
        stream.says(**said)
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(FarShellError, match="unexpected answer"):
            await agent.runs()

    play(lies, test)


def test_a_list_without_an_end() -> None:
    async def floods(stream: FakeStream) -> None:
        said = {"directory": "/b/runs/a", "size": 1, "record": {"x": "y" * 1_000_000}}
        while not stream.is_closed.is_set():
            stream.says(run=said)
            await asyncio.sleep(0)

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(FarShellError, match="does not end"):
            await agent.runs()

    play(floods, test)


def test_what_is_removed() -> None:
    async def removes(stream: FakeStream) -> None:
        if stream.head["verb"] == "remove":
            assert stream.head["ids"] is None
            assert (stream.head["older_s"], stream.head["end_alive"], stream.head["grace_s"]) == (60, True, 2)
        stream.says(removed=["/b/a"], alive=[], failed=[["/b/c", "denied"], 7], unknown=["d"], more=1)
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        removal = Removal(("/b/a",), (), (("/b/c", "denied"),), ("d",))
        assert await agent.remove_runs(None, older_than_s=60, end_alive=True, grace_s=2) == removal
        assert await agent.remove_artifacts(["h"]) == removal
        assert await agent.remove_artifacts([]) == Removal()
        assert [stream.head["verb"] for stream in link.streams] == ["remove", "remove-artifacts"]

    play(removes, test)


def test_outputs_of_an_earlier_run(tmp_path: Path) -> None:
    async def sends(stream: FakeStream) -> None:
        assert stream.head == {"verb": "fetch", "id": "r-0"}
        stream.data(3, tar_of(file=b"hello"))
        stream.says(fetched=WHOLE)
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        assert await agent.fetch_run("r-0", tmp_path) == OutputsReport(1, 5)

    play(sends, test)


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        ("unknown", HostError, "there is no run r-0"),
        ("unreadable", OutputsError, "the host cannot read them"),
    ],
)
def test_outputs_that_are_not_there(tmp_path: Path, kind: str, error: type[HostError], words: str) -> None:
    async def fails(stream: FakeStream) -> None:
        stream.fails(kind)

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(error, match=words):
            await agent.fetch_run("r-0", tmp_path)

    play(fails, test)


# --- files ---


def test_files() -> None:
    received = bytearray()

    async def keeps(stream: FakeStream) -> None:
        if stream.head["verb"] == "put":
            assert stream.head == {"verb": "put", "path": "x", "name": "n", "mode": 0o600}
            received.extend(await stream.got(0))
            stream.says(written="/home/u/x")
        else:
            stream.says(mode=0o644, size=5, path="/home/u/x")
            stream.data(0, b"he", b"llo")
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        assert await agent.put(iter([b"a", b"b"]), "x", name="n", mode=0o600) == "/home/u/x"
        assert received == b"ab"
        async with agent.get("x") as (file, chunks):
            assert file == FarFile(PurePosixPath("/home/u/x"), 0o644, 5)
            assert b"".join([chunk async for chunk in chunks]) == b"hello"

    play(keeps, test)


def test_a_file_that_is_not_there() -> None:
    async def fails(stream: FakeStream) -> None:
        stream.fails("unknown", "no such file")

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(HostError, match="x is not there"):
            async with agent.get("x"):
                pass

    play(fails, test)


# --- forwards ---


class Echo:
    """A server here that says everything back, and at the end of input how much that was."""

    async def __aenter__(self) -> Endpoint:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Endpoint("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        size_bytes = 0
        try:
            while data := await reader.read(65536):
                size_bytes += len(data)
                writer.write(data)
                await writer.drain()
            writer.write(b"|%d" % size_bytes)
            await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


async def listens(stream: FakeStream) -> None:
    stream.says(listening=4000)


def accepted(link: FakeLink, agent: Agent) -> FakeStream:
    """A connection to the first listener, as the agent opens it."""
    stream = FakeStream(link, 2, {"accepted": link.streams[0].id})
    agent._listeners.accept(stream.stream)
    return stream


def test_a_connection_to_a_listener_with_a_half_close() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        async with Echo() as near:
            listener = await agent.listen(near)
            assert (listener.port, link.streams[0].head) == (4000, {"verb": "listen", "port": 0, "any_user": False})
            with listener.use():
                stream = accepted(link, agent)
                stream.data(0, b"ab", b"cd")
                assert await stream.got(0) == b"abcd|4"
                assert not stream.is_closed.is_set()
                stream.fails()
                await stream.wait_closed()
            await listener.close()
            assert link.streams[0].is_closed.is_set()

    play(listens, test)


def test_what_nobody_uses_is_not_dialled_and_ends() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        async with Echo() as near:
            listener = await agent.listen(near)
            early = accepted(link, agent)
            await early.wait_closed()
            with listener.use():
                inside = accepted(link, agent)
                inside.data(0, b"ab", end=False)
                assert await inside._written[0].get() == b"ab"
            await inside.wait_closed()

    play(listens, test)


def test_what_cannot_be_dialled_here_is_told_once() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        async with Echo() as near:
            pass
        told: list[str] = []
        listener = await agent.listen(near, told=told.append)
        with listener.use():
            for _ in range(3):
                await accepted(link, agent).wait_closed()
        (words,) = told
        assert words.startswith(f"dex: a program there wants {near}, which cannot be dialled here: ")

    play(listens, test)


def test_who_was_not_let_in_is_told() -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.says(listening=4000)
        stream.says(refused={"uid": 1001})

    async def test(agent: Agent, link: FakeLink) -> None:
        told: asyncio.Queue[str] = asyncio.Queue()
        await agent.listen(Endpoint("redis", 6379), told=told.put_nowait)
        assert "user 1001 there was not let through to redis:6379" in await told.get()

    play(refuses, test)


def test_a_port_that_is_taken() -> None:
    async def fails(stream: FakeStream) -> None:
        stream.fails("taken", "in use", port=5050)

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(PortTakenError, match="port 5050 on its loopback is taken"):
            await agent.listen(Endpoint("redis", 6379), 5050)

    play(fails, test)


def test_a_link_that_is_given_up_ends_its_connections() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        async with Echo() as near:
            listener = await agent.listen(near)
            with listener.use():
                stream = accepted(link, agent)
                stream.data(0, b"ab", end=False)
                await stream._written[0].get()
                stream.lose()
                await stream.wait_closed()

    play(listens, test)


def test_a_forward_to_here() -> None:
    async def dials(stream: FakeStream) -> None:
        assert stream.head == {"verb": "dial", "host": "db", "port": 5432}
        stream.says(connected=True)
        stream.data(0, b"echo:", await stream.got(0))
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        forward = await agent.forward_local(Endpoint("db", 5432))
        with pytest.raises(PortTakenError, match="name another port"):
            await agent.forward_local(Endpoint("db", 5432), forward.port)
        with forward.use():
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            writer.write(b"hello")
            writer.write_eof()
            assert await reader.read() == b"echo:hello"
            writer.close()
        assert not forward.is_open

    play(dials, test)


def test_a_forward_to_here_ends_with_the_link() -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        forward = await agent.forward_local(Endpoint("db", 5432))
        with forward.use():
            link.lost.set_result(HostLostError("dex", "lost"))
            await asyncio.sleep(0)
            assert not forward.is_open
            assert agent.is_lost

    play(nothing, test)


def test_what_the_host_cannot_dial_ends_here() -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.fails("refused")

    async def test(agent: Agent, link: FakeLink) -> None:
        forward = await agent.forward_local(Endpoint("db", 5432))
        with forward.use():
            reader, writer = await asyncio.open_connection("127.0.0.1", forward.port)
            assert await reader.read() == b""
            writer.close()

    play(refuses, test)
