"""`fab runs.remove`: the outputs and records of runs on this machine."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import invoke

from remote_runner.machine.files import size_of
from remote_runner.records.places import FoundRun, choose_run, forget_place
from remote_runner.records.run import RUN_FILE
from remote_runner.sizes import size
from tasks.command_line.task import Failed, task
from tasks.command_line.values import seconds
from tasks.plan import Plan
from tasks.runs.find import runs_of
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
        meant = [one for one in runs_of(plan, everything=True) if is_own(plan, one) and one.record.started_at < before]
    else:
        recorded = runs_of(plan, everything=True)
        chosen = [choose_run(recorded, given) for given in id or ()]
        meant = list({one.run: one for one in chosen}.values())
    alive = [one for one in meant if one.is_alive]
    going = [one for one in meant if not one.is_alive]
    freed = sum(_remove(plan, one, dry_run=dry_run) for one in going)
    say(f"{len(going)} {'would be removed' if dry_run else 'removed'}, {size(freed)}")
    for one in alive:
        say(f"{one.run} is still running, and stays")
    if alive and id:
        raise Failed(None)


def is_own(plan: Plan, found: FoundRun) -> bool:
    """Whether a run was made in this plan's directory, or lies below it; another plan may have the same name."""
    directory = plan.directory.resolve()
    made_in = found.record.inputs.get("directory")
    is_made_here = isinstance(made_in, str) and Path(made_in).resolve() == directory
    return is_made_here or found.directory.resolve().is_relative_to(directory)


def _remove(plan: Plan, found: FoundRun, *, dry_run: bool) -> int:
    freed = size_of(found.directory)
    if not dry_run:
        try:
            _remove_tree(found.directory)
        except OSError as error:
            raise Failed(f"{found.directory}: cannot be removed: {error.strerror}") from error
        forget_place(plan.controller, found.run)
    show(f"{found.run} {found.directory}")
    return freed


def _remove_tree(directory: Path) -> None:
    """Remove a run's directory, the record last, so that after a fault the rest can still be removed by its id."""
    for child in directory.iterdir():
        if child.is_dir() and not child.is_symlink():
            shutil.rmtree(child)
        elif child.name != RUN_FILE:
            child.unlink()
    shutil.rmtree(directory)
