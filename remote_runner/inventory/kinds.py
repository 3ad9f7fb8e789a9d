"""The kinds of values in `inventory.yaml`: what is expected, in words, and how each is read."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Mapping as Mapping_
from dataclasses import dataclass, field
from enum import Enum
from pathlib import PurePosixPath
from typing import Any, NoReturn

from remote_runner.errors import HostNameError, InventoryError, UnknownSystemError
from remote_runner.inventory.command_template import PLACEHOLDERS, unknown_placeholders
from remote_runner.inventory.endpoint import Endpoint
from remote_runner.inventory.placement import Spread
from remote_runner.inventory.sources.source import SlurmConnect
from remote_runner.inventory.ssh_target import HOST_PATTERN, USER_PATTERN, check_host_name, check_user_name
from remote_runner.inventory.systems import SYSTEMS, System
from remote_runner.inventory.yaml_tree import Mapping, Node, Scalar, Sequence
from remote_runner.machine.shell_words import operator_in


class Builder(Enum):
    """How the application is built."""

    COMMAND = "command"
    NIX = "nix"


class BuildOn(Enum):
    """Which machine builds what Nix describes."""

    AUTO = "auto"
    """This one, where it or its remote builders can; else the target."""
    LOCAL = "local"
    TARGET = "target"


class StoreChoice(Enum):
    """Where a host keeps what Nix built."""

    AUTO = "auto"
    """In its Nix store, where the user may add to it; else in a store of the user's own."""
    NIX = "nix"
    USER = "user"


class OnUnreachable(Enum):
    """What an instance does when its host cannot be reached."""

    FAIL = "fail"
    NEXT = "next"
    """It goes to the next host of the list."""


class ForwardUsers(Enum):
    """Whose processes on a host may connect to a forward there."""

    OWN = "own"
    """Those of the user who logs in, where the system allows to tell (Linux)."""
    ANY = "any"


