"""A run's summary: each instance's host, steps and outcome, and what failed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from remote_runner.instance.record import RECORD_FILE, STEPS, Record, read_record
from remote_runner.sizes import count, listed
from remote_runner.typed import as_typed
from tasks.runs.failing import failing_lines
from tasks.view.failures import Failure, ranges, told_once
from tasks.view.table import filled, table
from testground.go_stack import without_stack
from testground.tags import tag_of

if TYPE_CHECKING:
    from testground.local_exec import InstanceOutcome, RunOutcome

    Records = Mapping[InstanceOutcome, Record | None]

_MOST_LEFT_OUT = 5
_MOST_HOSTS = 10
_MOST_KINDS = 10
_MOST_BARRIERS = 3

# More of them would hide what stands before: then a row for each host, or each group.
_MOST_ROWS = 20
# What is left out first where it is narrow: what usually takes no time, or says what the host's name says.
_LEAST = ("system", "clean", "choose", "forward", "fetch", "build", "push")


def summary(
    outcome: RunOutcome,
    left_there: Mapping[str, Sequence[str]],
    hosts: Mapping[str, str],
    width: int,
    filled_to: int | None = None,
) -> str:
    """The table, ok/total for each group, each kind of failure, what was left out, what is still on which host.

    `hosts` are those of instances (`single[003]`) that left no record. The table is at most `width` wide, and sentences
    are broken at `filled_to` where they shall be.
    """
    from testground.verdict import Verdict

    records = {instance: read_record(instance.outputs) for instance in outcome.instances}
    lines = [outcome_table(records, hosts, width), ""]
    lines += [f"group {group.id}: {group.ok} of {group.total} ok" for group in outcome.groups]
    failed = [instance for instance in outcome.instances if instance.verdict is not Verdict.OK]
    # What failed later often failed because of the first.
    failed.sort(key=lambda instance: _failed_at(records[instance]))
    failures = told_once(_failure(instance, _host(instance, records[instance], hosts)) for instance in failed)
    lines += [filled(text, filled_to) for text in failures[:_MOST_KINDS]]
    if len(failures) > _MOST_KINDS:
        lines.append(as_typed(f"and {len(failures) - _MOST_KINDS} other reasons: fab runs.show {outcome.run}"))
    lines += [filled(text, filled_to) for text in barrier_lines(outcome, records, hosts)]
    lines += failing_lines(outcome, failed)
    lines += [filled(line, filled_to) for line in left_out_lines(records)]
    if outcome.cancelled:
        how = "was stopped" if outcome.cancelled == "stopped" else outcome.cancelled
        rest = "" if left_there else "; what its instances had written is here"
        lines.append(filled(f"the run {how}{rest}", filled_to))
    lines += left_there_lines(outcome.run, left_there, filled_to)
    return "\n".join(lines)


def left_there_lines(run: str, left_there: Mapping[str, Sequence[str]], width: int | None) -> list[str]:
    """What of a run was not brought from where, and the commands for it."""
    if not left_there:
        return []
    lines = [
        filled(f"not brought from {host}: what {', '.join(ranges(who))} wrote", width)
        for host, who in list(left_there.items())[:_MOST_HOSTS]
    ]
    if len(left_there) > _MOST_HOSTS:
        lines.append(f"nor from {count(len(left_there) - _MOST_HOSTS, 'other host')}")
    commands = [as_typed(f"  fab {task} --run {run}") for task in ("fetch", "clean")]
    where = "".join(f" --host {host}" for host in left_there)
    # Without it all hosts are looked at; a command that the terminal breaks is not easily copied.
    if len(left_there) <= _MOST_HOSTS and len(commands[0]) + len(where) <= (width or len(commands[0] + where)):
        commands = [command + where for command in commands]
    return [*lines, *commands]


def outcome_table(records: Records, hosts: Mapping[str, str], width: int) -> str:
    """A row per instance: host, system, seconds of each step, verdict; where they are many, one per host or group."""
    if len(records) <= _MOST_ROWS:
        return table(
            [_row(instance, record, _host(instance, record, hosts)) for instance, record in records.items()],
            header=("instance", "host", "system", *STEPS, "total", "outcome"),
            width=width,
            least=_LEAST,
            cut="instance",
        )
    by_host: dict[str, list[tuple[InstanceOutcome, Record | None]]] = {}
    by_group: dict[str, list[tuple[InstanceOutcome, Record | None]]] = {}
    for instance, record in records.items():
        by_host.setdefault(_host(instance, record, hosts) or "-", []).append((instance, record))
        by_group.setdefault(instance.group, []).append((instance, record))
    by, members = ("host", by_host) if len(by_host) <= _MOST_ROWS else ("group", by_group)
    rows = [_row_of_many(name, each) for name, each in members.items()]
    header = (by, "instances", "ok", "failed", *STEPS, "total", "outcome")
    return table(rows, header=header, width=width, least=_LEAST[1:], cut=by)


def left_out_lines(records: Records) -> list[str]:
    """What of the instances' outputs did not come, a line for each of which something did not."""
    kinds: dict[str, list[str]] = {}
    for instance, record in records.items():
        if record is not None and record.left_out:
            kinds.setdefault(listed(record.left_out, _MOST_LEFT_OUT, "; "), []).append(_name(instance))
    lines = [
        f"{', '.join(ranges(who))}: left out of {'its' if len(who) == 1 else 'their'} outputs: {shown}"
        for shown, who in kinds.items()
    ]
    if len(lines) > _MOST_KINDS:
        more = count(len(lines) - _MOST_KINDS, "further list")
        lines[_MOST_KINDS:] = [f"{more} of what was left out: `left_out` in each instance's {RECORD_FILE}"]
    return lines


