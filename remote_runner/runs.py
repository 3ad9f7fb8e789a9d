"""Remembers which hosts a run by hand used, so that `fetch` and `clean` find them."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass

from remote_runner.controller import Controller
from remote_runner.errors import ControllerError
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
    with suppress(OSError):  # `fab clean` tells of those that stay
        for old in sorted(directory.glob("*.json"))[:-_MOST_NOTES]:
            old.unlink(missing_ok=True)


def noted_run(controller: Controller, run: str) -> KeptRun | None:
    """What is remembered of a run, `None` where nothing is, or nothing that can be read: then any host may have it."""
    try:
        hosts = json.loads((controller.cache / "runs" / f"{run}.json").read_text(encoding="utf-8"))["hosts"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return KeptRun(run, tuple(map(str, hosts))) if isinstance(hosts, list) else None


def noted_runs(controller: Controller) -> list[str]:
    """The ids of the runs by hand that are remembered, in their order. Raises `ControllerError`."""
    directory = controller.cache / "runs"
    try:
        return sorted(path.stem for path in directory.iterdir() if path.suffix == ".json")
    except FileNotFoundError:
        return []
    except OSError as error:
        next_step = "mend it; runs by hand are found by their whole ids until then"
        raise ControllerError(f"{directory}: cannot be read: {error.strerror}", next_step=next_step) from error


def forget_run(controller: Controller, run: str) -> None:
    """Nothing of the run is left on its hosts."""
    with suppress(OSError):  # an old note goes with the next `fab clean`, which tells why it stays
        (controller.cache / "runs" / f"{run}.json").unlink(missing_ok=True)