@dataclass(frozen=True)
class At:
    """Where in which file a value stands, for messages."""

    file: str
    path: str

    def child(self, name: str) -> At:
        return At(self.file, f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> At:
        return At(self.file, f"{self.path}[{index}]")

    def fail(self, node: Node | int, expected: str, *, found: str = "", nearest: tuple[str, ...] = ()) -> NoReturn:
        """Raise `InventoryError` for the value (or for the line, where the key itself is wrong)."""
        line = node if isinstance(node, int) else node.line
        found = found or ("" if isinstance(node, int) else _described(node))
        raise InventoryError(self.file, line, self.path, found=found, expected=expected, nearest=nearest)


@dataclass(frozen=True)
class Kind:
    """A kind of value: what is expected, in words, and the function that reads it (or fails through `At`).

    `schema` says the same as JSON Schema, as far as that can: it never refuses what `read` takes.
    """

    expected: str
    read: Callable[[Node, At], Any]
    schema: Mapping_[str, Any] = field(default_factory=dict)


def nearest_names(name: str, known: Any) -> tuple[str, ...]:
    """The known names that look most like `name`, at most two."""
    import difflib

    by_lower = {str(k).lower(): str(k) for k in known}
    return tuple(by_lower[n] for n in difflib.get_close_matches(name.lower(), by_lower, n=2))


def _described(node: Node) -> str:
    if isinstance(node, Scalar):
        shown = repr(node.text)
        return "nothing" if node.is_null else shown if len(shown) <= _MOST_SHOWN else f"{shown[:_MOST_SHOWN]}…"
    if isinstance(node, Sequence):
        return f"a list of {len(node.items)}"
    return f"a mapping of {', '.join(list(node.items)[:3]) or 'nothing'}"


class _NotThisWayError(ValueError):
    """A value that is nearly right; the message says what it has to be."""


# Every scalar keeps its text here; elsewhere `10` is a number and `true` a flag.
_SCALAR = ["string", "number", "boolean"]


def _text_kind(expected: str, parse: Callable[[str], Any], schema: Mapping_[str, Any] | None = None) -> Kind:
    """A scalar that `parse` takes; it raises `ValueError` (`KeyError`, `UnknownSystemError`) for what it does not."""

    def read(node: Node, at: At) -> Any:
        if not isinstance(node, Scalar) or node.is_null:
            at.fail(node, expected)
        try:
            return parse(node.text)
        except UnknownSystemError as error:
            at.fail(node, expected, nearest=error.nearest)
        except HostNameError as error:
            at.fail(node, f"{expected} ({error.reason})")
        except _NotThisWayError as error:
            at.fail(node, f"{expected} ({error})")
        except (ValueError, KeyError):
            at.fail(node, expected)

    return Kind(expected, read, schema or {"type": _SCALAR})


def _pattern(pattern: str) -> dict[str, Any]:
    """Of a scalar whose text has to match."""
    return {"type": _SCALAR, "pattern": pattern}


def _number(low: int, high: int) -> dict[str, Any]:
    """Of a whole number, which may stand in quotes."""
    return {"type": ["integer", "string"], "minimum": low, "maximum": high, "pattern": "^[0-9]+$"}


def list_kind(expected: str, item: Kind) -> Kind:
    def read(node: Node, at: At) -> tuple[Any, ...]:
        if isinstance(node, Scalar) and node.is_null:
            return ()
        if not isinstance(node, Sequence):
            at.fail(node, f"{expected}{_as_list(node)}")
        return tuple(item.read(child, at.item(index)) for index, child in enumerate(node.items))

    return Kind(expected, read, {"type": ["array", "null"], "items": item.schema})


def _as_list(node: Node) -> str:
    """The list that was probably meant by one word."""
    is_word = isinstance(node, Scalar) and re.fullmatch(r"[\w./-]+", node.text)
    return f": `[{node.text}]`" if isinstance(node, Scalar) and is_word else ""


def _as_mapping(node: Node) -> str:
    """The mapping that was probably meant by `NAME=value`, alone or in a list."""
    first = node.items[0] if isinstance(node, Sequence) and node.items else node
    pair = re.fullmatch(r"(\w+)=([\w./-]*)", first.text) if isinstance(first, Scalar) else None
    return f': `{{{pair[1]}: "{pair[2]}"}}`' if pair else ""


def _mapping_kind(expected: str, name: Callable[[str], str | None], pattern: str, is_env: bool) -> Kind:
    """A mapping of texts; `name` says what is expected of a key that will not do, which `pattern` does not match."""

    def read(node: Node, at: At) -> dict[str, str | None]:
        if isinstance(node, Scalar) and node.is_null:
            return {}
        if not isinstance(node, Mapping):
            at.fail(node, f"{expected}{_as_mapping(node)}")
        values: dict[str, str | None] = {}
        for key, value in node.items.items():
            wanted = name(key)
            if wanted:
                at.child(key).fail(node.lines[key], wanted, found=f"the name {key!r}")
            if not isinstance(value, Scalar) or (value.is_null and not is_env):
                at.child(key).fail(value, "a string (in quotes, where YAML would read something else)")
            if "\0" in value.text or not (is_env or value.text.isprintable()):
                at.child(key).fail(value, "a string without control characters")
            values[key] = None if value.is_null else value.text
        return values

    value_schema = {"type": [*_SCALAR, "null"] if is_env else _SCALAR}
    schema = {"type": ["object", "null"], "propertyNames": {"pattern": pattern}, "additionalProperties": value_schema}
    return Kind(expected, read, schema)


def _word(text: str) -> str:
    if not text or any(c.isspace() or not c.isprintable() for c in text):
        raise ValueError
    return text


def _file_name(text: str) -> str:
    if not re.fullmatch(_FILE_NAME, text):
        raise ValueError
    return text


def _plain(text: str) -> str:
    if not text or not text.isprintable():
        raise ValueError
    return text


def _flake(text: str) -> str:
    if text.startswith("-") or "#" in text:
        raise ValueError
    return _plain(text)


def _one_of(choices: type[Enum]) -> Kind:
    *others, last = (f"`{choice.value}`" for choice in choices)
    return _text_kind(f"{', '.join(others)} or {last}", choices, {"enum": [choice.value for choice in choices]})


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdecimal()) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return parse


def _seconds(text: str) -> float:
    if with_unit := re.fullmatch(r"([0-9]+) *(ms|s|m|min|h|d)", text):
        value = int(with_unit[1]) * {"ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}[with_unit[2]]
        raise _NotThisWayError(f"a number alone: {value:.15g}")
    value = float(text)
    if value > _MOST_S:
        raise _NotThisWayError(f"at most {_MOST_S:.0f}")
    if not value > 0:
        raise ValueError
    return value


# What both sides can count in, and what all ways of waiting take (poll(2): 24 days).
_MOST_BYTES = 2**63
_MOST_S = 2_000_000.0
_MOST_SHOWN = 200

_UNITS = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) *([A-Za-z]*)", text)
    if match is None or match[2] not in _UNITS:
        raise ValueError
    value = float(match[1]) * _UNITS[match[2]]
    if value >= _MOST_BYTES:
        raise _NotThisWayError("less than 8 EiB")
    return int(value)


