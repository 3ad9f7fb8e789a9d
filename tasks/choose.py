"""`fab choose`: where each instance of a run would land."""

from __future__ import annotations

import invoke

from tasks.command_line.task import Failed, task
from tasks.command_line.values import pairs, positive
from tasks.plan import Plan
from tasks.say import say, show_json, show_table

_MOST_INSTANCES = 100_000


@task(
    help={
        "instances": "how many instances the run has",
        "remote_runners": "the remote-runners test param (JSON); without it the inventory's hosts are the list",
        "group": "name=count for each group, in the order of their numbers (default: one group of all)",
        "json": "print JSON",
    }
)
def choose(
    c: invoke.Context,
    instances: str = "",
    remote_runners: str = "",
    group: list[str] | None = None,
    json: bool = False,
) -> None:
    """Show which host each of N instances would run on."""
    from remote_runner.inventory.known import known_of
    from remote_runner.inventory.placement import parse_entries, place_all

    plan = Plan.here()
    inventory = plan.inventory
    listed = parse_entries(remote_runners)
    entries = inventory.entries if listed is None else inventory.complete(listed)
    groups = _groups(group or [], instances)
    placements = place_all(entries, groups, inventory.spread)
    systems = {
        place.host: place.system or known_of(plan.controller, inventory.host(place.host)).system for place in placements
    }
    if json:
        show_json(
            [
                {
                    "number": number,
                    "group": name,
                    "host": place.host,
                    "system": str(systems[place.host] or "") or None,
                    "slot": place.slot,
                    "round": place.round,
                }
                for number, (name, place) in enumerate(zip(groups, placements, strict=True), start=1)
            ]
        )
        return
    rows = [
        (str(number), name, place.host, str(systems[place.host] or "not asked yet"), str(place.slot))
        for number, (name, place) in enumerate(zip(groups, placements, strict=True), start=1)
    ]
    show_table(rows, header=("number", "group", "host", "system", "slot"), least=("slot", "system"), cut="group")
    if placements[-1].round:
        say("there are more instances than slots, so some slots are shared")


def _count(text: str, option: str) -> int:
    count = positive(text, option)
    if count > _MOST_INSTANCES:
        raise Failed(f"--{option}: {count} instances; expected at most {_MOST_INSTANCES}")
    return count


def _groups(given: list[str], instances: str) -> list[str]:
    if not given and not instances:
        raise Failed("choose: say how many: --instances N, or --group NAME=N for each group")
    if not given:
        return ["single"] * _count(instances, "instances")
    if instances:
        raise Failed("--instances and --group say the same; give one of them")
    return [name for name, count in pairs(given, "group", "COUNT") for _ in range(_count(count, "group"))]
