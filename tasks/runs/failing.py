"""What to read after a failure: an instance's last lines, and its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.typed import as_typed
from tasks.runs.logs import in_words
from tasks.say import near
from testground.go_stack import cut_at_stack, panicked, without_stack
from testground.tags import tag_of

if TYPE_CHECKING:
    from testground.local_exec import InstanceOutcome, RunOutcome

SUCCESS = '{"event":{"success_event":{"group":"%s"}}}'
_MOST_LINES = 8
_TAIL_BYTES = 16384
_LONGEST = 400


def failing_lines(outcome: RunOutcome, failed: Sequence[InstanceOutcome]) -> list[str]:
    """The last lines of the first instance that failed, where all that it said is, and what an application lacks.

    failed: all that failed, in the order in which they did.
    """
    from testground.verdict import Verdict

    if not failed:
        return []
    lines = []
    first = failed[0]
    said = last_lines(first.outputs)
    if said:
        which = ", the first that failed" if len(failed) > 1 else ""
        lines += [f"the last lines of {tag_of(first.group, first.number)}{which}:", *(f"  {line}" for line in said)]
    files = [near(path) for path in map(first.outputs.joinpath, ("stderr", "stdout")) if _size(path)]
    if files:
        # A line each: together they would be wider than a terminal.
        lines += [f"read on in {files[0]}", *(f"       and {file}" for file in files[1:])]
        lines.append(as_typed(f"with timestamps: fab runs.logs {outcome.run}"))
    silent = next((one for one in failed if one.verdict is Verdict.INCOMPLETE), None)
    if silent is not None and not outcome.cancelled:  # of what was killed nobody knows
        lines.append(
            "an application that has succeeded has to say so: let it print at its end,\nas a line of its stdout,\n"
            f"  {SUCCESS % silent.group}\n"
            "  docs/events.md has two lines for sh"
        )
    return lines


def last_lines(outputs: Path) -> list[str]:
    """The end of what the application of an instance said: its stderr, below some of its stdout; events in words.

    Of a panic there is what was said before its stack, and where it was.
    """
    out = [_in_short(line) for line in map(in_words, _tail(outputs / "stdout")) if line and line != "START"]
    said, stack = cut_at_stack("\n".join(_tail(outputs / "stderr")))
    err = [f"stderr: {line}" for line in (*said.splitlines(), panicked(stack)) if line][-_MOST_LINES:]
    room = max(_MOST_LINES - len(err), _MOST_LINES // 4)
    return [line[:_LONGEST] for line in (*out[-room:], *err)]


def _in_short(line: str) -> str:
    word = "CRASH " if line.startswith("CRASH ") else ""
    return word + without_stack(line.removeprefix(word))


def _tail(path: Path) -> list[str]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return []
    with os.fdopen(fd, "rb") as file:
        size_bytes = os.fstat(fd).st_size
        file.seek(max(0, size_bytes - _TAIL_BYTES))
        lines = file.read(_TAIL_BYTES).decode("utf-8", "replace").splitlines()
    return lines[1:] if size_bytes > _TAIL_BYTES else lines


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
