"""The recorder: files, streams and InfluxDB as the SDKs write them, and what happens where they cannot be written."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from testground.recorder import Recorder, tags_of
from testground.runenv import RunEnv
from tests.influx import Influx
from tests.recordings import RECORDINGS

FILES = ("run.out", "run.err", "results.out", "diagnostics.out")


@pytest.fixture
def runenv(tmp_path: Path) -> RunEnv:
    (tmp_path / "outputs").mkdir()
    return RunEnv(
        plan="p", case="c", run="r", group_id="g", instance_count=2, group_instance_count=1,
        outputs_path=tmp_path / "outputs", temp_path=tmp_path, subnet="127.1.0.0/16",
    )  # fmt: skip


class Streams:
    def __init__(self) -> None:
        self.stdout, self.stderr = io.BytesIO(), io.BytesIO()

    def events(self) -> list[Any]:
        return [json.loads(line)["event"] for line in self.stdout.getvalue().splitlines()]

    def messages(self) -> list[str]:
        return [event["message_event"]["message"] for event in self.events() if "message_event" in event]


def test_events_stand_on_stdout_and_in_run_out_alike(runenv: RunEnv) -> None:
    streams = Streams()
    with Recorder(runenv, stdout=streams.stdout, stderr=streams.stderr, clock_ns=lambda: 5) as recorder:
        recorder.start()
        recorder.message("hello\nworld")
        recorder.stage_start("s")
        recorder.stage_end("s")
        recorder.failure(ValueError("wrong"))
        recorder.success()
    assert streams.events() == [
        {"start_event": {"runenv": json.loads(json.dumps(runenv.to_start_event()))}},
        {"message_event": {"message": "hello\nworld"}},
        {"stage_start_event": {"name": "s", "group": "g"}},
        {"stage_end_event": {"name": "s", "group": "g"}},
        {"failure_event": {"group": "g", "error": "wrong"}},
        {"success_event": {"group": "g"}},
    ]
    assert streams.stdout.getvalue() == (runenv.outputs_path / "run.out").read_bytes()
    last = streams.stdout.getvalue().splitlines()[-1]
    assert last == b'{"ts":5,"msg":"","group_id":"g","run_id":"r","event":{"success_event":{"group":"g"}}}'
    assert streams.stderr.getvalue() == b""


def test_the_files_of_an_instance_are_those_that_were_recorded(runenv: RunEnv) -> None:
    recorded = {path.name for path in (RECORDINGS / "local-exec/output/single/0").iterdir()} - {
        "stdout",
        "stderr",
    }
    with Recorder(runenv, stdout=io.BytesIO(), stderr=io.BytesIO(), clock_ns=lambda: 1795485975457906068) as recorder:
        recorder.results.record_point("donkeypower", 3)
        recorder.diagnostics.counter("d").inc()
    assert {path.name for path in runenv.outputs_path.iterdir()} == recorded == set(FILES)
    expected = (RECORDINGS / "local-exec/output/single/0/results.out").read_bytes()
    assert (runenv.outputs_path / "results.out").read_bytes() == expected
    line = b'{"ts":1795485975457906068,"type":"counter","name":"d","measures":{"count":1}}\n'
    assert (runenv.outputs_path / "diagnostics.out").read_bytes() == line
    assert (runenv.outputs_path / "run.err").read_bytes() == b""


def test_a_crash_tells_its_traceback_everywhere(runenv: RunEnv) -> None:
    streams = Streams()
    with Recorder(runenv, stdout=streams.stdout, stderr=streams.stderr) as recorder:
        try:
            dict[str, int]()["unthought-of"]
        except KeyError as error:
            recorder.crash(error)
    (event,) = streams.events()
    crash = event["crash_event"]
    assert (crash["group"], crash["error"]) == ("g", "'unthought-of'")
    assert crash["stacktrace"].startswith("Traceback (most recent call last):\n")
    assert "test_recorder.py" in crash["stacktrace"]
    assert streams.stderr.getvalue().decode() == crash["stacktrace"]
    assert (runenv.outputs_path / "run.err").read_text() == crash["stacktrace"]


def test_lines_of_many_threads_stay_whole(runenv: RunEnv) -> None:
    streams = Streams()
    with Recorder(runenv, stdout=streams.stdout, stderr=streams.stderr) as recorder:

        def talk() -> None:
            for _ in range(20):
                recorder.message("x" * 10_000)

        threads = [threading.Thread(target=talk) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert streams.messages() == ["x" * 10_000] * 160
    assert streams.stdout.getvalue() == (runenv.outputs_path / "run.out").read_bytes()


def test_a_directory_that_is_not_there_is_told_and_stdout_goes_on(runenv: RunEnv) -> None:
    streams = Streams()
    missing = replace(runenv, outputs_path=runenv.outputs_path / "missing")
    with Recorder(missing, stdout=streams.stdout, stderr=streams.stderr) as recorder:
        recorder.results.record_point("p", 1)
        recorder.success()
    assert streams.messages() == [
        f"outputs: {missing.outputs_path / name} is not written any further: No such file or directory"
        for name in FILES
    ]
    assert streams.events()[-1] == {"success_event": {"group": "g"}}


def test_a_full_disk_is_told_once_per_file(runenv: RunEnv) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full (Linux)")
    for name in ("run.out", "results.out"):
        (runenv.outputs_path / name).symlink_to("/dev/full")
    streams = Streams()
    with Recorder(runenv, stdout=streams.stdout, stderr=streams.stderr) as recorder:
        for number in range(3):
            recorder.message(str(number))
            recorder.results.record_point("p", number)
    full = {
        name: f"outputs: {runenv.outputs_path / name} is not written any further: No space left on device"
        for name in FILES
    }
    assert streams.messages() == ["0", full["run.out"], "1", full["results.out"], "2"]


def test_a_stdout_that_nobody_reads_ends_nothing(runenv: RunEnv) -> None:
    stdout = io.BytesIO()
    stdout.close()
    with Recorder(runenv, stdout=stdout, stderr=io.BytesIO()) as recorder:
        recorder.success()
    assert b"success_event" in (runenv.outputs_path / "run.out").read_bytes()


def test_influxdb_gets_metrics_and_events_with_the_hosts_tags(runenv: RunEnv) -> None:
    streams = Streams()
    with Influx(204) as influx:
        there = replace(runenv, influxdb_url=influx.url)
        tags = tags_of({"REMOTE_RUNNER_HOST": "dex", "REMOTE_RUNNER_SYSTEM": "aarch64-linux"})
        with Recorder(there, tags=tags, stdout=streams.stdout, stderr=streams.stderr, clock_ns=lambda: 5) as recorder:
            recorder.start()
            recorder.message("not counted")
            recorder.results.record_point("n", 1)
            recorder.diagnostics.counter("d").inc(2)
            recorder.success()
        assert sorted(influx.lines()) == [
            "diagnostics.p-c.d.counter,group_id=g,host=dex,run=r,system=aarch64-linux count=2.0 5",
            "events,event_type=SuccessEvent,group_id=g,host=dex,run=r,system=aarch64-linux count=1i 5",
            "events,event_type=start_event,group_id=g,host=dex,run=r,system=aarch64-linux count=1i 5",
            "results.p-c.n.point,group_id=g,host=dex,run=r,system=aarch64-linux value=1.0 5",
        ]
        assert influx.paths == {"/write?db=testground&precision=ns"}
    assert streams.messages() == ["not counted"]
    assert tags_of({"REMOTE_RUNNER_HOST": ""}) == {}


def test_many_points_go_in_batches_and_none_is_lost(runenv: RunEnv) -> None:
    with Influx(204) as influx:
        with Recorder(replace(runenv, influxdb_url=influx.url), stdout=io.BytesIO(), stderr=io.BytesIO()) as recorder:
            for number in range(1000):
                recorder.results.record_point("n", number)
        values = [float(line.split("value=")[1].split()[0]) for line in influx.lines()]
    assert values == list(range(1000))


def test_without_metrics_nothing_is_sent_but_files_are_written(runenv: RunEnv) -> None:
    with Influx(204) as influx:
        off = replace(runenv, influxdb_url=influx.url, disable_metrics=True)
        with Recorder(off, stdout=io.BytesIO(), stderr=io.BytesIO()) as recorder:
            recorder.results.record_point("n", 1)
            recorder.success()
        assert list(influx.lines()) == []
    assert b'"name":"n"' in (runenv.outputs_path / "results.out").read_bytes()


def test_an_influxdb_that_refuses_is_told_once(runenv: RunEnv) -> None:
    streams = Streams()
    with Influx(404, b'{"error":"database not found: \\"testground\\""}') as influx:
        there = replace(runenv, influxdb_url=influx.url)
        with Recorder(there, stdout=streams.stdout, stderr=streams.stderr) as recorder:
            for number in range(400):
                recorder.results.record_point("n", number)
    (message,) = streams.messages()
    assert message.startswith(f"InfluxDB at {influx.url.removeprefix('http://')} takes no metrics")
    assert "status 404" in message
    assert "database not found" in message


def test_an_absent_influxdb_is_told_once_and_costs_no_time(runenv: RunEnv) -> None:
    streams = Streams()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = time.monotonic()
    away = replace(runenv, influxdb_url=f"http://127.0.0.1:{port}")
    with Recorder(away, stdout=streams.stdout, stderr=streams.stderr) as recorder:
        recorder.start()
        recorder.success()
    assert time.monotonic() - start < 4
    (message,) = streams.messages()
    assert message.endswith("Connection refused")
    assert "success_event" in streams.stdout.getvalue().decode()


def test_a_url_that_is_none_is_told(runenv: RunEnv) -> None:
    streams = Streams()
    with Recorder(replace(runenv, influxdb_url="localhost"), stdout=streams.stdout, stderr=streams.stderr) as recorder:
        recorder.results.record_point("n", 1)
    (message,) = streams.messages()
    assert message.startswith("no metrics to InfluxDB: INFLUXDB_URL is 'localhost'; expected a URL")


def test_a_failing_gauge_is_told_on_stdout(runenv: RunEnv) -> None:
    streams = Streams()
    with Recorder(runenv, stdout=streams.stdout, stderr=streams.stderr) as recorder:
        recorder.results.gauge("bad", lambda: 1 / 0)
    assert streams.messages() == ["metric bad: not written: ZeroDivisionError: division by zero"]
