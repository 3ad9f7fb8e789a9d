"""A run again, from its record: what will run, and what differs from then."""

from __future__ import annotations

import json
from dataclasses import replace

from remote_runner.records.repeating import Part, differences, masked_params, part_of, repeated
from remote_runner.records.run import RunRecord


def _instance(group: str, host: str | None, outcome: str, index: int = 0) -> dict[str, object]:
    return {"group": group, "host": host, "outcome": outcome, "index": index}


THEN = RunRecord(
    run="r1",
    plan="p",
    case="c",
    name="default",
    task="local.composition",
    started_at=1.8e9,
    groups=[
        {"id": "a", "instances": 3, "ok": 1, "params": {"word": "x"}, "profiles": {}},
        {"id": "b", "instances": 1, "ok": 1, "params": {}, "profiles": {}},
    ],
    instances=[
        _instance("a", "dex", "ok"),
        _instance("a", "rex", "failed", 1),
        _instance("a", "rex", "incomplete", 2),
        _instance("b", "dex", "ok"),
    ],
    artifacts=[{"system": "x86_64-linux", "hash": "old", "derivation": None}],
    provenance={
        "plan": {"revision": "a" * 40, "clean": True, "changes": []},
        "versions": {"python": "3.11.2", "nix": None},
        "inventory": {
            "listed": [{"name": "dex", "slots": 1}, {"name": "rex", "slots": 1}],
            "hosts": {"dex": {"name": "dex", "grace_s": 10}},
        },
    },
)


def test_a_run_is_repeated_as_it_was() -> None:
    run = repeated(THEN, failed=False)
    assert [(group.id, group.instances, dict(group.params)) for group in run.groups] == [
        ("a", 3, {"word": "x"}),
        ("b", 1, {}),
    ]


def test_what_was_secret_is_not_repeated_as_its_mask() -> None:
    group = {"id": "a", "instances": 1, "ok": 1, "params": {"word": "x", "key": "a=***"}, "profiles": {}}
    assert masked_params(repeated(replace(THEN, groups=[group]), failed=False)) == ["key"]
    assert masked_params(repeated(THEN, failed=False)) == []


def test_what_failed_is_repeated_where_it_failed() -> None:
    (group,) = repeated(THEN, failed=True).groups
    assert (group.id, group.instances) == ("a", 2)
    assert json.loads(group.params["remote-runners"]) == [{"name": "rex", "slots": 2}]
    # Hosts that the run was given keep what it said of them.
    param = json.dumps([{"name": "dex"}, {"name": "rex", "arch": "x86_64-linux", "slots": 9}])
    given = replace(THEN, groups=[{**THEN.groups[0], "params": {"remote-runners": param}}])
    (group,) = repeated(given, failed=True).groups
    assert json.loads(group.params["remote-runners"]) == [{"name": "rex", "arch": "x86_64-linux", "slots": 2}]
    # One that failed before it had a host leaves the choice open.
    hostless = replace(THEN, instances=[_instance("a", None, "failed")])
    (group,) = repeated(hostless, failed=True).groups
    assert "remote-runners" not in group.params
    fine = replace(THEN, instances=[_instance("a", "dex", "ok")])
    assert repeated(fine, failed=True).groups == ()


def test_what_is_repeated_of_a_run_is_known_where_it_is_not_all() -> None:
    assert part_of(THEN, repeated(THEN, failed=True)) == Part(["a[001]", "a[002]"], 4)
    assert part_of(THEN, repeated(THEN, failed=False)) is None
    all_failed = replace(THEN, groups=THEN.groups[:1], instances=[_instance("a", "dex", "failed")] * 3)
    again = repeated(all_failed, failed=True)
    assert (part_of(all_failed, again), again) == (None, repeated(all_failed, failed=False))


def test_each_difference_is_a_sentence() -> None:
    assert list(differences(THEN, THEN.provenance, {"x86_64-linux": "old"})) == []
    now = {
        "plan": {"revision": "b" * 40, "clean": False, "changes": [" M main.go"]},
        "versions": {"python": "3.12.1", "nix": "nix 2.28"},
        "inventory": {
            "listed": [{"name": "dex", "slots": 1}],
            "hosts": {"dex": {"name": "dex", "grace_s": 5}},
        },
    }
    assert list(differences(THEN, now, {"x86_64-linux": "new"})) == [
        "the plan's revision: it was aaaaaaaaaaaa, now bbbbbbbbbbbb",
        "the plan's uncommitted changes: there were none, now main.go",
        "the application for x86_64-linux is another: it was old, now new",
        "the inventory's hosts: they were dex, rex, now dex",
        "host dex: grace_s was 10, now 5",
        "python: it was 3.11.2, now 3.12.1",
        "nix: it was not known, now nix 2.28",
    ]
