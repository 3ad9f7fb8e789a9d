"""Reading all sources of an inventory, by hand or once for a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from remote_runner.deadline import Deadline
from remote_runner.errors import ControllerError, RemoteRunnerError
from remote_runner.file_names import safe_name
from remote_runner.files import write_atomically
from remote_runner.inventory.sources.ansible import read_ansible
from remote_runner.inventory.sources.command import read_command
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.source import AnsibleSource, CommandSource, Listing, Source, SshConfigSource
from remote_runner.inventory.sources.ssh_config import read_ssh_config
from remote_runner.shared_failure import pack_failure, unpack_failure


def read_source(source: Source, asking: Asking) -> Listing:
    """What one source says now. Raises `SourceError`, `DeadlineError`."""
    if isinstance(source, SshConfigSource):
        return read_ssh_config(source, asking.variables(), Deadline.after(asking.source_s))
    if isinstance(source, AnsibleSource):
        return read_ansible(source, asking)
    assert isinstance(source, CommandSource)
    return read_command(source, asking)


def read_for_run(sources: Sequence[Source], asking: Asking, run_id: str) -> list[Listing]:
    """What the sources said when the first of the run's processes asked; the others wait for it, and share a failure.

    It is kept beside the run's builds. Raises what reading raises, `ControllerError`, `WorkCancelledError`.
    """
    key = hashlib.sha256(repr((asking.plan_dir, tuple(sources))).encode()).hexdigest()[:12]
    kept = asking.controller.cache / "builds" / safe_name(run_id) / f"hosts-{key}.json"
    lock = asking.controller.lock(f"hosts-{hashlib.sha256(str(kept).encode()).hexdigest()[:24]}")
    budget = Deadline.after(asking.source_s * len(sources) + 10.0)
    if not kept.exists():
        with lock if lock.acquire_unless(lambda: _is_settled(kept, asking), budget) else nullcontext():
            if not kept.exists():
                write_atomically(kept, json.dumps(_outcome(sources, asking)).encode())
    return _read_kept(kept)


def _is_settled(kept: Path, asking: Asking) -> bool:
    if asking.cancellation is not None:
        asking.cancellation.check()
    return kept.exists()


def _outcome(sources: Sequence[Source], asking: Asking) -> dict[str, object]:
    try:
        return {"listings": [read_source(source, asking).to_json() for source in sources]}
    except RemoteRunnerError as error:
        return {"failure": pack_failure(error)}


def _read_kept(kept: Path) -> list[Listing]:
    try:
        values = json.loads(kept.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ControllerError(f"{kept}: cannot be read: {error}", next_step="remove it, and run anew") from error
    if "failure" in values:
        raise unpack_failure(values["failure"])
    return [Listing.from_json(listing) for listing in values["listings"]]
