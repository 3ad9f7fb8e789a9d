"""An environment that Testground would not give: the instance says which variable, what is in it, what is expected."""

from __future__ import annotations

import json

import pytest

from tests.integration.failing import FailingPlan


def test_an_instance_without_any_variable_says_which_one_it_lacks(failing_plan: FailingPlan) -> None:
    failing_plan.write_inventory()
    ended = failing_plan.run_with({})
    ended.failure("TEST_PLAN", "fab local.single")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"TEST_RUN": None}, ("TEST_RUN", "the run's id")),
        ({"TEST_RUN": ""}, ("TEST_RUN", "the run's id")),
        ({"TEST_CASE": None}, ("TEST_CASE",)),
        ({"TEST_GROUP_ID": None}, ("TEST_GROUP_ID",)),
        ({"TEST_OUTPUTS_PATH": None}, ("TEST_OUTPUTS_PATH",)),
        ({"TEST_INSTANCE_COUNT": "x"}, ("TEST_INSTANCE_COUNT", "'x'", "1 or more")),
        ({"TEST_INSTANCE_COUNT": "0"}, ("TEST_INSTANCE_COUNT", "'0'", "1 or more")),
        ({"TEST_INSTANCE_COUNT": "-1"}, ("TEST_INSTANCE_COUNT", "'-1'")),
        ({"TEST_INSTANCE_COUNT": None}, ("TEST_INSTANCE_COUNT",)),
        ({"TEST_GROUP_INSTANCE_COUNT": "١"}, ("TEST_GROUP_INSTANCE_COUNT",)),
        ({"TEST_INSTANCE_PARAMS": "odd"}, ("TEST_INSTANCE_PARAMS", "'odd'", "name=value|name=value")),
        ({"TEST_CAPTURE_PROFILES": "|"}, ("TEST_CAPTURE_PROFILES",)),
        ({"TEST_SIDECAR": "maybe"}, ("TEST_SIDECAR", "'maybe'", "true or false")),
        ({"SYNC_SERVICE_PORT": "fifty"}, ("SYNC_SERVICE_PORT", "'fifty'")),
        ({"SYNC_SERVICE_PORT": "70000"}, ("SYNC_SERVICE_PORT", "'70000'")),
        ({"INFLUXDB_URL": "localhost:8086"}, ("INFLUXDB_URL", "http://")),
        ({"INFLUXDB_URL": "http://localhost:none"}, ("INFLUXDB_URL", "http://")),
        ({"REDIS_HOST": "localhost", "REDIS_PORT": "x"}, ("REDIS_PORT", "'x'")),
        ({"REDIS_HOST": "localhost", "REDIS_PORT": "9" * 5000}, ("REDIS_PORT", "'999")),
    ],
    ids=lambda value: ",".join(f"{k}={v}"[:40] for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_an_odd_variable_is_named(
    failing_plan: FailingPlan, changes: dict[str, str | None], words: tuple[str, ...]
) -> None:
    failing_plan.run(**changes).failure(*words)
    assert not failing_plan.far_runs()


def test_a_number_of_any_length_as_the_instances(failing_plan: FailingPlan) -> None:
    failing_plan.run(TEST_OUTPUTS_PATH="/tmp/" + "9" * 5000).failure("File name too long")


def test_the_failure_carries_the_names_that_are_known(failing_plan: FailingPlan) -> None:
    ended = failing_plan.run(TEST_INSTANCE_COUNT="x")
    line = json.loads(ended.stdout.splitlines()[-1])
    assert (line["run_id"], line["group_id"]) == ("failing", "single")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[{", ("character",)),
        ("{}", ("expected a list",)),
        ("[]", ("expected a list",)),
        ('"dex"', ("expected a list",)),
        ("[1]", ("entry 1", "an object")),
        ("[{}]", ("entry 1", "name")),
        ('[{"name":"localhost"},{"name":"dex","arhc":"x86_64-linux"}]', ("entry 2", "arhc", "did you mean arch")),
        ('[{"name":"localhost","arch":"x86_64-linx"}]', ("entry 1", "arch", "x86_64-linux")),
        ('[{"name":"localhost","slots":0}]', ("slots", "1 to 1000")),
        ('[{"name":"-oProxyCommand=touch pwned"}]', ("-oProxyCommand", "start with '-'")),
        ('[{"name":"a b"}]', ("a b", "spaces")),
        (r'[{"name":"a\nb"}]', (r"a\nb", "newlines")),
        ('[{"name":""}]', ("entry 1", "empty")),
        ('[{"name":"x","groups":["others"]}]', ("group 'single'", "others")),
        ("null", ("expected a list",)),
    ],
)
def test_an_odd_remote_runners_param_is_named(failing_plan: FailingPlan, value: str, words: tuple[str, ...]) -> None:
    failing_plan.params["remote-runners"] = value
    ended = failing_plan.run()
    where = ("remote-runners",) if "group" not in words[0] else ()
    ended.failure(*where, *words)
    assert not (failing_plan.directory / "pwned").exists()


@pytest.mark.parametrize(
    ("hosts", "words"),
    [
        ('  "-oProxyCommand=x":\n', ("inventory.yaml:", "-oProxyCommand=x", "start with '-'")),
        ('  "a b":\n', ("inventory.yaml:", "'a b'", "spaces")),
        ('  "a\\nb":\n', ("inventory.yaml:", "newlines")),
        ("  dex: {ssh: {host: -x}}\n", ("inventory.yaml:", "hosts.dex.ssh.host", "start with '-'")),
        ("  dex: {ssh: {user: a b}}\n", ("inventory.yaml:", "hosts.dex.ssh.user")),
        ("  dex: {sytem: x86_64-linux}\n", ("inventory.yaml:", "hosts.dex.sytem", "did you mean system")),
        ("  dex: [\n", ("inventory.yaml:4:9: ", "a bracket that is never closed")),
        ("  localhost: {slots: none}\n", ("inventory.yaml:", "hosts.localhost.slots", "none")),
    ],
)
def test_an_odd_inventory_is_named_by_file_line_and_key(
    failing_plan: FailingPlan, hosts: str, words: tuple[str, ...]
) -> None:
    failing_plan.hosts = hosts
    failing_plan.run().failure(*words)
