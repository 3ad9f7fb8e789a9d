"""`fab local.*`: what is told before anything runs, and what of the environment here counts."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

from tests.hosts import UserSshd, which
from tests.tasks.fab import PlanDirectory
from tests.tasks.local_runs import write_plan

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


def test_a_url_that_is_none_is_told_of_its_option(plan: PlanDirectory) -> None:
    write_plan(plan, "exit 1")
    ran = plan.fab("local.single", "--testcase", "greet", "--influxdb", "foo")
    assert (ran.status, ran.words) == (1, "--influxdb is 'foo'; expected a URL such as http://localhost:8086\n")


def test_directories_whose_names_are_no_utf8(plan: PlanDirectory, tmp_path: Path) -> None:
    write_plan(plan, "ok\n")
    odd = tmp_path / "caf\udce9"
    odd.mkdir()
    moved = PlanDirectory(plan.path.rename(odd / "plan"), {"REMOTE_RUNNER_CACHE_DIR": str(odd / "cache")})
    moved.ok("local.single", "--testcase", "greet")
    moved.ok("runs")
    moved.ok("runs.show")


def test_a_build_has_the_environment_of_the_prompt_and_the_application_only_what_is_named(plan: PlanDirectory) -> None:
    plan = replace(plan, environ={"TOOL_SETTING": "fine", "WORD": "hello", "TEST_CASE": "stale", "REDIS_HOST": "stale"})
    write_plan(plan, '[ "$WORD$TOOL_SETTING$REDIS_HOST" = hello ] && ok\n')
    plan.inventory(
        "app:\n  name: greeter\n  command: [sh, -c, 'env >built-with; cp greeter.sh $0', '{out}']\n"
        "hosts:\n  localhost:\n    env: {WORD: }\n"
    )
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
    built_with = (plan.path / "built-with").read_text(encoding="utf-8").splitlines()
    assert {"TOOL_SETTING=fine", "TEST_CASE=greet"} <= set(built_with)


def test_ssh_has_the_agent_of_the_prompt(
    plan: PlanDirectory, user_sshd: UserSshd, ssh_config: Path, tmp_path: Path
) -> None:
    lines = [line for line in user_sshd.config_block().splitlines() if "Identit" not in line]
    ssh_config.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_plan(plan, "ok\n")
    plan.inventory(
        "app:\n  name: greeter\n  command: cp greeter.sh {out}\n"
        f"hosts:\n  {user_sshd.name}:\n    directory: {tmp_path}/far\n"
    )
    with subprocess.Popen(
        [which("ssh-agent"), "-D", "-a", "agent"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as agent:
        try:
            assert agent.stdout is not None
            agent.stdout.readline()  # it listens
            plan = replace(plan, environ={"SSH_AUTH_SOCK": str(tmp_path / "agent")})
            subprocess.run([which("ssh-add"), "-q", user_sshd.keys.client], env=dict(plan.environ), check=True)
            plan.ok("local.single", "--testcase", "greet", "--instances", "1")
        finally:
            agent.terminate()
