"""An artifact on its way to an agent: whole or not at all, and sent once. What the agent does: agent/internal/store."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from remote_runner.artifact.build import Artifact
from remote_runner.artifact.content import hash_content
from remote_runner.artifact.push import Pushed, push_artifact
from remote_runner.connection.agent import Agent
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, HostError, PushFailedError
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.systems import System
from tests.hosts import UserSshd
from tests.needs import need

_R = TypeVar("_R")
LARGE_BYTES = 3_000_000


def make_artifact(root: Path, size_bytes: int = 100) -> Artifact:
    (root / "bin").mkdir(parents=True)
    (root / "bin/node").write_text("#!/bin/sh\necho hello from the artifact\n")
    (root / "bin/node").chmod(0o755)
    (root / "empty").mkdir()
    (root / "data with\nnewline").write_bytes(os.urandom(size_bytes))
    (root / "link").symlink_to("bin/node")
    return Artifact.from_path(root, System.local(), "bin/node")


@pytest.fixture(params=["localhost", "sshd"])
def entry(request: pytest.FixtureRequest, tmp_path: Path) -> HostEntry:
    """A host, its files in a directory of the test."""
    inventory = Inventory.parse("", Path("inventory.yaml"))
    directory = str(tmp_path / "far")
    if request.param == "localhost":
        return replace(inventory.this_host, directory=directory)
    sshd: UserSshd = request.getfixturevalue("user_sshd")
    return replace(inventory.any_host, name=sshd.name, ssh=sshd.target, directory=directory)


def this_host(directory: Path) -> HostEntry:
    return replace(Inventory.parse("", Path("inventory.yaml")).this_host, directory=str(directory))


def on(entry: HostEntry, controller: Controller, work: Callable[[Agent], Awaitable[_R]]) -> _R:
    """Do it beside the host's agent."""

    async def main() -> _R:
        async with asyncio.timeout(60):
            agent = await Agent.connect(entry, controller, os.environ, Deadline.after(30))
            try:
                return await work(agent)
            finally:
                await agent.close()

    return asyncio.run(main())


def cached(tmp_path: Path) -> list[str]:
    """What is in the host's cache."""
    return [path.name for path in (tmp_path / "far" / "artifacts").iterdir()]


def push(entry: HostEntry, controller: Controller, artifact: Artifact) -> Pushed:
    return on(
        entry,
        controller,
        lambda agent: push_artifact(agent, entry, artifact, controller, os.environ, lambda words: None),
    )


@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
def test_an_artifact_arrives_and_is_then_there(
    tmp_path: Path, entry: HostEntry, agents: Controller, size_bytes: int
) -> None:
    artifact = make_artifact(tmp_path / "a", size_bytes)
    first = push(entry, agents, artifact)
    assert not first.present
    assert first.sent_bytes > size_bytes
    assert Path(first.directory) == tmp_path / "far" / "artifacts" / artifact.hash / "c"
    assert hash_content(Path(first.directory)).hash == artifact.hash
    assert subprocess.run([first.program], capture_output=True, check=True).stdout == b"hello from the artifact\n"
    second = push(entry, agents, artifact)
    assert second.present
    assert second.sent_bytes == 0
    assert (second.directory, second.program, second.words) == (first.directory, first.program, "there already")
    assert cached(tmp_path) == [artifact.hash]


def test_instances_that_want_it_together_send_it_once(tmp_path: Path, agents: Controller) -> None:
    entry, artifact = this_host(tmp_path / "far"), make_artifact(tmp_path / "a", LARGE_BYTES)

    async def main() -> list[Pushed]:
        async with Shared(agents) as shared:
            wanted = [shared.push(entry, artifact, os.environ, lambda words: None) for _ in range(5)]
            return await asyncio.gather(*wanted)

    assert sorted(pushed.present for pushed in asyncio.run(main())) == [False, True, True, True, True]


def test_two_controllers_may_push_at_once(tmp_path: Path, agents: Controller) -> None:
    """Neither knows of the other: the second comes while the first still unpacks."""
    entry, artifact = this_host(tmp_path / "far"), make_artifact(tmp_path / "a", LARGE_BYTES)

    async def main() -> list[Pushed]:
        async with Shared(agents) as one, Shared(agents) as other:
            pushes = [shared.push(entry, artifact, os.environ, lambda words: None) for shared in (one, other)]
            return await asyncio.gather(*pushes)

    assert {hash_content(Path(pushed.directory)).hash for pushed in asyncio.run(main())} == {artifact.hash}
    assert cached(tmp_path) == [artifact.hash]


def test_content_that_changed_here_since_it_was_built_is_not_used(tmp_path: Path, agents: Controller) -> None:
    entry, artifact = this_host(tmp_path / "far"), make_artifact(tmp_path / "a")
    (artifact.path / "bin/node").write_text("#!/bin/sh\necho another artifact. . . .\n")
    with pytest.raises(PushFailedError):
        push(entry, agents, artifact)
    assert cached(tmp_path) == []


def test_what_was_changed_there_is_sent_again(tmp_path: Path, agents: Controller) -> None:
    entry, artifact = this_host(tmp_path / "far"), make_artifact(tmp_path / "a")
    program = Path(push(entry, agents, artifact).program)
    program.chmod(0o700)
    program.write_text("#!/bin/sh\necho something else\n")
    again = push(entry, agents, artifact)
    assert not again.present
    assert hash_content(Path(again.directory)).hash == artifact.hash


def test_a_host_of_another_system_is_sent_nothing(tmp_path: Path, agents: Controller) -> None:
    artifact = replace(make_artifact(tmp_path / "a"), system=System("riscv64", "linux"))
    entry = this_host(tmp_path / "far")
    with pytest.raises(HostError, match=r"the artifact is for riscv64-linux, and the host says") as caught:
        push(entry, agents, artifact)
    assert "`arch` of localhost" in caught.value.next_step
    with pytest.raises(HostError, match=r"inventory.yaml says that it is riscv64-linux"):
        push(replace(entry, system=artifact.system), agents, artifact)
    assert not (tmp_path / "far" / "artifacts").exists()


def test_a_push_that_does_not_end_in_time(tmp_path: Path, agents: Controller) -> None:
    entry = this_host(tmp_path / "far")
    entry = replace(entry, timeouts=replace(entry.timeouts, push_s=0.0))
    with pytest.raises(DeadlineError, match="push to localhost"):
        push(entry, agents, make_artifact(tmp_path / "a", LARGE_BYTES))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system for the host's cache, with room for 1 MiB."""
    need("netns")  # mounting
    place = tmp_path / "far" / "artifacts"
    place.mkdir(parents=True, mode=0o700)
    (tmp_path / "far").chmod(0o700)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.mark.parametrize(("how", "words"), [("rw", "no room for the artifact"), ("ro", "is read-only")])
def test_a_host_without_room_says_so_and_keeps_nothing(
    tmp_path: Path, agents: Controller, small: Path, how: str, words: str
) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", small], check=True)
    with pytest.raises(PushFailedError, match=words) as caught:
        push(this_host(tmp_path / "far"), agents, make_artifact(tmp_path / "a", LARGE_BYTES))
    assert str(caught.value).startswith("localhost: ")
    assert "inventory.yaml" in caught.value.next_step
    assert [path for path in small.iterdir() if path.is_dir()] == []
