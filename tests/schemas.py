"""`inventory.yaml` and `manifest.toml` as JSON Schemas, by which editors check them; and the table of keys.

`python -m tests.generated` writes them beside their readers. They take what these read without a warning.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from remote_runner.inventory.command_template import PLACEHOLDERS
from remote_runner.inventory.keys import KEYS, Key, Place, keys_of
from testground.manifest import KEYS as MANIFEST_KEYS

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
        properties[name] = _mapping(inner) if inner else _key(keys[name])
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}


def _key(key: Key) -> dict[str, Any]:
    default = key.default.value if isinstance(key.default, Enum) else key.default
    shown = {"default": default} if default and not key.shown_default else {}
    return {"description": f"{key.doc} ({key.kind.expected})", **shown, **key.kind.schema}


_SECTIONS = (
    ("At the top", (Place.TOP,)),
    ("In `defaults` and in `hosts.NAME`", (Place.DEFAULTS, Place.HOST)),
    ("In an entry of `forwards`", (Place.FORWARD,)),
    ("In an entry of `hosts_from`, one of", (Place.SOURCE,)),
    ("In `slurm` of an entry of `hosts_from`", (Place.SLURM,)),
    ("In `app`, and in `hosts.NAME.app`", (Place.APP,)),
)


def render_markdown() -> str:
    """The README's section on the keys: one table for each place, and the placeholders of `command`."""
    lines: list[str] = []
    for title, places in _SECTIONS:
        lines += [f"**{title}**", "", "| key | value | default | meaning |", "| --- | --- | --- | --- |"]
        for key in KEYS:
            if not key.places.intersection(places) or (Place.TOP in key.places and Place.TOP not in places):
                continue  # (`app` stands at the top and in a host; the heading of its own keys says so)
            only_host = Place.DEFAULTS in places and Place.DEFAULTS not in key.places
            only_defaults = key.places == frozenset({Place.DEFAULTS})
            doc = key.doc + (" (A host only.)" if only_host else " (`defaults` only.)" if only_defaults else "")
            lines.append(f"| `{key.name}` | {key.kind.expected} | {_shown(key)} | {doc} |")
        lines.append("")
    lines += ["**Placeholders of `app.command`**", "", "| placeholder | stands for |", "| --- | --- |"]
    lines += [f"| `{{{name}}}` | {doc} |" for name, doc in PLACEHOLDERS.items()]
    return "\n".join(lines) + "\n"


def _shown(key: Key) -> str:
    if key.shown_default:
        return key.shown_default
    if isinstance(key.default, Enum):
        return f"`{key.default.value}`"
    if isinstance(key.default, bool):
        return f"`{str(key.default).lower()}`"
    if isinstance(key.default, int | float):
        return f"{key.default:g}"
    return f"`{key.default}`" if key.default else "none"


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
    return {"$schema": _DRAFT, "title": "manifest.toml of a Testground plan", **_manifest_table("", {})}


def _manifest_table(path: str, own: dict[str, Any]) -> dict[str, Any]:
    properties = {name: _manifest_value(f"{path}.{name}" if path else name) for name in MANIFEST_KEYS[path]}
    required = {"": ["name", "testcases"]}.get(path, [])
    return {**own, "type": "object", "additionalProperties": False, "properties": properties, "required": required}


def _manifest_value(path: str) -> dict[str, Any]:
    own = _SCHEMAS[path]
    if path == "testcases":
        return {**own, "type": "array", "items": _manifest_table(path, {})}
    if path == "testcases.params":
        return {**own, "type": "object", "additionalProperties": _manifest_table(path, {})}
    return _manifest_table(path, own) if path in MANIFEST_KEYS else dict(own)
