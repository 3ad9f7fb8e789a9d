"""`fab run` with a standard input, and with a terminal."""

from __future__ import annotations

import hashlib
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.command_line.task import Failed
from tasks.plan import Plan
from tasks.run import at_terminal
from tests.tasks.fab import LIMIT_S, PlanDirectory

FAB = str(Path(sys.executable).with_name("fab"))


def test_standard_input_goes_to_every_host(hosts_plan: PlanDirectory) -> None:
    sent = os.urandom(3 << 20)  # more than any window or pipe holds
    argv = [FAB, "run", "--host", "dex", "--host", "rex", "--", "sh", "-c", "md5sum | cut -d' ' -f1"]
    done = subprocess.run(argv, cwd=hosts_plan.path, input=sent, capture_output=True, timeout=LIMIT_S)
    digest = hashlib.md5(sent).hexdigest()
    assert sorted(done.stdout.decode().splitlines()) == [f"dex: {digest}", f"rex: {digest}"], done.stderr.decode()


def test_an_input_without_end_keeps_nothing_waiting(plan: PlanDirectory) -> None:
    ours, theirs = os.pipe()
    try:
        done = subprocess.run(
            [FAB, "run", "--host", "localhost", "--", "echo", "quick"],
            cwd=plan.path,
            stdin=ours,
            capture_output=True,
            timeout=LIMIT_S,
            check=True,
        )
        assert done.stdout == b"quick\n"
        assert b"Traceback" not in done.stderr
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_command_gets_the_terminal(hosts_plan: PlanDirectory) -> None:
    ours, theirs = pty.openpty()
    argv = [
        FAB,
        "run",
        "--tty",
        "--host",
        "dex",
        "--",
        "sh",
        "-c",
        "test -t 0 && test -t 1 && echo 'a  terminal'; exit 7",
    ]
    process = subprocess.Popen(argv, cwd=hosts_plan.path, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    try:
        assert process.wait(LIMIT_S) == 7
        assert b"a  terminal\r\n" in os.read(ours, 65536)
    finally:
        process.kill()
        os.close(ours)


def test_a_terminal_is_for_one_host(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("run", "--tty", "--host", "*ex", "--", "ls")
    assert (ran.status, ran.words) == (1, "run: --tty: several hosts; a terminal is for one host that ssh reaches\n")


def test_a_terminal_goes_with_no_option_that_it_cannot_keep(plan: PlanDirectory, tmp_path: Path) -> None:
    for words, told in (
        (["run", "--tty", "--dry-run"], "--dry-run"),
        (["--dry", "run", "--tty"], "--dry-run"),
        (["run", "--tty", "--json", "--keep", "--outputs", "x"], "--keep and --outputs and --json"),
    ):
        ran = plan.fab(*words, "--host", "localhost", "--", "touch", str(tmp_path / "ran"))
        assert (ran.status, ran.words) == (1, f"run: --tty does not go with {told}; leave one of them out\n")
    assert not (tmp_path / "ran").exists()


def test_a_secret_stands_on_no_command_line(plan: PlanDirectory) -> None:
    inventory = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    plan.inventory(f"{inventory}    env: {{TOKEN: abcd-7efgh, WORD: shown}}\n    secret_env: [TOKEN]\n")
    ran = plan.fab("run", "--tty", "--host", "localhost", "--", "sh", "-c", 'echo "$WORD,$TOKEN"')
    assert ran.out == "shown,\n"
    assert "localhost: the command is not given TOKEN (secret_env)" in ran.words


def test_a_node_of_a_slurm_job_gives_no_terminal(plan: PlanDirectory) -> None:
    here = Plan(plan.path, {})
    node = replace(here.inventory.host("localhost"), job="7")
    with pytest.raises(Failed, match="reached by a step of Slurm's"):
        at_terminal(here, [node], ("ls",))
