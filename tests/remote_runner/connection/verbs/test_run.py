"""A run as the client tells it, beside an agent that the test plays."""

from __future__ import annotations

import asyncio
import io
import math
import re
import tarfile
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.cancellation import Cancellation
from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.far_artifact import FarArtifact, Store
from remote_runner.connection.verbs.fetch import Allowance
from remote_runner.connection.verbs.forwards import Listeners
from remote_runner.connection.verbs.job import Job
from remote_runner.connection.verbs.run import Exited, Left, Run
from remote_runner.errors import (
    ArtifactMissingError,
    FarShellError,
    HostError,
    HostLostError,
    OutputsError,
    RemoteRunnerError,
)
from remote_runner.outputs import LeftOut, OutputsReport
from tests.remote_runner.connection.fake_link import FakeLink, FakeStream

JOB = Job("r-g-0", ("app", b"\xff arg"), {"A": "1", "TMPDIR": "/t", "B": b"\xfe"}, FarArtifact(Store.CACHE, "f" * 32))
WHOLE = {"files": 1, "size": 5, "changed": [], "unread": [], "left_out": [], "whole": True}


def tar_of(**files: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def exited(**more: Any) -> dict[str, Any]:
    return {"status": 0, "signal": 0, "reason": "ended", "left": 0, "untold": 0, "problem": "", **more}


async def happy(stream: FakeStream) -> None:
    stream.says(started={"directory": "/d", "outputs": "/d/outputs", "pid": 7})
    stream.data(1, b"out ", b"put")
    stream.data(2, b"err")
    stream.says(
        exited=exited(left=2, utime_s=0.5, stime_s=0.25, max_rss=4096, cut={"stdout": 1, "stderr": 2}, outputs=9)
    )
    stream.data(3, tar_of(file=b"hello"))
    stream.says(fetched=WHOLE)
    answer = await stream.heard()
    stream.says(**({"cleaned": True} if answer == {"clean": True} else {"kept": "/d"}))
    stream.fails()


def play(
    agent_plays: Callable[[FakeStream], Awaitable[None]],
    test: Callable[[Agent, FakeLink], Coroutine[Any, Any, None]],
) -> None:
    async def main() -> None:
        link = FakeLink(agent_plays)
        async with asyncio.timeout(20):
            await test(Agent(link.link, Listeners(), Allowance()), link)
        await link.close()

    asyncio.run(main())


async def followed(run: Run, stop: Cancellation | None = None) -> tuple[Exited, bytes, bytes]:
    said = {1: bytearray(), 2: bytearray()}

    async def out(data: bytes) -> None:
        said[1].extend(data)

    async def err(data: bytes) -> None:
        said[2].extend(data)

    ended = await run.follow(out, err, stop)
    return ended, bytes(said[1]), bytes(said[2])


def test_a_run_from_its_request_to_its_end(tmp_path: Path) -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        assert run.directory == "/home/u/.cache/remote-runner/runs/r-g-0"
        assert await followed(run) == (Exited(0, "ended", 2, 0, 0.75, 4096, 3, 9), b"out put", b"err")
        assert await run.fetch(tmp_path / "out") == OutputsReport(1, 5)
        assert (tmp_path / "out/file").read_bytes() == b"hello"
        await run.clean()
        (stream,) = link.streams
        assert stream.is_closed.is_set()
        assert stream.fields == (b"app", b"\xff arg", b"A=1", b"TMPDIR=/t", b"B=\xfe")
        assert stream.head == {
            "verb": "run",
            "id": "r-g-0",
            "argc": 2,
            "artifact": "f" * 32,
            "store": "cache",
            "grace_s": 10.0,
            "run_s": None,
            "stdin": False,
            "fetch": True,
            "pass": ["PATH", "HOME"],
            "record": {},
            "set_tmpdir": False,
            "set_hostname": True,
            "outputs_limit": JOB.outputs_limit_bytes,
            "cut_lines": True,
        }

    play(happy, test)


def test_a_run_that_is_kept(tmp_path: Path) -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        await run.fetch(tmp_path)
        assert await run.keep() is Left.KEPT
        assert link.streams[0].is_closed.is_set()

    play(happy, test)


@pytest.mark.parametrize(("word", "left"), [("gone", Left.NOTHING), ("unseen", Left.UNSEEN), ("kept", Left.KEPT)])
def test_what_is_kept_is_what_the_host_has_seen(tmp_path: Path, word: str, left: Left) -> None:
    async def unreadable(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1)
        stream.data(2)
        stream.says(exited=exited())
        stream.data(3, tar_of())
        stream.says(fetched={**WHOLE, "unread": [[".", "no such file or directory"]], "whole": False})
        assert await stream.heard() == {"keep": True}
        stream.says(**{word: "/d"})
        stream.fails()

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(OutputsError):
            await run.fetch(tmp_path)
        assert await run.keep() is left

    play(unreadable, test)


@pytest.mark.parametrize(
    ("kind", "more", "error", "words"),
    [
        ("exists", {"directory": "/d/r-g-0"}, HostError, "r-g-0 is there already, in /d/r-g-0"),
        ("missing", {"artifact": "ffff"}, ArtifactMissingError, "artifact ffff is not there"),
        ("program", {"problem": "nothing"}, HostError, "app: is not there"),
        ("program", {"problem": "format:elf-b700"}, HostError, "is a program for aarch64, which dex cannot"),
        ("program", {"problem": "interpreter:/lib/ld.so"}, HostError, "needs /lib/ld.so to start"),
        (
            "program",
            {"problem": "namespace:unshare: no"},
            HostError,
            "at /nix/store there\n  | unshare: no",
        ),
        ("room", {"path": "/d"}, HostError, "cannot make a run's directory: words"),
        ("processes", {}, HostError, "no process can be started there"),
        ("surprise", {}, FarShellError, "the agent there failed: surprise"),
        ("", {}, FarShellError, "without an answer"),
    ],
)
def test_why_an_application_is_not_started(kind: str, more: dict[str, Any], error: type[HostError], words: str) -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.fails(kind, "words", **more)

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(error) as caught:
            await agent.start_run(JOB)
        assert words in str(caught.value)
        assert link.streams[0].is_closed.is_set()

    play(refuses, test)


def test_words_of_a_host_are_no_command_and_no_control_characters() -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.fails("exists", "x", directory="/d/$(reboot)\x1b[2J\n  next: reboot")

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(HostError, match="is there already") as caught:
            await agent.start_run(JOB)
        message, _, next_step = str(caught.value).partition("\n")
        assert "\x1b" not in message
        assert "reboot" not in next_step

    play(refuses, test)


def test_a_stream_that_says_much_is_granted_more_while_it_does() -> None:
    async def much(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1, *(bytes(65536) for _ in range(40)))
        stream.data(2)
        stream.says(exited=exited())

    async def test(agent: Agent, link: FakeLink) -> None:
        _, out, _ = await followed(await agent.start_run(JOB))
        assert len(out) == 40 * 65536
        assert link.streams[0].granted == {1: 1 << 20}
        assert agent._allowance.take() == 8 << 20  # all of it is there again

    play(much, test)


def test_a_sink_that_fails_stops_the_application() -> None:
    async def waits(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1, b"a", b"b", end=False)
        assert await stream.heard() == {"stop": "stop"}
        stream.data(1, b"c")
        stream.data(2)
        stream.says(exited=exited(signal=15, reason="stop"))

    async def test(agent: Agent, link: FakeLink) -> None:
        async def broken(data: bytes) -> None:
            raise OSError(data)

        run = await agent.start_run(JOB)
        ended = await run.follow(broken, broken)
        assert (ended.exit_status, ended.signal, ended.reason) == (143, 15, "stop")
        assert repr(ended.sink_error) == repr(OSError(b"a"))

    play(waits, test)


def test_a_stop_from_another_thread() -> None:
    async def waits(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1)
        stream.data(2)
        assert await stream.heard() == {"stop": "enough"}
        stream.says(exited=exited(signal=15, reason="stop"))

    async def test(agent: Agent, link: FakeLink) -> None:
        stop = Cancellation()
        run = await agent.start_run(JOB)
        following = asyncio.create_task(followed(run, stop))
        threading.Timer(0.01, stop.cancel, ["enough"]).start()
        ended, _, _ = await following
        assert ended.reason == "stop"

    play(waits, test)


def test_a_link_that_is_given_up_says_where_the_outputs_are() -> None:
    async def dies(stream: FakeStream) -> None:
        stream.says(started={"directory": "/elsewhere; reboot"})
        stream.lose()

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        with pytest.raises(HostLostError) as caught:
            await followed(run)
        assert str(caught.value) == (
            "dex: the connection is lost; what the application wrote was in "
            "/home/u/.cache/remote-runner/runs/r-g-0\n"
            "  next: fab fetch -H dex --run r-g-0 brings what is there, fab clean -H dex --run r-g-0 removes it"
        )

    play(dies, test)


@pytest.mark.parametrize(
    "said",
    [
        {"exited": {"status": math.nan}},
        {"exited": {"status": "0"}},
        {"exited": {"status": 10**400}},
        {"exited": {"status": 0, "signal": -1}},
        {"exited": []},
        {"exited": exited(reason="rm -rf /")},
        {"exited": exited(reason=[])},
        {"fetched": WHOLE},
    ],
)
def test_an_end_that_is_none(said: dict[str, Any]) -> None:
    async def lies(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1)
        stream.data(2)
        stream.says(**said)

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        with pytest.raises(FarShellError, match="unexpected answer"):
            await followed(run)

    play(lies, test)


def test_numbers_that_are_none_are_not_known() -> None:
    async def lies(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1)
        stream.data(2)
        stream.says(exited=exited(utime_s=math.inf, stime_s=1, max_rss=-5, left=True, untold="x", cut=[1]))

    async def test(agent: Agent, link: FakeLink) -> None:
        ended, _, _ = await followed(await agent.start_run(JOB))
        assert ended == Exited(0, "ended", 0)

    play(lies, test)


async def sends(stream: FakeStream, tar: bytes, piece_bytes: int = 65536, **fetched: Any) -> None:
    stream.says(started={})
    stream.data(1)
    stream.data(2)
    stream.says(exited=exited())
    stream.data(3, *(tar[at : at + piece_bytes] for at in range(0, len(tar), piece_bytes)))
    stream.says(fetched={**WHOLE, **fetched})


def test_large_outputs_go_through_a_thread_and_are_granted_more(tmp_path: Path) -> None:
    content = bytes(range(256)) * 20_000

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        assert await run.fetch(tmp_path) == OutputsReport(1, len(content))
        assert (tmp_path / "big").read_bytes() == content
        assert link.streams[0].granted[3] == 8 << 20

    play(lambda stream: sends(stream, tar_of(big=content)), test)


def test_an_outputs_directory_that_is_gone_is_not_said_to_be_kept(tmp_path: Path) -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(OutputsError) as caught:
            await run.fetch(tmp_path)
        first, why, next_step = str(caught.value).splitlines()
        assert first.endswith("outputs: 0 files came; the host cannot read their directory")
        assert why == "  | no such file or directory"
        assert next_step.startswith("  next: where it is still there, ")

    unread = [[".", "no such file or directory"]]
    play(lambda stream: sends(stream, tar_of(), files=0, size=0, unread=unread, whole=False), test)


def test_outputs_that_cannot_be_read_there_are_an_error_that_names_them(tmp_path: Path) -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(OutputsError) as caught:
            await run.fetch(tmp_path)
        assert "1 file came" in str(caught.value)
        assert "| secret: permission denied" in str(caught.value)
        assert (tmp_path / "file").exists()

    play(lambda stream: sends(stream, tar_of(file=b"x"), unread=[["secret", "permission denied"]], whole=False), test)


def test_what_was_left_out_or_changed_is_told(tmp_path: Path) -> None:
    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        report = await run.fetch(tmp_path)
        assert report.left_out == (LeftOut("pipe", "is a named pipe"),)
        assert report.far_messages == ("log: changed while it was read",)

    play(lambda stream: sends(stream, tar_of(log=b"x"), left_out=[["pipe", "is a named pipe"]], changed=["log"]), test)


@pytest.mark.parametrize("size_bytes", [1000, 3_000_000])
def test_outputs_that_are_too_large_end_the_fetch_and_stay_there(tmp_path: Path, size_bytes: int) -> None:
    async def keeps(stream: FakeStream) -> None:
        await sends(stream, tar_of(big=bytes(size_bytes)))
        assert await stream.heard() == {"keep": True}
        stream.says(kept="/d")

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(OutputsError, match="more than outputs_limit, 900 bytes"):
            await run.fetch(tmp_path, limit_bytes=900)
        # Of large ones the rest is still on its way: there the stream is given up.
        assert await run.keep() is (Left.KEPT if size_bytes == 1000 else Left.UNSEEN)
        assert link.streams[0].is_closed.is_set()

    play(keeps, test)


def test_an_outputs_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(OutputsError, match="file cannot be written on this machine"):
            await run.fetch(tmp_path / "file")

    play(lambda stream: sends(stream, tar_of(big=bytes(3_000_000))), test)


def test_a_link_that_is_given_up_in_the_middle_of_the_outputs(tmp_path: Path) -> None:
    async def dies(stream: FakeStream) -> None:
        stream.says(started={})
        stream.data(1)
        stream.data(2)
        stream.says(exited=exited())
        stream.data(3, *([tar_of(big=bytes(1_000_000))[:400_000]]), end=False)
        stream.lose()

    async def test(agent: Agent, link: FakeLink) -> None:
        run = await agent.start_run(JOB)
        await followed(run)
        with pytest.raises(HostLostError, match="what the application wrote was in "):
            await run.fetch(tmp_path)

    play(dies, test)


def test_a_job_that_no_host_takes() -> None:
    for job, words in (
        ({"instance_id": "../x"}, "'../x' is not a name for a run"),
        ({"argv": ()}, "there is no program to run"),
        ({"argv": ("a\0",)}, "holds a NUL byte"),
        ({"environment": {"A": "\0"}}, "holds a NUL byte"),
        ({"argv": ("a", "x" * (1 << 20))}, "arguments and variables come to "),
        ({"grace_s": -1}, "grace_s -1 must be positive"),
    ):
        with pytest.raises(RemoteRunnerError, match=re.escape(words)):
            Job(**{"instance_id": "i", "argv": ("a",), "environment": {}, **job})  # type: ignore[arg-type]


def test_what_a_host_calls_the_program_is_in_no_command() -> None:
    async def refuses(stream: FakeStream) -> None:
        stream.fails("program", "x", problem="nothing", program="/d/reboot now")

    async def test(agent: Agent, link: FakeLink) -> None:
        with pytest.raises(HostError, match="is not there") as caught:
            await agent.start_run(replace(JOB, artifact=None, argv=("my app",)))
        message, _, next_step = str(caught.value).partition("\n")
        assert "/d/reboot now" in message
        assert "sh -c 'my app'" in next_step
        assert "reboot" not in next_step

    play(refuses, test)
