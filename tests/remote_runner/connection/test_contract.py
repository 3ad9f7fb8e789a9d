"""What an agent does, asked by the client over a real connection: a pipe on this machine, and ssh."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from remote_runner.artifact.content import hash_content, tar_content
from remote_runner.cancellation import Cancellation
from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.command import STDOUT_LANE
from remote_runner.connection.verbs.facts import WHAT
from remote_runner.connection.verbs.far_artifact import FarArtifact, Store
from remote_runner.connection.verbs.job import Job
from remote_runner.connection.verbs.leftovers import FarRuns
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactMissingError,
    HostError,
    HostLostError,
    OutputsError,
    PortTakenError,
    PushFailedError,
)
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.outputs import LeftOut, OutputsReport
from tests.hosts import free_port
from tests.remote_runner.connection.programs import run_program
from tests.remote_runner.connection.test_agent import Echo
from tests.remote_runner.connection.verbs.test_run import followed

Contract = Callable[[Callable[[Agent], Awaitable[None]]], None]
_TEST_S = 60.0


@pytest.fixture
def far() -> Iterator[Path]:
    """Our directory on the host; its path is short, for a socket lies in it."""
    directory = Path(tempfile.mkdtemp(prefix="rr-far-", dir="/tmp"))
    try:
        yield directory / "b"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(params=["localhost", "sshd"])
def contract(request: pytest.FixtureRequest, agents: Controller, far: Path) -> Contract:
    """Runs a test beside the agent of a host, and ends that agent."""
    inventory = Inventory.parse("", Path("inventory.yaml"))
    entry: HostEntry = replace(inventory.this_host, directory=str(far))
    if request.param == "sshd":
        host = request.getfixturevalue("user_sshd")
        entry = replace(inventory.any_host, name=host.name, ssh=host.target, directory=str(far))

    def run(test: Callable[[Agent], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(_TEST_S):
                agent = await Agent.connect(entry, agents, os.environ, Deadline.after(30))
                try:
                    await test(agent)
                finally:
                    await agent.close()

        asyncio.run(main())

    return run


def sh(name: str, script: str, **more: object) -> Job:
    """A job that is a shell script."""
    return replace(Job(name, ("/bin/sh", "-c", script), {}, grace_s=2.0), **more)  # type: ignore[arg-type]


# --- runs ---


def test_an_application_from_start_to_removal(contract: Contract, far: Path, tmp_path: Path) -> None:
    script = (
        'printf "%s|%s|" "$1" "$A"; echo words >&2; pwd; printf hello >"$TEST_OUTPUTS_PATH/file"; '
        'mkdir "$TEST_OUTPUTS_PATH/d"; ln -s "$TEST_OUTPUTS_PATH/file" "$TEST_OUTPUTS_PATH/d/link"; exit 7'
    )
    job = Job("run-1", ("/bin/sh", "-c", script, "sh", b"\xff x"), {"A": b"\xfe\ny"})

    async def test(agent: Agent) -> None:
        run = await agent.start_run(job)
        assert run.directory == str(agent.greeting.base / "runs/run-1")
        assert run.directory == str(far / "runs/run-1")
        ended, stdout, stderr = await followed(run)
        assert stdout == b"\xff x|\xfe\ny|" + os.fsencode(f"{run.directory}/tmp\n")
        assert stderr == b"words\n"
        assert (ended.exit_status, ended.signal, ended.reason, ended.leftover_processes) == (7, None, "ended", 0)
        assert ended.cpu_s is not None
        assert ended.cpu_s < 5
        assert await run.fetch(tmp_path / "out") == OutputsReport(1, 5)
        assert (tmp_path / "out/file").read_bytes() == b"hello"
        assert (tmp_path / "out/d/link").readlink() == Path("../file")
        assert Path(run.directory).exists()
        await run.clean()
        assert not Path(run.directory).exists()

    contract(test)


def test_an_application_that_is_stopped(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        stop = Cancellation()
        run = await agent.start_run(
            sh("run-1", 'trap "echo ended; exit 3" TERM; echo ready; while :; do sleep 0.01; done')
        )
        said = bytearray()

        async def out(data: bytes) -> None:
            said.extend(data)
            if b"ready" in data:
                stop.cancel("enough")

        async def err(data: bytes) -> None:
            pass  # some shells tell how the sleep ended

        ended = await run.follow(out, err, stop)
        assert (bytes(said), ended.exit_status, ended.reason) == (b"ready\nended\n", 3, "stop")
        await run.fetch(tmp_path)
        await run.clean()

    contract(test)


def test_an_application_that_does_not_want_to_end_and_is_late(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", 'trap "" TERM; while :; do sleep 0.01; done', grace_s=0.2, run_s=0.2))
        ended, _, _ = await followed(run)
        assert (ended.signal, ended.reason) == (signal.SIGKILL, "timeout")
        await run.fetch(tmp_path)
        await run.clean()

    contract(test)


def test_processes_that_outlive_the_application_are_ended_and_counted(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "(setsid sleep 600 >/dev/null 2>&1 &); sleep 600 & echo $!"))
        ended, stdout, _ = await followed(run)
        assert (ended.exit_status, ended.leftover_processes) == (0, 2)
        assert not Path(f"/proc/{int(stdout)}").exists()
        await run.fetch(tmp_path)
        await run.clean()

    contract(test)


def test_a_program_that_reads_its_input(contract: Contract, tmp_path: Path) -> None:
    data = bytes(range(256)) * 8192

    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "cat"), stdin=True)

        async def feed() -> None:
            await run.write_stdin(data)
            await run.end_stdin()

        _, (ended, stdout, _) = await asyncio.gather(feed(), followed(run))
        assert ended.exit_status == 0
        assert stdout == data
        await run.fetch(tmp_path)
        await run.clean()

    contract(test)


def test_a_line_that_is_too_long_comes_whole_with_the_outputs(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "head -c 200000 /dev/zero | tr '\\0' x; echo; echo short"))
        ended, stdout, _ = await followed(run)
        assert ended.cut_lines == 1
        assert len(stdout) < 70_000
        assert stdout.endswith(b"\nshort\n")
        report = await run.fetch(tmp_path)
        assert report.left_out == ()
        assert (tmp_path / "remote-runner.stdout.lines").read_bytes() == b"x" * 200_000 + b"\n"
        await run.clean()

    contract(test)


def test_what_cannot_be_started(contract: Contract, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    (tmp_path / "text").chmod(0o755)
    (tmp_path / "foreign").write_bytes(b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\0\xff\xfe" + bytes(100))
    (tmp_path / "foreign").chmod(0o755)

    async def test(agent: Agent) -> None:
        for program, problem in (
            ("nothing-of-that-name", "is not there"),
            (str(tmp_path), "is a directory"),
            (str(tmp_path / "foreign"), "is a program for machine "),
            ("/etc/passwd", "is not executable"),
        ):
            with pytest.raises(HostError, match=re.escape(f": {program}: {problem}")):
                await agent.start_run(Job("run-1", (program,), {}))
        with pytest.raises(ArtifactMissingError):
            await agent.start_run(replace(sh("run-1", ""), artifact=FarArtifact(Store.CACHE, "0" * 32)))
        assert await agent.runs() == FarRuns(())

    contract(test)


def test_many_applications_at_once(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        async def one(number: int) -> None:
            run = await agent.start_run(sh(f"run-{number}", f"echo {number}; echo {number} >$TEST_OUTPUTS_PATH/n"))
            ended, stdout, _ = await followed(run)
            assert (ended.exit_status, stdout) == (0, b"%d\n" % number)
            assert (await run.fetch(tmp_path / str(number))).files == 1
            await run.clean()

        await asyncio.gather(*map(one, range(40)))
        assert await agent.runs() == FarRuns(())

    contract(test)


def test_the_end_of_the_connection_ends_what_runs(contract: Contract) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "echo $$; sleep 600"))
        pids: list[int] = []

        async def out(data: bytes) -> None:
            pids.append(int(data))
            closing.append(asyncio.create_task(agent.close()))

        closing: list[asyncio.Task[None]] = []
        with pytest.raises(HostLostError, match=r"what the application wrote was in .*run-1"):
            await run.follow(out, out)
        await closing[0]
        with pytest.raises(HostLostError):
            await agent.runs()
        assert agent.is_lost
        deadline = Deadline.after(5)
        while Path(f"/proc/{pids[0]}").exists() and not deadline.expired:
            await asyncio.sleep(0.01)
        assert not Path(f"/proc/{pids[0]}").exists()

    contract(test)


# --- outputs ---


def test_large_outputs(contract: Contract, tmp_path: Path) -> None:
    script = """cd "$TEST_OUTPUTS_PATH"
        head -c 30000000 /dev/urandom >big; cksum <big
        mkdir d; for i in 1 2 3; do echo $i >d/$i; done"""

    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", script))
        _, stdout, _ = await followed(run)
        report = await run.fetch(tmp_path)
        assert (report.files, report.size_bytes) == (4, 30_000_006)
        done = await run_program(agent, ("sh", "-c", f"cksum <{tmp_path}/big"))
        assert done.stdout == stdout
        await run.clean()

    contract(test)


def test_outputs_beyond_the_limit_stay_there(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "head -c 5000000 /dev/zero >$TEST_OUTPUTS_PATH/big"))
        await followed(run)
        with pytest.raises(OutputsError, match="more than outputs_limit, 1000000 bytes"):
            await run.fetch(tmp_path / "a", limit_bytes=1_000_000)
        await run.keep()
        (left,) = (await agent.runs()).runs
        assert (left.run_id, left.is_alive) == ("run-1", False)
        assert left.size_bytes >= 5_000_000
        assert (await agent.fetch_run("run-1", tmp_path / "b")).size_bytes == 5_000_000

    contract(test)


def test_what_is_no_file_is_told(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "mkfifo $TEST_OUTPUTS_PATH/pipe; echo >$TEST_OUTPUTS_PATH/file"))
        await followed(run)
        report = await run.fetch(tmp_path)
        assert (report.files, report.left_out) == (1, (LeftOut("pipe", "is a named pipe"),))
        await run.clean()

    contract(test)


def test_outputs_that_cannot_be_read_are_an_error_and_stay(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", 'rmdir "$TEST_OUTPUTS_PATH"; echo x >"$TEST_OUTPUTS_PATH"'))
        await followed(run)
        with pytest.raises(OutputsError, match="the host cannot read their directory"):
            await run.fetch(tmp_path)
        await run.keep()
        assert Path(f"{run.directory}/outputs").read_text() == "x\n"

    contract(test)


# --- what is left ---


def test_what_is_left_is_listed_fetched_and_removed(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "echo hi >$TEST_OUTPUTS_PATH/f", record={"plan": "p", "case": "a\nb"}))
        await followed(run)
        await run.fetch(tmp_path / "a")
        await run.keep()
        living = await agent.start_run(sh("run-2", "sleep 600"))
        found = {left.run_id: left for left in (await agent.runs()).runs}
        assert [(name, left.is_alive) for name, left in sorted(found.items())] == [("run-1", False), ("run-2", True)]
        assert found["run-1"].record.items() >= {"id": "run-1", "plan": "p", "case": "a b"}.items()
        assert found["run-1"].age_s is not None
        assert found["run-1"].age_s < 60
        assert await agent.fetch_run("run-1", tmp_path / "b") == OutputsReport(1, 3)
        with pytest.raises(HostError, match="there is no run run-7"):
            await agent.fetch_run("run-7", tmp_path / "c")
        young = await agent.remove_runs(None, older_than_s=3600)
        assert young.removed == ()
        removal = await agent.remove_runs(["run-1", "run-2", "run-3"])
        assert [Path(place).name for place in (*removal.removed, *removal.alive)] == ["run-1", "run-2"]
        assert removal.unknown == ("run-3",)
        removal = await agent.remove_runs(["run-2"], end_alive=True, grace_s=1)
        assert [Path(place).name for place in removal.removed] == ["run-2"]
        assert await agent.runs() == FarRuns(())
        await living.close()

    contract(test)


def test_a_run_of_that_name_is_there(contract: Contract, tmp_path: Path) -> None:
    async def test(agent: Agent) -> None:
        run = await agent.start_run(sh("run-1", "true"))
        with pytest.raises(HostError, match="run-1 is there already"):
            await agent.start_run(sh("run-1", "true"))
        await followed(run)
        await run.fetch(tmp_path)
        await run.clean()

    contract(test)


# --- artifacts ---


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    root = tmp_path / "artifact"
    (root / "bin").mkdir(parents=True)
    program = root / "bin/app"
    program.write_text('#!/bin/sh\ncat >/dev/null\nhead -c 5 "${0%/*}/../data"\n')
    program.chmod(0o755)
    (root / "data").write_bytes(b"first" + bytes(3_000_000))
    return root


def test_an_artifact_is_pushed_once_and_run(contract: Contract, artifact: Path, tmp_path: Path) -> None:
    content = hash_content(artifact)

    async def test(agent: Agent) -> None:
        told: list[int] = []
        for is_there in (False, True):
            path, present, _ = await agent.push_artifact(
                content.hash,
                content.size_bytes,
                content.files,
                1 << 30,
                lambda: tar_content(artifact, prefix="c"),
                sent=told.append,
            )
            assert present is is_there
            assert path == agent.greeting.base / "artifacts" / content.hash / "c"
        assert told
        assert told[-1] > 3_000_000
        job = Job("run-1", ("bin/app",), {}, FarArtifact(Store.CACHE, content.hash))
        run = await agent.start_run(job, stdin=True)
        (left,) = await agent.artifacts()
        assert (left.name, left.is_used, left.is_partial, left.store) == (content.hash, True, False, Store.CACHE)
        assert (await agent.remove_artifacts([content.hash])).alive
        await run.end_stdin()
        _, stdout, stderr = await followed(run)
        assert (stdout, stderr) == (b"first", b"")
        await run.fetch(tmp_path / "out")
        await run.clean()
        run = await agent.start_run(job)
        assert (await followed(run))[1] == b"first"
        await run.fetch(tmp_path / "out")
        await run.clean()
        assert (await agent.remove_artifacts([content.hash, "0" * 32])).unknown == ("0" * 32,)
        assert await agent.artifacts() == ()

    contract(test)


def test_content_that_is_not_what_its_hash_says(contract: Contract, artifact: Path) -> None:
    async def test(agent: Agent) -> None:
        with pytest.raises(PushFailedError, match="did not arrive whole"):
            await agent.push_artifact("0" * 32, 3_000_100, 2, 1 << 30, lambda: tar_content(artifact, prefix="c"))
        assert await agent.artifacts() == ()

    contract(test)


# --- forwards ---


async def through(port: int, data: bytes) -> bytes:
    """What comes back at a port of the loopback for that, and the end of input behind it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)

    async def send() -> None:
        writer.write(data)
        await writer.drain()
        writer.write_eof()

    sending = asyncio.create_task(send())
    answer = await reader.read(-1)
    await sending
    writer.close()
    return answer