def barrier_lines(outcome: RunOutcome, records: Records, hosts: Mapping[str, str]) -> list[str]:
    """The barriers that a run which failed never got past, and who did not come."""
    from remote_runner.records.barriers import arrivals_and_waits, unmet_barriers
    from remote_runner.records.sync_log import sync_lines

    if outcome.ok:
        return []
    groups = {_name(one): one.group for one in outcome.instances}
    places = (_host(instance, record, hosts) for instance, record in records.items())
    seen = arrivals_and_waits(sync_lines(outcome.outputs), zip(groups, places, strict=True))
    unmet = list(unmet_barriers(*seen, groups))
    lines = []
    for one in unmet[:_MOST_BARRIERS]:
        who = f"; {', '.join(ranges(one.missing))} did not" if one.missing else ""
        who = who or (", the last too late" if one.came == one.target else "")
        lines.append(f"barrier {one.state}: {one.came} of {one.target} came{who}")
    if len(unmet) > _MOST_BARRIERS:
        lines.append(f"{len(unmet) - _MOST_BARRIERS} more barriers were not met")
    return lines


def _failed_at(record: Record | None) -> float:
    """When, on this machine's clock: the end of its application, else of all that it did."""
    if record is None:
        return math.inf
    run = record.step("run")
    return record.started_at + record.duration_s if run is None else run.started_at + run.duration_s


def _host(instance: InstanceOutcome, record: Record | None, hosts: Mapping[str, str]) -> str:
    return hosts.get(_name(instance), "") if record is None else record.host


def _failure(instance: InstanceOutcome, host: str) -> Failure:
    reason = without_stack(instance.reason.removeprefix("remote-runner: "))
    return Failure(_name(instance), host, instance.verdict.value, reason)


def _row_of_many(name: str, members: Sequence[tuple[InstanceOutcome, Record | None]]) -> tuple[str, ...]:
    """Counts, and the median of each step's seconds."""
    from statistics import median  # 20 ms, which not every start of fab need pay

    verdicts = Counter(instance.verdict.value for instance, _ in members)
    records = [record for _, record in members if record is not None]
    seconds = []
    for name_of_step in STEPS:
        took = [step.duration_s for record in records if (step := record.step(name_of_step)) and not step.error]
        seconds.append(f"{median(took):.2f}" if took else "-")
    failed = len(members) - verdicts["ok"]
    total = f"{median(record.duration_s for record in records):.2f}" if records else "-"
    worst = max((verdict for verdict in verdicts if verdict != "ok"), key=verdicts.__getitem__, default="ok")
    return (name, str(len(members)), str(verdicts["ok"]), str(failed), *seconds, total, worst)


def _name(instance: InstanceOutcome) -> str:
    return tag_of(instance.group, instance.number)


def _row(instance: InstanceOutcome, record: Record | None, host: str) -> tuple[str, ...]:
    name = _name(instance)
    if record is None:
        return (name, host or "-", "-", *("-" for _ in STEPS), "-", instance.verdict.value)
    seconds = []
    for name_of_step in STEPS:
        step = record.step(name_of_step)
        seconds.append("-" if step is None else "failed" if step.error else f"{step.duration_s:.2f}")
    return (
        name,
        host or "-",
        record.system or "-",
        *seconds,
        f"{record.duration_s:.2f}",
        instance.verdict.value,
    )


def outcome_json(outcome: RunOutcome) -> dict[str, object]:
    """The whole outcome as JSON values, each instance with its record."""
    instances = []
    for instance in outcome.instances:
        record = read_record(instance.outputs)
        instances.append(
            {
                "group": instance.group,
                "number": instance.number,
                "verdict": instance.verdict.value,
                "reason": instance.reason,
                "outputs": str(instance.outputs),
                "record": None if record is None else asdict(record),
            }
        )
    return {
        "run": outcome.run,
        "plan": outcome.plan,
        "case": outcome.case,
        "ok": outcome.ok,
        "cancelled": outcome.cancelled,
        "duration_s": round(outcome.duration_s, 3),
        "outputs": str(outcome.outputs),
        "groups": [asdict(group) for group in outcome.groups],
        "instances": instances,
    }
