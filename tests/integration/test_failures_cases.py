"""The example application, asked for what it does not have, as an instance of a whole run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.integration.failing import FailingPlan

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def plan(tmp_path: Path, controller: Controller) -> FailingPlan:
    """The example application on this machine."""
    made = FailingPlan(tmp_path / "plan", controller)
    made.command = f"{{python}} {json.dumps(str(REPOSITORY / 'node' / 'build.py'))} {{out}}"
    made.program = "bin/node"
    return made


def test_a_case_that_the_application_does_not_have(plan: FailingPlan) -> None:
    ended = plan.run(TEST_CASE="nothing")
    ended.failure("no test case 'nothing'", "server-client", "outputs", "--testcase")
    assert (ended.outputs / "instance.json").exists()
    assert not plan.far_runs()


@pytest.mark.parametrize(
    ("case", "params", "words"),
    [
        ("server-client", {"server_port": "eighty"}, ("server_port", "'eighty'", "a whole number")),
        ("server-client", {"server_port": "70000"}, ("server_port", "'70000'")),
        ("server-client", {"timeout": "soon"}, ("timeout", "'soon'", "1m30s")),
        ("outputs", {"files": "-1"}, ("files", "'-1'")),
        ("outputs", {"file_size": "big"}, ("file_size", "'big'")),
    ],
)
def test_a_parameter_that_the_application_cannot_read(
    plan: FailingPlan, case: str, params: dict[str, str], words: tuple[str, ...]
) -> None:
    plan.params.update(params)
    ended = plan.run(TEST_CASE=case)
    ended.failure("test parameter", *words)
    assert (ended.outputs / "instance.json").exists()
    assert not plan.far_runs()
