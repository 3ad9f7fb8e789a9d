"""`fab clean`: what earlier runs left on hosts and here, found by its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import invoke

from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.errors import ControllerError, HostError, RemoteRunnerError
from remote_runner.sizes import count, size
from tasks.command_line.task import Failed, task
from tasks.command_line.values import seconds
from tasks.parallel import ask_each, raise_failed
from tasks.plan import Plan
from tasks.runs.find import id_on_hosts
from tasks.say import age, say, show_json, show_table

if TYPE_CHECKING:
    from remote_runner.connection.agent import Agent
    from remote_runner.connection.verbs.leftovers import FarRun, LeftArtifact, Removal
    from remote_runner.inventory.inventory import HostEntry

# A running push has such an entry, too.
_PARTIAL_AGE_S = 3600.0
_MOST_WHOSE = 10
_KINDS = {Store.CACHE: "artifact", Store.NIX: "Nix root", Store.USER: "closure"}


@task(
    help={
        "host": "only these hosts, and nothing here: names, globs, @labels (default: the whole inventory, and here)",
        "older_than": "only what is older: 90s, 15m, 2h, 3d (default: any run; builds and the like here: 1h)",
        "run": "only this run, by its id or the beginning of one (fab runs), or by an instance's",
        "cache": "the artifacts on the hosts as well, apart from what a living run uses",
        "force": "end runs that are alive, then remove them",
        "dry_run": "show what would be removed, and remove nothing",
        "json": "print JSON",
    }
)
def clean(
    c: invoke.Context,
    host: list[str] | None = None,
    older_than: str = "",
    run: str = "",
    cache: bool = False,
    force: bool = False,
    dry_run: bool = False,
    json: bool = False,
) -> None:
    """Remove what earlier runs left on hosts and here; a run that is alive stays, and is shown."""
    from remote_runner.leftovers_here import USUAL_AGE_S
    from remote_runner.runs import forget_run

    plan = Plan.here()
    older_s = seconds(older_than, "older_than") if older_than else None
    entries = plan.select(host) if host else plan.inventory.hosts
    run = id_on_hosts(plan, run) if run else ""
    wanted = _Wanted(run, older_s, cache, force)
    results = ask_each(plan, entries, lambda agent, entry: _on_host(agent, entry, wanted, dry_run=dry_run))
    found = [one for result in results if not isinstance(result, RemoteRunnerError) for one in result]
    if not host and not run:
        found += _allocations(plan, older_s or 0.0, dry_run=dry_run)
        found += _here(plan, USUAL_AGE_S if older_s is None else older_s, dry_run=dry_run)
    is_whole = not any(isinstance(result, RemoteRunnerError) for result in results)
    if not host and is_whole:
        for name in {one.name for one in found if one.kind == "run"}:
            if all(one.outcome in (REMOVED, GONE) for one in found if one.name == name):
                forget_run(plan.controller, name)
    _tell(found, as_json=json, is_whole=is_whole)
    raise_failed(entries, results)
    if run and not found:
        raise Failed(f"clean: no host has run {run}; fab clean --dry-run shows what is there")
    if any(one.outcome == FAILED or (run and one.outcome == ALIVE) for one in found):
        raise Failed(None)


REMOVED, WOULD_GO, ALIVE, FAILED, GONE = "removed", "would be removed", "alive", "failed", "gone already"


@dataclass(frozen=True)
class _Wanted:
    run: str
    older_s: float | None
    cache: bool
    force: bool


@dataclass(frozen=True)
class _Found:
    """One thing that was left, and what became of it; `host` is "" for this machine's own directories."""

    host: str
    kind: str
    name: str
    place: str
    age_s: float | None
    size_bytes: int
    outcome: str
    of: str = ""
    started_from: str = ""

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "host": self.host or None, "age_s": None if self.age_s is None else round(self.age_s)}


