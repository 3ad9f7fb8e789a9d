"""Hosts that a user's program prints as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from remote_runner.errors import SourceError
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.source import CommandSource, Listing

_EXPECTED = 'a list of names, a list of objects with a "name" and keys of hosts.NAME, or an object of them by name'


def read_command(source: CommandSource, asking: Asking) -> Listing:
    """What it prints: names, or names with the keys of a host. Raises `SourceError`."""
    text = asking.ask(source, source.argv)
    try:
        return Listing(str(source), tuple(_hosts(json.loads(text, object_pairs_hook=_once))))
    except (ValueError, RecursionError) as error:
        raise SourceError(
            str(source),
            f"it prints what is no list of hosts ({error}); expected {_EXPECTED}",
            said="\n".join(text.strip()[-2000:].splitlines()[-10:]),
            next_step="run it by hand in the plan's directory",
        ) from error


def _hosts(said: Any) -> list[tuple[str, dict[str, Any]]]:
    if isinstance(said, dict):
        return [(name, _keys(name, keys)) for name, keys in said.items()]
    if not isinstance(said, list):
        raise ValueError(f"found {type(said).__name__}")  # noqa: TRY004 (one kind for all that is wrong with it)
    found = []
    for index, item in enumerate(said):
        if isinstance(item, str):
            found.append((item, dict[str, Any]()))
        elif isinstance(item, dict) and isinstance(item.get("name"), str):
            found.append((item["name"], {key: value for key, value in item.items() if key != "name"}))
        else:
            raise ValueError(f"entry {index + 1} has no name")  # noqa: TRY004
    _once(found)
    return found


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of these, unless a name comes twice: the last would win silently."""
    named = dict(pairs)
    if len(named) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice} is named twice")
    return named


def _keys(name: str, keys: Any) -> dict[str, Any]:
    if keys is None or isinstance(keys, dict):
        return keys or {}
    raise ValueError(f"{name}: found {json.dumps(keys)[:60]} in the place of keys")
