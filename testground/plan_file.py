"""Reading a plan's TOML files: each value by its key path, with the mistake named where it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from testground.errors import PlanFileError

_MOST_CHARACTERS = 4 << 20
_LARGEST_SHARE = 1e18  # times any count it is still a number

# What tomli says of a mistake -> what to do about it.
_TOML_MISTAKES = {
    "Invalid value": 'put a text in quotes: key = "text"',
    "Illegal character '\\n'": "close the quotes in the same line",
    "Unterminated string": "close the quotes",
    "Unclosed": "close the bracket",
    "after a statement": "put each `key = value` into a line of its own",
    "Expected '='": "write `key = value`, or a table's name in brackets: [name]",
    "Expected ']'": "close the table's name: [name], or [[name]] for one of several",
    "overwrite": "give each key once",
    "twice": "name each table once; one of several is [[name]]",
}


@dataclass(frozen=True)
class Table:
    """One table of a TOML file: `file` and `path` say where it stands, `error` is raised for what is wrong in it.

    `values` has the keys as their reader writes them. `unknown` are keys that nobody reads, each of them told in
    `warnings`, which all tables of a file share. `source` is the file's text.
    """

    file: str
    path: str
    values: Mapping[str, Any]
    error: type[PlanFileError]
    warnings: list[str]
    unknown: tuple[str, ...] = ()
    source: str = ""

    def key(self, name: str) -> str:
        """The key path of `name` in this table."""
        return f"{self.path}.{name}" if self.path else name

    def fail(self, name: str, problem: str, *, next_step: str = "") -> PlanFileError:
        """The error to raise about the value called `name`."""
        return self.error(self.file, self.key(name) if name else self.path, problem, next_step=next_step)

    def missing(self, name: str, expected: str) -> PlanFileError:
        """The error to raise where `name` is absent; points out an unknown key that may stand for it."""
        nearest = _nearest(name, self.unknown)
        line = _line_of(nearest, self.source) if nearest else 0
        hint = f" (is it {nearest}{f' in line {line}' if line else ''}?)" if nearest else ""
        return self.fail(name, f"is missing; expected {expected}{hint}")

    def text(self, name: str, default: str | None = None) -> str:
        """A string; one without a default must be there and not be empty."""
        value = self._get(name, str, "a string")
        if value is None or (default is None and not value):
            if default is not None:
                return default
            raise self.missing(name, "a string") if value is None else self.fail(name, "is empty; expected a string")
        return str(value)

    def flag(self, name: str) -> bool:
        """true or false; false where it is absent."""
        return bool(self._get(name, bool, "true or false"))

    def whole(self, name: str) -> int:
        """A whole number; 0 where it is absent."""
        return int(self._get(name, int, "a whole number") or 0)

    def count(self, name: str) -> int:
        """A whole number, 0 or more; 0 where it is absent."""
        value = self.whole(name)
        if value < 0:
            raise self.fail(name, f"{_found(value)}; expected a whole number, 0 or more")
        return value

    def fraction(self, name: str) -> float:
        """A number with a decimal point (`1.0`, not `1`, as in testground), 0 or more; 0 where it is absent."""
        value = self.values.get(name, 0.0)
        if not isinstance(value, float) or not 0 <= value < _LARGEST_SHARE:
            step = f"write {value}.0" if isinstance(value, int) and not isinstance(value, bool) else ""
            raise self.fail(
                name, f"{_found(value)}; expected a number with a decimal point, 0.0 or more", next_step=step
            )
        return value

    def texts(self, name: str) -> dict[str, str]:
        """A table of strings; empty where it is absent."""
        table = self.free(name)
        for key, value in table.values.items():
            if not isinstance(value, str):
                raise table.fail(key, f"{_found(value)}; expected a string", next_step="write the value in quotes")
        return dict(table.values)

    def strings(self, name: str) -> list[str]:
        """A list of strings; empty where it is absent."""
        value = self.values.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise self.fail(name, "is not a list of strings")
        return value

    def free(self, name: str) -> Table:
        """A table whose keys are its writer's own; empty where it is absent."""
        return self._below(name, self._get(name, dict, "a table") or {}, None)

    def table(self, name: str, keys: Sequence[str]) -> Table:
        """A table of these keys; empty where it is absent."""
        return self._below(name, self._get(name, dict, "a table") or {}, keys)

    def tables(self, name: str, keys: Sequence[str]) -> tuple[Table, ...]:
        """The tables of a `[[name]]` list, each of these keys; none where it is absent."""
        value = self._get(name, list, f"a list of tables, [[{self.key(name)}]]") or []
        found = []
        for number, item in enumerate(value):
            if not isinstance(item, dict):
                raise self.fail(f"{name}[{number}]", f"{_found(item)}; expected a table, [[{self.key(name)}]]")
            found.append(self._below(f"{name}[{number}]", item, keys))
        return tuple(found)

    def _below(self, name: str, values: Mapping[str, Any], keys: Sequence[str] | None) -> Table:
        return _table(self.file, self.key(name), values, self.error, self.warnings, keys, self.source)

    def _get(self, name: str, kind: type, expected: str) -> Any:
        value = self.values.get(name)
        if value is not None and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
            raise self.fail(name, f"{_found(value)}; expected {expected}")
        return value


