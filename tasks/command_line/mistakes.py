"""Messages for a command line with a mistake: what is wrong, and the line that was probably meant."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

_UNKNOWN = re.compile(r"No idea what '(?P<word>.*)' is!", re.DOTALL)
_NO_VALUE = re.compile(r"Flag .*?'(?P<flag>--?[\w-]+)'.* needed value")
# What a bare word behind a task most probably is: the first of these that is an option of the task.
_BARE = ("--testcase", "--host")
_RUN_ID = re.compile(r"[0-9a-v]{20}")


@dataclass(frozen=True)
class Line:
    """What was typed behind the program's own options, and what stands behind `--`."""

    words: tuple[str, ...]
    remainder: str = ""


def explain(problem: str, line: Line, task: str | None, flags: Sequence[str], tasks: Sequence[str]) -> str:
    """Invoke's words for a mistake, in ours.

    task: the one whose options were being read, with its `flags`; tasks: the names of all.
    """
    found = _UNKNOWN.fullmatch(problem)
    if found is None:
        lacking = _NO_VALUE.search(problem)
        return f"{lacking['flag']} needs a value; fab --help {task} has all options" if lacking and task else problem
    word = found["word"]
    if task is not None and word.startswith("-"):
        return f"{task}: has no option {word}{_meant(word, flags)}; fab --help {task} has all of them"
    if word.startswith("-"):
        # Not --help: Fabric prints its own before it reads a fabfile.
        behind = _behind_its_task(line, word, tasks)
        return f"{word} is not an option of fab itself{behind}; fab without a task lists those"
    nested = f"{(task or '').partition('.')[0]}.{word}"
    if task is not None and nested in tasks:
        return f"there is no task {word}: fab {nested}"
    option = next((option for option in _BARE if option in flags), None)
    if "--run" in flags and (task == "fetch" or _RUN_ID.fullmatch(word)):
        option = "--run"
    if task is not None and option is not None and not difflib.get_close_matches(word, tasks, 1, 0.8):
        return f"{task}: {word!r} stands where an option belongs: fab {_corrected(line, word, task, option)}"
    group = [name for name in tasks if name.startswith(f"{word}.")]
    if group:
        return f"there is no task {word} alone: fab {' or '.join(group)}"
    return f"there is no task {word}{_meant(word, tasks)}; fab --list shows them"


def _behind_its_task(line: Line, word: str, tasks: Sequence[str]) -> str:
    """What a task's own option that stands before the task is told."""
    at = next((at for at, other in enumerate(line.words) if other in tasks), None)
    if at is None or word not in line.words[:at]:
        return ""
    before = [other for other in line.words[:at] if other != word]
    text = shlex.join([*before, line.words[at], word, *line.words[at + 1 :]])
    return f", one of a task stands behind it: fab {text}{f' -- {line.remainder}' if line.remainder else ''}"


def _meant(word: str, names: Sequence[str]) -> str:
    by_last_part = {name.rpartition(".")[2]: name for name in names}
    near = difflib.get_close_matches(word, [*names, *by_last_part], 2)
    near = list(dict.fromkeys(by_last_part.get(name, name) for name in near))
    return f" (did you mean {' or '.join(near)}?)" if near else ""


def _corrected(line: Line, word: str, task: str, option: str) -> str:
    """The line with the option before the word, and a command behind --."""
    at = line.words.index(word) if word in line.words else len(line.words)
    before, after = [*line.words[:at]], [*line.words[at:]]
    has_host = any(given in ("-H", "--hosts") or given.partition("=")[0] == "--host" for given in before)
    if task == "run" and not line.remainder and (has_host or len(after) > 1):
        if not has_host:
            before += [option, after.pop(0)]
        return shlex.join([*before, "--", *after])
    text = shlex.join([*before, option, *after])
    return f"{text} -- {line.remainder}" if line.remainder else text
