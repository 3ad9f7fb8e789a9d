"""A closure into a store of the user's own, on a host without a Nix that would take it (`user.sh` has the layout)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from remote_runner.artifact.content import ContentEntry, tar_entries, walk_path
from remote_runner.artifact.far_artifact import Delivery, Store
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.progress import Progress
from remote_runner.artifact.push_faults import push_fault
from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.far_shell import load_script
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry
from remote_runner.probe import wrong_system


def push_user_store(
    host: Host,
    entry: HostEntry,
    artifact: StoreArtifact,
    closure: Sequence[str],
    *,
    controller: Controller,
    deadline: Deadline,
    report: Callable[[str], None],
) -> Delivery:
    """Make sure that the user's own store there has `closure`, store paths of this machine's, in one session.

    Only what is missing is sent, and `report` told how far a long copy is. Raises `WrongSystemError` and
    `NamespaceRefusedError` before anything is sent, `FarDiskFullError`, `FarReadOnlyError`, `FarToolMissingError`,
    `NoFarDirectoryError`, `PushFailedError`, `ArtifactError`, `FarShellError`, `DeadlineError`, and what the
    connection raises.
    """
    names = "".join(f"{Path(path).name}\n" for path in closure).encode()
    values = {
        "systems": artifact.system.unames,
        "directory": entry.directory or "",
        "out": artifact.hash,
        "length": str(len(names)),
        "limit_kib": str(entry.cache_limit_bytes // 1024),
        "rr_enter": load_script("artifact/nix/enter.sh"),
    }
    script = load_script("base.sh", "artifact/nix/user.sh", "artifact/nix/user_store.sh")
    missing: list[Path] = []
    with BriefSession(host, script, values, deadline, f"push to {host.name}") as session:
        session.send((names,), more=True)
        word, rest = session.answer()
        while word == "missing":
            missing += (Path(closure[int(number) - 1]) for number in rest.split())
            word, rest = session.answer()
        asked_bytes = session.sent_bytes
        if word == "send":
            session.send(_reported(missing, host.name, report))
            word, rest = session.answer()
        session.finish()
    if word == "system":
        raise wrong_system(entry, artifact.system, rest, controller=controller)
    if word not in ("have", "done"):
        raise push_fault(host.name, word, rest)
    sent_bytes = session.sent_bytes - asked_bytes
    return Delivery(Store.USER, rest, not missing, sent_bytes, len(missing), len(closure))


def _reported(paths: Sequence[Path], host: str, report: Callable[[str], None]) -> Iterator[bytes]:
    """The tar stream of these paths, with a word now and then."""
    number = 0
    progress = Progress(host, len(paths), report)

    def entries() -> Iterator[ContentEntry]:
        nonlocal number
        for path in paths:
            number += 1
            yield from walk_path(path)

    for chunk in tar_entries(entries(), last="complete", as_in_store=True):
        yield chunk
        progress.sent(len(chunk), number)
