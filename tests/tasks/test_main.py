"""The start of `remote-runner` and `fab`, until a task begins."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.tasks.fab import PlanDirectory


@pytest.fixture
def shadowed(plan: PlanDirectory, tmp_path: Path) -> PlanDirectory:
    """The plan where modules of the test's own stand before the real ones."""
    (tmp_path / "shadow").mkdir()
    return PlanDirectory(plan.path, {"PYTHONPATH": str(tmp_path / "shadow")})


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_ctrl_c_while_importing_is_a_line(shadowed: PlanDirectory, tmp_path: Path, program: str) -> None:
    code = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nsignal.pause()\n"
    (tmp_path / "shadow" / "resource.py").write_text(code, encoding="utf-8")
    ran = shadowed.fab("hosts", program=program)
    assert (ran.status, ran.out, ran.words) == (130, "", "stopped by Ctrl-C\n")


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_ctrl_c_when_all_is_done_is_no_traceback(shadowed: PlanDirectory, tmp_path: Path, program: str) -> None:
    code = "import atexit, os, signal\natexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
    (tmp_path / "shadow" / "sitecustomize.py").write_text(code, encoding="utf-8")
    ran = shadowed.fab("hosts", "--json", program=program)
    assert (ran.status, ran.words) == (-signal.SIGINT, "")
    assert ran.data[0]["host"] == "localhost"


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_a_program_of_another_environment_is_told(shadowed: PlanDirectory, tmp_path: Path, program: str) -> None:
    code = "raise ModuleNotFoundError(\"No module named 'yaml'\", name='yaml')\n"
    (tmp_path / "shadow" / "yaml.py").write_text(code, encoding="utf-8")
    ran = shadowed.fab("hosts", program=program)
    assert (ran.status, ran.out) == (1, "")
    assert f"/{program} belongs to a Python without yaml, which remote-runner needs\n  next: put the" in ran.words
    assert "Traceback" not in ran.words