async def _on_host(agent: Agent, entry: HostEntry, wanted: _Wanted, *, dry_run: bool) -> list[_Found]:
    there = await agent.runs()
    runs = [_planned_run(entry, found, force=wanted.force) for found in there.runs if _is_meant(found, wanted)]
    unread = []
    for place, why in there.unread:
        say(f"{entry.name}: {place} cannot be read: {why}\n  next: make it readable there, then fab clean")
        unread.append(_Found(entry.name, "directory", PurePosixPath(place).name, place, None, 0, FAILED))
    artifacts = []
    try:
        artifacts = await _planned_artifacts(agent, entry, wanted) if wanted.cache else []
    except HostError as error:  # the runs can be removed all the same
        say(str(error))
        unread.append(_Found(entry.name, "artifact", "all", f"{agent.greeting.base}/artifacts", None, 0, FAILED))
    if dry_run:
        return runs + artifacts + unread
    going = [one.name for one in runs if one.outcome == WOULD_GO]
    if going:
        removal = await agent.remove_runs(going, end_alive=wanted.force, grace_s=entry.grace_s)
        runs = _with_outcomes(entry, runs, removal)
    going = [one.name for one in artifacts if one.outcome == WOULD_GO]
    if going:
        artifacts = _with_outcomes(entry, artifacts, await agent.remove_artifacts(going))
    return runs + artifacts + unread


def _is_meant(found: FarRun, wanted: _Wanted) -> bool:
    if wanted.run and not found.is_of(wanted.run):
        return False
    return wanted.older_s is None or (found.age_s or 0.0) >= wanted.older_s


def _planned_run(entry: HostEntry, found: FarRun, *, force: bool) -> _Found:
    from remote_runner.connection.verbs.job import is_run_id

    record = found.record
    words = f"{record['plan']}: {record.get('group', '')}" if record.get("plan") else record.get("command", "")
    outcome = ALIVE if found.is_alive and not force else WOULD_GO
    place = str(found.directory)
    if found.problem and outcome == WOULD_GO and not force:
        outcome = FAILED
        which = f" --run {found.run_id}" if is_run_id(found.run_id) else ""
        say(
            f"{entry.name}: {place} stays: its record cannot be read, so it may be alive: {found.problem}\n"
            f"  next: fab clean --force --host {entry.name}{which} removes it all the same"
        )
    return _Found(
        entry.name, "run", found.run_id, place, found.age_s, found.size_bytes, outcome, words, record.get("from", "")
    )


async def _planned_artifacts(agent: Agent, entry: HostEntry, wanted: _Wanted) -> list[_Found]:
    from remote_runner.connection.verbs.leftovers import choose_artifacts

    listed = await agent.artifacts()
    going = choose_artifacts(
        (one for one in listed if not (one.is_partial and one.age_s < _PARTIAL_AGE_S)),
        older_than_s=wanted.older_s or 0.0,
    )
    used = [one for one in listed if one.is_used]
    return [
        *(_planned_artifact(entry, one, WOULD_GO) for one in going),
        *(_planned_artifact(entry, one, ALIVE) for one in used),
    ]


def _planned_artifact(entry: HostEntry, found: LeftArtifact, outcome: str) -> _Found:
    kind = "broken push" if found.is_partial else _KINDS[found.store]
    place = str(found.directory)
    return _Found(entry.name, kind, found.name, place, float(found.age_s), found.size_bytes, outcome)


def _with_outcomes(entry: HostEntry, planned: Iterable[_Found], removal: Removal) -> list[_Found]:
    for place, why in removal.failed:
        say(f"{entry.name}: {place} cannot be removed: {why}")
    said: Mapping[str, str] = {
        **dict.fromkeys(removal.removed, REMOVED),
        **dict.fromkeys(removal.alive, ALIVE),
        **dict.fromkeys(dict(removal.failed), FAILED),
        **dict.fromkeys(removal.unknown, GONE),
    }
    return [
        replace(one, outcome=said.get(one.place, said.get(one.name, FAILED))) if one.outcome == WOULD_GO else one
        for one in planned
    ]


