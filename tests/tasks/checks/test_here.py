"""What `fab doctor` says of this machine where that depends on how remote-runner is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_runner.connection.bootstrap import program
from remote_runner.inventory.systems import System
from remote_runner.machine.controller import Controller
from tasks.checks.finding import Outcome
from tasks.checks.here import _agent


def test_a_wheel_needs_no_go(tmp_path: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "_SOURCES", tmp_path / "agent")
    monkeypatch.setattr(program, "_USUAL_PLACES", ())
    monkeypatch.setattr("sys.executable", str(tmp_path / "python"))
    for name, content in (("IDENTITY", "0123456789abcdef\n"), (str(System.local()), "program")):
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(program, "_RELEASED", tmp_path)
    program.identity.cache_clear()
    try:
        found = {one.check: one for one in _agent(controller, {"PATH": "/nonexistent"}, fix=False)}
        (tmp_path / str(System.local())).unlink()
        lacking = {one.check: one for one in _agent(controller, {"PATH": "/nonexistent"}, fix=False)}
    finally:
        program.identity.cache_clear()
    assert {one.outcome for one in found.values()} == {Outcome.OK}
    assert "none is needed" in found["Go"].found
    assert (lacking["agent"].outcome, "brings none for it" in lacking["agent"].found) == (Outcome.FAIL, True)
