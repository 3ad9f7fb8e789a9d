"""Fabric's face: hosts as the inventory names them, commands as they were typed, a user's own tasks."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hosts import TestHost, UserSshd
from tests.tasks.fab import ONE_LINE_FABFILE, REPOSITORY, PlanDirectory

FABRIC_YAML = "load_ssh_configs: false\ntasks:\n  executor_class: tasks.command_line.executor.Executor\n"

# Nobody is connected to: their systems are known, the artifact is given, nothing is sent.
THREE_HOSTS = """\
hosts:
  dex:    {system: x86_64-linux, labels: [lab, amd]}
  rex:    {system: x86_64-linux, labels: [lab]}
  far-1:  {system: aarch64-linux, labels: [arm]}
"""

USERS_TASKS = (
    ONE_LINE_FABFILE
    + """
import io
from fabric import task

@task
def env(c, value):
    result = c.run('printf %s "$ODD"', env={"ODD": value}, hide=True)
    print(repr(result.stdout))

@task
def status(c):
    result = c.run("echo out; echo err >&2; exit 3", warn=True, hide=True)
    print(result.exited, result.ok, repr(result.stdout), repr(result.stderr))

@task
def fail(c):
    c.run(f"test {c.name} = rex || exit 7")
    print("after", c.name)

@task
def copy(c, source, there, back):
    c.put(source, there)
    c.put(io.BytesIO(b"from memory"), there + "/memory")
    c.get(there + "/memory", back)
    print(c.run(f"ls -l {there}", hide=True).stdout)

@task
def get(c, path):
    c.get(path, "fetched/")

@task
def put(c, path):
    c.put(path)

@task
def meet(c, directory):
    mine, other = ("a", "b") if c.name == "dex" else ("b", "a")
    for step in ("echo here >" + mine, "read word <" + other) if mine == "a" else ("read word <a", "echo here >b"):
        c.run(f"cd {directory} && {step}")
    print(c.name, "met the other", flush=True)

@task
def timeout(c):
    c.run("exec sleep 60", timeout=1)

@task
def terminal(c):
    c.run("true", pty=True)

@task
def shell(c):
    c.shell()

@task(hosts=["dex"])
def pinned(c):
    print(c.name, c.run("echo there", hide=True).stdout.strip())

@task
def here(c):
    print(c.local("echo this machine", hide=True).stdout.strip(), c.host)

@task
def put_kind(c, kind, there):
    import pathlib
    class Broken:
        def read(self, size): return 1
        def write(self, data): pass
    sources = {"path": pathlib.Path("new.txt"), "text": io.StringIO("new\\n"), "bytes": io.BytesIO(b"new\\n")}
    sources["broken"] = Broken()
    done = c.put(sources[kind], there)
    print(done.remote, done.connection.name)

@task
def get_to(c, path, local):
    c.get(path, local)

@task
def catch(c):
    c.run("trap 'echo caught; exit' INT; echo waiting; while :; do sleep 0.1; done")

@task
def catch_early(c):
    # A machine so busy that the Ctrl-C comes before Invoke waits.
    import time
    from tasks.connection.runner import AgentRunner
    finish = AgentRunner._finish
    AgentRunner._finish = lambda self: (time.sleep(1), finish(self))[1]
    catch(c)

for one in (env, status, fail, copy, get, put, meet, timeout, terminal, shell, pinned, here, put_kind, get_to):
    ns.add_task(one)
for one in (catch, catch_early):
    ns.add_task(one)
