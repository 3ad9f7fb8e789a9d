"""Reading all sources of an inventory, by hand or once for a run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from remote_runner.controller import with_home
from remote_runner.deadline import Deadline
from remote_runner.inventory.sources.ansible import read_ansible
from remote_runner.inventory.sources.command import read_command
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.source import (
    AnsibleSource,
    CommandSource,
    Listing,
    SlurmSource,
    Source,
    SshConfigSource,
)
from remote_runner.inventory.sources.ssh_config import read_ssh_config
from remote_runner.machine.files import safe_name
from remote_runner.made_once import kept_values, made_once


def read_source(source: Source, asking: Asking) -> Listing:
    """What one source says now; nodes of Slurm's only within an allocation. Raises `SourceError`, `DeadlineError`."""
    if isinstance(source, SshConfigSource):
        return read_ssh_config(source, with_home(asking.environ), Deadline.after(asking.source_s))
    if isinstance(source, AnsibleSource):
        return read_ansible(source, asking)
    if isinstance(source, CommandSource):
        return read_command(source, asking)
    from remote_runner.inventory.sources.slurm import SlurmPrograms, job_around, read_nodes, slurm_environment

    job = job_around(asking.environ)
    if not job:
        return Listing(str(source), (), ("nodes: a run allocates them; by hand it takes salloc",), later=True)
    return read_nodes(source, job, SlurmPrograms(str(source), slurm_environment(asking.environ)))


def read_for_run(sources: Sequence[Source], asking: Asking, run_id: str) -> list[Listing]:
    """What the sources said when the first of the run's processes asked; the others wait for it, and share a failure.

    It is kept beside the run's builds. Raises what reading raises, `ControllerError`, `WorkCancelledError`.
    """
    kept = _kept_file(sources, asking, run_id)
    each_s = [asking.allocate_s if isinstance(source, SlurmSource) else asking.source_s for source in sources]

    def is_settled() -> bool:
        if asking.cancellation is not None:
            asking.cancellation.check()
        # In this order: the list goes before an allocation is made anew, whose record is there first.
        return _is_there(sources, asking, run_id) and kept.exists()

    def make() -> dict[str, Any]:
        kept.unlink(missing_ok=True)  # it may name nodes of an allocation that was given back
        return {"listings": [_read_in_run(source, asking, run_id).to_json() for source in sources]}

    budget = Deadline.after(sum(each_s) + 60.0)
    return _listings(made_once(asking.controller, kept, "asks for the run's hosts", make, is_settled, budget))


def kept_for_run(sources: Sequence[Source], asking: Asking, run_id: str) -> list[Listing] | None:
    """What the sources listed for that run, also after its end; `None` where they were not asked. Asks none itself."""
    kept = _kept_file(sources, asking, run_id)
    return _listings(kept_values(kept)) if kept.exists() else None


def _kept_file(sources: Sequence[Source], asking: Asking, run_id: str) -> Path:
    key = hashlib.sha256(repr((asking.plan_dir, tuple(sources))).encode()).hexdigest()[:12]
    return asking.controller.cache / "builds" / safe_name(run_id) / f"hosts-{key}.json"


def _is_there(sources: Sequence[Source], asking: Asking, run_id: str) -> bool:
    """Whether the run still has its own allocation, where it needs one."""
    if not any(isinstance(source, SlurmSource) for source in sources):
        return True
    from remote_runner.inventory.sources.allocation import Allocation
    from remote_runner.inventory.sources.slurm import job_around

    if job_around(asking.environ):
        return True
    if Allocation.of(asking.controller, run_id, asking.plan_dir).record.exists():
        return True
    try:
        return "failure" in json.loads(_kept_file(sources, asking, run_id).read_bytes())
    except FileNotFoundError:
        return False
    except ValueError:
        return True  # it was cut off, which its reader reports


def _read_in_run(source: Source, asking: Asking, run_id: str) -> Listing:
    listing = read_source(source, asking)
    if not listing.later:
        return listing
    assert isinstance(source, SlurmSource)
    from remote_runner.inventory.sources.allocation import allocate
    from remote_runner.inventory.sources.slurm import SlurmPrograms, read_nodes, slurm_environment

    job = allocate(source, asking, run_id)
    return read_nodes(source, job, SlurmPrograms(str(source), slurm_environment(asking.environ)))


def _listings(values: Mapping[str, Any]) -> list[Listing]:
    return [Listing.from_json(listing) for listing in values["listings"]]
