"""The concrete names in the user's ssh configuration (ssh_config(5): Host, Match, Include)."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from remote_runner.controller import home_directory
from remote_runner.deadline import Deadline
from remote_runner.errors import HostNameError, LocalProgramError, SourceError
from remote_runner.inventory.sources.source import Listing, SshConfigSource
from remote_runner.inventory.ssh_target import check_host_name
from remote_runner.machine.process import run

_MOST_DEPTH = 16  # as ssh
_LINE = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+)(.*)")
_READING = re.compile(r"^debug1: Reading configuration data (.+)$", re.MULTILINE)


def read_ssh_config(source: SshConfigSource, environ: Mapping[str, str], deadline: Deadline) -> Listing:
    """The names that match. Raises `SourceError`, `DeadlineError`."""
    config, home = _users_file(source, environ, deadline), Path(home_directory(environ) or "/")
    found: dict[str, str] = {}
    for name in names_of(config, home):
        if name not in found and matches(name, source.patterns):
            found[name] = _problem(name)
    left_out = tuple(f"{name}: {problem}" for name, problem in found.items() if problem)
    return Listing(str(source), tuple((name, {}) for name, problem in found.items() if not problem), left_out)


def _users_file(source: SshConfigSource, environ: Mapping[str, str], deadline: Deadline) -> Path:
    """The file that the user's ssh reads first: it says so itself."""
    try:
        asked = run(["ssh", "-v", "-G", "remote-runner"], deadline=deadline, environ=environ)
    except LocalProgramError as error:
        raise SourceError(str(source), str(error), next_step="install the OpenSSH client") from error
    read = _READING.findall(asked.stderr.decode(errors="replace"))
    if not read or read[0].startswith("/etc/ssh/"):
        said = "" if asked.status == 0 else asked.stderr.decode(errors="replace")
        raise SourceError(
            str(source),
            "the user has no ssh configuration that can be read",
            said=said,
            next_step="write one (~/.ssh/config), or list the hosts in inventory.yaml",
        )
    return Path(read[0].strip())


def _problem(name: str) -> str:
    try:
        check_host_name(name)
    except HostNameError as error:
        return error.reason
    return "a host's name has no @ here" if "@" in name else ""


def names_of(config: Path, home: Path) -> Iterator[str]:
    """Every name without wildcards that a Host line of the file, or of a file it includes, has; in their order.

    What is included below a Host line counts only where that line's patterns take it.
    """
    yield from _names(config, home, (), 0)


def _names(config: Path, home: Path, around: tuple[Sequence[str], ...], depth: int) -> Iterator[str]:
    try:
        lines = config.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return  # ssh ignores it as well
    block: tuple[Sequence[str], ...] = ()  # the patterns that what follows stands under
    for line in lines:
        found = _LINE.match(line)
        if found is None:
            continue
        keyword, words = found[1].lower(), _words(found[2])
        if keyword == "host":
            block = (words,)
            for word in words:
                if not any(c in word for c in "*?!") and all(matches(word, patterns) for patterns in around):
                    yield word
        elif keyword == "match":
            block = ()  # what it asks may be so
        elif keyword == "include" and depth < _MOST_DEPTH:
            for word in words:
                for path in _included(word, home):
                    yield from _names(path, home, (*around, *block), depth + 1)


def _included(word: str, home: Path) -> list[Path]:
    if word.startswith("~/"):
        word = str(home / word[2:])
    path = home / ".ssh" / word
    return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))


def _words(text: str) -> list[str]:
    try:
        words = shlex.split(text)
    except ValueError:  # a quote without its end: ssh refuses such a file by itself
        words = text.split()
    return list(itertools.takewhile(lambda word: not word.startswith("#"), words))


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether one of the patterns takes the name, and none that begins with ! (ssh_config(5), PATTERNS)."""
    taken = False
    for pattern in patterns:
        is_negated = pattern.startswith("!")
        if _as_regex(pattern.removeprefix("!")).fullmatch(name):
            if is_negated:
                return False
            taken = True
    return taken


def _as_regex(pattern: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern))
