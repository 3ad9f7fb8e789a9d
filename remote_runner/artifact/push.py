"""Bringing an artifact to a host: once for each host, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.content import tar_content
from remote_runner.artifact.far_artifact import Delivery, FarArtifact, Store
from remote_runner.artifact.push_faults import push_fault
from remote_runner.artifact.shared_failure import pack_failure, unpack_failure
from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, RemoteRunnerError
from remote_runner.far_shell import load_script
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry, host_key
from remote_runner.inventory.kinds import StoreChoice
from remote_runner.job import RECOVERY_S
from remote_runner.probe import wrong_system
from remote_runner.sizes import size

# Up to here the content goes along with the question whether it is wanted: it costs less than a round trip.
_EAGER_BYTES = 256 << 10


@dataclass(frozen=True)
class Pushed:
    """Where an artifact lies on a host; `present` when it had it before, and then nothing was sent for it.

    Of Nix's closure of `paths` store paths, `sent_paths` were missing and sent; `built`: it was that of the derivation,
    and the host has built the rest.
    """

    directory: PurePosixPath
    program: PurePosixPath
    hash: str
    sent_bytes: int
    seconds: float
    present: bool
    store: Store = Store.CACHE
    sent_paths: int = 0
    paths: int = 0
    built: bool = False

    @property
    def far_artifact(self) -> FarArtifact:
        """What the supervisor there is told."""
        return FarArtifact(self.store, self.hash if self.store is Store.CACHE else str(self.directory))

    @property
    def words(self) -> str:
        """What was done, for people: `3 of 300 paths sent, 4.1 MiB`."""
        if self.present:
            return "there already"
        if self.store is Store.CACHE:
            return f"sent, {size(self.sent_bytes)}"
        sent = f"{self.sent_paths} of {self.paths} paths sent, {size(self.sent_bytes)}"
        return f"built there; of its derivation {sent}" if self.built else sent


def time_for_push(entry: HostEntry, artifact: AnyArtifact) -> float:
    """How long a push may take, in seconds: with the build, where the host is the one that builds."""
    return entry.timeouts.push_s + (0.0 if artifact.here else entry.timeouts.build_s)


def push(
    host: Host,
    entry: HostEntry,
    artifact: AnyArtifact,
    *,
    controller: Controller,
    deadline: Deadline,
    environ: Mapping[str, str] | None = None,
    report: Callable[[str], None] | None = None,
) -> Pushed:
    """Make sure that the host has the artifact.

    Of several processes one pushes; the others wait, and share what came of it. `environ` is where this machine's Nix
    is looked for; `report` hears of a long push how far it is. Raises `WrongSystemError` (before anything is copied),
    `FarDiskFullError`, `FarReadOnlyError`, `FarToolMissingError`, `NoFarDirectoryError`, `PushFailedError`,
    `FarShellError`, `DeadlineError`, for Nix what `push_to_store` names, and what the connection raises.
    """
    began_s = time.monotonic()
    marker = _marker(controller, entry, artifact.hash)
    lock = controller.lock(f"push-{marker.name}")
    patience = deadline
    if not isinstance(artifact, Artifact) and artifact.here:  # a host that takes nothing from this user builds it then
        patience = Deadline.after(deadline.remaining_s + entry.timeouts.build_s)
    try:
        is_ours = lock.acquire_unless(lambda: _outcome_since(marker, began_s) is not None, patience)
    except DeadlineError as error:
        raise DeadlineError(f"waiting for another process that pushes to {host.name}", error.seconds) from error
    with lock if is_ours else nullcontext():
        shared = _outcome_since(marker, began_s)
        if shared is not None:
            if "failure" in shared:
                raise unpack_failure(shared["failure"])
            return _pushed(artifact, _left_there(shared), time.monotonic() - began_s)
        try:
            if isinstance(artifact, Artifact):
                delivery = _push(host, entry, artifact, controller, deadline)
            else:
                from remote_runner.artifact.nix.push import push_to_store

                delivery = push_to_store(
                    host,
                    entry,
                    artifact,
                    controller=controller,
                    environ=environ or {},
                    deadline=deadline,
                    report=report or (lambda words: None),
                )
        except RemoteRunnerError as error:
            _leave(marker, {"at_s": time.monotonic(), "failure": pack_failure(error)})
            raise
        _leave(marker, {"at_s": time.monotonic(), "base": delivery.base, "store": delivery.store.value})
        return _pushed(artifact, delivery, time.monotonic() - began_s)


def already_pushed(controller: Controller, entry: HostEntry, artifact: AnyArtifact) -> Pushed | None:
    """Where the artifact lay when this machine last pushed it, without asking the host; `None` when it never did.

    The host may have cleaned its cache since. Who finds it missing calls `forget_push`, and pushes.
    """
    left = _left(_marker(controller, entry, artifact.hash))
    if left is None or "store" not in left:
        return None
    there = _left_there(left)
    wanted = {StoreChoice.NIX: Store.NIX, StoreChoice.USER: Store.USER}.get(entry.store, there.store)
    if there.store is not Store.CACHE and there.store is not wanted:
        return None  # the inventory was changed
    return _pushed(artifact, there, 0.0)


def forget_push(controller: Controller, entry: HostEntry, artifact_hash: str) -> None:
    """Forget that the host has an artifact."""
    _marker(controller, entry, artifact_hash).unlink(missing_ok=True)


def _push(host: Host, entry: HostEntry, artifact: Artifact, controller: Controller, deadline: Deadline) -> Delivery:
    """Into our cache there, under the hash of its content, in one session."""
    # A tar stream has a header and up to 511 bytes of filling for each entry; folders and links are few.
    eager = artifact.size_bytes + 1024 * (artifact.files + 8) <= _EAGER_BYTES
    content = tar_content(artifact.path, prefix="c", last="complete")
    values = {
        "hash": artifact.hash,
        "kib": str(artifact.size_bytes // 1024 + 4 * artifact.files + 1),
        "limit_kib": str(entry.cache_limit_bytes // 1024),
        "directory": entry.directory or "",
        "eager": "1" if eager else "",
        # Seen at five looks, so after `tolerate_s` and what a connection needs to recover from a cut.
        "pause_s": str(math.ceil((entry.tolerate_s + RECOVERY_S) / 5)),
        "systems": artifact.system.unames,
    }
    with BriefSession(
        host, load_script("base.sh", "artifact/push.sh"), values, deadline, f"push to {host.name}"
    ) as session:
        if eager:
            session.send(content)
        word, rest = session.answer()
        if word == "send":
            session.send(content)
            word, rest = session.answer()
        session.finish()
    if word == "system":
        raise wrong_system(entry, artifact.system, rest, controller=controller)
    if word not in ("have", "done"):
        raise push_fault(host.name, word, rest)
    return Delivery(Store.CACHE, rest, word == "have", session.sent_bytes)


def _pushed(artifact: AnyArtifact, there: Delivery, seconds: float) -> Pushed:
    if isinstance(artifact, Artifact):
        directory = PurePosixPath(there.base) / "artifacts" / artifact.hash / "c"
    else:
        directory = PurePosixPath(artifact.out)
    return Pushed(
        directory,
        directory / artifact.program,
        artifact.hash,
        there.sent_bytes,
        seconds,
        there.present,
        there.store,
        there.sent_paths,
        there.paths,
        there.built,
    )


def _left_there(left: dict[str, Any]) -> Delivery:
    return Delivery(Store(left["store"]), left["base"], present=True)


def _marker(controller: Controller, entry: HostEntry, artifact_hash: str) -> Path:
    directory = controller.runtime / "pushed"
    directory.mkdir(mode=0o700, exist_ok=True)
    return directory / f"{host_key(entry)}-{artifact_hash}"


def _outcome_since(marker: Path, began_s: float) -> dict[str, Any] | None:
    """What another process has left since then; the monotonic clock is one for the whole machine."""
    left = _left(marker)
    return left if left is not None and began_s <= left["at_s"] <= time.monotonic() else None


def _left(marker: Path) -> dict[str, Any] | None:
    try:
        left: dict[str, Any] = json.loads(marker.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None  # cut off by a full disk or a power cut, it is as good as absent: who asks the host learns it
    return left


def _leave(marker: Path, values: dict[str, Any]) -> None:
    aside = marker.with_name(f"{marker.name}.{os.getpid()}")
    aside.write_text(json.dumps(values), encoding="utf-8")
    aside.replace(marker)
