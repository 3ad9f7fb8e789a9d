"""A run's directory as values: all that docs/outputs.md describes, and what is cut, foreign or missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_runner.errors import ControllerError
from remote_runner.report.metrics import thinned
from remote_runner.report.reading import read_run
from remote_runner.report.usage import rate
from remote_runner.report.values import MetricKey, Series
from remote_runner.report.views import run_view
from tests.remote_runner.report.made_run import make_run


def test_a_whole_run_is_read(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r1", 6, 2, failing=1))
    assert (run.id, run.plan, run.case, run.outcome) == ("r1", "ping", "latency", "failed")
    assert [one.name for one in run.instances] == ["server[000]", *(f"clients[{index:03d}]" for index in range(5))]
    last = run.instances[-1]
    assert (last.outcome, last.host, last.reason[:7]) == ("failed", "host-1", "host-1:")
    assert [step.name for step in last.steps] == ["choose", "build", "push", "forward", "run", "fetch", "clean"]
    assert [step.name for step in last.steps if step.failed] == ["run"]
    assert [stage.name for stage in last.stages] == ["connect", "measure"]
    assert len(last.metrics[MetricKey("results", "rtt_ms", "point", "value")].values) == 60
    assert len(last.usage["cpu_s"].values) == 5
    assert [host.name for host in run.hosts] == ["host-0", "host-1"]
    assert len(run.signals) == 6
    assert len(run.waits) == 5
    assert run.doubts
    assert not run.lacking


def test_timers_are_told_in_seconds(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r1", 2, 1))
    assert 1e-4 < run.instances[0].metrics[MetricKey("results", "latency", "timer", "p50")].values[-1] < 1e-2


def test_an_applications_times_are_put_on_this_machines_clock(tmp_path: Path) -> None:
    ahead = read_run(make_run(tmp_path / "ahead", 2, 1, offset_s=3600.0)).instances[0]
    right = read_run(make_run(tmp_path / "right", 2, 1)).instances[0]
    assert ahead.stages[0].start_s == pytest.approx(right.stages[0].start_s, abs=1e-3)
    key = MetricKey("results", "rtt_ms", "point", "value")
    assert ahead.metrics[key].times_s[0] == pytest.approx(right.metrics[key].times_s[0], abs=1e-3)


def test_stages_that_only_stdout_tells(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 1, 1)
    (directory / "server/0/run.out").rename(directory / "server/0/stdout")
    assert [stage.name for stage in read_run(directory).instances[0].stages] == ["connect", "measure"]


def test_without_a_runs_record_its_instances_tell(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 3, 1, bare=True)
    (directory / "run.json").unlink()
    run = read_run(directory)
    assert sorted(one.name for one in run.instances) == ["clients[000]", "clients[001]", "server[000]"]
    assert run.lacking
    assert run_view(run)["metrics"]["series"] == []


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"instances": 7}', '{"instances": [{"steps": "x"}, 3]}'])
def test_a_record_that_is_none_is_as_if_missing(tmp_path: Path, content: str) -> None:
    directory = make_run(tmp_path / "r1", 2, 1, bare=True)
    (directory / "run.json").write_text(content)
    assert read_run(directory).instances


def test_no_run_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ControllerError, match=r"no run is recorded there.*\n  next: "):
        read_run(tmp_path)


def test_foreign_lines_are_passed_over(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 1, 1)
    good = (directory / "server/0/results.out").read_text()
    foreign = ["", "hello", "7", "[]", '{"ts": "x", "type": "point", "name": "a", "measures": {"value": 1}}',
               '{"ts": 1, "type": "point", "name": "a", "measures": {"value": NaN}}', "[" * 5000,
               '{"ts": 1, "type": "point", "name": "a", "measures": 3}',
               '{"ts": 1, "type": "gauge", "name": "b", "measures": {"value": 1e999}}']  # fmt: skip
    (directory / "server/0/results.out").write_text("\n".join(foreign) + "\n" + good + '{"ts": 17')
    (directory / "server/0/remote-runner.samples.jsonl").write_text('{"at": 1}\nnonsense\n{"cpu_s": 3}\n')
    (directory / "server/0/run.out").write_bytes(b"\xff\n" + b'{"event":{"stage_start_event":{"name":"s"}}}\n')
    one = read_run(directory).instances[0]
    assert {key.name for key in one.metrics} == {"rtt_ms", "latency", "sent", "heap"}
    json.dumps(run_view(read_run(directory)), allow_nan=False)


def test_a_stage_without_an_end_has_failed(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 1, 1)
    lines = (directory / "server/0/run.out").read_text().splitlines(keepends=True)
    (directory / "server/0/run.out").write_text("".join(lines[:-1]))
    *_, last = read_run(directory).instances[0].stages
    assert (last.name, last.failed) == ("measure", True)


def test_much_is_thinned_out_evenly_and_keeps_its_end() -> None:
    lines = [str(number).encode() for number in range(10_000)]
    kept = list(thinned(lines, len(lines), 500))
    assert len(kept) < 600
    assert kept[-50:] == lines[-50:]
    assert kept[1] == b"20"
    assert list(thinned(lines, len(lines), 10_000)) == lines


def test_a_counter_becomes_a_rate_and_may_begin_anew() -> None:
    assert rate(Series((0, 1, 3, 4, 5), (10, 20, 60, 5, 7))) == Series((1, 3, 5), (10, 20, 2))


def test_of_a_hosts_counters_their_growth_is_shown(tmp_path: Path) -> None:
    (host,) = run_view(read_run(make_run(tmp_path / "r1", 2, 1)))["truth"]
    assert host["during"] == {"cpu_s": 7.5}
    assert list(host["before"]) == ["load", "round_trips"]


def test_a_hosts_only_instance_is_known_by_its_client(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 3, 2)
    (directory / "remote-runner.sync.jsonl").write_text(
        '{"at": 1795900002, "client": "host-1 #1", "state": "ready", "seq": 1}\n'
        '{"at": 1795900003, "client": "host-0 #2", "state": "ready", "seq": 2}\n'
        '{"at": 1795900001, "client": "host-1 #1", "state": "ready", "target": 3, "met_at": null}\n'
    )
    run = read_run(directory)
    assert [signal.client for signal in run.signals] == ["clients[000]", "host-0 #2"]
    assert [(wait.client, wait.end_s) for wait in run.waits] == [("clients[000]", None)]


def test_who_waited_for_whom(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "r1", 5, 2))
    view = run_view(run)["barriers"]
    row = dict(zip(view["columns"], view["rows"][0], strict=True))
    last = max(run.signals, key=lambda signal: signal.at_s)
    assert view["words"][row["last"]] == last.client
    assert (row["target"], row["came"], row["met"], row["waiters"]) == (5, 5, 1, 4)


def test_a_barrier_that_was_never_met_is_told_once_with_who_did_not_come(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 3, 3)
    path = directory / "remote-runner.sync.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [
        {**line, "met_at": None} if "target" in line else line for line in lines if line["client"] != "server[000]"
    ]
    lines.append({"at": lines[0]["at"], "client": "server[000]", "state": "alone", "seq": 1})
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    view = run_view(read_run(directory))
    rows = [dict(zip(view["barriers"]["columns"], row, strict=True)) for row in view["barriers"]["rows"]]
    words = view["barriers"]["words"]
    assert [(words[row["state"]], row["target"], row["came"], row["met"], words[row["missing"]]) for row in rows] == [
        ("ready", 3, 2, 0, "server[000]"),
        ("alone", 1, 1, 1, ""),
    ]
    last = view["waits"]["columns"].index("last")
    assert {view["waits"]["words"][row[last]] for row in view["waits"]["rows"]} == {""}
