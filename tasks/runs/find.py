"""Finding the run that is meant: by its id, a prefix of it, or the last one."""

from __future__ import annotations

from remote_runner.errors import RunNotFoundError
from remote_runner.records.places import FoundRun, choose_run, chosen_id, found_runs
from remote_runner.runs import noted_runs
from tasks.command_line.task import Failed
from tasks.plan import Plan


def runs_of(plan: Plan, *, everything: bool = False) -> list[FoundRun]:
    """The runs of the plan one stands in, or of all plans, the oldest first."""
    found = found_runs(plan.controller, plan.directory)
    if everything or not (plan.directory / "manifest.toml").exists():
        return found
    return [one for one in found if one.record.plan == plan.manifest.name]


def run_meant(plan: Plan, given: list[str] | None) -> FoundRun:
    """The one run that was named, the plan's last where none was. Raises `RunNotFoundError`, `Failed`."""
    if not given:
        return choose_run(runs_of(plan), "")
    if len(given) > 1:
        raise Failed(f"name one run; these are {len(given)}: {' '.join(given)}")
    return choose_run(runs_of(plan, everything=True), given[0])


def id_on_hosts(plan: Plan, given: str) -> str:
    """The id of a run that may be on hosts: `given`, or what it is the beginning of, the last one for "".

    Runs by hand (`fab run`) count. What no record here knows is taken as it is: a host may know it.
    Raises `RunNotFoundError` where more than one is meant, `Failed` where there is none.
    """
    recorded = [one.run for one in runs_of(plan, everything=bool(given))]
    ids = sorted({*recorded, *noted_runs(plan.controller)})
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
    """The names of the hosts that a recorded run was on, none where it is not recorded."""
    return [host["name"] for one in runs_of(plan, everything=True) if one.run == run for host in one.record.hosts]
