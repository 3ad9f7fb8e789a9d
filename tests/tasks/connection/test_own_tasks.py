"""docs/tasks.md: its examples are run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.tasks.fab import REPOSITORY, PlanDirectory

EXAMPLES = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8"), re.DOTALL)


def test_a_fabric_task_for_each_host(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    hosts_plan.write("fabfile.py", EXAMPLES[0])
    hosts_plan.write("settings.toml", "x = 1\n")
    home = tmp_path / "usershost" / "home"
    (home / "app").mkdir()
    (home / "app" / "log").write_text("its log\n")
    ran = hosts_plan.ok("-H", "@lab", "uptime")
    assert sorted(line.split()[0] for line in ran.out.splitlines()) == ["dex", "rex"]
    assert (home / "app" / "settings.toml").read_text() == "x = 1\n"
    assert [(hosts_plan.path / f"logs/{host}/log").read_text() for host in ("dex", "rex")] == ["its log\n"] * 2


def test_a_hosts_name_is_a_name(plan: PlanDirectory, tmp_path: Path) -> None:
    plan.inventory(f"hosts: {{'rack:a': {{connect: {{command: [/bin/sh, -s]}}, directory: {tmp_path}/near}}}}\n")
    task = "@task\ndef who(c):\n    print(c.name, c.host, c.port, c.run('echo hi', hide=True).stdout)\n"
    plan.write("fabfile.py", f"from fabric import task\nfrom tasks import ns\n\n{task}\nns.add_task(who)\n")
    assert plan.ok("-H", "rack:a", "who").out == "rack:a rack:a 22 hi\n\n"


@pytest.fixture
def together(hosts_plan: PlanDirectory) -> PlanDirectory:
    """The plan with the second example, and an application that needs what was pushed to all."""
    hosts_plan.write("fabfile.py", EXAMPLES[1])
    hosts_plan.write("greeter.sh", '#!/bin/sh\necho "hello $1"\necho out >"$TEST_OUTPUTS_PATH/file"\nexit 4\n')
    return hosts_plan


def test_push_to_all_hosts_then_run(together: PlanDirectory) -> None:
    ran = together.ok("together", "--host", "dex", "--host", "localhost")
    assert sorted(ran.out.splitlines()) == ["dex 4", "hello --all", "hello --all", "localhost 4"]
    assert ran.words == "pushed to dex, localhost\n"
    assert len(list(together.path.glob("outputs/*/*/file"))) == 2


def test_where_one_host_fails_nothing_is_started(together: PlanDirectory) -> None:
    inventory = (together.path / "inventory.yaml").read_text()
    together.inventory(f"{inventory}  gone:\n    ssh: {{host: 127.0.0.1, port: 1}}\n")
    ran = together.fab("together", "--host", "dex", "--host", "gone")
    assert (ran.status, ran.out) == (1, "")
    assert "1 of 2 hosts failed: gone" in ran.words
    assert "gone: the machine answers, but nothing listens at its ssh port" in ran.words
