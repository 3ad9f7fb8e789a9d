"""`fab rerun`: what differs is said first, then it runs; `--failed` takes what failed, where it failed."""

from __future__ import annotations

import json
from dataclasses import replace

from remote_runner.records.repeating import differences, masked_params, repeated
from remote_runner.records.run import RunRecord
from tests.tasks.fab import PlanDirectory
from tests.tasks.test_outputs import valid, write_plan


def _instance(group: str, host: str | None, outcome: str) -> dict[str, object]:
    return {"group": group, "host": host, "outcome": outcome}


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
        _instance("a", "rex", "failed"),
        _instance("a", "rex", "incomplete"),
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


def test_a_run_runs_again_after_it_was_said_what_differs(plan: PlanDirectory) -> None:
    write_plan(plan, '[ "$TEST_INSTANCE_COUNT$REMOTE_RUNNER_NUMBER" != 22 ] || exit 5\nok\n')
    first = plan.fab("local.single", "--testcase", "greet", "--instances", "2", "--test-param", "word=w", "--json")
    assert first.status == 1
    (ran,) = first.data

    again = plan.fab("rerun", ran["run"][:14])
    assert again.status == 1
    assert f"run {ran['run']} again, as " in again.words
    assert "nothing recorded differs now" in again.words
    write_plan(plan, "ok\n# another\n")
    inventory = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    plan.inventory(f"{inventory}    grace_s: 7\n")
    failed = plan.ok("rerun", "--failed", ran["run"], "--json")
    assert "host localhost: grace_s was 10.0, now 7.0" in failed.words
    assert "the application for x86_64-linux is another" in failed.words
    (outcome,) = failed.data
    assert [instance["group"] for instance in outcome["instances"]] == ["single"]
    directory = plan.path / "outputs/local_exec/greeter" / outcome["run"]
    record = valid(directory / "run.json", "run")
    assert (record["task"], record["inputs"]["repeats"]) == ("rerun", ran["run"])
    assert record["groups"][0]["params"]["word"] == "w"
    assert "no instance of run" in plan.ok("rerun", "--failed").words
    dry = plan.ok("rerun", ran["run"], "--dry-run").data
    assert dry["groups"][0]["instances"] == 2
    assert len(plan.ok("runs", "--json").data) == 3


def test_a_run_of_another_plan_is_not_repeated_here(plan: PlanDirectory) -> None:
    write_plan(plan, "ok\n")
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
    text = (plan.path / "manifest.toml").read_text(encoding="utf-8").replace("greeter", "other", 1)
    run = next((plan.path / "outputs/local_exec/greeter").iterdir()).name
    plan.write("manifest.toml", text)
    refused = plan.fab("rerun", run)
    assert (refused.status, "is not the plan greeter" in refused.words) == (1, True)
