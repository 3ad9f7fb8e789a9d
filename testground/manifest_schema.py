"""`manifest.toml` as JSON Schema, so that editors complete and check it.

It takes what `Manifest` reads without a warning. `manifest.schema.json` beside this file is what
`python -m tests.generated` writes from it.
"""

from __future__ import annotations

from typing import Any

from testground.manifest import KEYS

_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}
_FREE = {"type": "object", "additionalProperties": {"type": "object"}}

_SCHEMAS: dict[str, Any] = {
    "name": {"type": "string", "minLength": 1, "description": "The plan's name."},
    "defaults": {"description": "What runs where a composition says nothing."},
    "defaults.builder": {**_TEXT, "description": "exec:go, docker:go, …"},
    "defaults.runner": {**_TEXT, "description": "local:exec, local:docker, …"},
    "builders": {**_FREE, "description": "Each builder's configuration, by its name."},
    "runners": {**_FREE, "description": "Each runner's configuration, by its name."},
    "extra_sources": {"description": "Further directories for a builder, by its name."},
    "testcases": {"minItems": 1, "description": "The test cases, each a table [[testcases]]."},
    "testcases.name": {**_TEXT, "description": "What --testcase takes."},
    "testcases.instances": {"description": "How many instances it takes."},
    "testcases.instances.min": {**_WHOLE, "description": "The fewest."},
    "testcases.instances.max": {**_WHOLE, "description": "The most."},
    "testcases.instances.default": {"description": "How many run when nobody says (by default: min)."},
    "testcases.params": {"description": "The parameters, each a table of its own."},
    "testcases.params.type": {**_TEXT, "description": "int, float, bool, string, duration, json, …"},
    "testcases.params.desc": {**_TEXT, "description": "What it means."},
    "testcases.params.unit": {**_TEXT, "description": "What it counts."},
    "testcases.params.default": {"description": "What an instance gets when nobody gives another."},
}


def manifest_schema() -> dict[str, Any]:
    """The schema of the whole file."""
    return {"$schema": _DRAFT, "title": "manifest.toml of a Testground plan", **_table("", {})}


def _table(path: str, own: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _value(f"{path}.{name}" if path else name) for name in KEYS[path]}
    required = {"": ["name", "testcases"]}.get(path, [])
    return {**own, "type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _value(path: str) -> dict[str, Any]:
    own = _SCHEMAS[path]
    if path == "testcases":
        return {**own, "type": "array", "items": _table(path, {})}
    if path == "testcases.params":
        return {**own, "type": "object", "additionalProperties": _table(path, {})}
    return _table(path, own) if path in KEYS else dict(own)
