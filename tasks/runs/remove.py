"""`fab runs.remove`: the outputs and records of runs on this machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import invoke

from remote_runner.machine.files import size_of
from remote_runner.records.places import chosen_id, forget_place, found_runs, is_written
from remote_runner.records.run import RUN_FILE
from remote_runner.sizes import size
from tasks.command_line.task import Failed, task
from tasks.command_line.values import seconds
from tasks.plan import Plan
from tasks.runs.find import is_own, runs_of
from tasks.say import say, show


@task(
    help={
        "id": "a run's id, or its beginning; as often as needed",
        "older": "every run of this plan that began longer ago: 90s, 15m, 2h, 30d",
        "dry_run": "show what would be removed, and remove nothing",
    },
    bare="id",
)
def remove(c: invoke.Context, id: list[str] | None = None, older: str = "", dry_run: bool = False) -> None:  # noqa: A002
    """Remove runs from this machine, with all their outputs; a run that goes on stays."""
    plan = Plan.here()
    if bool(id) == bool(older):
        raise Failed("runs.remove: name runs, or say how old: fab runs.remove ID, or --older 30d")
    if older:
        if not plan.is_plan:
            raise plan.missing()
        before = time.time() - seconds(older, "older")
        found = runs_of(plan, everything=True).runs
        meant = {one.run: one.directory for one in found if is_own(plan, one) and one.record.started_at < before}
    else:
        recorded = found_runs(plan.controller, plan.directory)
        # Also those whose records cannot be read.
        places = {one.run: one.directory for one in recorded.runs}
        places |= {error.run: error.path.parent for error in recorded.unread if error.run}
        chosen = [chosen_id(recorded.ids, given) for given in id or ()]
        meant = {run: places[run] for run in chosen}
    alive = [run for run, directory in meant.items() if is_written(directory)]
    going = {run: directory for run, directory in meant.items() if run not in alive}
    freed = [_remove(plan, run, directory, dry_run=dry_run) for run, directory in going.items()]
    gone = [size_bytes for size_bytes in freed if size_bytes is not None]
    say(f"{len(gone)} {'would be removed' if dry_run else 'removed'}, {size(sum(gone))}")
    for run in alive:
        say(f"{run} is still running, and stays")
    if (alive and id) or len(gone) < len(freed):
        raise Failed(None)


def _remove(plan: Plan, run: str, directory: Path, *, dry_run: bool) -> int | None:
    """How many bytes that gave back, or would; `None` where it cannot be removed, which is said."""
    freed = size_of(directory)
    if not dry_run:
        try:
            _remove_tree(directory)
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            say(
                f"{directory}: cannot be removed: {where}{error.strerror}\n  next: see what keeps it, and do this again"
            )
            return None
        forget_place(plan.controller, run)
    show(f"{run} {directory}")
    return freed


def _remove_tree(directory: Path) -> None:
    """Remove a run's directory, the record last, so that after a fault the rest can still be removed by its id."""
    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != RUN_FILE:
            child.unlink()
    shutil.rmtree(directory)
