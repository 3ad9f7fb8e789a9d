"""A run whose instances Testground starts, one process each, is recorded as one run."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from remote_runner.records.places import found_runs
from testground.sync.service import SyncService
from tests.integration.failing import GROUP, RUN, FailingPlan
from tests.integration.runs import EVENTS, ROOT


@pytest.mark.parametrize("broker", ["", "off"])
def test_instances_that_come_one_by_one_make_one_record(failing_plan: FailingPlan, broker: str) -> None:
    plan = failing_plan
    plan.write_application(f"{EVENTS}echo hello\nok\n")
    plan.write_inventory()
    run = plan.directory / "data/outputs/local_exec/failing" / RUN
    seen = []
    with SyncService() as service:
        for index in range(2):
            plan.outputs = run / GROUP / str(index)
            plan.outputs.mkdir(parents=True)
            counts = dict.fromkeys(("TEST_INSTANCE_COUNT", "TEST_GROUP_INSTANCE_COUNT"), "2")
            environ = plan.environ(service.port, TEST_INSTANCE_PARAMS="word=hello", **counts)
            ended = plan.run_with(environ | {"REMOTE_RUNNER_BROKER": broker})
            assert ended.status == 0, ended
            # It stands there when Testground is told that the instance has ended.
            seen.append(json.loads((run / "run.json").read_text(encoding="utf-8"))["outcome"])
    assert seen == ["running", "ok"]

    (found,) = found_runs(plan.controller, plan.directory).runs
    schema = json.loads((ROOT / "docs/schema/run.json").read_text(encoding="utf-8"))
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(record)
    assert (found.run, found.outcome, record["task"]) == (RUN, "ok", "testground")
    assert record["groups"] == [{"id": GROUP, "instances": 2, "ok": 2, "params": {"word": "hello"}, "profiles": {}}]
    assert [(one["index"], one["host"], one["outputs"]) for one in record["instances"]] == [
        (0, "localhost", f"{GROUP}/0"),
        (1, "localhost", f"{GROUP}/1"),
    ]
    assert record["hosts"][0]["facts"]["kernel"]
    said = (run / "run.log").read_text(encoding="utf-8")
    assert [said.count(f" {GROUP}[{index:03d}] stdout hello\n") for index in range(2)] == [1, 1]


def test_an_instance_outside_of_such_a_tree_makes_no_record(failing_plan: FailingPlan) -> None:
    failing_plan.write_application(f"{EVENTS}ok\n")
    assert failing_plan.run().status == 0
    assert (failing_plan.outputs / "stdout").exists()
    assert not list(Path(failing_plan.directory).rglob("run.json"))