def test_a_port_of_the_host_leads_here(contract: Contract) -> None:
    data = os.urandom(3_000_000)

    async def test(agent: Agent) -> None:
        async with Echo() as near:
            listener = await agent.listen(near)
            with listener.use():
                answers = await asyncio.gather(
                    *(through(listener.port, data[:size]) for size in (5, 0, 70_000, len(data)))
                )
                assert answers == [data[:size] + b"|%d" % size for size in (5, 0, 70_000, len(data))]
                with pytest.raises(PortTakenError):
                    await agent.listen(near, listener.port)
                # An end that is not orderly
                _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.write(data)
                writer.transport.abort()
                assert await through(listener.port, b"x") == b"x|1"
            await listener.close()
            deadline = Deadline.after(5)
            while not deadline.expired:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                    writer.close()
                    await asyncio.sleep(0.01)
                except OSError:
                    return
            raise AssertionError("the port is still open")

    contract(test)


def test_a_port_that_must_be_this_one(contract: Contract) -> None:
    async def test(agent: Agent) -> None:
        async with Echo() as near:
            port = free_port()
            listener = await agent.listen(near, port)
            assert listener.port == port
            with listener.use():
                assert await through(port, b"x") == b"x|1"
            # Nobody uses it any more: what comes is not dialled
            assert await through(port, b"") == b""
            await listener.close()

    contract(test)


