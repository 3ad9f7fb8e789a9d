"""`fab rerun`: what differs is said first, then it runs; `--failed` takes what failed, where it failed."""

from __future__ import annotations

from tests.tasks.fab import REPOSITORY, PlanDirectory
from tests.tasks.local_runs import valid, write_plan


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
    part = record["inputs"]["repeats_part"]
    assert (len(part["instances"]), part["of"]) == (1, 2)
    assert f"only 1 of 2 instances: {part['instances'][0]} of {ran['run']} again, as single[000]" in failed.words
    assert "1 of 2" in plan.ok("runs").out
    shown = plan.ok("runs.show").out
    assert f"\nrepeats {ran['run']}: 1 of 2 instances, {part['instances'][0]}, on their hosts\n" in shown
    assert "no instance of run" in plan.ok("rerun", "--failed").words
    text = (plan.path / "manifest.toml").read_text(encoding="utf-8")
    plan.write(
        "manifest.toml",
        text.replace("[testcases.params]\n", '[testcases.params]\nmany = {type = "int", default = 5}\n'),
    )
    dry = plan.ok("rerun", ran["run"], "--dry-run").data
    assert "parameter many is new: 5" in dry["differs"]
    assert dry["groups"][0]["params"] == {"many": "5", "word": "w"}
    assert dry["groups"][0]["instances"] == 2
    assert len(plan.ok("runs", "--json").data) == 3


def test_some_of_the_instances_are_warned_of_where_they_met_and_refused_where_the_case_wants_more(
    plan: PlanDirectory,
) -> None:
    meet = f"""PYTHONPATH={REPOSITORY} python3 -c '
import os
from testground.sync.client import SyncClient
with SyncClient.from_environ(os.environ) as client:
    client.signal_and_wait("met", int(os.environ["TEST_INSTANCE_COUNT"]), timeout_s=60)
'
"""
    write_plan(plan, f'{meet}[ "$TEST_INSTANCE_COUNT$REMOTE_RUNNER_NUMBER" != 22 ] || exit 5\nok\n')
    (ran,) = plan.fab("local.single", "--testcase", "greet", "--json").data
    again = plan.ok("rerun", "--failed")
    warning = f"the instances of {ran['run']} waited for each other (the barrier met)"
    assert warning in again.words
    assert "group single: 1 of 1 ok\nwarning: only 1 of 2 instances: single[00" in again.out
    assert f"\nwarning: {warning}" in again.out

    text = (plan.path / "manifest.toml").read_text(encoding="utf-8")
    plan.write("manifest.toml", text.replace("min = 1,", "min = 2,"))
    refused = plan.fab("rerun", "--failed", ran["run"])
    assert (refused.status, refused.out) == (1, "")
    assert refused.words == (
        f"rerun: 1 instance of run {ran['run']} failed; test case greet takes 2 to 10\n"
        f"  next: repeat all of them: fab rerun {ran['run']}\n"
    )


def test_a_run_of_another_plan_is_not_repeated_here(plan: PlanDirectory) -> None:
    write_plan(plan, "ok\n")
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
    text = (plan.path / "manifest.toml").read_text(encoding="utf-8").replace("greeter", "other", 1)
    run = next((plan.path / "outputs/local_exec/greeter").iterdir()).name
    plan.write("manifest.toml", text)
    refused = plan.fab("rerun", run)
    assert (refused.status, "is not the plan greeter" in refused.words) == (1, True)
