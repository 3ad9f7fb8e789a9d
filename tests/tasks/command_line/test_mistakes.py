"""What is typed: where the plan is found, mistakes with the line that was meant, options that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tasks.command_line.mistakes import Line, explain
from tests.tasks.fab import PlanDirectory

TASKS = ("build", "fetch", "hosts", "hosts.list", "hosts.login", "local.single", "push", "run")


@pytest.mark.parametrize(
    ("words", "unknown", "task", "flags", "said"),
    [
        (("pusch",), "pusch", None, (), "there is no task pusch (did you mean push?); fab --list shows them"),
        (("login",), "login", None, (), "there is no task login (did you mean hosts.login?); fab --list shows them"),
        (("local",), "local", None, (), "there is no task local alone: fab local.single"),
        (("hosts", "login"), "login", "hosts.list", ("--host",), "there is no task login: fab hosts.login"),
        (
            ("-q", "push", "--host", "nc1"),
            "-q",
            None,
            (),
            "-q is not an option of fab itself, one of a task stands behind it: fab push -q --host nc1; "
            "fab without a task lists those",
        ),
        (("--quite",), "--quite", None, (), "--quite is not an option of fab itself; fab without a task lists those"),
        (
            ("push", "--hots", "nc1"),
            "--hots",
            "push",
            ("--host", "--json"),
            "push: has no option --hots (did you mean --host?); fab --help push has all of them",
        ),
        (
            ("push", "nc1", "--json"),
            "nc1",
            "push",
            ("--host",),
            "push: 'nc1' stands where an option belongs: fab push --host nc1 --json",
        ),
        (
            ("run", "--host", "nc1", "uname", "-a"),
            "uname",
            "run",
            ("--host",),
            "run: 'uname' stands where an option belongs: fab run --host nc1 -- uname -a",
        ),
        (
            ("run", "nc1", "echo", "a b"),
            "nc1",
            "run",
            ("--host",),
            "run: 'nc1' stands where an option belongs: fab run --host nc1 -- echo 'a b'",
        ),
        (
            ("local.single", "greet"),
            "greet",
            "local.single",
            ("--testcase",),
            "local.single: 'greet' stands where an option belongs: fab local.single --testcase greet",
        ),
        (
            ("fetch", "dc5lsr7j2tkf5tnj3qtg"),
            "dc5lsr7j2tkf5tnj3qtg",
            "fetch",
            ("--host", "--run"),
            "fetch: 'dc5lsr7j2tkf5tnj3qtg' stands where an option belongs: fab fetch --run dc5lsr7j2tkf5tnj3qtg",
        ),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(
    words: tuple[str, ...], unknown: str, task: str | None, flags: tuple[str, ...], said: str
) -> None:
    assert explain(f"No idea what {unknown!r} is!", Line(words), task, flags, TASKS) == said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("pusch", "there is no task pusch (did you mean push?); {program} --list shows them\n"),
        ("push dex -- ls", "push: 'dex' stands where an option belongs: {program} push --host dex -- ls\n"),
        ("run --host a,b -- ls", "--host takes one host at a time: --host a --host b, or -H a,b\n"),
        ("-i /nonexistent hosts", "-i means nothing to these tasks; a key is ssh.identity_file in inventory.yaml, "),
        ("-T 1 hosts", "-T means nothing to these tasks; the time of a run is timeouts.run_s in inventory.yaml"),
        ("-w hosts", "-w means nothing to these tasks; leave it out\n"),
        ("--quite", "--quite is not an option of {program} itself; {program} without a task lists those\n"),
        ("local", "there is no task local alone: {program} local.composition or local.single or local.sync-service\n"),
        ("-i x", "-i means nothing to these tasks; a key is ssh.identity_file in inventory.yaml, "),
        ("-w", "-w means nothing to these tasks; leave it out\n"),
        ("hosts -e", "-e means nothing to these tasks; leave it out\n"),
        ("-C /nonexistent hosts", "-C /nonexistent: No such file or directory\n"),
        ("--help pus", "there is no task pus (did you mean push?); {program} --list shows them\n"),
    ],
)
@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_both_programs_tell_it_under_their_own_name(plan: PlanDirectory, program: str, words: str, said: str) -> None:
    ran = plan.fab(*words.split(), program=program)
    assert ran.status == 1
    assert ran.words.startswith(said.format(program=program)), ran.words
    assert ran.out == ""


def test_help_shows_what_means_something_here(plan: PlanDirectory) -> None:
    for shown in (plan.ok("--help", program="remote-runner").out, plan.ok(program="remote-runner").out, plan.ok().out):
        assert "--directory" in shown
        assert "--identity" not in shown
        assert "--prompt-for" not in shown
    assert plan.ok("--version", program="remote-runner").out.startswith("remote-runner ")


def test_what_fabric_does_for_an_option_alone_is_refused_as_well(plan: PlanDirectory) -> None:
    for words, instead in {
        "--list-agent-keys": "ssh-add -l lists them",
        "--print-completion-script=bash": "remote-runner completion bash prints it (zsh, fish)",
        "-i x --help": "a key is ssh.identity_file in inventory.yaml, or IdentityFile in ~/.ssh/config",
    }.items():
        ran = plan.fab(*words.split(), program="remote-runner")
        flag = words.partition("=")[0].partition(" ")[0]
        assert (ran.status, ran.words) == (1, f"{flag} means nothing to these tasks; {instead}\n")


def test_nobody_need_read_a_help_to_its_end(plan: PlanDirectory) -> None:
    command = f"{Path(sys.executable).with_name('fab')} --help push | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], cwd=plan.path, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.strip() in ("0", "141")


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_the_plan_is_found_from_below_and_from_elsewhere(plan: PlanDirectory, tmp_path: Path, program: str) -> None:
    plan.inventory("hosts:\n  only-here:\n")
    below = PlanDirectory(plan.path / "a" / "b")
    below.path.mkdir(parents=True)
    assert below.ok("hosts", program=program).out.splitlines()[1].startswith("only-here ")
    elsewhere = PlanDirectory(tmp_path / "elsewhere")
    elsewhere.path.mkdir()
    elsewhere.write("fabfile.py", (plan.path / "fabfile.py").read_text())
    there = elsewhere.ok("-C", str(plan.path), "hosts", program=program)
    assert there.out.splitlines()[1].startswith("only-here ")
    wrong = elsewhere.fab("-C", str(plan.path), "fetch", "--run", "x", "--host", "@lab", program=program)
    assert f"next: `{program} -C {plan.path} hosts` lists" in wrong.words


def test_without_a_plan_hosts_are_the_users_own(plan: PlanDirectory, tmp_path: Path) -> None:
    nowhere = PlanDirectory(tmp_path / "nowhere", {"XDG_CONFIG_HOME": str(tmp_path / "config")})
    nowhere.path.mkdir()
    own = tmp_path / "config" / "remote-runner"
    own.mkdir(parents=True)
    (own / "inventory.yaml").write_text(f"hosts:\n  localhost: {{directory: {tmp_path}/near}}\n", encoding="utf-8")
    program = {"program": "remote-runner"}
    ran = nowhere.ok("run", "--host", "localhost", "--", "sh", "-c", "echo hi; : >$TEST_OUTPUTS_PATH/kept", **program)
    assert ran.out == "hi\n"
    assert len(list(nowhere.path.glob("outputs/run/*/localhost/kept"))) == 1
    pushed = nowhere.ok("push", "--host", "localhost", "--artifact", str(plan.path / "greeter.sh"), **program)
    assert pushed.out.startswith(f"{tmp_path}/near/artifacts/")


@pytest.mark.parametrize("words", ["local.single --testcase greet", "build", "push --host localhost", "plan.import"])
def test_a_task_that_needs_a_plan_says_what_one_is(tmp_path: Path, controller: Controller, words: str) -> None:
    ran = PlanDirectory(tmp_path).fab(*words.split(), program="remote-runner")
    assert (ran.status, ran.out) == (1, "")
    assert ran.words.startswith(f"there is no plan in {tmp_path}, nor in a directory above it\n")
    assert "manifest.toml" in ran.words
    assert "remote-runner init sh hello makes one" in ran.words


def test_the_demo_ignores_the_inventory_around_it(plan: PlanDirectory) -> None:
    plan.inventory("hosts: [this, is, none]\n")
    assert "2 of 2 ok" in plan.ok("demo", program="remote-runner").out