def test_what_is_not_dialled_here_ends_there(contract: Contract) -> None:
    async def test(agent: Agent) -> None:
        told: list[str] = []
        listener = await agent.listen(Endpoint("127.0.0.1", free_port()), told=told.append)
        with listener.use():
            assert await through(listener.port, b"") == b""
            assert await through(listener.port, b"") == b""
        assert len(told) == 1
        await listener.close()

    contract(test)


def test_a_port_here_leads_to_what_the_host_dials(contract: Contract) -> None:
    data = os.urandom(1_000_000)

    async def test(agent: Agent) -> None:
        async with Echo() as far:
            forward = await agent.forward_local(far)
            with forward.use():
                assert await through(forward.port, data) == data + b"|%d" % len(data)
            assert not forward.is_open
            nowhere = await agent.forward_local(Endpoint("127.0.0.1", free_port()))
            with nowhere.use():
                assert await through(nowhere.port, b"") == b""

    contract(test)


# --- programs and files ---


def test_programs(contract: Contract, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)

    async def test(agent: Agent) -> None:
        done = await run_program(agent, ("cat",), stdin=data)
        assert (done.status, done.stderr) == (0, b"")
        assert done.stdout == data
        done = await run_program(
            agent, ("sh", "-c", 'pwd; echo "$A" >&2; exit 9'), env={"A": b"\xff"}, cwd=str(tmp_path)
        )
        assert (done.status, done.stdout, done.stderr) == (9, os.fsencode(f"{tmp_path}\n"), b"\xff\n")
        assert (await run_program(agent, ("sh", "-c", "kill -9 $$"))).status == 137
        assert (await run_program(agent, ("true",), stdin=data)).status == 0
        with pytest.raises(HostError, match="nothing-of-that-name: is not there"):
            await run_program(agent, ("nothing-of-that-name",))

    contract(test)


