"""The dashboard for Grafana: the shape that its import wants, and queries of nothing but what is in InfluxDB."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema

from remote_runner.truth.values import HOST_KEYS, INSTANCE_KEYS

FILE = Path(__file__).parent.parent / "docs" / "grafana" / "remote-runner.json"
# Of Grafana's model of a dashboard, what an import needs to show panels.
_TEXT = {"type": "string", "minLength": 1}
SCHEMA = {
    "type": "object",
    "required": ["id", "uid", "title", "schemaVersion", "time", "templating", "panels"],
    "properties": {
        "id": {"type": "null"},
        "uid": {"type": "string", "pattern": "^[a-zA-Z0-9_-]{1,40}$"},
        "title": _TEXT,
        "schemaVersion": {"type": "integer", "minimum": 27},
        "time": {"type": "object", "required": ["from", "to"]},
        "templating": {
            "type": "object",
            "properties": {
                "list": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "type", "query"],
                        "properties": {"type": {"enum": ["datasource", "query"]}, "name": _TEXT, "query": _TEXT},
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
