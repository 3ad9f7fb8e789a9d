"""`fab run` with a standard input."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from tests.tasks.fab import LIMIT_S, PlanDirectory

FAB = str(Path(sys.executable).with_name("fab"))


def test_standard_input_goes_to_every_host(hosts_plan: PlanDirectory) -> None:
    sent = os.urandom(3 << 20)  # more than any window or pipe holds
    argv = [FAB, "run", "--host", "dex", "--host", "rex", "--", "sh", "-c", "md5sum | cut -d' ' -f1"]
    done = subprocess.run(argv, cwd=hosts_plan.path, input=sent, capture_output=True, timeout=LIMIT_S)
    digest = hashlib.md5(sent).hexdigest()
    assert sorted(done.stdout.decode().splitlines()) == [f"dex: {digest}", f"rex: {digest}"], done.stderr.decode()


def test_an_input_that_cannot_be_read_is_told(plan: PlanDirectory) -> None:
    argv = [FAB, "run", "--host", "localhost", "--", "cat"]
    with (plan.path / "only written").open("wb") as file:
        done = subprocess.run(argv, cwd=plan.path, stdin=file, capture_output=True, timeout=LIMIT_S, check=True)
    assert done.stdout == b""
    assert b"standard input cannot be read: Bad file descriptor; the command there gets its end" in done.stderr


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