def test_a_program_gets_signals_and_ends_with_its_stream(contract: Contract) -> None:
    async def test(agent: Agent) -> None:
        command = await agent.execute(
            ("sh", "-c", 'trap "echo got; exit 4" INT; echo ready; while :; do sleep 0.01; done')
        )
        assert await command.read(STDOUT_LANE) == b"ready\n"
        await command.signal(signal.SIGINT)
        assert await command.read(STDOUT_LANE) == b"got\n"
        assert await command.read(STDOUT_LANE) == b""
        assert await command.wait() == 4
        command = await agent.execute(("sh", "-c", "echo $$; exec sleep 600"))
        pid = int(await command.read(STDOUT_LANE))
        await command.close()
        deadline = Deadline.after(5)
        while Path(f"/proc/{pid}").exists() and not deadline.expired:
            await asyncio.sleep(0.01)
        assert not Path(f"/proc/{pid}").exists()

    contract(test)


def test_files_there_and_back(contract: Contract, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)

    async def test(agent: Agent) -> None:
        path = str(tmp_path / "file")
        assert await agent.put(iter([data[:10], data[10:]]), path, mode=0o640) == path
        assert (tmp_path / "file").read_bytes() == data
        assert await agent.put(iter([]), str(tmp_path), name="empty") == str(tmp_path / "empty")
        async with agent.get(path) as (file, chunks):
            assert (str(file.path), file.mode, file.size_bytes) == (path, 0o640, len(data))
            assert b"".join([chunk async for chunk in chunks]) == data
        with pytest.raises(HostError, match="is not there"):
            async with agent.get(f"{path}.no"):
                pass
        with pytest.raises(HostError, match="cannot be written"):
            await agent.put(iter([b"x"]), "/proc/nothing/x")

    contract(test)


