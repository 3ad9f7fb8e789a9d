"""Repeating a run from its record: what will run, and what has changed since. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from remote_runner.inventory.placement import PARAM
from remote_runner.records.run import RunRecord
from remote_runner.secrets import MASK
from remote_runner.sizes import listed
from testground.composition import GroupPlan, Resources, RunPlan
from testground.tags import tag_of

_MOST_NAMED = 5
_SHORT = 12


def repeated(record: RunRecord, *, failed: bool) -> RunPlan:
    """The run as it was; with `failed` as many instances of each group as did not succeed, on the hosts they were on.

    It has no group where none failed.
    """
    every = {group["id"]: group["instances"] for group in record.groups}
    wanted = _failed(record) if failed else every
    hosts = {} if wanted == every else _failed_hosts(record)
    groups = [
        GroupPlan(
            id=group["id"],
            group_id=group["id"],
            instances=wanted[group["id"]],
            params=_params(group["params"], hosts),
            profiles=group["profiles"],
            resources=Resources(),
            artifact="",
            builder="",
            build_config={},
        )
        for group in record.groups
        if wanted.get(group["id"])
    ]
    return RunPlan(
        name=record.name,
        plan=record.plan,
        case=record.case,
        runner="local:exec",
        run_config={},
        disable_metrics=bool(record.inputs.get("disable_metrics")),
        groups=tuple(groups),
    )


@dataclass(frozen=True)
class Part:
    """What of a run is repeated, where that is not all of it: these instances, of so many."""

    instances: Sequence[str]
    of: int


def part_of(record: RunRecord, run: RunPlan) -> Part | None:
    """Which part of the recorded run this is (`repeated`); None where it is the whole."""
    of = sum(group["instances"] for group in record.groups)
    if run.instances == of:
        return None
    failed = (one for one in record.instances if one["outcome"] != "ok" and one["index"] is not None)
    return Part([tag_of(one["group"], one["index"]) for one in failed], of)


def with_new_params(run: RunPlan, defaults: Mapping[str, str]) -> tuple[RunPlan, list[str]]:
    """The run with the parameters that its test case has got since, and a sentence for each of them."""
    new = {name: value for name, value in defaults.items() if any(name not in one.params for one in run.groups)}
    groups = [replace(one, params={**new, **one.params}) for one in run.groups]
    return replace(run, groups=tuple(groups)), [f"parameter {name} is new: {value}" for name, value in new.items()]


def masked_params(run: RunPlan) -> list[str]:
    """The names of the parameters whose values the record does not have, since they are secret, or may have been."""
    return sorted({name for group in run.groups for name, value in group.params.items() if MASK in value})


def _failed(record: RunRecord) -> Counter[str]:
    counts = Counter(one["group"] for one in record.instances if one["outcome"] != "ok")
    if record.instances:
        return counts
    # It was killed before its end could be written.
    return Counter({group["id"]: group["instances"] for group in record.groups})


def _failed_hosts(record: RunRecord) -> dict[str, int]:
    hosts = [one["host"] for one in record.instances if one["outcome"] != "ok"]
    # One that got no host may get any.
    return {} if None in hosts else dict(Counter(hosts))


def _params(params: Mapping[str, str], hosts: Mapping[str, int]) -> dict[str, str]:
    if not hosts:
        return dict(params)
    entries = json.loads(params.get(PARAM) or "null") or [{"name": name} for name in hosts]
    kept = [{**entry, "slots": hosts[entry["name"]]} for entry in entries if entry["name"] in hosts]
    return {**params, PARAM: json.dumps(kept)}


def differences(then: RunRecord, provenance: Mapping[str, Any], artifacts: Mapping[str, str]) -> Iterator[str]:
    """What is otherwise now, a sentence each; `artifacts` is what would be run now on each system, by its hash."""
    yield from _plan(then.provenance.get("plan") or {}, provenance.get("plan") or {})
    for one in then.artifacts:
        now = artifacts.get(one["system"])
        if now is not None and now != one["hash"]:
            yield f"the application for {one['system']} is another: it was {one['hash']}, now {now}"
    yield from _inventory(then.provenance.get("inventory") or {}, provenance.get("inventory") or {})
    for what in ("versions", "machine"):
        before, after = then.provenance.get(what) or {}, provenance.get(what) or {}
        for name in before:
            if before[name] != after.get(name):
                words = f"{name} of this machine" if what == "machine" else _VERSIONS.get(name, name)
                yield f"{words}: it was {_known(before[name])}, now {_known(after.get(name))}"


_VERSIONS = {"revision": "remote-runner's revision", "agent": "the agent"}


def _known(value: object) -> str:
    return "not known" if value is None else str(value)


def _plan(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    was, now = before.get("revision"), after.get("revision")
    if was != now:
        yield f"the plan's revision: it was {_known(was and was[:_SHORT])}, now {_known(now and now[:_SHORT])}"
    was_changed, is_changed = list(before.get("changes") or ()), list(after.get("changes") or ())
    if was_changed != is_changed:
        yield f"the plan's uncommitted changes: there were {_named(was_changed)}, now {_named(is_changed)}"


def _named(changes: Sequence[str]) -> str:
    return listed([change[3:] for change in changes], _MOST_NAMED) or "none"


def _inventory(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    if not before or not after:
        return
    was, now = ([entry["name"] for entry in one.get("listed") or ()] for one in (before, after))
    if was != now:
        yield f"the inventory's hosts: they were {', '.join(was) or 'none'}, now {', '.join(now) or 'none'}"
    for name, settings in before["hosts"].items():
        other = (after.get("hosts") or {}).get(name) or {}
        for key, value in settings.items():
            if name in now and value != other.get(key):
                yield f"host {name}: {key} was {json.dumps(value)}, now {json.dumps(other.get(key))}"
