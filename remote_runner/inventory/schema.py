"""`inventory.yaml` as JSON Schema, made from the table of keys, so that editors complete and check it.

`inventory.schema.json` beside this file is what `python -m tests.generated` writes from it.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from remote_runner.inventory.keys import Key, Place, keys_of

_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def inventory_schema() -> dict[str, Any]:
    """The schema of the whole file; each place of the table is one of its definitions."""
    definitions = {place.name.lower(): _mapping(keys_of(place)) for place in Place if place is not Place.TOP}
    one_end = [{"required": ["to_host"]}, {"required": ["from_host"]}]
    definitions["source"] |= {"type": "object", "minProperties": 1, "maxProperties": 1}
    definitions["forward"] |= {"type": "object", "oneOf": one_end}
    nothing = {"type": ["object", "null"], "maxProperties": 0, "description": "localhost is always this machine."}
    definitions["localhost"] = {"$ref": "#/$defs/host", "properties": {"ssh": nothing, "connect": nothing}}
    return {
        "$schema": _DRAFT,
        "title": "inventory.yaml of remote-runner",
        **_mapping(keys_of(Place.TOP)),
        "$defs": definitions,
    }


def _mapping(keys: dict[str, Key]) -> dict[str, Any]:
    """The schema of a mapping of these keys, by dotted name: `ssh.port` stands in a mapping `ssh`."""
    properties: dict[str, Any] = {}
    for name in dict.fromkeys(name.partition(".")[0] for name in keys):
        inner = {key.removeprefix(f"{name}."): keys[key] for key in keys if key.startswith(f"{name}.")}
        properties[name] = _mapping(inner) if inner else _value(keys[name])
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}


def _value(key: Key) -> dict[str, Any]:
    default = key.default.value if isinstance(key.default, Enum) else key.default
    shown = {"default": default} if default and not key.shown_default else {}
    return {"description": f"{key.doc} ({key.kind.expected})", **shown, **key.kind.schema}
