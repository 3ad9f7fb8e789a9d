"""`fab report`, and the page that every run leaves."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest

from remote_runner.errors import ControllerError
from remote_runner.report import library, write
from remote_runner.report.reading import read_run
from tasks import local
from tasks.local import Ran, show_report
from tasks.plan import Plan
from tasks.runs.report import is_cheap, report_after
from testground.local_exec import RunOutcome
from tests.tasks.fab import REPOSITORY, PlanDirectory
from tests.tasks.local_runs import run_directory, write_plan

METRIC = """\
echo '{"ts":1795900000000000000,"type":"point","name":"rtt","measures":{"value":1.5}}' >"$TEST_OUTPUTS_PATH/results.out"
ok
"""


def test_every_run_leaves_its_report_and_tells_where_last(plan: PlanDirectory) -> None:
    write_plan(plan, METRIC)

    ran = plan.ok("local.single", "--testcase", "greet", "--instances", "2")

    report = run_directory(plan) / "report.html"
    assert ran.out.splitlines()[-1] == f"report: {report.relative_to(plan.path)}"
    text = report.read_text(encoding="utf-8")
    assert '"greet"' in text
    assert '"rtt"' in text
    assert len(text) > 500_000  # with what draws it

    report.unlink()
    assert plan.ok("report").out == f"{report}\n"
    assert report.is_file()


def test_a_page_that_would_take_a_second_and_a_twentieth_of_the_run_is_left_to_whom_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for duration_s, bytes_each, cheap in (
        (0.1, 0, True),
        (1.2, 1_000_000, True),
        (1.2, 6_000_000, False),
        (60.0, 6_000_000, True),
    ):
        for name in ("0", "1"):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "results.out").write_bytes(b"x" * bytes_each)
        assert is_cheap([tmp_path / "0", tmp_path / "1"], duration_s) == cheap
    told: list[str] = []
    monkeypatch.setattr(local, "is_cheap", lambda *_: False)
    outcome = RunOutcome("r1", "p", "c", (), (), "", 0.5, tmp_path)
    show_report(Plan(tmp_path, {}), Ran(outcome, {}, {}, None), told.append)
    assert told == ["its page: fab report r1"]
    assert not (tmp_path / "report.html").exists()


def test_a_fault_in_drawing_ends_no_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def faulty(*_: object) -> None:
        raise ZeroDivisionError("by zero\nand more")

    monkeypatch.setattr(write, "write_report", faulty)
    assert report_after(Plan(tmp_path, {}), tmp_path) is None
    assert capsys.readouterr().err == "no report: ZeroDivisionError: by zero\n"


def test_who_came_to_which_state_is_kept(hosts_plan: PlanDirectory) -> None:
    for name in ("node", "testground"):
        shutil.copytree(REPOSITORY / name, hosts_plan.path / name, ignore=shutil.ignore_patterns("__pycache__"))
    hosts_plan.write("manifest.toml", (REPOSITORY / "manifest.toml").read_text(encoding="utf-8"))
    inventory = (hosts_plan.path / "inventory.yaml").read_text(encoding="utf-8")
    build = 'command: "{python} node/build.py {out}"\n  program: bin/node'
    hosts_plan.inventory(inventory.replace("command: cp greeter.sh {out}", build))

    hosts_plan.ok("local.single", "--testcase", "server-client", "--instances", "3", "--test-param", "server_port=0")

    (directory,) = (hosts_plan.path / "outputs/local_exec/remote-runner").iterdir()
    run = read_run(directory)
    assert [(one.state, one.seq) for one in run.signals] == [
        ("serverReady", 1),
        ("responseReceived", 1),
        ("responseReceived", 2),
    ]
    # Each is the only one on its host, so it is known.
    assert {one.client for one in run.signals} == {one.name for one in run.instances}
    assert len(run.waits) == 3
    for wait in run.waits:
        assert wait.end_s is not None
        assert 0 < wait.start_s <= wait.end_s < run.duration_s


SYNCED = """\
{python} - <<'END'
import os, sys, time
sys.path.insert(0, {repository!r})
from testground.sync.client import SyncClient
with SyncClient.from_environ(os.environ) as sync:
    sync.signal_entry("ready")
    time.sleep(1.5)
    sync.barrier("ready", 7)
END
ok
"""


def test_each_client_is_known_where_several_instances_share_a_host(hosts_plan: PlanDirectory) -> None:
    write_plan(hosts_plan, SYNCED.format(python=sys.executable, repository=str(REPOSITORY)))
    hosts_plan.ok("local.single", "--testcase", "greet", "--instances", "7")
    run = read_run(run_directory(hosts_plan))
    names = sorted(one.name for one in run.instances)
    assert len({one.host for one in run.instances}) == 3
    assert sorted(one.client for one in run.signals) == names
    assert sorted(wait.client for wait in run.waits) == names


def test_runs_are_compared_by_id_and_by_directory(plan: PlanDirectory) -> None:
    write_plan(plan, METRIC)
    for word in ("one", "two"):
        plan.ok("local.single", "--testcase", "greet", "--instances", "2", "--test-param", f"word={word}")
    first, second = sorted((plan.path / "outputs/local_exec/greeter").iterdir())

    ran = plan.ok("report", first.name, str(second), "--out", "both.html")

    assert ran.out == "both.html\n"
    text = (plan.path / "both.html").read_text(encoding="utf-8")
    assert "single: word" in text

    wrong = plan.fab("report", "zzzz")
    assert wrong.status == 1
    assert "there is no run zzzz here" in wrong.words


def test_without_the_package_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(library, "PACKAGE", "no-such-package")
    assert not library.is_installed()
    with pytest.raises(ControllerError, match=r"not installed\n  next: .* -m pip install no-such-package$"):
        library.script(tmp_path)
    monkeypatch.setattr(library, "find_spec", lambda name: None)
    with pytest.raises(ControllerError, match=r"not installed\n  next: uv pip install --python .* no-such-package$"):
        library.script(tmp_path)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "pipx_metadata.json").touch()
    with pytest.raises(ControllerError, match=r"next: pipx inject testground-remote-runner no-such-package$"):
        library.script(tmp_path)
