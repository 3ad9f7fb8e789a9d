"""`fab run`, on this machine and on a real sshd's host: results on stdout, progress on stderr."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.tasks.fab import FILES, PlanDirectory


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


@pytest.mark.parametrize("words", ["exit 3", "cd /tmp", "A=1 env"])
def test_what_a_shell_alone_knows_is_told_with_the_line_for_one(hosts_plan: PlanDirectory, words: str) -> None:
    ran = hosts_plan.fab("run", "--host", "dex", "--", *words.split())
    assert (ran.status, ran.out) == (1, "")
    assert f"dex: {words.split()[0]}: means something to a shell alone, and there is no shell\n" in ran.words
    assert f"next: to have one: sh -c '{words}'" in ran.words


def test_where_nothing_comes_home_nothing_is_made(hosts_plan: PlanDirectory) -> None:
    hosts_plan.write("outputs", "a file, below which nothing can be made")
    hosts_plan.ok("run", "--host", "dex", "--", "true")
    ran = hosts_plan.fab("run", "--host", "dex", "--", "sh", "-c", 'echo 1 >"$TEST_OUTPUTS_PATH/a"')
    assert ran.status == 1
    assert "cannot be written on this machine" in ran.words


def test_a_shells_word_is_told_to_be_none(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.ok("run", "--host", "dex", "--", "echo", "a", "&&", "echo", "b")
    assert ran.out == "a && echo b\n"
    assert "&& is passed to echo as it is: there is no shell; to have one: -- sh -c 'echo a && echo b'" in ran.words


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
    hosts_plan.inventory(text.replace("tolerate_s: 10", "tolerate_s: 3\n    grace_s: 1"))
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
