"""The dashboard for Grafana: the shape that its import wants, and queries that a real InfluxDB answers."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import jsonschema
import pytest

from remote_runner.truth.influx import Influx
from remote_runner.truth.observation import Observation, RunOn
from remote_runner.truth.values import HOST_KEYS, INSTANCE_KEYS
from tests.influx import ask, influxd
from tests.needs import need

FILE = Path(__file__).parent.parent / "docs" / "grafana" / "remote-runner.json"
# Of Grafana's model of a dashboard, what an import needs to show panels. By the schema of Grafana 10.4 itself (the
# file of `grafana/grok` for v10.4.0) the dashboard has no fault either.
_TEXT = {"type": "string", "minLength": 1}
# Since Grafana 8.3 an object; before it was a name.
_SOURCE = {"const": {"type": "influxdb", "uid": "${source}"}}
SCHEMA = {
    "type": "object",
    "required": ["id", "uid", "title", "schemaVersion", "time", "templating", "panels"],
    "properties": {
        "id": {"type": "null"},
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": _TEXT,
        "schemaVersion": {"type": "integer", "minimum": 33},
        "time": {"type": "object", "required": ["from", "to"]},
        "templating": {
            "type": "object",
            "properties": {
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type", "query"],
                        "properties": {
                            "type": {"enum": ["datasource", "query"]},
                            "name": _TEXT,
                            "query": _TEXT,
                            "datasource": _SOURCE,
                        },
                    },
                }
            },
        },
        "panels": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["id", "type", "title", "datasource", "gridPos", "targets", "fieldConfig"],
                "properties": {
                    "type": {"const": "timeseries"},
                    "title": _TEXT,
                    "datasource": _SOURCE,
                    "gridPos": {
                        "type": "object",
                        "required": ["h", "w", "x", "y"],
                        "properties": {"w": {"maximum": 24}, "x": {"maximum": 23}},
                    },
                },
            },
        },
    },
}
QUERY = re.compile(r'mean\("(\w+)"\)\S*(?:, 1s\))? FROM "([\w.-]+)" WHERE "run" =~ /\^\$run\$/ AND \$timeFilter')


def test_the_dashboard_can_be_imported_and_asks_for_what_there_is() -> None:
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(SCHEMA).validate(dashboard)
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"source", "run"}
    keys = {"remote-runner.host": HOST_KEYS, "remote-runner.instance": INSTANCE_KEYS}
    for panel in panels:
        for target in panel["targets"]:
            found = QUERY.search(target["query"])
            assert found, target["query"]
            assert found[1] in keys[found[2]]


def test_a_real_influxdb_answers_every_query(tmp_path: Path) -> None:
    need("influxdb")
    dashboard = json.loads(FILE.read_text(encoding="utf-8"))
    began_at = time.time() - 10
    with influxd(tmp_path / "influxdb") as url:
        asyncio.run(_write_samples(url, began_at))
        (variable,) = (one for one in dashboard["templating"]["list"] if one["type"] == "query")
        (told,) = ask(url, variable["query"])
        assert told["values"] == [["run", "r1"]]
        # What Grafana puts into a query.
        filled = {
            "$run": "r1",
            "$timeFilter": f"time >= {int(began_at * 1000)}ms and time <= {int(began_at * 1000) + 10_000}ms",
            "$__interval": "1s",
        }
        for panel in dashboard["panels"]:
            for target in panel["targets"]:
                query = target["query"]
                for name, value in filled.items():
                    query = query.replace(name, value)
                series = ask(url, query)
                # Two hosts; an instance on each.
                assert len(series) == 2, query
                for one in series:
                    values = [value for _, value in one["values"]]
                    assert len(values) >= 4, query
                    assert all(isinstance(value, int | float) for value in values), query
                    # The legend's names are tags of the series.
                    assert {*re.findall(r"\$tag_(\w+)", target["alias"])} <= one["tags"].keys()
                if "non_negative_derivative" in query:
                    assert values == pytest.approx([2.0] * len(values)), "a counter's growth each second"


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
