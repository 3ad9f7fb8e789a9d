"""Programs started, ended and measured on a stand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks import stand as stand_module
from benchmarks.stand import Costs, Job, stand

ENVIRON = {"PATH": os.environ["PATH"]}


def job(tmp_path: Path, script: str, *, drained: bool = False) -> Job:
    return Job(["sh", "-c", script], ENVIRON, tmp_path, None if drained else tmp_path / "log")


def test_jobs_run_side_by_side_and_each_status_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "meet")
    with stand("rr-test", tmp_path / "log") as made:
        jobs = [job(tmp_path, script) for script in ("read word <meet; exit 3", "echo go >meet", "kill -9 $$")]
        made.start(jobs, limit_s=60)
        ended = made.wait()
    assert ended.statuses == [3, 0, -9]
    assert ended.wall_s > 0


def test_a_job_can_have_a_terminal(tmp_path: Path) -> None:
    terminal = Path(stand_module.__file__).with_name("terminal.py")
    script = "test -t 0 && test -t 2 && stty size && exit 3"
    shown = Job([sys.executable, "-S", "-E", str(terminal), "sh", "-c", script], ENVIRON, tmp_path, tmp_path / "log")
    with stand("rr-test", tmp_path / "log") as made:
        made.start([shown], limit_s=60)
        ended = made.wait()
    assert ended.statuses == [3]
    assert (tmp_path / "log").read_text().split() == ["40", "140"]


def test_a_failure_carries_the_last_words(tmp_path: Path) -> None:
    with stand("rr-test", tmp_path / "log") as made:
        with pytest.raises(RuntimeError, match=r"ended with 4: no such luck"):
            made.run([job(tmp_path, "echo no such luck >&2; exit 4")])
        with pytest.raises(RuntimeError, match="/nowhere"):
            made.run([Job(["/nowhere"], ENVIRON, tmp_path, None)])
        assert made.run([job(tmp_path, ":")]).statuses == [0], "and the stand goes on"


def test_whoever_takes_too_long_is_killed(tmp_path: Path) -> None:
    with stand("rr-test", tmp_path / "log") as made:
        made.start([job(tmp_path, "sleep 600")], limit_s=0.2)
        assert made.wait().statuses == [-9]


def test_a_reader_drops_what_is_printed_as_it_comes(tmp_path: Path) -> None:
    with stand("rr-test", tmp_path / "log") as made:
        made.run([job(tmp_path, "head -c 1000000 /dev/zero; [ -p /dev/stdout ]", drained=True)])
    assert (tmp_path / "log").read_bytes() == b""


def test_daemons_are_counted_and_ended(tmp_path: Path) -> None:
    with stand("rr-test", tmp_path / "log") as made:
        if made.cgroup is None:
            pytest.skip("no cgroup can be made here (root, Linux)")
        with Costs({"here": made.cgroup, "there": None}, {"here": made.own_bytes}) as costs:
            made.run([job(tmp_path, "setsid sleep 600 & n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done")])
        assert costs.cpu_s["here"] > 0
        assert set(costs.most_bytes) == {"here"}
        assert len(made.cgroup.pids()) == 2
        made.clear()
        assert made.cgroup.pids() == [made.starter.pid]