def test_facts(contract: Contract, far: Path) -> None:
    async def test(agent: Agent) -> None:
        facts = await agent.host_facts()
        assert facts.system.runs(facts.system)
        assert facts.base == str(far)
        assert facts.clock is not None
        assert abs(facts.clock.offset_s) < 1
        assert facts.clock.uncertainty_s < 5
        for known in (facts.cores, facts.memory_bytes, facts.load, facts.free_bytes, facts.kernel, facts.most_files):
            assert known is not None
        assert (await agent.facts(*WHAT)).keys() >= {"load", "memory", "cores", "kernel", "disk", "limits", "system"}

    contract(test)


# --- cuts ---


def test_a_cut_is_noticed_by_nobody(contract: Contract, tmp_path: Path) -> None:
    lines = b"".join(b"%d\n" % number for number in range(20_000))

    async def test(agent: Agent) -> None:
        async with Echo() as near:
            listener = await agent.listen(near)
            with listener.use():
                run = await agent.start_run(
                    sh("run-1", "seq 0 9999; sleep 1; seq 10000 19999; head -c 9000000 /dev/zero >$TEST_OUTPUTS_PATH/f")
                )
                reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
                writer.write(b"before ")
                assert await reader.readexactly(7) == b"before "
                said = bytearray()

                async def out(data: bytes) -> None:
                    if not said:
                        assert agent._link._pipes is not None
                        os.kill(agent._link._pipes._process.pid, signal.SIGKILL)
                        writer.write(b"meanwhile ")
                    said.extend(data)

                ended = await run.follow(out, out)
                assert ended.exit_status == 0
                assert bytes(said) == lines
                assert (await run.fetch(tmp_path)).size_bytes == 9_000_000
                await run.clean()
                writer.write_eof()
                assert await reader.read() == b"meanwhile |17"
                writer.close()
            await listener.close()
        assert agent.greeting.epoch == 2

    contract(test)
