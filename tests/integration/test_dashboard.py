"""The dashboard for Grafana: what Grafana's own model of one says of it, and that a real run fills its panels."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from remote_runner.truth.influx import Influx
from remote_runner.truth.observation import Observation, RunOn
from remote_runner.truth.values import HOST_KEYS, INSTANCE_KEYS
from tests.hosts_netns import NetnsHost
from tests.influx import ask, influxd
from tests.integration.runs import ROOT, Machine, Outcome, Plan, localhost, place_on, single_words
from tests.needs import need

GRID = 24  # columns
FILE = ROOT / "docs" / "grafana" / "remote-runner.json"
QUERY = re.compile(r'mean\("(\w+)"\)\S*(?:, 1s\))? FROM "([\w.-]+)" WHERE "run" =~ /\^\$run\$/ AND \$timeFilter')


def test_grafana_s_own_model_knows_all_of_the_dashboard() -> None:
    """By the package that Grafana makes of its schema: what the model does not know is lost on the way through it."""
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    model = json.loads(JSONEncoder().encode(Dashboard.from_json(dashboard)))
    assert dashboard.pop("id") is None  # an import gives it one
    assert list(_lost(dashboard, model)) == []
    assert list(_lost({**dashboard, "panles": []}, model)) == ["/panles"]


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= GRID for panel in panels)
    source, run = dashboard["templating"]["list"]
    assert (source["name"], source["type"], run["name"], run["type"]) == ("source", "datasource", "run", "query")
    for asking in (run, *panels):
        assert asking["datasource"] == {"type": "influxdb", "uid": "${source}"}
    keys = {"remote-runner.host": HOST_KEYS, "remote-runner.instance": INSTANCE_KEYS}
    for target in targets():
        found = QUERY.search(target["query"])
        assert found, target["query"]
        assert found[1] in keys[found[2]]


def test_a_counter_s_growth_each_second(tmp_path: Path) -> None:
    need("influxdb")
    began_at = time.time() - 10
    with influxd(tmp_path / "influxdb") as url:
        asyncio.run(_write_samples(url, began_at))
        counted = [target for target in targets() if "non_negative_derivative" in target["query"]]
        for target in counted:
            for one in ask(url, filled(target["query"], "r1", began_at)):
                assert [value for _, value in one["values"]] == pytest.approx([2.0] * 4)
    assert len(counted) > 5


def test_a_real_run_fills_every_panel(tmp_path: Path, machine: Machine, netns_host: NetnsHost) -> None:
    need("influxdb")
    places = [localhost(tmp_path / "far"), place_on(netns_host)]
    plan = Plan.of_script(tmp_path / "plan", machine, "sleep 5; ok\n", places)
    began_at = time.time()
    with influxd(tmp_path / "influxdb") as url:
        run = Outcome.of(plan.fab(*single_words(2), "--influxdb", url)).all_ok().run
        (told,) = ask(url, run_query())
        assert told["values"] == [["run", run]]
        for target in targets():
            query = filled(target["query"], run, began_at)
            series = ask(url, query)
            assert len(series) == 2, query  # two hosts, and an instance on each
            for one in series:
                values = [value for _, value in one["values"]]
                assert len(values) >= 2, query
                assert all(isinstance(value, int | float) for value in values), query
                # The legend's names are tags of the series.
                assert {*re.findall(r"\$tag_(\w+)", target["alias"])} <= one["tags"].keys()


def _lost(ours: object, model: object, at: str = "") -> Iterator[str]:
    """What of ours the model has not, or has with another value."""
    if isinstance(ours, dict) and isinstance(model, dict):
        for key, value in ours.items():
            yield from _lost(value, model[key], f"{at}/{key}") if key in model else [f"{at}/{key}"]
    elif isinstance(ours, list) and isinstance(model, list) and len(ours) == len(model):
        for number, (one, other) in enumerate(zip(ours, model, strict=True)):
            yield from _lost(one, other, f"{at}/{number}")
    elif ours != model:
        yield at


def targets() -> list[dict[str, Any]]:
    """What the panels ask for."""
    return [target for panel in json.loads(FILE.read_text(encoding="utf-8"))["panels"] for target in panel["targets"]]


def run_query() -> str:
    """What finds the runs."""
    return str(json.loads(FILE.read_text(encoding="utf-8"))["templating"]["list"][1]["query"])


def filled(query: str, run: str, began_at: float) -> str:
    """The query with what Grafana puts into it."""
    began_ms = int(began_at * 1000)
    given = {
        "$run": run,
        "$timeFilter": f"time >= {began_ms}ms and time <= {began_ms + 60_000}ms",
        "$__interval": "1s",
    }
    for name, value in given.items():
        query = query.replace(name, value)
    return query


async def _write_samples(url: str, began_at: float) -> None:
    """As observations write them: five seconds of two hosts, whose counters grow by 2 a second."""
    told: list[str] = []
    influx = Influx(url, told.append)
    for host, group in (("dex", "single"), ("rex", "other")):
        run = RunOn(host, "r1", "plan", "case", None)
        observation = Observation(run, influx, None)
        for second in range(5):
            counted = {"group_id": group, "instance": "0"}
            for measurement, tags, keys in (
                ("remote-runner.host", {}, HOST_KEYS),
                ("remote-runner.instance", counted, INSTANCE_KEYS),
            ):
                observation.point(measurement, tags, dict.fromkeys(keys, 7 + 2 * second), began_at + 1 + second)
    await influx.flush()
    assert told == []
