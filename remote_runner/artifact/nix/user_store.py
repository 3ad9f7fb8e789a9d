"""Pushing a closure into a store of the user's own, on a host whose Nix does not accept it or that has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path, PurePosixPath

from remote_runner.artifact.content import ContentEntry, tar_entries, walk_path
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.progress import Moved, Progress
from remote_runner.artifact.push import Pushed
from remote_runner.connection.agent import Agent, send_chunks
from remote_runner.connection.link import StreamClosed
from remote_runner.connection.verbs import faults
from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.connection.verbs.validation import nonsense, words
from remote_runner.deadline import Deadline
from remote_runner.inventory.inventory import HostEntry


async def push_user_store(
    agent: Agent,
    entry: HostEntry,
    artifact: StoreArtifact,
    closure: Sequence[str],
    *,
    deadline: Deadline,
    report: Callable[[str], None],
    moved: Moved | None = None,
) -> Pushed:
    """Make sure that the user's own store there has `closure`, store paths of this machine's.

    Only what is missing is sent, and `report` told how far a long copy is. Raises `HostError` before anything
    is sent where the host shows a user no store of their own; `PushFailedError`, `ArtifactError`, `DeadlineError`, and
    what the connection raises.
    """
    names = "".join(f"{Path(path).name}\n" for path in closure).encode()
    head = {"verb": "closure", "out": artifact.hash, "length": len(names), "limit": entry.cache_limit_bytes}
    failed = partial(faults.push_fault, agent.name)
    sent_bytes, missing = 0, []
    async with agent.asked(f"push to {agent.name}", head, failed=failed, within_s=deadline.timeout_s) as stream:
        with suppress(StreamClosed):  # the answer, which comes next, says why
            await stream.write(0, names)
        answer = (await stream.receive()).head
        if "missing" in answer:
            missing = _missing(agent.name, answer["missing"], closure)
            walk = _Walk(missing)
            progress = Progress(agent.name, len(missing), report, moved)
            sent_bytes = await send_chunks(
                stream, walk.tar(), lambda total: progress.sent(total - progress.sent_bytes, walk.number)
            )
            answer = (await stream.receive()).head
    if not words(answer.get("done") or answer.get("have")):
        raise nonsense(agent.name, answer)
    out = PurePosixPath(artifact.out)
    program = out / artifact.program
    return Pushed(Store.USER, out, program, artifact.hash, not missing, sent_bytes, len(missing), len(closure))


def _missing(host: str, said: object, closure: Sequence[str]) -> list[Path]:
    """The paths at those positions in the closure."""
    if not isinstance(said, list) or not all(type(number) is int and 0 <= number < len(closure) for number in said):
        raise nonsense(host, said)
    return [Path(closure[number]) for number in said]


class _Walk:
    """Reads store paths; `number` is that of the path (from 1) that it has come to."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths
        self.number = 0

    def tar(self) -> Iterator[bytes]:
        return tar_entries(self._entries(), as_in_store=True)

    def _entries(self) -> Iterator[ContentEntry]:
        for path in self._paths:
            self.number += 1
            yield from walk_path(path)
