"""`fab fetch`, of what a run on a real sshd's host has left there."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.tasks.fab import FILES, PlanDirectory


@pytest.mark.parametrize("host", ["localhost", "dex"])
def test_a_kept_run_is_fetched_by_its_id(hosts_plan: PlanDirectory, host: str, tmp_path: Path) -> None:
    data = hosts_plan.fab("run", "--host", host, "--keep", "--json", "--", *FILES).data
    (outcome,) = data
    assert (outcome["exit_status"], outcome["kept"], outcome["outputs_files"]) == (3, True, 1)
    run = outcome["run"]
    fetched = hosts_plan.ok("fetch", "--run", run, "--outputs", str(tmp_path / "again"))
    assert fetched.out == f"{tmp_path}/again/{run}/{host}\n"
    assert (tmp_path / "again" / run / host / "a file").read_text() == "1\n"
    (told,) = hosts_plan.ok("fetch", "--run", run, "--outputs", str(tmp_path / "third"), "--json").data
    assert (told["host"], told["files"]) == (host, 1)


def test_fetch_of_what_is_not_there_says_so(hosts_plan: PlanDirectory) -> None:
    hosts_plan.ok("-H", "dex", "run", "--", "true")
    for words in (("--run", "nothing"), ()):  # the second means the last run, of which nothing was kept
        ran = hosts_plan.fab("fetch", *words)
        assert (ran.status, ran.out) == (1, "")
        assert "no host has outputs of run" in ran.words


def test_notes_of_runs_that_cannot_be_read_are_told(
    plan: PlanDirectory, controller: Controller, tmp_path: Path
) -> None:
    notes = controller.cache / "runs"
    notes.symlink_to("runs")
    leaves = ("sh", "-c", 'echo 1 >"$TEST_OUTPUTS_PATH/a file"')
    run = plan.ok("run", "--host", "localhost", "--keep", "--json", "--", *leaves).data[0]["run"]
    ran = plan.fab("fetch")
    assert (ran.status, "no run is recorded here" in ran.words) == (1, True)
    assert f"{notes}: cannot be read: Too many levels of symbolic links\n  next: " in ran.words
    assert plan.ok("fetch", "--run", run, "--outputs", str(tmp_path / "again")).out
