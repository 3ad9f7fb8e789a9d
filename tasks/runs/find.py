"""Finding the run that is meant: by its id, a prefix of it, or the last one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remote_runner.errors import ControllerError, RunNotFoundError, RunRecordError
from remote_runner.records.places import FoundRun, FoundRuns, choose_run, chosen_id, found_runs
from remote_runner.runs import noted_runs
from tasks.command_line.task import Failed
from tasks.plan import Plan
from tasks.say import say


def runs_of(plan: Plan, *, everything: bool = False) -> FoundRuns:
    """The runs of the plan one stands in, or of all plans; what of these cannot be read is said."""
    found = found_runs(plan.controller, plan.directory)
    if not everything and (plan.directory / "manifest.toml").exists():
        name = plan.manifest.name
        named = [one for one in found.runs if one.record.plan == name]
        found = FoundRuns(
            [one for one in named if one.record.task == "testground" or is_own(plan, one)],
            [error for error in found.unread if not error.run or plan_of(error) == name],
        )
    _tell(found.unread)
    return found


def is_own(plan: Plan, found: FoundRun) -> bool:
    """Whether a run was made in this plan's directory, or lies below it; another plan may have the same name."""
    directory = plan.directory.resolve()
    made_in = found.record.inputs.get("directory")
    is_made_here = isinstance(made_in, str) and Path(made_in).resolve() == directory
    return is_made_here or found.directory.resolve().is_relative_to(directory)


def _tell(unread: Sequence[RunRecordError]) -> None:
    for error in unread:
        say(str(error))


def plan_of(error: RunRecordError) -> str:
    """The plan of a run whose record cannot be read, by where it lies: <outputs>/<plan>/<run>."""
    return error.path.parent.parent.name


def run_meant(plan: Plan, given: list[str] | None) -> FoundRun:
    """The one run that was named, the plan's last where none was.

    Raises `RunNotFoundError`, `RunRecordError`, `Failed`.
    """
    if not given:
        return choose_run(runs_of(plan), "")
    if len(given) > 1:
        raise Failed(f"name one run; these are {len(given)}: {' '.join(given)}")
    found = found_runs(plan.controller, plan.directory)
    try:
        return choose_run(found, given[0])
    except RunNotFoundError:
        _tell(found.unread)
        raise


def id_on_hosts(plan: Plan, given: str) -> str:
    """The id of a run that may be on hosts: `given`, or what it is the beginning of, the last one for "".

    Runs by hand (`fab run`) count. What no record here knows is taken as it is: a host may know it.
    Raises `RunNotFoundError` where more than one is meant, `Failed` where there is none.
    """
    by_hand = list[str]()
    try:
        by_hand = noted_runs(plan.controller)
    except ControllerError as error:
        say(str(error))
    ids = sorted({*runs_of(plan, everything=bool(given)).ids, *by_hand})
    if not given:
        if not ids:
            raise Failed("no run is recorded here: say which with --run ID; fab clean --dry-run lists what hosts have")
        return ids[-1]
    if not any(one.startswith(given) for one in ids):
        return given
    try:
        return chosen_id(ids, given)
    except RunNotFoundError:
        if sum(one.startswith(given) for one in ids) > 1:
            raise
        return given


def hosts_of_run(plan: Plan, run: str) -> list[str]:
    """The names of the hosts that a recorded run was on, none where it is not recorded, or nobody can read where."""
    found = found_runs(plan.controller, plan.directory)
    return [host["name"] for one in found.runs if one.run == run for host in one.record.hosts]
