"""The page as text: what is in it, how large it is, and that nothing in a run can leave its place."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from remote_runner.report.page import page
from remote_runner.report.reading import read_run
from tests.remote_runner.report.made_run import make_run

LIBRARY = "/* the library: 0.9 MB */"
LIBRARY_BYTES = 900_000


def data_of(text: str) -> object:
    found = re.search(r'<script type="application/json" id="report">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize(
    ("instances", "hosts", "most"),
    [(2, 1, 1.2e6), (100, 5, 2e6), pytest.param(1000, 20, 10e6, marks=pytest.mark.slow)],
)
def test_a_page_is_small(tmp_path: Path, instances: int, hosts: int, most: float) -> None:
    text = page([read_run(make_run(tmp_path / "r1", instances, hosts, failing=1, seconds=20))], LIBRARY)
    assert len(text.encode()) + LIBRARY_BYTES < most
    assert data_of(text)


def test_several_runs_are_one_page_with_their_comparison(tmp_path: Path) -> None:
    runs = [read_run(make_run(tmp_path / name, 8, 2, factor=factor)) for name, factor in (("a", 1.0), ("b", 2.0))]
    data = data_of(page(runs, LIBRARY))
    assert isinstance(data, dict)
    assert [run["id"] for run in data["runs"]] == ["a", "b"]
    assert data["comparison"]["differences"]["rows"]


def test_words_of_a_run_stay_words(tmp_path: Path) -> None:
    directory = make_run(tmp_path / "r1", 2, 1)
    record = json.loads((directory / "run.json").read_text())
    evil = "</script><script>alert(1)</script><!--\u2028\ud800"
    record["plan"] = record["doubts"][0] = record["instances"][0]["reason"] = evil
    (directory / "run.json").write_text(json.dumps(record))
    text = page([read_run(directory)], LIBRARY)
    assert text.count("<script") == 3
    assert text.count("<!--") == 0
    assert data_of(text)
    assert "&lt;/script&gt;" in text  # in the title


def test_nothing_is_asked_of_a_network(tmp_path: Path) -> None:
    text = page([read_run(make_run(tmp_path / "r1", 2, 1))], LIBRARY)
    assert re.findall(r"""(?:src|href)=["']?([^"' >]*)""", text.partition("<body>")[0]) == ["data:,"]
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; script-src 'sha256-")
    assert "http" not in policy[1]
