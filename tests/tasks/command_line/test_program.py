"""The two programs that a person types, whatever the task."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tasks.fab import PlanDirectory
from tests.tasks.local_runs import write_plan


@pytest.mark.parametrize("words", [("run", "--host", "dex", "--", "echo", "hi"), ("hosts",), ("hosts", "--json")])
def test_results_that_cannot_be_written_are_a_sentence(hosts_plan: PlanDirectory, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = hosts_plan.start(*words, stdout=full)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    task = words[0]
    assert f"{task}: stdout cannot be written: No space left on device\n  next: " in said.decode()
    assert b"Traceback" not in said
    assert b"Exception ignored" not in said


def test_a_closed_stdout_is_as_one_that_nobody_reads(hosts_plan: PlanDirectory) -> None:
    words = ("sh", "-c", 'exec "$0" run --host localhost -- echo hi >&-', str(Path(sys.executable).with_name("fab")))
    done = subprocess.run(words, cwd=hosts_plan.path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "localhost: ended with exit status 0" in done.stderr


@pytest.mark.parametrize("words", [("push",), ("hosts", "--probe"), ("run", "--", "true")])
def test_ctrl_c_while_a_host_does_not_answer_ends_in_a_sentence(plan: PlanDirectory, words: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        plan.inventory(f"hosts:\n  dead: {{ssh: {{host: 127.0.0.1, port: {silent.getsockname()[1]}}}}}\n")
        process = plan.start("-H", "dead", *words)
        with silent.accept()[0]:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=10)
    assert process.returncode == (1 if words[0] == "run" else 130)
    last = "dead: stopped before the command's start" if words[0] == "run" else "stopped by Ctrl-C\n"
    assert last in said.decode()
    assert b"Traceback" not in said


class TestRemoteRunnerProgram:
    """`remote-runner` is the same tasks in a directory without a fabfile."""

    @pytest.fixture(autouse=True)
    def without_fabfile(self, plan: PlanDirectory) -> None:
        (plan.path / "fabfile.py").unlink()

    def test_it_runs_the_steps(self, hosts_plan: PlanDirectory) -> None:
        assert hosts_plan.ok("-H", "dex", "push", program="remote-runner").out.endswith("/c\n")
        assert hosts_plan.ok("-H", "dex", "run", "--", "echo", "a  b", program="remote-runner").out == "a  b\n"
        assert hosts_plan.ok("-H", "dex", "--", "echo", "a  b", program="remote-runner").out == "a  b\n"

    def test_it_lists_and_helps(self, plan: PlanDirectory) -> None:
        listed = plan.ok("--list", program="remote-runner").out
        assert all(name in listed for name in ("build", "hosts.login", "local.single", "local.sync-service"))
        told = plan.ok("--help", "push", program="remote-runner").out
        assert re.search(r"--artifact\S+ +\w", told)
        assert plan.ok("push", "--help", program="remote-runner").out == told

    def test_an_instance_without_its_environment_is_a_failure_event(self, plan: PlanDirectory) -> None:
        ran = plan.fab("instance", program="remote-runner")
        assert ran.status == 1
        assert "failure_event" in ran.out


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_debug_names_a_file_with_what_was_done(hosts_plan: PlanDirectory, tmp_path: Path, program: str) -> None:
    ran = hosts_plan.ok("--debug", "-H", "dex", "run", "--", "echo", "secret words", program=program)
    assert ran.out == "secret words\n"
    lines = ran.words.splitlines()
    (place,) = (place for place, line in enumerate(lines) if line.startswith("debug log: "))
    log = Path(lines[place].removeprefix("debug log: ")).read_text(encoding="utf-8")
    assert "ssh -T -o BatchMode=yes" in log
    assert "dex: attachment 1: the agent answered after" in log
    assert "secret" not in log
    # `fab` is Invoke's own program until it has found these tasks.
    assert not any("invoke" in line for line in (lines[place:] if program == "fab" else lines))


def test_every_option_has_help_and_every_task_a_line() -> None:
    from tasks.collection import ns

    for name in ns.task_names:
        task = ns[name]
        assert task.body.__doc__, name
        assert all(task.help.values()), name


def test_a_stdout_of_another_encoding_takes_what_it_can(plan: PlanDirectory) -> None:
    plan.inventory("hosts: {dex: {labels: [lück, 戊]}}\n")
    other = PlanDirectory(plan.path, {"PYTHONIOENCODING": "latin-1"})
    process = other.start("hosts", "--json")
    out, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (0, b"")
    assert "lück".encode("latin-1") in out
    assert b"\\u620a" in out


def test_a_build_that_fails_is_seen_where_signals_of_children_are_ignored(plan: PlanDirectory) -> None:
    plan.inventory("app: {name: greeter, builder: command, command: 'false'}\n")
    plain = plan.fab("build")
    words = ("sh", "-c", """trap '' CHLD; exec "$0" build""", str(Path(sys.executable).with_name("fab")))
    done = subprocess.run(words, cwd=plan.path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, plain.status) == (1, 1)
    assert "status 1" in done.stderr
    assert "status 1" in plain.words


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full"])
def test_what_stderr_does_not_take_is_nowhere_else_and_ends_no_run(plan: PlanDirectory, closed: str) -> None:
    write_plan(plan, """event message_event '"message":"hello"'\nok\n""")
    fab = str(Path(sys.executable).with_name("fab"))
    words = ("sh", "-c", f'exec "$0" local.single --testcase greet --json -vv {closed}', fab)
    done = subprocess.run(words, cwd=plan.path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert json.loads(done.stdout)[0]["ok"]


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_change_nothing_else(hosts_plan: PlanDirectory, closed: str) -> None:
    words = ("sh", "-c", f'exec "$0" -H dex run -- sh -c "$1" {closed}', str(Path(sys.executable).with_name("fab")))
    command = 'echo 1 >"$TEST_OUTPUTS_PATH/made"; cat; exit 3'
    done = subprocess.run([*words, command], cwd=hosts_plan.path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 3, done
    assert b"Traceback" not in done.stderr
    assert len(list(hosts_plan.path.glob("outputs/run/*/dex/made"))) == 1
