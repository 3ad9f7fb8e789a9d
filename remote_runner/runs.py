"""Remembers which hosts a run by hand used, so that `fetch` and `clean` find them."""

from __future__ import annotations

import json
from dataclasses import dataclass

from remote_runner.controller import Controller
from remote_runner.machine.files import write_atomically

_MOST_NOTES = 200


@dataclass(frozen=True)
class KeptRun:
    """A run by hand and the inventory names of its hosts."""

    run: str
    hosts: tuple[str, ...]


def note_run(controller: Controller, kept: KeptRun) -> None:
    """Remember it, if that can be written; the oldest notes go."""
    directory = controller.cache / "runs"
    write_atomically(directory / f"{kept.run}.json", json.dumps({"hosts": list(kept.hosts)}).encode(), optional=True)
    for old in sorted(directory.glob("*.json"))[:-_MOST_NOTES]:
        old.unlink(missing_ok=True)


def noted_run(controller: Controller, run: str) -> KeptRun | None:
    """What is remembered of a run, `None` where nothing is, or nothing that can be read."""
    try:
        hosts = json.loads((controller.cache / "runs" / f"{run}.json").read_text(encoding="utf-8"))["hosts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return KeptRun(run, tuple(map(str, hosts))) if isinstance(hosts, list) else None


def noted_runs(controller: Controller) -> list[str]:
    """The ids of the runs by hand that are remembered, in their order."""
    return sorted(path.stem for path in (controller.cache / "runs").glob("*.json"))


def forget_run(controller: Controller, run: str) -> None:
    """Nothing of the run is left on its hosts."""
    (controller.cache / "runs" / f"{run}.json").unlink(missing_ok=True)
