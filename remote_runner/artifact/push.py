"""Pushing an artifact to a host: once per connection, completely or not at all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Protocol

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.content import tar_content
from remote_runner.connection.agent import Agent, Elsewhere
from remote_runner.connection.verbs.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import PushFailedError
from remote_runner.inventory.inventory import HostEntry
from remote_runner.sizes import size


@dataclass(frozen=True)
class Pushed:
    """Where an artifact lies on a host; `present` when it had it before, and then nothing was sent for it.

    Of Nix's closure of `paths` store paths, `sent_paths` were missing and sent; `built`: it was that of the derivation,
    and the host has built the rest. `by`: the program that brought it in place of the connection.
    """

    store: Store
    directory: PurePosixPath
    program: PurePosixPath
    hash: str
    present: bool
    sent_bytes: int = 0
    sent_paths: int = 0
    paths: int = 0
    built: bool = False
    seconds: float = 0.0
    by: str = ""

    @property
    def far_artifact(self) -> FarArtifact:
        """What the agent there is told."""
        return FarArtifact(self.store, self.hash if self.store is Store.CACHE else str(self.directory))

    @property
    def words(self) -> str:
        """What was done, for people: `3 of 300 paths sent, 4.1 MiB`."""
        if self.present:
            return "there already"
        if self.store is Store.CACHE:
            return f"sent{f' by {self.by}' if self.by else ''}, {size(self.sent_bytes)}"
        sent = f"{self.sent_paths} of {self.paths} paths sent, {size(self.sent_bytes)}"
        return f"built there; of its derivation {sent}" if self.built else sent

    def again(self) -> Pushed:
        """The same for the next who wants it: it is there."""
        if self.present:
            return self
        return replace(self, present=True, sent_bytes=0, seconds=0.0, sent_paths=0, built=False)


class Offer(Elsewhere, Protocol):
    """Another way, with the name of the program that takes it, and whether the artifact came by it."""

    by: str
    brought: bool


async def push_artifact(
    agent: Agent,
    entry: HostEntry,
    artifact: AnyArtifact,
    controller: Controller,
    environ: Mapping[str, str],
    report: Callable[[str], None],
    moved: Callable[[int, int | None], None] | None = None,
    offer: Offer | None = None,
) -> Pushed:
    """Make sure that the host has the artifact.

    `environ` is where this machine's Nix is looked for; `report` hears of a long push how far it is, `moved`
    at each piece; by `offer` it may come otherwise. Raises `HostError` for another system
    (before anything is copied), `PushFailedError`, `DeadlineError`, for Nix what `push_to_store` names, and what the
    connection raises.
    """
    began_s = time.monotonic()
    agent.check_system(entry, artifact.system)
    # With the build, where the host is the one that builds.
    deadline = Deadline.after(entry.timeouts.push_s + (0.0 if artifact.here else entry.timeouts.build_s))
    if not isinstance(artifact, Artifact):
        from remote_runner.artifact.nix.push import push_to_store

        pushed = await push_to_store(
            agent, entry, artifact, environ=environ, deadline=deadline, report=report, moved=moved
        )
    else:
        pushed = await _push_content(agent, entry, artifact, deadline, report, moved, offer)
    return replace(pushed, seconds=time.monotonic() - began_s)


async def _push_content(
    agent: Agent,
    entry: HostEntry,
    artifact: Artifact,
    deadline: Deadline,
    report: Callable[[str], None],
    moved: Callable[[int, int | None], None] | None,
    offer: Offer | None,
) -> Pushed:
    def content() -> Iterator[bytes]:
        return tar_content(artifact.path, prefix="c")

    async def push(elsewhere: Offer | None) -> Pushed:
        path, present, sent_bytes = await agent.push_artifact(
            artifact.hash,
            artifact.size_bytes,
            artifact.files,
            entry.cache_limit_bytes,
            content,
            deadline=deadline,
            sent=None if moved is None else lambda sent_bytes: moved(sent_bytes, artifact.size_bytes),
            elsewhere=elsewhere,
        )
        by = elsewhere.by if elsewhere is not None and elsewhere.brought else ""
        return Pushed(Store.CACHE, path, path / artifact.program, artifact.hash, present, sent_bytes, by=by)

    try:
        return await push(offer)
    except PushFailedError as error:
        if offer is None or not offer.brought:
            raise
        report(f"once more, for what {offer.by} brought is not the artifact: {' '.join(str(error).split())}")
        return await push(None)
