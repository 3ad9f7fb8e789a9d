"""Ansible's inventories: read by `ansible-inventory`, or, without it, from the INI and YAML files.

Only the variables for connecting are used; groups become labels. Templates (`{{ … }}`) are not
filled in, neither here nor by `ansible-inventory`.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from remote_runner.errors import InventoryError, SourceError
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.source import AnsibleSource, Listing
from remote_runner.inventory.yaml_tree import Node, Scalar, Sequence, parse_yaml

_ENDINGS = (".yml", ".yaml", ".json")
# Ansible's variable, what else it is called, our key.
_VARIABLES = (
    (("ansible_host", "ansible_ssh_host"), "host"),
    (("ansible_user", "ansible_ssh_user"), "user"),
    (("ansible_port", "ansible_ssh_port"), "port"),
    (("ansible_ssh_private_key_file", "ansible_private_key_file"), "identity_file"),
)
_RANGE = re.compile(r"\[([0-9]+|[A-Za-z]):([0-9]+|[A-Za-z])(?::([0-9]+))?\]")
_MOST_RANGE = 100_000
_MOST_DIGITS = 18
_ALONE = "read as a file, without Ansible's plugins: ansible-inventory is not on PATH"
_OWN_GROUPS = ("all", "ungrouped")


@dataclass
class _Group:
    hosts: dict[str, dict[str, Any]] = field(default_factory=dict)
    children: list[str] = field(default_factory=list)
    variables: dict[str, Any] = field(default_factory=dict)


class _Unreadable(Exception):  # noqa: N818 (becomes a `SourceError`, which names the source)
    pass


def read_ansible(source: AnsibleSource, asking: Asking) -> Listing:
    """The hosts of the inventory. Raises `SourceError`, `DeadlineError`."""
    try:
        path = asking.plan_dir / Path(source.path).expanduser()
    except RuntimeError as error:
        problem = f"{source.path}: nobody's home is known here"
        raise SourceError(str(source), problem, next_step="write the path without ~") from error
    if not path.exists():
        raise SourceError(str(source), f"{path} is not there", next_step="correct the path; it starts at the plan")
    program = asking.find("ansible-inventory")
    try:
        if program is not None:
            return _listing(str(source), _from_json(asking.ask(source, [program, "-i", str(path), "--list"])))
        listing = replace(_listing(str(source), _from_file(path)), how=_ALONE)
        asking.report(f"{source}: {listing.how}")
        return listing
    except _Unreadable as error:
        raise SourceError(
            str(source), str(error), next_step="see what `ansible-inventory --list` makes of it (package ansible-core)"
        ) from error


def _listing(source: str, groups: Mapping[str, _Group]) -> Listing:
    values: dict[str, dict[str, Any]] = {}
    labels: dict[str, list[str]] = {}
    for name, host, given in _walk(groups):
        known = values.setdefault(host, {})
        known |= given  # a child's variables go over its parent's, and a host's own over all
        if name not in _OWN_GROUPS and name not in labels.setdefault(host, []):
            labels[host].append(name)
    for group in groups.values():
        for host, own in group.hosts.items():
            values[host] |= own
    hosts, left_out = [], []
    for host, variables in values.items():
        try:
            hosts.append((host, {**_keys(host, variables), "labels": labels.get(host, [])}))
        except _Unreadable as error:
            left_out.append(f"{host}: {error}")
    return Listing(source, tuple(hosts), tuple(left_out))


def _walk(groups: Mapping[str, _Group]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each host of each group, with the variables of that group; a group before its children.

    Raises `_Unreadable` where groups are their own children.
    """
    children = {child for group in groups.values() for child in group.children}
    top = [name for name in groups if name != "all" and name not in children]
    order: dict[str, None] = {}
    below: dict[str, tuple[str, ...]] = {}

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in above:
            circle = " > ".join((*above[above.index(name) :], name))
            raise _Unreadable(f"groups are children of each other in a circle: {circle}")
        if name not in groups:
            return
        order.pop(name, None)  # below all of its parents
        order[name] = None
        below[name] = tuple(dict.fromkeys((*below.get(name, ()), *above)))
        for child in groups[name].children:
            visit(child, (*above, name))

    for name in ("all", *top):
        visit(name, ())
    for name in groups:
        if name not in order:  # in a circle, or below one
            visit(name, ())
    members = {name: dict.fromkeys(groups[name].hosts) for name in order}
    for name in order:
        for parent in below[name]:
            members[parent] |= members[name]
    if "all" in groups:
        for name in order:
            members["all"] |= members[name]
    for name in order:
        for host in members[name]:
            yield name, host, groups[name].variables