"""
)


@pytest.fixture
def many(plan: PlanDirectory) -> PlanDirectory:
    plan.inventory(THREE_HOSTS)
    return plan


def pushed_to(plan: PlanDirectory, *words: str) -> list[str]:
    """The hosts that a push would go to."""
    return [
        item["host"] for item in plan.ok(*words, "--dry-run", "--artifact", "greeter.sh", "--arch", "x86_64-linux").data
    ]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("dex", ["dex"]),
        ("rex,dex", ["rex", "dex"]),
        ("rex, dex", ["rex", "dex"]),
        ("?ex", ["dex", "rex"]),
        ("@lab", ["dex", "rex"]),
        ("@amd,rex,dex", ["dex", "rex"]),
    ],
)
def test_dash_h_takes_names_globs_and_labels(many: PlanDirectory, given: str, meant: list[str]) -> None:
    assert pushed_to(many, "-H", given, "push") == meant


def test_dash_h_means_what_host_means(many: PlanDirectory) -> None:
    words = ("--dry-run", "--artifact", "greeter.sh")
    by_option = many.ok("push", "--host", "dex", "--host", "rex", *words)
    by_fabric = many.ok("-H", "dex,rex", "push", *words)
    assert by_fabric.data == by_option.data
    assert pushed_to(many, "-H", "dex", "push", "--host", "rex") == ["rex", "dex"]


@pytest.mark.parametrize(
    ("given", "hint"), [("dxe", None), ("@lap", "@lab"), ("fra-*", "far-1"), ("-oProxyCommand=x", None), ("a b", None)]
)
def test_what_no_host_is_meant_by_is_told(many: PlanDirectory, given: str, hint: str | None) -> None:
    ran = many.fab("push", f"--host={given}", "--dry-run", "--artifact", "greeter.sh", "--arch", "x86_64-linux")
    if given == "dxe":
        assert ran.status == 0, "ssh may know the name"
        return
    assert (ran.status, ran.out) == (1, "")
    assert repr(given) in ran.words
    assert "Traceback" not in ran.words
    if hint is not None:
        assert hint in ran.words


@pytest.mark.parametrize("words", [("choose", "--instances", "2"), ("instance",), ("demo",), ("local.single",)])
def test_dash_h_is_refused_where_no_host_is_used(many: PlanDirectory, words: tuple[str, ...]) -> None:
    ran = many.fab("-H", "dex", *words)
    assert (ran.status, ran.out) == (1, "")
    assert "-H means nothing to it" in ran.words


def test_a_command_behind_dashes_is_refused_where_none_is_run(many: PlanDirectory) -> None:
    ran = many.fab("-H", "dex", "push", "--", "true")
    assert ran.status == 1
    assert ran.words == "push: takes no command after --; fab run does\n"


def test_dry_is_dry_run(many: PlanDirectory) -> None:
    ran = many.ok("--dry", "-H", "dex", "push", "--artifact", "greeter.sh")
    assert [item["host"] for item in ran.data] == ["dex"]
    refused = many.fab("--dry", "hosts")
    assert refused.status == 1
    assert "has no --dry-run" in refused.words


ODD_WORDS = ["two words", "it's", '"', ";", "", "$HOME", "a\nb", "*", "--", "-H", "--host", "é", "\\"]


def test_what_follows_the_dashes_arrives_as_it_was_typed(plan: PlanDirectory) -> None:
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    ran = plan.ok("run", "--host", "localhost", "--", sys.executable, "-c", show, *ODD_WORDS)
    assert json.loads(ran.out.splitlines()[0]) == ODD_WORDS


def test_it_arrives_on_an_ssh_host_as_well(hosts_plan: PlanDirectory) -> None:
    show = "import json, sys; print(json.dumps(sys.argv[1:]))"
    ran = hosts_plan.ok("-H", "dex", "run", "--", sys.executable, "-c", show, *ODD_WORDS)
    assert json.loads(ran.out.splitlines()[0]) == ODD_WORDS


def test_several_hosts_go_in_parallel(hosts_plan: PlanDirectory, mkfifos: Path) -> None:
    # Each waits for the other, so one after the other they would wait for ever.
    script = (
        f"cd {mkfifos}; case $REMOTE_RUNNER_HOST in dex) echo x >a; read word <b;; *) read word <a; echo x >b;; esac"
    )
    ran = hosts_plan.ok("-H", "@lab", "run", "--", "sh", "-c", f"{script}; echo met")
    assert sorted(line for line in ran.out.splitlines() if "met" in line) == ["dex: met", "rex: met"]


@pytest.fixture
def mkfifos(tmp_path: Path) -> Path:
    """A directory with two pipes, a and b, at which two commands can wait for each other."""
    directory = tmp_path / "meeting"
    directory.mkdir()
    for name in ("a", "b"):
        os.mkfifo(directory / name)
    return directory


class TestUsersOwnTasks:
    """Fabric tasks of the user's own beside ours: their connection is one to the host's agent."""

    @pytest.fixture(autouse=True)
    def with_tasks(self, hosts_plan: PlanDirectory) -> None:
        hosts_plan.write("fabfile.py", USERS_TASKS)

    @pytest.mark.parametrize("fabric_yaml", [True, False], ids=["with fabric.yaml", "one-line fabfile alone"])
    def test_run_quotes_values_of_env(self, hosts_plan: PlanDirectory, fabric_yaml: bool) -> None:
        if fabric_yaml:
            hosts_plan.write("fabric.yaml", FABRIC_YAML)
        value = 'a\'b "c" $(id) `id` ; x=1 \\ é\nnext'
        ran = hosts_plan.ok("-H", "dex", "env", "--value", value)
        assert ran.out == f"{value!r}\n"

    def test_run_gives_status_and_streams(self, hosts_plan: PlanDirectory) -> None:
        ran = hosts_plan.ok("-H", "dex", "status")
        assert ran.out == "3 False 'out\\n' 'err\\n'\n"

    def test_a_failed_command_is_fabs_status(self, hosts_plan: PlanDirectory) -> None:
        ran = hosts_plan.fab("-H", "dex", "fail")
        assert ran.status == 7
        assert "Traceback" not in ran.words

    def test_one_hosts_failure_stops_no_other(self, hosts_plan: PlanDirectory) -> None:
        ran = hosts_plan.fab("-H", "dex,rex", "fail")
        assert (ran.status, ran.out) == (1, "after rex\n")
        assert "1 of 2 hosts failed: dex" in ran.words
        assert "Exit code: 7" in ran.words

    def test_files_go_there_and_back(self, hosts_plan: PlanDirectory, tmp_path: Path) -> None:
        there = tmp_path / "there ; it's"
        there.mkdir()
        source = tmp_path / "a program"
        content = bytes(range(256)) * 1024
        source.write_bytes(content)
        source.chmod(0o750)
        back = tmp_path / "back"
        quoted = str(there)
        hosts_plan.write("fabfile.py", USERS_TASKS.replace('f"ls -l {there}"', '"true"'))
        hosts_plan.ok("-H", "dex", "copy", "--source", str(source), "--there", quoted, "--back", str(back))
        assert (there / source.name).read_bytes() == content
        assert (there / source.name).stat().st_mode & 0o777 == 0o750
        assert back.read_bytes() == b"from memory"

    def test_a_file_that_is_not_there_makes_none_here(self, hosts_plan: PlanDirectory, tmp_path: Path) -> None:
        ran = hosts_plan.fab("-H", "dex", "get", "--path", f"{tmp_path}/nothing")
        assert ran.status == 1
        assert f"dex: {tmp_path}/nothing is not there" in ran.words
        assert not (hosts_plan.path / "fetched").exists()
        ran = hosts_plan.fab("-H", "dex", "put", "--path", "nothing")
        assert (ran.status, ran.words) == (1, "dex: put nothing: No such file or directory\n")

    def test_hosts_go_in_parallel(self, hosts_plan: PlanDirectory, mkfifos: Path) -> None:
        ran = hosts_plan.ok("-H", "dex,rex", "meet", "--directory", str(mkfifos))
        assert sorted(ran.out.splitlines()) == ["dex met the other", "rex met the other"]

    def test_a_timeout_ends_the_waiting(self, hosts_plan: PlanDirectory) -> None:
        ran = hosts_plan.fab("-H", "dex", "timeout")
        assert ran.status == 1
        assert "did not complete within 1 seconds" in ran.words
        assert "Traceback" not in ran.words

    @pytest.mark.parametrize("name", ["terminal", "shell"])
    def test_what_an_agent_does_not_give_is_said(self, hosts_plan: PlanDirectory, name: str) -> None:
        ran = hosts_plan.fab("-H", "dex", name)
        assert (ran.status, ran.out) == (1, "")
        assert ran.words.startswith("dex: ")
        assert "through" in ran.words
        assert "agent" in ran.words

    def test_a_tasks_own_hosts_count(self, hosts_plan: PlanDirectory) -> None:
        assert hosts_plan.ok("pinned").out == "dex there\n"
        assert hosts_plan.ok("-H", "rex", "pinned").out == "rex there\n"

    def test_local_is_this_machine(self, hosts_plan: PlanDirectory) -> None:
        assert hosts_plan.ok("-H", "dex", "here").out == "this machine dex\n"

    def test_a_task_has_one_connection_to_each_host(self, hosts_plan: PlanDirectory, user_sshd: UserSshd) -> None:
        before = user_sshd.connections()
        hosts_plan.ok("-H", "dex", "get", "--path", "/etc/passwd", "put", "--path", "fetched/passwd")
        assert user_sshd.connections() - before <= 2, "two tasks"
        hosts_plan.ok("-H", "dex", "here")
        assert user_sshd.connections() - before <= 2, "nothing was asked of the host"

    @pytest.mark.parametrize("kind", ["path", "text", "bytes"])
    def test_put_takes_what_fabric_takes_and_text(self, hosts_plan: PlanDirectory, tmp_path: Path, kind: str) -> None:
        (tmp_path / "-dash").write_text("as it was\n")
        (hosts_plan.path / "new.txt").write_text("new\n")
        ran = hosts_plan.ok("-H", "dex", "put-kind", "--kind", kind, "--there", f"{tmp_path}/-dash")
        assert (tmp_path / "-dash").read_text() == "new\n"
        assert ran.out == f"{tmp_path}/-dash dex\n"

    def test_a_put_that_fails_keeps_the_file(self, hosts_plan: PlanDirectory, tmp_path: Path) -> None:
        (tmp_path / "precious").write_text("as it was\n")
        ran = hosts_plan.fab("-H", "dex", "put-kind", "--kind", "broken", "--there", f"{tmp_path}/precious")
        assert ran.status == 1
        assert "dex: put from an open file: it gives int; expected bytes or text" in ran.words
        assert "Traceback" not in ran.words
        assert (tmp_path / "precious").read_text() == "as it was\n"
        assert [path.name for path in tmp_path.glob("*precious*")] == ["precious"]

    def test_get_fills_in_the_host(self, hosts_plan: PlanDirectory, tmp_path: Path) -> None:
        (tmp_path / "a file").write_text("there\n")
        (tmp_path / "a file").chmod(0o640)
        hosts_plan.ok("-H", "dex,rex", "get-to", "--path", f"{tmp_path}/a file", "--local", "out/{host}/{basename}")
        for host in ("dex", "rex"):
            got = hosts_plan.path / "out" / host / "a file"
            assert (got.read_text(), got.stat().st_mode & 0o777) == ("there\n", 0o640)
        ran = hosts_plan.fab("-H", "dex", "get-to", "--path", f"{tmp_path}/a file", "--local", "{nothing}")
        assert ran.status == 1
        assert "'{nothing}' cannot be filled in" in ran.words

    def test_a_get_that_fails_keeps_the_file(self, hosts_plan: PlanDirectory, tmp_path: Path) -> None:
        (hosts_plan.path / "precious").write_text("as it was\n")
        assert hosts_plan.fab("-H", "dex", "get-to", "--path", f"{tmp_path}", "--local", "precious").status == 1
        assert (hosts_plan.path / "precious").read_text() == "as it was\n"

    @pytest.mark.parametrize("task", ["catch", "catch-early"])
    def test_ctrl_c_reaches_the_command(self, hosts_plan: PlanDirectory, task: str) -> None:
        process = hosts_plan.start("-H", "dex", task)
        assert process.stdout is not None
        assert process.stdout.readline() == b"waiting\n"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=30)
        assert out == b"caught\n", said


@pytest.mark.parametrize("fabric_yaml", [True, False], ids=["with fabric.yaml", "one-line fabfile alone"])
@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_paramiko_does_not_read_the_ssh_configuration(
    many: PlanDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fabric_yaml: bool, program: str
) -> None:
    home = tmp_path / "home"
    (home / ".ssh").mkdir(parents=True)
    (home / ".ssh" / "config").write_text("Host *\n  this is\n no =configuration = 'that\nMatch nonsense\n")
    monkeypatch.setenv("HOME", str(home))
    if fabric_yaml:
        many.write("fabric.yaml", FABRIC_YAML)
    many.ok("choose", "--instances", "1", program=program)
    # It is one that paramiko fails on, as a fabfile without ours shows.
    many.write("fabfile.py", "from fabric import task\n\n@task\ndef nothing(c):\n    pass\n")
    (many.path / "fabric.yaml").unlink(missing_ok=True)
    assert "ConfigParseError" in many.fab("nothing").words


def test_a_plan_without_a_fabfile_uses_one_elsewhere(many: PlanDirectory) -> None:
    (many.path / "fabfile.py").unlink()
    ran = many.ok("-r", str(REPOSITORY), "choose", "--instances", "3", "--json")
    assert [place["host"] for place in ran.data] == ["dex", "rex", "far-1"]


def test_the_plan_is_where_one_stands(
    hosts_plan: PlanDirectory, known_by_name: Callable[[TestHost], str], tmp_path: Path
) -> None:
    (hosts_plan.path / "fabfile.py").unlink()
    ran = hosts_plan.ok("-r", str(REPOSITORY), "-H", "dex", "push")
    assert Path(ran.out.strip()).joinpath("greeter").read_text() == "#!/bin/sh\necho hello\n"
    assert ran.out.startswith(f"{tmp_path}/dex/artifacts/")