def _absolute(text: str) -> str:
    if not text.startswith("/") or not text.isprintable() or ".." in PurePosixPath(text).parts:
        raise ValueError
    return text


def _inside(text: str) -> str:
    path = PurePosixPath(text)
    if not text or path.is_absolute() or ".." in path.parts or not path.parts or not text.isprintable():
        raise ValueError
    return str(path)


def _endpoint(text: str) -> Endpoint:
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    return Endpoint(_word(host) if colon else "localhost", _whole(1, 65535)(port))


def _time(text: str) -> str:
    """What salloc takes, or a number with a unit, which becomes minutes."""
    with_unit = re.fullmatch(r"([0-9]+)([smhd])", text)
    if with_unit:
        seconds = int(with_unit[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[with_unit[2]]
        return str(max(1, -(-seconds // 60)))
    if not re.fullmatch(r"[0-9]+(?::[0-9]+){0,2}|[0-9]+-[0-9]+(?::[0-9]+){0,2}", text):
        raise ValueError
    return text


def _env_name(name: str) -> str | None:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        return "a variable's name (letters, digits and _)"
    if name.startswith("REMOTE_RUNNER_"):
        return "another name (REMOTE_RUNNER_ variables are set by remote-runner itself)"
    return None


def _secret_name(text: str) -> str:
    if _env_name(text):
        raise ValueError
    return text


def _option_name(name: str) -> str | None:
    return None if name.isascii() and name.isalnum() else "the name of an ssh option (see ssh_config(5))"


def _read_words(node: Node, at: At, kind: Kind) -> tuple[str, ...]:
    import shlex

    if isinstance(node, Sequence):
        words = [item.text if isinstance(item, Scalar) and not item.is_null else "" for item in node.items]
    elif isinstance(node, Scalar) and not node.is_null:
        if operator := operator_in(node.text):
            with_shell = f"sh -c {shlex.quote(node.text)}"
            at.fail(
                node, f"a command that needs no shell, or one given to a shell: {with_shell}", found=f"`{operator}`"
            )
        try:
            words = shlex.split(node.text)
        except ValueError as error:
            at.fail(node, f"words as a shell splits them ({str(error).lower()})")
    else:
        at.fail(node, kind.expected)
    if not words or not all(words):
        at.fail(node, kind.expected)
    return tuple(words)


def _read_command(node: Node, at: At) -> tuple[str, ...]:
    words = _read_words(node, at, COMMAND)
    for name in unknown_placeholders(words):
        nearest = tuple(f"{{{n}}}" for n in nearest_names(name, PLACEHOLDERS))
        known = ", ".join(f"{{{n}}}" for n in PLACEHOLDERS)
        at.fail(node, f"one of {known} ({{{{ and }}}} stand for a brace)", found=f"{{{name}}}", nearest=nearest)
    return tuple(words)


def _read_patterns(node: Node, at: At) -> tuple[str, ...]:
    if isinstance(node, Scalar):
        return tuple(_text_kind(PATTERNS.expected, _plain).read(node, at).replace(",", " ").split())
    patterns: tuple[str, ...] = WORDS.read(node, at)
    return patterns


def _read_hosts(node: Node, at: At) -> dict[str, tuple[Node, At]]:
    if isinstance(node, Scalar) and node.is_null:
        return {}
    if not isinstance(node, Mapping):
        first = next(iter(node.items), None) if isinstance(node, Sequence) else node
        example = ""
        if isinstance(first, Scalar) and not first.is_null:
            written = f"- {first.text}" if isinstance(node, Sequence) else first.text
            example = f": `{first.text}:` in the place of `{written}`"
            if not isinstance(node, Sequence):
                example += ", in a line of its own"
        at.fail(node, f"{HOSTS.expected}{example}")
    return {name: (child, at.child(name)) for name, child in node.items.items()}


TEXT = _text_kind("a string in one line", _plain)
WORD = _text_kind("a word without spaces", _word, _pattern(r"^\S+$"))
_FILE_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,99}$"
FILE_NAME = _text_kind("a name of letters, digits, `.`, `_` and `-`", _file_name, _pattern(_FILE_NAME))
HOST_NAME = _text_kind("a host's name or address", check_host_name, _pattern(HOST_PATTERN))
USER_NAME = _text_kind("a user's name", check_user_name, _pattern(USER_PATTERN))
SLOTS = _text_kind("a whole number from 1 to 1000", _whole(1, 1000), _number(1, 1000))
PORT = _text_kind("a port, 1 to 65535", _whole(1, 65535), _number(1, 65535))
ANY_PORT = _text_kind("a port, 1 to 65535, or 0 for any free one", _whole(0, 65535), _number(0, 65535))
_SECONDS_SCHEMA = {"type": ["number", "string"], "exclusiveMinimum": 0, "maximum": _MOST_S}
SECONDS = _text_kind("seconds, more than 0", _seconds, {**_SECONDS_SCHEMA, "pattern": r"^[0-9._eE+-]+$"})
SECONDS_OR_NONE = Kind(
    "seconds, more than 0, or `none`",
    lambda node, at: None if isinstance(node, Scalar) and node.text == "none" else SECONDS.read(node, at),
    {**_SECONDS_SCHEMA, "pattern": r"^(none|[0-9._eE+-]+)$"},
)
SIZE = _text_kind(
    "a size such as 500 MiB or 5 GiB",
    _size,
    {"type": ["number", "string"], "minimum": 0, "pattern": rf"^[0-9]+(\.[0-9]+)? *({'|'.join(_UNITS)})$"},
)
ABSOLUTE = _text_kind("an absolute path on the host", _absolute, _pattern(r"^(?!.*/\.\.(/|$))/"))
INSIDE = _text_kind("a relative path without ..", _inside, _pattern(r"^(?!/)(?!(.*/)?\.\.(/|$))."))
SYSTEM = _text_kind("a system such as x86_64-linux or aarch64-darwin", System.parse, {"enum": list(SYSTEMS)})
ENDPOINT = _text_kind(
    "HOST:PORT, or a port alone for localhost", _endpoint, {**_number(1, 65535), "pattern": r"^(\S+:)?[0-9]+$"}
)
SPREAD = _one_of(Spread)
BUILDER = _one_of(Builder)
BUILD_ON = _one_of(BuildOn)
ON_UNREACHABLE = _one_of(OnUnreachable)
STORE = _one_of(StoreChoice)
FORWARD_USERS = _one_of(ForwardUsers)
_BOOLEANS = {"true": True, "false": False}
BOOLEAN = _text_kind("`true` or `false`", _BOOLEANS.__getitem__, {"enum": [True, False, *_BOOLEANS]})
FLAKE = _text_kind("a flake reference without #", _flake, _pattern("^[^#-][^#]*$"))
WORDS = list_kind("a list of words", WORD)
_NAME_PATTERN = "^(?!REMOTE_RUNNER_)[A-Za-z_][A-Za-z0-9_]*$"
ENV = _mapping_kind("a mapping of variables", _env_name, _NAME_PATTERN, is_env=True)
_SECRET = _text_kind("a variable's name", _secret_name, _pattern(_NAME_PATTERN))
SECRETS = list_kind("a list of variables' names", _SECRET)
OPTIONS = _mapping_kind("a mapping of ssh options", _option_name, "^[A-Za-z0-9]+$", is_env=False)
_WORDS_SCHEMA = {
    "anyOf": [{"type": _SCALAR, "pattern": r"\S"}, {"type": "array", "minItems": 1, "items": {"type": _SCALAR}}]
}
COMMAND = Kind("a command, as a string or a list of words", _read_command, _WORDS_SCHEMA)
CONNECT: Kind = Kind(
    "a command whose standard streams reach a shell on the host; `{host}` is its name",
    lambda node, at: _read_words(node, at, CONNECT),
    _WORDS_SCHEMA,
)
PROGRAM: Kind = Kind(
    "a program with its arguments, as a string or a list of words",
    lambda node, at: _read_words(node, at, PROGRAM),
    _WORDS_SCHEMA,
)
PATTERNS = Kind("names as in a Host line: `lab-*`", _read_patterns, {"anyOf": [{"type": _SCALAR}, WORDS.schema]})
NODES = _text_kind("a whole number from 1 to 100000", _whole(1, 100_000), _number(1, 100_000))
TIME = _text_kind("30m, 2h, 1d, or as salloc takes it", _time)
ARGUMENTS = list_kind("a list of arguments", TEXT)
SLURM_CONNECT = _one_of(SlurmConnect)
HOSTS = Kind(
    "a mapping of host names",
    _read_hosts,
    {
        "type": ["object", "null"],
        "propertyNames": {"allOf": [{"pattern": HOST_PATTERN}, {"pattern": r"^(?![^:]+:[0-9]+$)[^@*?\[]+$"}]},
        "properties": {"localhost": {"$ref": "#/$defs/localhost"}},
        "additionalProperties": {"$ref": "#/$defs/host"},
    },
)
