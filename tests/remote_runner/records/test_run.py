"""A run's record: written and read again, and put together of its instances' records."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from remote_runner.errors import RunRecordError
from remote_runner.records.run import Ended, RunRecord, instance_value, with_facts
from remote_runner.secrets import Secrets
from remote_runner.truth.observation import HOSTS_DIRECTORY

RECORD = RunRecord(
    *("r1", "p", "c", "n", "local.single", 1.8e9),
    doubts=["one", "two"],
    inputs={"a": 1},
    groups=[],
    hosts=[],
    artifacts=[],
    instances=[],
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.write(tmp_path, Secrets())
    assert RunRecord.read(tmp_path) == RECORD
    assert '  "doubts": [\n    "one",\n    "two"\n  ],\n' in (tmp_path / "run.json").read_text()


def test_what_is_added_later_is_no_harm_to_a_reader(tmp_path: Path) -> None:
    RECORD.write(tmp_path, Secrets())
    value = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**value, "later": 1}))
    assert RunRecord.read(tmp_path) == RECORD


def refused(directory: Path) -> str:
    """What is said of the record, with the next step; it names the file."""
    with pytest.raises(RunRecordError) as caught:
        RunRecord.read(directory)
    assert caught.value.run == directory.name
    assert str(directory / "run.json") in str(caught.value)
    assert f"fab runs.remove {directory.name}" in caught.value.next_step
    return str(caught.value)


def test_where_none_is_there_none_is_read(tmp_path: Path) -> None:
    assert RunRecord.read(tmp_path) is None
    (tmp_path / "file").touch()
    assert RunRecord.read(tmp_path / "file") is None
    (tmp_path / "run.json").symlink_to("run.json")
    assert "Too many levels of symbolic links" in refused(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"run": "r"}', "[" * 100_000, b"\xff"])
def test_what_is_no_record_is_refused(tmp_path: Path, text: str | bytes) -> None:
    (tmp_path / "run.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert "cut off, or no record" in refused(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("run", 5),
        ("inputs", []),
        ("groups", 5),
        ("groups", [5]),
        ("groups", [{"id": "g"}]),
        ("hosts", [{"name": "h"}]),
        ("instances", [{"group": "g"}]),
        ("instances", {"a": 1}),
    ],
)
def test_a_record_of_another_shape_is_refused(tmp_path: Path, name: str, value: object) -> None:
    (tmp_path / "run.json").write_text(json.dumps({**json.loads(RECORD.to_text(Secrets())), name: value}))
    refused(tmp_path)


@pytest.mark.parametrize("started_at", ["1e30", "-1e30", "1e999", "9" * 400, "NaN", "null", '"now"', "[]"])
def test_a_record_of_no_time_is_refused(tmp_path: Path, started_at: str) -> None:
    text = RECORD.to_text(Secrets()).replace('"started_at": 1800000000.0', f'"started_at": {started_at}')
    assert started_at in text
    (tmp_path / "run.json").write_text(text)
    refused(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    replace(RECORD, format=2).write(tmp_path, Secrets())
    assert "another version of remote-runner wrote it (2)" in refused(tmp_path)


def test_an_instance_without_a_record_has_failed(tmp_path: Path) -> None:
    value = instance_value(tmp_path, Ended("g", 0, tmp_path / "g" / "0"), None)
    assert (value["group"], value["outcome"], value["outputs"], value["host"]) == ("g", "failed", "g/0", None)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"facts": 3}'])
def test_a_host_that_said_nothing_has_no_facts(tmp_path: Path, text: str) -> None:
    (tmp_path / HOSTS_DIRECTORY).mkdir()
    (tmp_path / HOSTS_DIRECTORY / "dex.json").write_text(text)
    assert with_facts(tmp_path, [{"name": "dex"}, {"name": "rex"}]) == [
        {"name": "dex", "facts": None},
        {"name": "rex", "facts": None},
    ]
