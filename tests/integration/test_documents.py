"""Every console example of README and docs is typed on real hosts, and has to print what stands there.

A page is a terminal: its blocks run in their order, in one directory. What differs from run to run (numbers, ids,
times, the width of columns) is not compared. A line `…` stands for any lines, and `…` at a line's end for any rest.
Two comments speak to this test: `<!-- write: FILE -->` puts the next block into a file, `<!-- skip: WHY -->` leaves
the next one out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HOSTS = ("dex", "fir")
_BLOCK = re.compile(r"(?:<!-- (write|skip): ([^>]*?) -->\n)?```(\w+)\n(.*?)```", re.DOTALL)
LIMIT_S = 300


@dataclass(frozen=True)
class Typed:
    """A command line of a page, and what stands below it."""

    command: str
    printed: tuple[str, ...]


def steps_of(page: str) -> Iterator[Typed | tuple[str, str]]:
    """What a page has typed, and files that it has written, in their order."""
    for about, what, kind, body in _BLOCK.findall(page):
        if about == "write":
            yield what, body
        elif kind == "console" and about != "skip":
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, *printed = re.sub(r"\\\n\s*", "", part).rstrip("\n").split("\n")
                yield Typed(command, tuple(printed))


def runs(page: Path) -> bool:
    return any(isinstance(step, Typed) for step in steps_of(page.read_text(encoding="utf-8")))


def pattern_of(printed: tuple[str, ...]) -> str:
    """What printed lines may be; numbers, ids and blanks are whatever they are."""
    lines = ["(.*\n)*?" if line.strip() == "…" else f"{_line(line)}\n" for line in printed if line.strip()]
    return "".join(lines)


def _line(line: str) -> str:
    rest = line.rstrip().endswith("…")
    text = plain(line.rstrip().removesuffix("…"))
    return re.escape(text) + (".*" if rest else "")


def plain(line: str) -> str:
    """A line without what differs from run to run."""
    line = re.sub(r"(?<![\w.])~?/[\w./~-]+", "PATH", line)
    line = re.sub(r"\b[0-9a-v]{20}\b", "ID", line)
    line = re.sub(r"[+-]?\d+(\.\d+)?", "0", line)
    return " ".join(line.split())


def printed_by(text: str) -> str:
    return "".join(f"{plain(line)}\n" for line in text.splitlines() if line.strip())


@pytest.fixture
def terminal(
    lan: Lan, keys: Keys, tmp_path: Path, controller: Controller, known_by_name: Callable[[TestHost], str]
) -> Iterator[Callable[[str], str]]:
    """Type a line in a shell of the test's own, with two hosts; returns what it prints."""
    home = tmp_path / "home"
    home.mkdir()
    environ = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "COLUMNS": "140",
    }
    here = tmp_path / "here"
    here.write_text(str(home))
    with ExitStack() as stack:
        for name in HOSTS:
            known_by_name(stack.enter_context(NetnsHost.start(lan, tmp_path / name, name=name, keys=keys)))

        def typed(command: str) -> str:
            script = f"cd {here.read_text().strip()} && {command}\nstatus=$?; pwd >{here}; exit $status"
            done = subprocess.run(
                ["bash", "-c", script],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LIMIT_S,
                check=False,
            )
            return done.stdout

        typed.here = lambda: Path(here.read_text().strip())  # type: ignore[attr-defined]
        yield typed


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page)], ids=lambda page: page.stem)
def test_its_examples_print_what_stands_there(page: Path, terminal: Callable[[str], str]) -> None:
    application = terminal.here() / "hello.sh"  # type: ignore[attr-defined]
    application.write_text("#!/bin/sh\n", encoding="utf-8")
    application.chmod(0o755)
    for step in steps_of(page.read_text(encoding="utf-8")):
        if isinstance(step, tuple):
            name, text = step
            (terminal.here() / name).write_text(text, encoding="utf-8")  # type: ignore[attr-defined]
            continue
        came = terminal(step.command)
        expected = pattern_of(step.printed)
        assert re.fullmatch(expected, printed_by(came)), f"$ {step.command}\n{came}\nexpected:\n{expected}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_example_is_kept_from_this_test(page: Path) -> None:
    for about, _, kind, body in _BLOCK.findall(page.read_text(encoding="utf-8")):
        assert kind == "console" or not re.search(r"^\$ ", body, re.MULTILINE), f"a console in {kind!r}: {body}"
        assert kind == "console" or about != "skip", f"nothing to skip: {body}"


def test_what_differs_is_not_compared_and_the_rest_is() -> None:
    page = "```console\n$ a\n1.5 s  x\n…\nrun dc5lsr7j2tkf5tnj3qtg in outputs/run/dc5lsr7j2tkf5tnj3qtg/x\n```\n"
    (step,) = steps_of(page)
    assert isinstance(step, Typed)
    for came, fits in (
        ("0.2 s x\nmore\nrun dc5lsr7j2tkf5tnj3q11 in outputs/run/dc5lsr7j2tkf5tnj3q11/x\n", True),
        ("0.2 s y\nmore\nrun dc5lsr7j2tkf5tnj3q11 in outputs/run/dc5lsr7j2tkf5tnj3q11/x\n", False),
        ("0.2 s x\n", False),
    ):
        assert bool(re.fullmatch(pattern_of(step.printed), printed_by(came))) is fits