def _here(plan: Plan, older_than_s: float, *, dry_run: bool) -> list[_Found]:
    from remote_runner.leftovers_here import IN_USE, list_stale, remove_stale

    found = []
    for stale in list_stale(plan.controller, plan.environ, older_than_s=older_than_s):
        why = stale.problem if dry_run else remove_stale(plan.controller, stale)
        if why:
            next_step = "" if why == IN_USE else "\n  next: see what keeps it, or make it accessible, then fab clean"
            say(f"{stale.path} {why}{next_step}")
        outcome = FAILED if why else WOULD_GO if dry_run else REMOVED
        found.append(
            _Found("", stale.kind.value, stale.path.name, str(stale.path), stale.age_s, stale.size_bytes, outcome)
        )
    return found


def _allocations(plan: Plan, older_than_s: float, *, dry_run: bool) -> list[_Found]:
    """Give back the Slurm allocations of runs whose processes here are all dead."""
    from remote_runner.inventory.sources.allocation import left_allocations
    from remote_runner.inventory.sources.slurm import slurm_environment

    found = []
    try:
        for allocation, age_s, run in left_allocations(plan.controller):
            if age_s < older_than_s:
                continue
            try:
                if dry_run:
                    outcome = ALIVE if allocation.is_needed() else WOULD_GO
                else:
                    outcome = REMOVED if allocation.give_back(slurm_environment(plan.environ)) else ALIVE
            except RemoteRunnerError as error:
                say(str(error))
                outcome = FAILED
            found.append(_Found("", "allocation", allocation.name, str(allocation.record), age_s, 0, outcome, run))
    except ControllerError as error:
        say(str(error))
        found.append(_Found("", "allocation", "all", str(plan.controller.cache / "allocations"), None, 0, FAILED))
    return found


def _tell(found: list[_Found], *, as_json: bool, is_whole: bool) -> None:
    if as_json:
        show_json([one.to_json() for one in found])
    elif found:
        show_table(
            [_row(one) for one in _shown(found)],
            header=("where", "what", "name", "of", "age", "size", "outcome"),
            least=("of", "size", "age"),
            cut="name",
        )
    gone = [one for one in found if one.outcome == REMOVED]
    going = [one for one in found if one.outcome == WOULD_GO]
    alive = [one for one in found if one.outcome == ALIVE and one.kind == "run"]
    if going:
        say(f"{len(going)} would be removed, {_total(going)}; without --dry-run they are")
    elif gone:
        say(f"{len(gone)} removed, {_total(gone)}")
    elif is_whole and not alive and not any(one.outcome == FAILED for one in found):
        say("nothing is left of earlier runs")
    if alive:
        are, stay = ("is", "stays") if len(alive) == 1 else ("are", "stay")
        say(f"{count(len(alive), 'run')} {are} alive and {stay}; --force ends and removes them:")
        whose = Counter((one.of, one.started_from or "not known where") for one in alive)
        for (of, place), number in whose.most_common(_MOST_WHOSE):
            say(f"  {number} of {of or 'an unknown plan'}, started by {place}")
        if len(whose) > _MOST_WHOSE:
            say(f"  and those of {len(whose) - _MOST_WHOSE} others (--json)")


def _shown(found: list[_Found]) -> list[_Found]:
    """A row for each thing on a host, but one for the instances of a run there; of those here one for each kind."""
    alike: dict[tuple[str, ...], list[_Found]] = {}
    for one in sorted(found, key=lambda one: not one.host):
        name = one.name.partition("-")[0] if one.kind == "run" else one.name
        alike.setdefault((one.host, one.kind, one.outcome, name if one.host else ""), []).append(one)
    rows = []
    for (host, *_, run), group in alike.items():
        oldest = max(group, key=lambda one: one.age_s or 0.0)
        many = f"{run}: {len(group)} instances" if host else f"{len(group)} of them"
        name = oldest.name if len(group) == 1 else many
        rows.append(replace(oldest, name=name, size_bytes=sum(one.size_bytes for one in group)))
    return rows


def _row(one: _Found) -> tuple[str, ...]:
    how_old = "-" if one.age_s is None else age(one.age_s)
    outcome = {ALIVE: "alive" if one.kind == "run" else "in use"}.get(one.outcome, one.outcome)
    return (one.host or "here", one.kind, one.name, one.of or "-", how_old, size(one.size_bytes), outcome)


def _total(found: list[_Found]) -> str:
    return size(sum(one.size_bytes for one in found))
