"""`fab rerun`: what differs is said first, then it runs; `--failed` takes what failed, where it failed."""

from __future__ import annotations

from tests.tasks.fab import PlanDirectory
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
