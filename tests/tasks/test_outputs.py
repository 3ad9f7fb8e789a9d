"""What real runs of `fab local.*` leave here, held against docs/schema and docs/outputs.md."""

from __future__ import annotations

import re
import subprocess
from datetime import datetime

import jsonschema
import pytest

from tests.tasks.fab import REPOSITORY, PlanDirectory
from tests.tasks.local_runs import run_directory, schema, valid, write_plan

LOG_LINE = re.compile(r"(\d{4}-\d\d-\d\dT[\d:]{8}\.\d{6}Z) (\S+\[\d+\]) (stdout|stderr|runner) (.*)")


@pytest.mark.parametrize("name", ["run", "instance"])
def test_the_schemas_are_schemas_and_every_key_is_described(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))
    text = (REPOSITORY / "docs/outputs.md").read_text(encoding="utf-8")
    if name == "run":
        assert [key for key in schema(name)["properties"] if key != "format" and f"`{key}`" not in text] == []


def test_a_run_on_two_hosts_is_kept_whole(hosts_plan: PlanDirectory) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(hosts_plan.path)]
    subprocess.run([*git, "init", "--quiet"], check=True)
    write_plan(
        hosts_plan, 'echo "$REMOTE_RUNNER_HOST speaks"\necho "is unhappy" >&2\necho x >"$TEST_OUTPUTS_PATH/x"\nok\n'
    )
    hosts_plan.write(".gitignore", "outputs\n")
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "plan"], check=True)

    hosts_plan.ok("local.single", "--testcase", "greet", "--instances", "3", "--test-param", "word=s3cret")

    directory = run_directory(hosts_plan)
    run = valid(directory / "run.json", "run")
    assert (run["outcome"], run["task"], run["case"]) == ("ok", "local.single", "greet")
    assert run["groups"] == [{"id": "single", "instances": 3, "ok": 3, "params": {"word": "s3cret"}, "profiles": {}}]
    assert [host["name"] for host in run["hosts"]] == ["dex", "localhost", "rex"]
    revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert run["provenance"]["plan"] == {"revision": revision, "clean": True, "changes": []}
    assert run["provenance"]["inventory"]["hosts"]["dex"]["labels"] == ["lab"]
    (artifact,) = run["artifacts"]
    names = []
    for instance in run["instances"]:
        outputs = directory / instance["outputs"]
        record = valid(outputs / "remote-runner.json", "instance")
        assert record["artifact"] == artifact["hash"]
        assert (outputs / "stdout").read_text(encoding="utf-8").startswith(f"{instance['host']} speaks\n{{")
        assert (outputs / "stderr").read_text(encoding="utf-8") == "is unhappy\n"
        assert (outputs / "x").read_text(encoding="utf-8") == "x\n"
        for step in instance["steps"]:
            assert run["started_at"] <= step["started_at"] <= run["ended_at"]
        names.append(f"{instance['group']}[{instance['index']:03d}]")
    lines = [LOG_LINE.fullmatch(line) for line in (directory / "run.log").read_text(encoding="utf-8").splitlines()]
    said = [line.groups() for line in lines if line is not None]
    assert len(said) == len(lines)
    times = [datetime.fromisoformat(time).timestamp() for time, *_ in said]
    assert times == sorted(times)
    assert run["started_at"] - 1 < times[0] <= times[-1] < run["ended_at"] + 1
    for name in names:
        assert [text for _, who, stream, text in said if (who, stream) == (name, "stderr")] == ["is unhappy"]
        assert any(text.startswith("run: ended with exit status 0") for _, who, _, text in said if who == name)


def test_a_run_that_fails_is_kept_with_its_reasons_and_without_secrets(plan: PlanDirectory) -> None:
    inventory = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    plan.inventory(f"{inventory}    env: {{TOKEN: abcd-7efgh}}\n    secret_env: [TOKEN]\n")
    write_plan(plan, 'echo own >"$TEST_OUTPUTS_PATH/stdout"\nprintf "no newline"\nexit 3\n')

    ran = plan.fab("local.single", "--testcase", "greet", "--instances", "1", "--test-param", "word=abcd-7efgh")

    assert ran.status == 1
    directory = run_directory(plan)
    run = valid(directory / "run.json", "run")
    (instance,) = run["instances"]
    assert (run["outcome"], instance["outcome"], instance["exit_status"]) == ("failed", "failed", 3)
    assert "ended with exit status 3" in instance["reason"]
    valid(directory / "single/0/remote-runner.json", "instance")
    # The application's own file keeps its name.
    assert (directory / "single/0/stdout").read_text(encoding="utf-8") == "own\n"
    assert (directory / "single/0/remote-runner.stdout").read_text(encoding="utf-8") == "no newline"
    assert (directory / "single/0/stderr").read_bytes() == b""
    everything = b"".join(path.read_bytes() for path in directory.rglob("*") if path.is_file())
    assert b"abcd-7efgh" not in everything
    assert run["provenance"]["inventory"]["hosts"]["localhost"]["env"] == {"TOKEN": "***"}


def test_the_summary_ends_with_what_the_failing_instance_said_and_where_to_read_on(plan: PlanDirectory) -> None:
    write_plan(plan, """event message_event '"message":"half way"'\necho "no room" >&2\nexit 4\n""")
    ran = plan.fab("local.single", "--testcase", "greet", "--instances", "1")
    near = f"outputs/local_exec/greeter/{run_directory(plan).name}/single/0"
    end = ran.out[ran.out.index("the last lines of") :].splitlines()
    assert end[:3] == ["the last lines of single[000]:", "  half way", "  stderr: no room"]
    assert end[3:5] == [f"read on in {near}/stderr", f"       and {near}/stdout"]
    assert end[5].startswith("with timestamps: fab runs.logs ")
    assert max(map(len, end[:6])) <= 80


def test_an_application_without_a_success_event_is_told_what_to_print_and_the_help_for_sh_does(
    plan: PlanDirectory,
) -> None:
    write_plan(plan, "echo done\n")
    ran = plan.fab("local.single", "--testcase", "greet", "--instances", "1")
    assert ran.status == 1
    assert '  {"event":{"success_event":{"group":"single"}}}\n' in ran.out
    text = (REPOSITORY / "docs/events.md").read_text(encoding="utf-8")
    helper = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)[0]
    assert len(helper.splitlines()) == 2
    write_plan(plan, f'{helper}if [ "$TEST_GROUP_ID" = single ]; then success; fi\n')
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
    write_plan(plan, f'{helper}failure "as told"\n')
    assert "as told" in plan.fab("local.single", "--testcase", "greet", "--instances", "1").out
    write_plan(plan, 'echo \'{"event":{"success_event":{"group":"single"}}}\'\n')
    plan.ok("local.single", "--testcase", "greet", "--instances", "1")
