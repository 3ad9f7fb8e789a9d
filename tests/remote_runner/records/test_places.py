"""Where the records of runs are, and which run an id means."""

from __future__ import annotations

import errno
import fcntl
import time
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.errors import RunNotFoundError, RunRecordError
from remote_runner.records.places import choose_run, chosen_id, forget_place, found_runs, is_written, note_place
from remote_runner.records.recorder import Recorder
from remote_runner.records.run import RunRecord
from remote_runner.secrets import Secrets
from testground.local_exec import RunOutcome

IDS = ["dc5leodoueueqh5saajg", "dc5leodoaaaaqh5saajg", "dc5lu8tnlnmou1brqueg"]


def test_the_beginning_of_an_id_is_enough() -> None:
    assert chosen_id(IDS, "dc5lu") == IDS[2]
    assert chosen_id(IDS, IDS[0]) == IDS[0]


@pytest.mark.parametrize(("given", "told"), [("dc5leo", "beginning of 2 runs"), ("dc5", "no run"), ("x" * 9, "no run")])
def test_what_means_no_run_or_two_is_refused(given: str, told: str) -> None:
    with pytest.raises(RunNotFoundError, match=told):
        chosen_id(IDS, given)


def recorded(directory: Path, run: str, started_at: float, outcome: str = "ok") -> Path:
    """A run's directory with its record."""
    directory.mkdir(parents=True)
    RunRecord(run, "p", "c", "", "local.single", started_at, outcome=outcome).write(directory, Secrets())
    return directory


def test_runs_are_found_below_the_plan_and_where_they_were_noted_the_oldest_first(
    controller: Controller, tmp_path: Path
) -> None:
    recorded(tmp_path / "plan/outputs/local_exec/p/r2", "r2", 2.0)
    elsewhere = recorded(tmp_path / "elsewhere/r1", "r1", 1.0, "running")
    note_place(controller, "r1", elsewhere)
    found = found_runs(controller, tmp_path / "plan")
    assert [(one.run, one.directory.name, one.outcome) for one in found.runs] == [
        ("r1", "r1", "lost"),
        ("r2", "r2", "ok"),
    ]
    assert choose_run(found, "").run == "r2"
    forget_place(controller, "r1")
    found = found_runs(controller, tmp_path / "plan")
    assert ([one.run for one in found.runs], found.unread) == (["r2"], [])
    (tmp_path / "plan/outputs/local_exec/p/r2/run.json").unlink()
    with pytest.raises(RunNotFoundError, match="no run is recorded here"):
        choose_run(found_runs(controller, tmp_path / "plan"), "")


def test_what_cannot_be_read_is_found_as_well(controller: Controller, tmp_path: Path) -> None:
    plan = tmp_path / "plan/outputs/local_exec/p"
    recorded(plan / "whole", "whole", 1.0)
    cut = recorded(plan / "half", "half", 2.0) / "run.json"
    cut.write_text(cut.read_text(encoding="utf-8")[:-9], encoding="utf-8")
    (plan.parent / "other").symlink_to("other")
    controller.cache.mkdir(parents=True, exist_ok=True)
    (controller.cache / "recorded").symlink_to("recorded")
    found = found_runs(controller, tmp_path / "plan")
    assert [one.run for one in found.runs] == ["whole"]
    assert {(error.path, error.run) for error in found.unread} == {
        (cut, "half"),
        (plan.parent / "other", ""),
        (controller.cache / "recorded", ""),
    }
    assert found.ids == ["whole", "half"]
    assert choose_run(found, "").run == "whole"
    with pytest.raises(RunRecordError, match=f"{cut}: cannot be read"):
        choose_run(found, "half")


def test_a_run_goes_on_from_its_record_to_its_end_and_where_that_cannot_be_told(
    controller: Controller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "outputs/local_exec/p/r1"
    record = RunRecord("r1", "p", "c", "", "local.single", time.time())
    recorder = Recorder(tmp_path, controller, {}, directory, record)
    assert is_written(directory)  # though no instance has said anything
    recorder.end(RunOutcome("r1", "p", "c", (), (), "", 1.0, directory))
    assert not is_written(directory)

    def without_locks(fd: int, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", without_locks)
    assert is_written(directory)
    assert not is_written(tmp_path / "none")
