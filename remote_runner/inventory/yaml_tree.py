"""YAML as written: text, lists and mappings with their lines, nothing guessed about types.

YAML 1.1 reads `no` as false, `010` as eight and `12:30` as 750; here every scalar keeps its text, and who
knows what is expected reads it. (This is the composing half of a YAML loader, YAML 1.2 chapter 3.1.)
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from remote_runner.errors import InventoryError
from remote_runner.machine.files import write_atomically


@dataclass(frozen=True)
class Scalar:
    """One value; `is_null` where nothing (or `null`, `~`) is written. Lines count from 1."""

    text: str
    is_null: bool
    line: int


@dataclass(frozen=True)
class Sequence:
    """A list of values."""

    items: tuple[Node, ...]
    line: int


@dataclass(frozen=True)
class Mapping:
    """Keys in their order; `lines` says where each key stands."""

    items: dict[str, Node]
    lines: dict[str, int]
    line: int


Node = Scalar | Sequence | Mapping

_NULL = "tag:yaml.org,2002:null"
_MERGE = "tag:yaml.org,2002:merge"
# A value that contains itself (by an anchor) has no end; nothing an inventory says is nested deeper than this.
_MAX_DEPTH = 32
# An inventory of 1,000 hosts has 200 KB; and anchors in anchors make billions of values of 1 KB.
_MOST_CHARACTERS = 4 << 20
_MOST_VALUES = 200_000


def parse_yaml(text: str, file: str, *, cache: Path | None = None) -> Node | None:
    """The tree of the one document in `text`; `None` for an empty one. `file` is for messages.

    With `cache`, a directory, the tree of the same text is taken from there and left there, as JSON: importing
    the YAML parser takes 35 ms. Raises `InventoryError` with the line for what is no YAML, or a key that stands twice.
    """
    if cache is None:
        return _parse(text, file)
    kept = cache / f"{file}.{zlib.crc32(text.encode()):08x}.json"
    try:
        stored = json.loads(kept.read_text(encoding="utf-8"))
        if stored["text"] == text:
            kept_tree: Node | None = _unpack(stored["tree"])
            return kept_tree
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # not there, or not ours to read: parsed anew and written over below
    tree = _parse(text, file)
    write_atomically(kept, json.dumps({"text": text, "tree": _pack(tree)}).encode(), optional=True)
    return tree


def _pack(node: Node | None) -> Any:
    if node is None:
        return None
    if isinstance(node, Scalar):
        return [node.line, node.text, node.is_null]
    if isinstance(node, Sequence):
        return [node.line, [_pack(item) for item in node.items]]
    return [node.line, {name: [node.lines[name], _pack(child)] for name, child in node.items.items()}]


def _unpack(packed: Any) -> Any:
    if packed is None:
        return None
    line, value, *rest = packed
    if isinstance(value, str):
        return Scalar(value, rest[0], line)
    if isinstance(value, list):
        return Sequence(tuple(_unpack(item) for item in value), line)
    items = {name: _unpack(child) for name, (_, child) in value.items()}
    return Mapping(items, {name: at for name, (at, _) in value.items()}, line)


def _parse(text: str, file: str) -> Node | None:
    import yaml

    if len(text) > _MOST_CHARACTERS:
        expected = f"at most {_MOST_CHARACTERS}"
        raise InventoryError(file, None, "", found=f"{len(text)} characters", expected=expected)
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's is five times as fast, where it is built in
    try:
        root = yaml.compose(text, Loader=loader)
    except yaml.MarkedYAMLError as error:
        from remote_runner.inventory.yaml_mistake import mistake

        raise mistake(text, file, error) from error
    except yaml.YAMLError as error:
        raise InventoryError(file, None, "", found=" ".join(str(error).split()), expected="YAML") from error
    return None if root is None else _convert(root, file, "", 0, count(1))


def _convert(node: Any, file: str, key: str, depth: int, numbers: Iterator[int]) -> Node:
    import yaml

    line = node.start_mark.line + 1
    if depth > _MAX_DEPTH:
        raise InventoryError(file, line, key[:40], found="values nested without end", expected="a tree")
    if next(numbers) > _MOST_VALUES:
        expected = f"at most {_MOST_VALUES}"
        raise InventoryError(file, line, key[:40], found="too many values, by anchors", expected=expected)
    if isinstance(node, yaml.ScalarNode):
        _check_text(node.value, file, line, key)
        return Scalar(node.value, node.tag == _NULL, line)
    if isinstance(node, yaml.SequenceNode):
        items = enumerate(node.value)
        return Sequence(tuple(_convert(item, file, f"{key}[{at}]", depth + 1, numbers) for at, item in items), line)
    mapping = Mapping({}, {}, line)
    merged: list[Mapping] = []
    for key_node, value_node in node.value:
        if not isinstance(key_node, yaml.ScalarNode):
            raise InventoryError(
                file, key_node.start_mark.line + 1, key, found="a key that is not a text", expected="text"
            )
        name, key_line = key_node.value, key_node.start_mark.line + 1
        _check_text(name, file, key_line, key)
        path = f"{key}.{name}" if key else name
        if key_node.tag == _MERGE:
            source = _convert(value_node, file, path, depth + 1, numbers)
            merged += [
                m for m in (source.items if isinstance(source, Sequence) else (source,)) if isinstance(m, Mapping)
            ]
        elif name in mapping.items:
            first = f"a second one (the first is in line {mapping.lines[name]})"
            raise InventoryError(file, key_line, path, found=first, expected="each key once")
        else:
            mapping.items[name] = _convert(value_node, file, path, depth + 1, numbers)
            mapping.lines[name] = key_line
    for source in merged:  # what `<<:` brings stands behind what is written here
        for name, value in source.items.items():
            if name not in mapping.items:
                mapping.items[name] = value
                mapping.lines[name] = source.lines[name]
    return mapping


def _check_text(text: str, file: str, line: int, key: str) -> None:
    # libyaml refuses such an escape itself; no file, variable or message can hold what it would make.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InventoryError(file, line, key[:40], found="half a character (\\ud800 to \\udfff)", expected="text")
