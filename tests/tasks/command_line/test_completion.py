"""Completion, as bash, zsh and fish do it with the script that is printed for each."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.hosts import which
from tests.needs import need
from tests.tasks.fab import PlanDirectory

MANIFEST = """\
name = "greeter"
[[testcases]]
name = "greet"
instances = { min = 1, max = 2, default = 1 }
[testcases.params.greeting]
type = "string"
default = "hello"
[testcases.params.times]
type = "int"
default = 3
"""
RUN = "dc5lsr7j2tkf5tnj3qtg"
# What is typed before the tab -> the line afterwards.
LINES = {
    "pus": "push",
    "push --host build": "push --host build-box",
    "push --host @l": "push --host @lab",
    "push --js": "push --json",
    "local.single --testcase g": "local.single --testcase greet",
    "local.single --testcase greet --test-param t": "local.single --testcase greet --test-param times=",
    "fetch --run dc": f"fetch --run {RUN}",
    "init ru": "init rust",
    "local.single --outputs here": "local.single --outputs here-it-is",
}


@pytest.fixture
def named_plan(plan: PlanDirectory) -> PlanDirectory:
    """A plan with one name of each kind."""
    plan.write("manifest.toml", MANIFEST)
    plan.inventory("hosts:\n  localhost:\n  build-box: {labels: [lab]}\n")
    (plan.path / "outputs" / "local_exec" / "greeter" / RUN).mkdir(parents=True)
    plan.write("here-it-is", "")
    return plan


class Typist:
    """Somebody at a terminal in which a shell runs."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal

    def type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def until(self, pattern: str) -> str:
        """What was shown, once the pattern is in it."""
        shown, end = "", time.monotonic() + 30
        while time.monotonic() < end:
            if select.select([self._terminal], [], [], 1)[0]:
                shown += os.read(self._terminal, 65536).decode(errors="replace").replace("\a", "")
                if re.search(pattern, shown):
                    return shown
        raise AssertionError(f"no {pattern!r} in {shown!r}")


@contextmanager
def typing(argv: list[str], directory: Path) -> Iterator[Typist]:
    """A shell with a terminal of its own in this directory, and our programs on PATH."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (50, 300))
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "TERM": "dumb"}
    environ.pop("ENV", None)
    shell = subprocess.Popen(
        argv, cwd=directory, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    try:
        yield Typist(ours)
    finally:
        shell.kill()
        shell.wait()
        os.close(ours)


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_tab_completes(named_plan: PlanDirectory, tmp_path: Path, shell: str) -> None:
    need(shell)
    script = named_plan.ok("completion", shell, program="remote-runner").out
    (tmp_path / "script").write_text(script, encoding="utf-8")
    plain = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-f", "-i"]}[shell]
    with typing([which(shell), *plain], named_plan.path) as typist:
        typist.type("PS1='ready> '; . ../script; echo sourced-$((1+1))\n")
        typist.until("sourced-2")
        for typed, expected in LINES.items():
            # Completed as its own line; `echo` before it lets the shell itself tell what the line has become.
            typist.type(f"remote-runner {typed}\t")
            typist.until(re.escape(expected.split()[-1]))
            typist.type("\x01echo line: \x05:end\n")
            shown = typist.until(r"\nline: .*:end")
            assert re.findall(r"^line: remote-runner (.*?) ?:end", shown.replace("\r", ""), re.M) == [expected], shown


def test_fish_completes(named_plan: PlanDirectory, tmp_path: Path) -> None:
    need("fish")
    script = named_plan.ok("completion", "fish", program="remote-runner").out
    (tmp_path / "script").write_text(script, encoding="utf-8")
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "XDG_CONFIG_HOME": str(tmp_path),
        "XDG_DATA_HOME": str(tmp_path),
    }
    asked = "".join(f'; complete -C "remote-runner {typed}"; echo .' for typed in LINES)
    done = subprocess.run(
        [which("fish"), "--no-config", "-c", f"source {tmp_path}/script{asked}"],
        cwd=named_plan.path,
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [answer.split("\t")[0].strip() for answer in done.stdout.split(".\n") if answer.strip()]
    assert answers == [expected.split()[-1] for expected in LINES.values()], done


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_a_shell_is_asked_for(plan: PlanDirectory, program: str) -> None:
    ran = plan.fab("completion", program=program)
    assert (ran.status, ran.words) == (1, f"completion: say for which shell: {program} completion bash|zsh|fish\n")


def test_what_cannot_be_read_completes_to_nothing(plan: PlanDirectory) -> None:
    plan.inventory("hosts: [this, is, none]\n")
    ran = plan.ok("_complete", "--", "push", "--host", "", program="remote-runner")
    assert (ran.out, ran.words) == ("", "")
