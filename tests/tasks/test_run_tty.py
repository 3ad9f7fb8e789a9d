"""`fab run --tty`: a command on a real sshd's host has this terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.tasks.fab import LIMIT_S, PlanDirectory

FAB = str(Path(sys.executable).with_name("fab"))


class Terminal:
    """A terminal of 31 rows and 87 columns with `fab run --tty` in it."""

    def __init__(self, ours: int, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.shown = b""
        self._ours = ours

    def type(self, keys: bytes) -> None:
        os.write(self._ours, keys)

    def wait_for(self, words: bytes) -> None:
        """Look until this is shown; what is shown before is not looked at again."""
        until_s = time.monotonic() + LIMIT_S
        while words not in self.shown:
            assert select.select([self._ours], [], [], until_s - time.monotonic())[0], self.shown
            self.shown += os.read(self._ours, 65536)
        self.shown = self.shown.partition(words)[2]

    def end(self) -> int:
        """Its exit status; all that it shows is in `shown` then."""
        status = self.process.wait(LIMIT_S)
        while select.select([self._ours], [], [], 0)[0]:
            self.shown += os.read(self._ours, 65536)
        return status

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    @property
    def settings(self) -> list[object]:
        return termios.tcgetattr(self._ours)


@contextmanager
def terminal(plan: PlanDirectory, *words: str, host: str = "dex") -> Iterator[Terminal]:
    """`fab run --tty` with a command of these words, at a terminal that it controls."""
    ours, theirs = pty.openpty()
    # setsid makes it the terminal that the kernel sends signals by.
    argv = ["setsid", "--ctty", FAB, "run", "--tty", "--host", host, "--", *words]
    process = subprocess.Popen(
        argv, cwd=plan.path, stdin=theirs, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "vt220"}
    )
    shown = Terminal(ours, process)
    shown.resize(31, 87)
    before = shown.settings
    try:
        yield shown
        assert process.poll() is not None
        assert shown.settings == before
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_a_command_gets_the_terminal_and_all_that_run_does(hosts_plan: PlanDirectory) -> None:
    script = 'test -t 0 && test -t 1 && test -t 2 && stty size && echo "$TERM" && echo >$TEST_OUTPUTS_PATH/left; exit 7'
    with terminal(hosts_plan, "sh", "-c", script) as shown:
        shown.wait_for(b"31 87\r\nvt220\r\n")
        assert shown.end() == 7
        assert b"dex: ended with exit status 7, 1 output file in outputs/run/" in shown.shown
    assert len([*hosts_plan.path.glob("outputs/run/*/dex/left")]) == 1
    assert [*hosts_plan.path.parent.glob("dex/runs/*")] == []


def test_keys_go_to_the_program_there(hosts_plan: PlanDirectory) -> None:
    script = "trap 'echo interrupted; come=1' INT; echo ready; until [ \"$come\" ]; do sleep 0.05; done"
    script += '; read line; echo "got $line"; cat; exit 3'
    with terminal(hosts_plan, "sh", "-c", script) as shown:
        shown.wait_for(b"ready")
        shown.type(b"\x03")  # Ctrl-C
        shown.wait_for(b"interrupted")
        shown.type("Grüße\r".encode())
        shown.wait_for("got Grüße\r\n".encode())
        shown.type(b"\x04")  # Ctrl-D
        assert shown.end() == 3


def test_the_command_hears_of_another_size_of_the_window(hosts_plan: PlanDirectory) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    with terminal(hosts_plan, "sh", "-c", script) as shown:
        shown.wait_for(b"ready")
        shown.resize(50, 132)
        shown.wait_for(b"50 132\r\n")
        assert shown.end() == 0


def test_the_terminal_is_given_back_when_fab_is_told_to_end(hosts_plan: PlanDirectory) -> None:
    with terminal(hosts_plan, "sh", "-c", "echo ready; exec sleep 600") as shown:
        shown.wait_for(b"ready")
        shown.process.send_signal(signal.SIGTERM)
        shown.wait_for(b"stopping the command; its outputs come home")
        shown.wait_for(b"dex: stopped from here, exit status 129")
        assert shown.end() == 129


def test_a_terminal_here_is_one_too(plan: PlanDirectory) -> None:
    with terminal(plan, "stty", "size", host="localhost") as shown:
        shown.wait_for(b"31 87\r\n")
        assert shown.end() == 0


def test_a_secret_is_on_no_command_line(plan: PlanDirectory) -> None:
    inventory = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    plan.inventory(f"{inventory}    env: {{TOKEN: abcd-7efgh, WORD: shown}}\n    secret_env: [TOKEN]\n")
    seen = "for each in /proc/[0-9]*/cmdline; do cat $each; done 2>/dev/null | grep -c [a]bcd-7efgh"
    script = f"echo $WORD,$TOKEN; {seen}"
    with terminal(plan, "sh", "-c", script, host="localhost") as shown:
        shown.wait_for(b"shown,abcd-7efgh\r\n0\r\n")
        assert shown.end() == 1  # of grep, which finds nothing


def test_a_terminal_is_for_one_host(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("run", "--tty", "--host", "*ex", "--", "ls")
    assert (ran.status, ran.words) == (1, "run: --tty: several hosts; a terminal is for one\n")


def test_where_there_is_no_terminal_that_is_said(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("run", "--tty", "--host", "dex", "--", "ls")
    words = "run: --tty: standard input is not a terminal; leave --tty out, or type the line at one\n"
    assert (ran.status, ran.words) == (1, words)
