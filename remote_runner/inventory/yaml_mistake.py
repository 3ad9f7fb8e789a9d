"""What is wrong with invalid YAML, in terms of the file; the parser's messages are about its grammar."""

from __future__ import annotations

import re
from typing import Any

from remote_runner.errors import InventoryError

_MOST_SHOWN = 100

_KINDS = (
    (
        r"found undefined alias",
        "a value that starts with `*`",
        "quotes around it (`*name` repeats what has an `&name`)",
    ),
    (r"quoted scalar.*(end of stream|document indicator)", "a quote that is never closed", "a closing quote"),
    (r"flow (sequence|mapping|node)|',' or '[]}]'", "a bracket that is never closed, or no comma", "[a, b] or {a: b}"),
    (r"could not find expected ':'|not find expected ':'", "a line without a colon", "`key: value`"),
    (r"block (mapping|collection|sequence)|expected key|block end", "indentation like no line's above", "{column}"),
)
_COLUMN = "the keys of one mapping in the same column, more to the right than the key they belong to"


def mistake(text: str, file: str, error: Any) -> InventoryError:
    """The error for what PyYAML says (a `MarkedYAMLError`), with the line and a caret below the place."""
    mark = error.problem_mark or error.context_mark
    problem = ", ".join(part for part in (error.context, error.problem) if part)
    if mark is None:
        return InventoryError(file, None, "", found=problem, expected="YAML")
    lines = text.splitlines()
    # An end that is missing is noticed behind the last line.
    at = min(mark.line, max(len(lines) - 1, 0))
    line = lines[at] if lines else ""
    column = min(mark.column, len(line)) if at == mark.line else len(line)
    above = next((one for one in reversed(lines[:at]) if one.strip() and not one.lstrip().startswith("#")), "")
    found, expected = _described(above, line, column, problem)
    shown = line[:_MOST_SHOWN] + ("…" if len(line) > _MOST_SHOWN else "")
    below = "" if column > _MOST_SHOWN else "\n  | " + re.sub(r"[^\t]", " ", line[:column]) + "^"
    excerpt = f"\n  | {shown}{below}"
    return InventoryError(file, at + 1, "", found=found, expected=expected, column=column + 1, excerpt=excerpt)


def _described(above: str, line: str, column: int, problem: str) -> tuple[str, str]:
    """What was found there and what is expected."""
    before, here = line[:column], line[column : column + 1]
    if "\t" in line[: len(line) - len(line.lstrip())] or ("cannot start any token" in problem and here == "\t"):
        return "a tab in the indentation", "spaces: YAML takes no tabs there"
    if "cannot start any token" in problem or "unexpected character" in problem:
        return f"a value that starts with {here!r}", "quotes around it"
    if "mapping values are not allowed" in problem or (here == ":" and "flow mapping" in problem):
        if ":" not in above and not re.search(r":\s", before):
            return "the line above has no colon", "`key: value`, or `key:` alone"
        if re.search(r":\s", before):
            return "a second colon in the line", 'a value with a colon in quotes: `key: "a: b"`'
        return "a key below a value", _COLUMN
    if "block sequence entries are not allowed" in problem:
        return "a list's `-` behind a key", "each `- item` in a line of its own below the key"
    for pattern, found, expected in _KINDS:
        if re.search(pattern, problem):
            return found, expected.replace("{column}", _COLUMN)
    return problem, "YAML"
