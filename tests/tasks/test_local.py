"""`fab local.*`: what is told before anything runs."""

from __future__ import annotations

from tests.tasks.fab import PlanDirectory
from tests.tasks.test_outputs import write_plan

COMPOSITION = """\
[global]
plan = "greeter"
case = "greet"
builder = "exec:go"
runner = "local:exec"

[[groups]]
id = "all"

[[runs]]
id = "two"
total_instances = 2
[[runs.groups]]
id = "all"
instances = { count = 2 }

[[runs]]
id = "one"
total_instances = 1
[[runs.groups]]
id = "all"
instances = { count = 1 }
"""


def test_dry_run_names_the_runs_in_their_order_and_starts_none(plan: PlanDirectory) -> None:
    write_plan(plan, "exit 1")
    plan.write("composition.toml", COMPOSITION)
    dry = plan.ok("local.composition", "-f", "composition.toml", "--dry-run")
    assert [(run["run"], run["groups"][0]["instances"]) for run in dry.data] == [("one", 1), ("two", 2)]
    assert not (plan.path / "outputs").exists()
    only = plan.ok("local.composition", "-f", "composition.toml", "--run-ids", "two", "--dry-run")
    assert [run["run"] for run in only.data] == ["two"]
    picked = plan.ok("local.composition", "-f", "composition.toml", "--run-ids", "two,one", "--dry-run")
    assert [run["run"] for run in picked.data] == ["two", "one"]
