"""Hosts from elsewhere in whole runs: the list is made once, whoever starts the instances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.runs import Machine, Plan
from tests.integration.ways import DIRECT, let_fab_start_by

# What it prints is another list each time: instances that asked for themselves would not agree on their hosts.
HOSTS = """#!/bin/sh
echo asked >>asked
here='"connect": {"command": ["/bin/sh", "-s"]}, "address": "127.0.0.1"'
if [ "$(wc -l <asked)" = 1 ]; then
    echo "{\\"a\\": {$here}, \\"b\\": {$here, \\"labels\\": [\\"lab\\"]}}"
else
    echo "{\\"other\\": {$here}}"
fi
"""


def plan_of(tmp_path: Path, machine: Machine, script: str = HOSTS) -> Plan:
    plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [])
    (plan.directory / "hosts").write_text(script, encoding="utf-8")
    (plan.directory / "hosts").chmod(0o755)
    inventory = json.loads((plan.directory / "inventory.yaml").read_text(encoding="utf-8"))
    inventory |= {"hosts": {}, "hosts_from": [{"command": "./hosts"}]}
    inventory["defaults"] = {"directory": str(tmp_path / "far"), "timeouts": {"source_s": 20}}
    (plan.directory / "inventory.yaml").write_text(json.dumps(inventory), encoding="utf-8")
    return plan


@pytest.mark.parametrize("way", [None, DIRECT])
def test_all_instances_see_one_list(tmp_path: Path, machine: Machine, way: str | None) -> None:
    plan = plan_of(tmp_path, machine)
    if way is not None:
        let_fab_start_by(plan.directory, way)
    outcome = plan.single(4).all_ok()
    assert sorted(instance.host for instance in outcome.instances) == ["a", "a", "b", "b"]
    assert (plan.directory / "asked").read_text().count("asked") == 1
    assert [instance.host for instance in plan.single().all_ok().instances] == ["other"]


def test_a_source_that_fails_is_told_by_every_instance(tmp_path: Path, machine: Machine) -> None:
    plan = plan_of(tmp_path, machine, "#!/bin/sh\necho asked >>asked\necho no cloud today >&2\nexit 4\n")
    outcome = plan.single(3)
    assert outcome.ended.status == 1
    for instance in outcome.instances:
        assert "hosts_from: command hosts: `./hosts` ended with status 4\n  | no cloud today" in instance.reason
    assert (plan.directory / "asked").read_text().count("asked") == 1


def test_fab_hosts_tells_where_each_is_from(tmp_path: Path, machine: Machine) -> None:
    plan = plan_of(tmp_path, machine)
    shown = plan.fab("hosts")
    rows = [line.split() for line in shown.stdout.splitlines()]
    assert (rows[0][0], rows[0][-1]) == ("host", "from")
    assert [(row[0], row[-2:]) for row in rows[1:]] == [("a", ["command", "hosts"]), ("b", ["command", "hosts"])]

    (plan.directory / "asked").unlink()
    (said,) = json.loads(plan.fab("hosts.sources", "--json").stdout)
    assert said["source"] == "command hosts"
    assert said["hosts"]["b"]["labels"] == ["lab"]

    (plan.directory / "hosts").write_text("#!/bin/sh\necho nothing here\n", encoding="utf-8")
    failed = plan.fab("hosts")
    assert failed.status != 0
    assert "it prints what is no list of hosts" in failed.stderr
    assert "Traceback" not in failed.stderr
