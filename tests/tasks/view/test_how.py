from __future__ import annotations

import pytest

from remote_runner.instance.reporter import STEP, WARNING
from tasks.view.how import How, Level, is_drawn
from tasks.view.reports import least_level
from testground.verdict import Report, Word

TERMINAL = {"TERM": "xterm-256color"}


@pytest.mark.parametrize(
    ("how", "environ", "is_terminal", "drawn"),
    [
        (How(), TERMINAL, True, True),
        (How(Level.ALL), TERMINAL, True, True),
        (How(), TERMINAL, False, False),
        (How(plain=True), TERMINAL, True, False),
        (How(Level.QUIET), TERMINAL, True, False),
        (How(), {"TERM": "dumb"}, True, False),
        (How(), {}, True, False),
        (How(), {**TERMINAL, "NO_COLOR": "1"}, True, False),
        (How(), {**TERMINAL, "NO_COLOR": ""}, True, True),
    ],
)
def test_where_it_is_drawn(how: How, environ: dict[str, str], is_terminal: bool, drawn: bool) -> None:
    assert is_drawn(how, environ, is_terminal=is_terminal) == drawn


@pytest.mark.parametrize(("quiet", "verbose", "level"), [(False, 0, 0), (False, 1, 1), (False, 3, 2), (True, 2, -1)])
def test_levels(quiet: bool, verbose: int, level: int) -> None:
    assert How.from_options(quiet=quiet, verbose=verbose, plain=False).level == level


@pytest.mark.parametrize(
    ("report", "level"),
    [
        (Report(Word.OTHER, "a line"), Level.USUAL),
        (Report(Word.ERROR, "a line on stderr"), Level.USUAL),
        (Report(Word.MESSAGE, "the application's"), Level.USUAL),
        (Report(Word.MESSAGE, "ours", msg=WARNING), Level.USUAL),
        (Report(Word.FAIL, "why"), Level.USUAL),
        (Report(Word.MESSAGE, "push: …", msg=STEP), Level.STEPS),
        (Report(Word.OK, ""), Level.STEPS),
        (Report(Word.START, "{}"), Level.ALL),
    ],
)
def test_from_which_level_on_something_is_told(report: Report, level: Level) -> None:
    assert least_level(report) is level