def _table(
    file: str,
    path: str,
    values: Mapping[str, Any],
    error: type[PlanFileError],
    warnings: list[str],
    keys: Sequence[str] | None,
    text: str,
) -> Table:
    """The table with its keys as `keys` writes them, in whatever case they stand there; all of them without `keys`.

    So does BurntSushi/toml, by which testground reads. It makes one of tables whose keys differ in case only; of other
    such values it takes any, here that whose key is written as in `keys`.
    """
    if keys is None:
        return Table(file, path, values, error, warnings, source=text)
    found = {key: values[key] for key in keys if key in values}
    unknown = []
    for name, value in values.items():
        key = next((key for key in keys if len(key) == len(name) and key.casefold() == name.casefold()), None)
        if key is None:
            unknown.append(name)
        elif key not in found:
            found[key] = value
        elif key != name and isinstance(value, dict) and isinstance(found[key], dict):
            found[key] = _joined(found[key], value)
        elif key != name:
            unknown.append(name)
    table = Table(file, path, found, error, warnings, tuple(unknown), text)
    for name in unknown:
        line = _line_of(name, text)
        where = f"{file}:{line}" if line else file
        warnings.append(f"{where}: {table.key(name)}: is unknown and changes nothing; {known(keys, name)}")
    return table


def _line_of(name: str, text: str) -> int:
    """The line in which the key stands, where there is one such line; else 0 (the parser keeps no lines)."""
    key = rf"""["']?{re.escape(name)}["']?"""
    stands = re.compile(rf"^\s*(\[\[?([^\]#]*\.)?\s*{key}\s*[.\]]|([^#=]*[{{,.]\s*)?{key}\s*[=.])|[{{,]\s*{key}\s*=")
    found = [number for number, line in enumerate(text.splitlines(), start=1) if stands.search(line)]
    return found[0] if len(found) == 1 or (found and _is_header(text, found)) else 0


def _is_header(text: str, lines: Sequence[int]) -> bool:
    """Whether all these are headers of one list of tables, of which the first is as good as any."""
    all_lines = text.splitlines()
    return all(all_lines[line - 1].lstrip().startswith("[[") for line in lines)


def _joined(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    joined = {**other, **one}
    for key in one.keys() & other.keys():
        if isinstance(one[key], dict) and isinstance(other[key], dict):
            joined[key] = _joined(one[key], other[key])
    return joined


def load(path: Path, error: type[PlanFileError], if_missing: str) -> tuple[str, str]:
    """The file's name for messages and its text. Raises `error` where it cannot be read.

    `if_missing` is what to do where there is no such file.
    """
    try:
        return str(path), path.read_text(encoding="utf-8")
    except FileNotFoundError as fault:
        raise error(str(path), "", f"cannot be read: {fault.strerror}", next_step=if_missing) from fault
    except OSError as fault:
        raise error(str(path), "", f"cannot be read: {fault.strerror}", next_step="make it a readable file") from fault
    except UnicodeDecodeError as fault:
        raise error(str(path), "", f"is not UTF-8 text: {fault.reason} at byte {fault.start}") from fault


def parse(text: str, file: str, error: type[PlanFileError], keys: Sequence[str]) -> Table:
    """The file's root table, of these keys. Raises `error` with the place of what is not TOML."""
    import tomli

    if len(text) > _MOST_CHARACTERS:
        raise error(file, "", f"has {len(text)} characters; expected at most {_MOST_CHARACTERS}")
    try:
        values = tomli.loads(text)
        _check_numbers(values)
    except tomli.TOMLDecodeError as fault:
        # Not the whole line: a template may have put a secret into the value.
        lines = text.splitlines()
        begins = lines[fault.lineno - 1].partition("=")[0].strip()[:60] if fault.lineno <= len(lines) else ""
        problem = f"is not valid TOML: {fault}" + (f": {begins} …" if begins else "")
        next_step = next((step for words, step in _TOML_MISTAKES.items() if words in fault.msg), "")
        raise error(file, "", problem, next_step=next_step) from fault
    except (ValueError, RecursionError) as fault:  # a number of 5,000 digits; nested without end
        raise error(file, "", f"is not valid TOML: {fault}") from fault
    return _table(file, "", values, error, [], keys, text)


def _check_numbers(value: object) -> None:
    """Raises `ValueError` for a whole number of more than 64 bits, which Go does not read and Python may not print."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _check_numbers(item)
    elif isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"a whole number of {value.bit_length()} bits; 64 is the most")


def known(names: Iterable[str], given: str) -> str:
    """The known names for a message, the nearest to `given` pointed out."""
    names = tuple(names)
    nearest = _nearest(given, names)
    hint = f"did you mean {nearest}? " if nearest else ""
    return f"{hint}known: {', '.join(names) or 'none'}"


def _nearest(given: str, names: Sequence[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(given, names, 1)), "")


def _found(value: object) -> str:
    if value is None:
        return "is missing"
    kind = {bool: "a flag", int: "a number", float: "a number", str: "a string", list: "a list", dict: "a table"}
    shown = str(value).lower() if isinstance(value, bool) else repr(value)
    return f"is {kind.get(type(value), 'a value')}, {shown if len(shown) <= 60 else shown[:57] + '…'}"