def _keys(host: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    connection = str(variables.get("ansible_connection", "ssh"))
    if connection == "local":
        return {} if host == "localhost" else {"connect": {"command": ["/bin/sh", "-s"]}}
    if connection not in ("ssh", "smart", "paramiko", "paramiko_ssh"):
        raise _Unreadable(f"ansible_connection is {connection}; list it in inventory.yaml, with connect.command")
    ssh = {}
    for names, key in _VARIABLES:
        value = next((variables[name] for name in names if name in variables), None)
        if value is not None and "{{" in str(value):
            raise _Unreadable(f"{names[0]} is a template; list it in inventory.yaml, with ssh.{key}")
        if value is not None:
            ssh[key] = value
    return {"ssh": ssh} if ssh and host != "localhost" else {}


# What ansible-inventory prints


def _from_json(text: str) -> dict[str, _Group]:
    try:
        said = json.loads(text)
        variables = said.pop("_meta", {}).get("hostvars", {})
        groups = {
            name: _Group({host: {} for host in group.get("hosts", ())}, list(group.get("children", ())))
            for name, group in said.items()
        }
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _Unreadable(f"ansible-inventory prints what is no inventory: {text.strip()[:200]!r}") from error
    groups.setdefault("all", _Group()).hosts |= {host: dict(own) for host, own in variables.items()}
    return groups


# Files as they are


def _from_file(path: Path) -> dict[str, _Group]:
    if path.is_dir():
        raise _Unreadable(f"{path} is a directory, and without ansible-inventory only files are read")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _Unreadable(f"{path} cannot be read: {error}") from error
    if text.startswith("#!"):
        raise _Unreadable(f"{path} is a program, and ansible-inventory, which runs it, is not installed")
    return _from_yaml(text) if path.suffix in _ENDINGS else _from_ini(text)


def _from_yaml(text: str) -> dict[str, _Group]:
    try:
        top = _plain(parse_yaml(text, "the file"))
    except InventoryError as error:
        raise _Unreadable(f"it is no YAML that can be read: {' '.join(str(error).split())[:300]}") from error
    groups: dict[str, _Group] = {}

    def mapping(value: Any, what: str) -> dict[str, Any]:
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise _Unreadable(f"{what} is no mapping")
        return {str(key): item for key, item in value.items()}

    def take(name: str, value: Any, depth: int) -> None:
        if depth > 32:
            raise _Unreadable(f"{name} is nested without end")
        group, said = groups.setdefault(name, _Group()), mapping(value, name)
        for pattern, own in mapping(said.get("hosts"), f"{name}.hosts").items():
            for host in _expand(pattern):
                group.hosts.setdefault(host, {}).update(mapping(own, f"{name}.hosts.{host}"))
        group.variables |= mapping(said.get("vars"), f"{name}.vars")
        for child, below in mapping(said.get("children"), f"{name}.children").items():
            group.children.append(child)
            take(child, below, depth + 1)

    for name, value in mapping(top, "the file").items():
        take(name, value, 0)
    return groups


def _plain(node: Node | None) -> Any:
    if node is None or isinstance(node, Scalar):
        return None if node is None or node.is_null else node.text
    if isinstance(node, Sequence):
        return [_plain(item) for item in node.items]
    return {name: _plain(value) for name, value in node.items.items()}


def _from_ini(text: str) -> dict[str, _Group]:
    groups: dict[str, _Group] = {"all": _Group()}
    name, kind = "ungrouped", "hosts"
    for number, line in enumerate(text.splitlines(), 1):
        line = line.strip()
        if not line or line[0] in "#;":
            continue
        if line.startswith("["):
            section = re.fullmatch(r"\[([^:\]\s]+)(?::(vars|children))?\]\s*(?:[#;].*)?", line)
            if section is None:
                raise _Unreadable(f"line {number} is no section: {line[:100]}")
            name, kind = section[1], section[2] or "hosts"
            groups.setdefault(name, _Group())
            continue
        group = groups.setdefault(name, _Group())
        if kind == "children":
            group.children.append(line.split()[0])
            groups.setdefault(line.split()[0], _Group())
        elif kind == "vars":
            key, equals, value = line.partition("=")
            if not equals:
                raise _Unreadable(f"line {number} is no variable: {line[:100]}")
            group.variables[key.strip()] = value.strip().strip("'\"")
        else:
            pattern, own = _host_line(line, number)
            for host in _expand(pattern):
                group.hosts.setdefault(host, {}).update(own)
    return groups


def _host_line(line: str, number: int) -> tuple[str, dict[str, Any]]:
    try:
        first, *words = itertools.takewhile(lambda word: not word.startswith("#"), shlex.split(line))
        own: dict[str, Any] = dict(word.split("=", 1) for word in words)
    except ValueError as error:
        raise _Unreadable(f"line {number} is no host with variables (name=value): {line[:100]}") from error
    with_port = re.fullmatch(r"((?:\[[^\]]*\]|[^:\[\]])+):([0-9]+)", first)
    if with_port:
        first = with_port[1]
        own.setdefault("ansible_port", with_port[2])
    return first, own


def _expand(pattern: str) -> list[str]:
    """The names that ranges in brackets mean: web[01:10], db-[a:c], n[0:8:2]."""
    names, end = [""], 0
    for found in _RANGE.finditer(pattern):
        numbers = _numbers(*found.groups())
        if not 0 < len(numbers) * len(names) <= _MOST_RANGE:
            raise _Unreadable(f"{pattern[:100]} has no range")
        between = pattern[end : found.start()]
        names = [f"{name}{between}{number}" for name in names for number in numbers]
        end = found.end()
    return [f"{name}{pattern[end:]}" for name in names]


def _numbers(first: str, last: str, step: str | None) -> list[str]:
    """The names of a range; none if it is not a range, or too long."""
    if first.isdecimal() != last.isdecimal() or max(map(len, (first, last, step or ""))) > _MOST_DIGITS:
        return []
    low, high = (int(first), int(last)) if first.isdecimal() else (ord(first), ord(last))
    if high - low >= _MOST_RANGE or not int(step or 1):
        return []
    width = len(first) if first.startswith("0") else 0
    return [str(n).zfill(width) if first.isdecimal() else chr(n) for n in range(low, high + 1, int(step or 1))]
