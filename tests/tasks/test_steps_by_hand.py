"""The steps as a person types them, on this machine and on a real sshd: results on stdout, words on stderr."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.machine.controller import Controller
from tests.hosts import UserSshd
from tests.tasks.fab import PlanDirectory

FILES = ("sh", "-c", 'echo said; echo told >&2; echo 1 >"$TEST_OUTPUTS_PATH/a file"; exit 3')


def test_build_prints_the_artifact_alone(plan: PlanDirectory) -> None:
    ran = plan.ok("build")
    path = Path(ran.out.removesuffix("\n"))
    assert path.read_text() == "#!/bin/sh\necho hello\n"
    assert "(builder command: app.builder is command)" in ran.words
    (artifact,) = plan.ok("build", "--json").data
    assert artifact["program"] == "greeter"
    assert len(artifact["hash"]) == 32


def test_build_dry_run_prints_what_then_runs(plan: PlanDirectory) -> None:
    plan.write("show.sh", '#!/bin/sh\npwd -P >"$2.seen"\nprintf "%s\\n" "$@" >>"$2.seen"\ncp greeter.sh "$2"\n').chmod(
        0o755
    )
    plan.inventory("app: {name: greeter, builder: command, command: \"./show.sh 'two words' {out} {goarch}\"}\n")
    (planned,) = plan.ok("build", "--arch", "aarch64-linux", "--dry-run").data
    assert not list(plan.path.glob("*.seen"))
    out = plan.ok("build", "--arch", "aarch64-linux").out.strip()
    directory, *words = Path(f"{out}.seen").read_text().splitlines()
    assert directory == planned["directory"]
    assert ["./show.sh", *words] == [out if word == planned["out"] else word for word in planned["argv"]]
    assert words == ["two words", out, "arm64"]


@pytest.mark.parametrize("host", ["localhost", "dex"])
def test_push_builds_and_prints_where_it_lies(hosts_plan: PlanDirectory, host: str, tmp_path: Path) -> None:
    first = hosts_plan.ok("-H", host, "push")
    directory = Path(first.out.removesuffix("\n"))
    assert directory.is_relative_to(tmp_path)
    assert (directory / "greeter").stat().st_mode & 0o100
    assert "sent, " in first.words
    second = hosts_plan.ok("-H", host, "push")
    assert second.out == first.out
    assert "was there already" in second.words


def test_push_takes_a_built_artifact(hosts_plan: PlanDirectory) -> None:
    artifact = hosts_plan.ok("build").out.strip()
    words = ("-H", "@lab", "push", "--artifact", artifact)
    planned = hosts_plan.ok(*words, "--dry-run").data
    done = hosts_plan.ok(*words, "--json").data
    assert [(one["host"], one["hash"]) for one in planned] == [(one["host"], one["hash"]) for one in done]
    assert [one["present"] for one in done] == [False, False]
    assert "building" not in hosts_plan.ok(*words).words


@pytest.mark.parametrize("host", ["localhost", "dex"])
def test_run_streams_and_passes_the_status_and_outputs(hosts_plan: PlanDirectory, host: str) -> None:
    ran = hosts_plan.fab("run", "--host", host, "--", *FILES)
    assert (ran.status, ran.out) == (3, "said\n")
    run = ran.words.split()[1]
    assert "told\n" in ran.words
    assert f"{host}: ended with exit status 3, 1 output file in outputs/run/{run}/{host}" in ran.words
    assert (hosts_plan.path / "outputs/run" / run / host / "a file").read_text() == "1\n"


def test_what_was_pushed_can_be_run(hosts_plan: PlanDirectory) -> None:
    directory = hosts_plan.ok("-H", "dex", "push").out.strip()
    assert hosts_plan.ok("-H", "dex", "run", "--", f"{directory}/greeter").out == "hello\n"


@pytest.mark.parametrize("host", ["localhost", "dex"])
def test_a_kept_run_is_fetched_by_its_id(hosts_plan: PlanDirectory, host: str, tmp_path: Path) -> None:
    data = hosts_plan.fab("run", "--host", host, "--keep", "--json", "--", *FILES).data
    (outcome,) = data
    assert (outcome["exit_status"], outcome["kept"], outcome["outputs_files"]) == (3, True, 1)
    run = outcome["run"]
    fetched = hosts_plan.ok("fetch", "--run", run, "--outputs", str(tmp_path / "again"))
    assert fetched.out == f"{tmp_path}/again/{run}/{host}\n"
    assert (tmp_path / "again" / run / host / "a file").read_text() == "1\n"
    (told,) = hosts_plan.ok("fetch", "--run", run, "--outputs", str(tmp_path / "third"), "--json").data
    assert (told["host"], told["files"]) == (host, 1)


def test_fetch_of_what_is_not_there_says_so(hosts_plan: PlanDirectory) -> None:
    hosts_plan.ok("-H", "dex", "run", "--", "true")
    for words in (("--run", "nothing"), ()):  # the second means the last run, of which nothing was kept
        ran = hosts_plan.fab("fetch", *words)
        assert (ran.status, ran.out) == (1, "")
        assert "no host has outputs of run" in ran.words


def test_lines_of_several_hosts_are_tagged(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab(
        "-H", "dex,localhost", "run", "--", "sh", "-c", "echo one; echo two; printf three; echo err >&2"
    )
    assert sorted(ran.out.splitlines()) == [
        f"{host}: {word}" for host in ("dex", "localhost") for word in ("one", "three", "two")
    ]
    assert {"dex: err", "localhost: err"} <= set(ran.words.splitlines())


def test_one_host_that_fails_stops_no_other(hosts_plan: PlanDirectory) -> None:
    inventory = (hosts_plan.path / "inventory.yaml").read_text()
    hosts_plan.inventory(f"{inventory}  gone:\n    ssh: {{host: 127.0.0.1, port: 1}}\n")
    ran = hosts_plan.fab("-H", "gone,dex", "run", "--json", "--", "true")
    assert ran.status == 1
    gone, dex = ran.data
    assert (gone["host"], dex["host"], dex["exit_status"]) == ("gone", "dex", 0)
    assert "127.0.0.1" in gone["error"]
    assert "1 of 2 hosts failed: gone" in ran.words


def test_a_program_that_is_missing_is_told_without_a_word_of_builds(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("run", "--host", "dex", "--", "no-such-program")
    assert (ran.status, ran.out) == (1, "")
    assert "next: check the name, give its whole path, or install it on dex" in ran.words
    assert "build" not in ran.words
    ran = hosts_plan.fab("run", "--host", "dex", "--", "uname -a | cat")
    assert "next: no shell splits it into words; to have one: sh -c 'uname -a | cat'" in ran.words


def test_a_shells_word_is_told_to_be_none(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.ok("run", "--host", "dex", "--", "echo", "a", "&&", "echo", "b")
    assert ran.out == "a && echo b\n"
    assert "&& is handed to echo as it is: there is no shell; to have one: -- sh -c 'echo a && echo b'" in ran.words


def test_an_identity_file_that_is_missing_is_warned_of(plan: PlanDirectory) -> None:
    plan.inventory("hosts: {dex: {ssh: {identity_file: kye}}}\n")
    ran = plan.ok("hosts")
    assert f"warning: dex: ssh.identity_file {plan.path}/kye is not there; ssh goes on without it" in ran.words


def test_run_dry_run_prints_what_then_runs(hosts_plan: PlanDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ODD", "it's $(id)")
    words = ("sh", "-c", 'printf "%s\\n" "$0" "$@" "$TEST_ODD" "$REMOTE_RUNNER_HOST"', "a b", ";", "")
    (planned,) = hosts_plan.ok("-H", "dex", "run", "--dry-run", "--", *words).data
    assert planned["argv"] == list(words)
    ran = hosts_plan.ok("-H", "dex", "run", "--", *words)
    environment = planned["environment"]
    assert ran.out.splitlines() == [*planned["argv"][3:], environment["TEST_ODD"], environment["REMOTE_RUNNER_HOST"]]


def test_ctrl_c_stops_the_command_and_fetches(hosts_plan: PlanDirectory) -> None:
    process = hosts_plan.start(
        "-H", "dex", "run", "--", "sh", "-c", 'echo 1 >"$TEST_OUTPUTS_PATH/part"; echo started; exec sleep 300'
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    began_s = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert time.monotonic() - began_s < 30
    assert b"dex: stopped from here" in said
    assert len(list(hosts_plan.path.glob("outputs/run/*/dex/part"))) == 1


def lasting(directory: Path) -> tuple[str, ...]:
    """A command that leaves an output and its process id, says so, and goes on until it is ended."""
    return ("sh", "-c", f'echo 1 >"$TEST_OUTPUTS_PATH/part"; echo $$ >{directory}/pid; echo started; exec sleep 300')


def wait_gone(directory: Path) -> None:
    """Return once the process of `lasting` has ended there."""
    pid = int((directory / "pid").read_text())
    until_s = time.monotonic() + 60
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < until_s, "it goes on"
        time.sleep(0.05)  # it is not our child


def test_a_second_ctrl_c_ends_fab_at_once_and_the_host_ends_the_command(
    hosts_plan: PlanDirectory, tmp_path: Path
) -> None:
    ignores = ("sh", "-c", f'trap "" INT TERM; echo $$ >{tmp_path}/pid; echo started; while :; do sleep 0.1; done')
    text = (hosts_plan.path / "inventory.yaml").read_text().replace("labels: [lab]", "labels: [lab]\n    grace_s: 3")
    hosts_plan.inventory(text)
    process = hosts_plan.start("-H", "dex", "run", "--", *ignores)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline().startswith(b"run ")
    assert process.stderr.readline().startswith(b"stopping the command")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=2.5)
    assert process.returncode == -signal.SIGINT
    wait_gone(tmp_path)
    run = hosts_plan.ok("clean", "--dry-run", "--json", "--host", "dex").data[0]["name"]
    hosts_plan.ok("fetch", "--run", run)


def test_who_is_suspended_for_too_long_is_told_what_became_of_it(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    text = (hosts_plan.path / "inventory.yaml").read_text()
    hosts_plan.inventory(text.replace("labels: [lab]", "labels: [lab]\n    tolerate_s: 3\n    grace_s: 1"))
    process = hosts_plan.start("-H", "dex", "run", "--", *lasting(tmp_path))
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGSTOP)
    wait_gone(tmp_path)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert b"Traceback" not in said
    run = said.split()[1].decode()
    if not list(hosts_plan.path.glob("outputs/run/*/dex/part")):  # they came, or it is said how they come
        assert f"fab fetch -H dex --run {run}" in said.decode()
        hosts_plan.ok("fetch", "--host", "dex", "--run", run)


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
    last = "dead: stopped before the command's start" if words[0] == "run" else "ended here by Ctrl-C\n"
    assert last in said.decode()
    assert b"Traceback" not in said


def test_a_reader_that_goes_stops_the_command(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    process = hosts_plan.start("-H", "dex", "run", "--", *lasting(tmp_path))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"started\n"
    process.stdout.close()
    said = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141
    assert "dex: stopped from here" in said
    wait_gone(tmp_path)


def test_what_is_left_out_of_the_outputs_is_told(hosts_plan: PlanDirectory) -> None:
    leaves = (
        "sh",
        "-c",
        'cd "$TEST_OUTPUTS_PATH"; mkfifo a-pipe; ln -s /etc/passwd a-link; echo x >remote-runner.mine',
    )
    ran = hosts_plan.ok("-H", "dex", "run", "--keep", "--", *leaves)
    fetched = hosts_plan.ok("fetch", "--run", ran.words.split()[1], "--outputs", "again")
    for words in (ran.words, fetched.words):
        assert all(f"dex: left out: {name}: " in words for name in ("a-pipe", "a-link", "remote-runner.mine"))
    again = hosts_plan.ok("fetch", "--run", ran.words.split()[1], "--outputs", "third", "--json")
    assert "a-pipe: is a named pipe" in again.data[0]["left_out"]


def test_long_lines_pass_as_they_are(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.ok("-H", "dex", "run", "--", "sh", "-c", "head -c 200000 /dev/zero | tr '\\0' x; echo; printf end")
    assert ran.out == "x" * 200_000 + "\nend"


@pytest.mark.parametrize("words", [("push",), ("run", "--", "true"), ("hosts.login",)])
def test_a_step_without_a_host_names_those_there_are(hosts_plan: PlanDirectory, words: tuple[str, ...]) -> None:
    ran = hosts_plan.fab(*words)
    assert (ran.status, ran.out) == (1, "")
    assert "localhost, dex, rex" in ran.words


def test_choose_follows_list_slots_and_groups(plan: PlanDirectory) -> None:
    plan.inventory("hosts:\n  a: {slots: 2}\n  b:\n  c: {groups: [others]}\n")

    def chosen(*words: str) -> list[str]:
        return [one["host"] for one in plan.ok("choose", "--json", *words).data]

    assert chosen("--instances", "5") == ["a", "a", "b", "a", "a"]
    assert chosen("--group", "first=1", "--group", "others=3") == ["a", "c", "a", "b"]
    listed = '[{"name": "x", "arch": "aarch64-linux"}, {"name": "b"}]'
    assert chosen("--instances", "3", "--remote-runners", listed) == ["x", "b", "x"]
    table = plan.ok("choose", "--instances", "3", "--remote-runners", listed)
    assert [line.split()[2] for line in table.out.splitlines()] == ["host", "x", "b", "x"]
    assert "more instances than slots" in table.words


@pytest.mark.parametrize("given", ["0", "-1", "two"])
def test_choose_refuses_an_odd_number(plan: PlanDirectory, given: str) -> None:
    ran = plan.fab("choose", f"--instances={given}")
    assert (ran.status, ran.out) == (1, "")
    assert "expected a whole number" in ran.words


def test_choose_refuses_more_than_any_run_has(plan: PlanDirectory) -> None:
    ran = plan.fab("choose", "--instances", "1000000")
    assert (ran.status, ran.out) == (1, "")
    assert "--instances: 1000000 instances; expected at most 100000" in ran.words


def test_an_artifact_that_is_not_there_is_named(plan: PlanDirectory) -> None:
    ran = plan.fab("push", "--host", "localhost", "--artifact", "nowhere")
    assert (ran.status, ran.out) == (1, "")
    assert "--artifact is nowhere, and nothing is there" in ran.words


def test_hosts_shows_what_is_known_without_asking(hosts_plan: PlanDirectory) -> None:
    before = {one["host"]: one for one in hosts_plan.ok("hosts", "--json").data}
    assert [before["dex"][key] for key in ("system", "connected", "last_contact_s")] == [None, False, None]
    hosts_plan.ok("-H", "dex", "push")
    after = {one["host"]: one for one in hosts_plan.ok("hosts", "--json").data}
    assert after["dex"]["system"] == after["localhost"]["system"]
    assert after["dex"]["connected"] is False, "a task's connection ends with it"
    assert after["dex"]["last_contact_s"] < 60
    assert after["localhost"]["connected"] is None
    header, *rows = hosts_plan.ok("hosts", "--host", "dex").out.splitlines()
    assert "last contact" in header
    assert len(rows) == 1
    assert all(word in rows[0] for word in ("dex", "ssh usershost", "no", "ago", "lab"))


def test_login_is_for_ssh_hosts_only(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("-H", "localhost", "hosts.login")
    assert (ran.status, ran.out) == (1, "")
    assert ran.words == "hosts.login: localhost is this machine; there is nothing to log in to\n"


@pytest.fixture
def login(controller: Controller) -> Iterator[Callable[[], Path]]:
    """The one file of a login that is open; it is ended after the test."""

    def only() -> Path:
        (found,) = controller.runtime.glob("login-*")
        return found

    yield only
    subprocess.run(["ssh", "-S", str(only()), "-O", "exit", "dex"], check=True, capture_output=True)


def test_later_steps_go_through_a_login(
    hosts_plan: PlanDirectory, user_sshd: UserSshd, login: Callable[[], Path]
) -> None:
    words = "connected; later steps log in through this"
    assert words in hosts_plan.ok("hosts.login", "--host", "dex").words
    assert login().is_socket()
    # The other name is for the same host, by the same options.
    assert "was connected already" in hosts_plan.ok("hosts.login", "--host", "rex").words
    before = user_sshd.connections()
    assert hosts_plan.ok("-H", "dex", "run", "--", "echo", "hi").out == "hi\n"
    assert user_sshd.connections() == before
    known = {one["host"]: one["connected"] for one in hosts_plan.ok("hosts", "--json").data}
    assert known == {"localhost": None, "dex": True, "rex": True}


def test_a_login_is_the_users_own_master_where_there_is_one(
    hosts_plan: PlanDirectory, user_sshd: UserSshd, ssh_config: Path, login: Callable[[], Path], controller: Controller
) -> None:
    with ssh_config.open("a", encoding="utf-8") as file:
        file.write(f"Host *\n    ControlPath {controller.runtime}/own-%C\n")
    hosts_plan.ok("hosts.login", "--host", "dex")
    assert login().readlink().name.startswith("own-")
    subprocess.run(["ssh", "-O", "check", "usershost"], check=True, capture_output=True)
    before = user_sshd.connections()
    hosts_plan.ok("-H", "dex", "run", "--", "true")
    assert user_sshd.connections() == before


def test_a_login_that_fails_says_why(hosts_plan: PlanDirectory) -> None:
    inventory = (hosts_plan.path / "inventory.yaml").read_text()
    hosts_plan.inventory(f"{inventory}  gone:\n    ssh: {{host: 127.0.0.1, port: 1}}\n")
    ran = hosts_plan.fab("-H", "gone", "hosts.login")
    assert ran.status == 1
    assert "gone: the machine answers, but nothing listens" in ran.words


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
        assert "--artifact" in plan.ok("--help", "push", program="remote-runner").out

    def test_an_instance_without_its_environment_is_a_failure_event(self, plan: PlanDirectory) -> None:
        ran = plan.fab("instance", program="remote-runner")
        assert ran.status == 1
        assert "failure_event" in ran.out


def test_every_option_has_help_and_every_task_a_line() -> None:
    from tasks import ns

    for name in ns.task_names:
        task = ns[name]
        assert task.body.__doc__, name
        assert all(task.help.values()), name


@pytest.mark.parametrize("closed", ["<&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_from_the_start_change_nothing_else(hosts_plan: PlanDirectory, closed: str) -> None:
    words = ("sh", "-c", f'exec "$0" -H dex run -- sh -c "$1" {closed}', str(Path(sys.executable).with_name("fab")))
    command = 'echo 1 >"$TEST_OUTPUTS_PATH/made"; cat; exit 3'
    done = subprocess.run([*words, command], cwd=hosts_plan.path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 3, done
    assert b"Traceback" not in done.stderr
    assert len(list(hosts_plan.path.glob("outputs/run/*/dex/made"))) == 1


def test_started_with_signals_ignored_it_ends_all_the_same(hosts_plan: PlanDirectory, tmp_path: Path) -> None:
    """As a background job of a script is, or what nohup starts: SIGTERM ends it, and its command hears Ctrl-C."""
    ignoring = ("sh", "-c", 'trap "" INT QUIT HUP; exec "$0" "$@"', str(Path(sys.executable).with_name("fab")))
    look = 'kill -INT $$; echo "still there"'
    done = subprocess.run(
        [*ignoring, "-H", "dex", "run", "--", "sh", "-c", look],
        cwd=hosts_plan.path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == b"", done
    assert done.returncode == 130
    process = subprocess.Popen(
        [*ignoring, "-H", "dex", "run", "--", *lasting(tmp_path)],
        cwd=hosts_plan.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"started\n"
    process.send_signal(signal.SIGHUP)
    process.terminate()
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0
    assert b"Traceback" not in said
    wait_gone(tmp_path)
    assert len(list(hosts_plan.path.glob("outputs/run/*/dex/part"))) == 1
