"""What `fab doctor` says of this machine where that depends on how remote-runner is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_runner.connection.bootstrap import program
from remote_runner.controller import Controller
from remote_runner.inventory.systems import System
from tasks.checks.finding import Outcome
from tasks.checks.here import _agent
from tests.needs import need


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


@pytest.mark.slow
def test_fix_builds_the_agent_and_says_so(
    tmp_path: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    if program.find_go(os.environ) is None:
        need("go")
    monkeypatch.setattr(program, "_BUILT", tmp_path / "none")
    environ = {"PATH": os.environ["PATH"], "GOCACHE": os.environ["GOCACHE"]}
    (lacking,) = (one for one in _agent(controller, environ, fix=False) if one.check == "agent")
    assert (lacking.outcome, lacking.fixed) == (Outcome.WARN, False)
    assert "--fix builds it" in lacking.next_step
    (built,) = (one for one in _agent(controller, environ, fix=True) if one.check == "agent")
    assert (built.outcome, built.fixed) == (Outcome.OK, True)
    target = controller.cache / "agents" / program.identity() / str(System.local())
    assert built.found == f"built now for {System.local()}: {target}"
    assert os.access(target, os.X_OK)
