"""The debug log: what stands in it, and what does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from remote_runner.debug import is_wanted

SCRIPT = """
import sys
from pathlib import Path
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.debug import start_log
from remote_runner.machine.process import run
here = Path(sys.argv[1])
long = "x" * 5000
run(["sh", "-c", ":", "before"], deadline=Deadline.after(10))
path = start_log(Controller(here, here))
environ = {"PATH": "/bin:/usr/bin", "KEY": "hidden"}
run(["sh", "-c", "exit 3", "two words", long], deadline=Deadline.after(10), environ=environ)
print(path)
"""


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_the_variable_asks_for_it(value: str | None, wanted: bool) -> None:
    assert is_wanted({} if value is None else {"REMOTE_RUNNER_DEBUG": value}) == wanted


def test_programs_stand_in_it_from_its_start_without_values(tmp_path: Path) -> None:
    directory = tmp_path / "own"
    directory.mkdir(mode=0o700)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(directory)], capture_output=True, text=True, check=True, timeout=60
    )
    log = Path(done.stdout.strip())
    assert log.parent == directory / "debug"
    assert (log.stat().st_mode & 0o777, log.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    started, ended = log.read_text(encoding="utf-8").splitlines()
    assert started.partition(" started: ")[2] == f"sh -c 'exit 3' 'two words' '{'x' * 120}…'"
    assert ended.endswith(" ended with status 3")
    assert "hidden" not in log.read_text(encoding="utf-8")
    assert done.stderr == ""
