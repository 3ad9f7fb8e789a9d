"""`fab runs`: what was run; `fab runs.show`: one run."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import invoke

from remote_runner.errors import RunRecordError
from remote_runner.machine.files import size_of
from remote_runner.records.places import FoundRun
from remote_runner.sizes import size
from tasks.command_line.task import task
from tasks.plan import Plan
from tasks.runs.find import plan_of, run_meant, runs_of
from tasks.runs.logs import instance_of
from tasks.say import age, filled_to, result_width, say, show_json, show_table
from tasks.say import show as put
from tasks.view.failures import ranges
from tasks.view.table import filled, table

_SHORTEST = 8
_MOST = 30
_UNREAD = "unreadable"


@task(
    default=True,
    name="list",
    help={
        "all": f"every run of every plan that was run here (default: this plan's last {_MOST})",
        "json": "print JSON",
    },
)
def runs(c: invoke.Context, all: bool = False, json: bool = False) -> None:  # noqa: A002 (the option's name)
    """List what was run: id, when, case, instances, hosts, outcome, duration, size."""
    plan = Plan.here()
    found = runs_of(plan, everything=all)
    shown = found.runs if all else found.runs[-_MOST:]
    if json:
        show_json([*map(_unread, found.unread), *map(_listed, shown)])
        return
    if not shown and not found.unread:
        say("no run is recorded here; fab local.single and fab demo make one")
        return
    short = short_ids(found.ids)
    rows = [_unread_row(error, short[error.run]) for error in found.unread if error.run]
    rows += [_row(one, short[one.run]) for one in shown]
    header: tuple[str, ...] = ("id", "when", "plan", "case", "inst", "hosts", "outcome", "took", "size")
    if not all:
        header, *rows = [(*row[:2], *row[3:]) for row in (header, *rows)]
    show_table(rows, header=header, least=("size", "hosts"), cut="case")
    if len(shown) < len(found.runs):
        say(f"{len(found.runs) - len(shown)} older ones: fab runs --all")


@task(
    help={"id": "the run's id, or its beginning (default: the last run)", "json": "print its record"},
    bare="id",
)
def show(c: invoke.Context, id: list[str] | None = None, json: bool = False) -> None:  # noqa: A002 (as above)
    """Show one run: how it went, what made it, and where its outputs are."""
    found = run_meant(Plan.here(), id)
    if json:
        show_json({**vars(found.record), "outcome": found.outcome, "path": str(found.directory)})
        return
    for line in shown_lines(found):
        put(filled(line, filled_to()))


def shown_lines(found: FoundRun) -> list[str]:
    """What `fab runs.show` prints."""
    record = found.record
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.started_at))
    lines = [
        f"run {record.run} of {record.plan}:{record.case}, by {record.task}, {when}",
        f"outcome: {outcome_words(found)}" + ("" if record.duration_s is None else f", {record.duration_s:.1f} s"),
    ]
    part = record.inputs.get("repeats_part")
    if repeats := record.inputs.get("repeats"):
        which = f": {_numbers(found)} instances, {', '.join(ranges(part['instances']))}, on their hosts" if part else ""
        lines.insert(1, f"repeats {repeats}{which}")
    for group in record.groups:
        ok = "" if group["ok"] is None else f", {group['ok']} ok"
        lines.append(f"group {group['id']}: {group['instances']} instances{ok}")
        lines += [f"  {name} = {value}" for name, value in group["params"].items() if value]
    lines += [f"artifact for {one['system']}: {one['derivation'] or one['hash']}" for one in record.artifacts]
    lines += _made_by(record.provenance)
    if record.instances:
        rows = [
            (
                instance_of(one),
                one["host"] or "-",
                one["outcome"],
                "-" if one["duration_s"] is None else f"{one['duration_s']:.2f}",
                one["reason"].partition("\n")[0],
            )
            for one in record.instances
        ]
        header = ("instance", "host", "outcome", "took", "reason")
        lines += ["", table(rows, header=header, width=result_width(), cut="reason"), ""]
    lines += [f"doubt: {doubt}" for doubt in record.doubts]
    return [*lines, f"outputs: {found.directory}"]


def _made_by(provenance: Any) -> list[str]:
    plan, versions = provenance.get("plan") or {}, provenance.get("versions") or {}
    lines = []
    if plan.get("revision"):
        changes = plan.get("changes") or []
        state = "clean" if plan["clean"] else f"with changes: {', '.join(change[3:] for change in changes[:5])}"
        lines.append(f"plan: revision {plan['revision'][:12]}, {state}")
    if versions:
        known = [
            f"{name} {str(value).removeprefix('nix (Nix) ')}"
            for name, value in versions.items()
            if value and name not in ("revision", "ssh")
        ]
        lines.append(f"versions: {', '.join(known)}")
    return lines


def outcome_words(found: FoundRun) -> str:
    """The outcome, with why a run was ended before its time."""
    cancelled = f": {found.record.cancelled}" if found.record.cancelled else ""
    return f"{found.outcome}{cancelled}"


def short_ids(ids: Sequence[str]) -> dict[str, str]:
    """For each id its shortest beginning that no other one has, of at least 8 characters."""
    ordered = sorted(ids)
    short = {}
    for before, one, after in zip(["", *ordered], ordered, [*ordered[1:], ""], strict=False):
        enough = (length for length in range(_SHORTEST, len(one)) if not f"{before} {after}".count(one[:length]))
        short[one] = one[: next(enough, len(one))]
    return short


def _row(found: FoundRun, short: str) -> tuple[str, ...]:
    record = found.record
    return (
        short,
        f"{age(max(0.0, time.time() - record.started_at))} ago",
        record.plan,
        record.case,
        _numbers(found),
        str(len(record.hosts)) if record.hosts else "-",
        found.outcome,
        "-" if record.duration_s is None else age(record.duration_s),
        size(size_of(found.directory)),
    )


def _unread_row(error: RunRecordError, short: str) -> tuple[str, ...]:
    return (short, "-", plan_of(error), "-", "-", "-", _UNREAD, "-", size(size_of(error.path.parent)))


def _numbers(found: FoundRun) -> str:
    """How many instances; of a run that repeats some of another's, how many that one had too."""
    part = found.record.inputs.get("repeats_part")
    return f"{_instances(found)} of {part['of']}" if part else str(_instances(found))


def _instances(found: FoundRun) -> int:
    return sum(int(group["instances"]) for group in found.record.groups)


def _listed(found: FoundRun) -> dict[str, object]:
    record = found.record
    return {
        "run": record.run,
        "started_at": record.started_at,
        "plan": record.plan,
        "case": record.case,
        "task": record.task,
        "instances": _instances(found),
        "repeats": record.inputs.get("repeats"),
        "repeats_part": record.inputs.get("repeats_part"),
        "hosts": [host["name"] for host in record.hosts],
        "outcome": found.outcome,
        "duration_s": record.duration_s,
        "size_bytes": size_of(found.directory),
        "outputs": str(found.directory),
        "problem": None,
    }


def _unread(error: RunRecordError) -> dict[str, object]:
    return {
        "run": error.run or None,
        "started_at": None,
        "plan": plan_of(error) if error.run else None,
        "case": None,
        "task": None,
        "instances": None,
        "repeats": None,
        "repeats_part": None,
        "hosts": [],
        "outcome": _UNREAD,
        "duration_s": None,
        "size_bytes": size_of(error.path.parent) if error.run else None,
        "outputs": str(error.path.parent) if error.run else None,
        "problem": str(error),
    }
