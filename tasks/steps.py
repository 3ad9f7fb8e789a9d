"""The table at the end of a run: what each instance did, where, and how long each step took."""

from __future__ import annotations

from dataclasses import asdict

from remote_runner.instance.record import STEPS, Record, read_record
from tasks.say import table
from testground.local_exec import InstanceOutcome, RunOutcome

_MOST_LEFT_OUT = 5


def step_table(outcome: RunOutcome) -> str:
    """A row per instance: host, system, seconds of each step, verdict; from the records in the outputs."""
    rows = [_row(instance, read_record(instance.outputs)) for instance in outcome.instances]
    return table(rows, header=("instance", "host", "system", *STEPS, "total", "outcome"))


def left_out_lines(outcome: RunOutcome) -> list[str]:
    """What of the instances' outputs did not come, a line for each of which something did not."""
    lines = []
    for instance in outcome.instances:
        record = read_record(instance.outputs)
        if record is not None and record.left_out:
            shown = "; ".join(record.left_out[:_MOST_LEFT_OUT])
            more = f"; and {len(record.left_out) - _MOST_LEFT_OUT} more" * (len(record.left_out) > _MOST_LEFT_OUT)
            lines.append(f"{_name(instance)}: left out of its outputs: {shown}{more}")
    return lines


def _name(instance: InstanceOutcome) -> str:
    return f"{instance.group}[{instance.number:03d}]"


def _row(instance: InstanceOutcome, record: Record | None) -> tuple[str, ...]:
    name = _name(instance)
    if record is None:
        return (name, "-", "-", *("-" for _ in STEPS), "-", instance.verdict.value)
    seconds = []
    for name_of_step in STEPS:
        step = record.step(name_of_step)
        seconds.append("-" if step is None else "failed" if step.error else f"{step.duration_s:.2f}")
    return (
        name,
        record.host or "-",
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
