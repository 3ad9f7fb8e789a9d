"""What is shown can be read on light and dark; a whole run is looked at in `tests/integration/test_live_view.py`."""

from __future__ import annotations

import pytest

from tasks.view.colours import without_colours
from tasks.view.display import Display
from tasks.view.draw import draw
from tasks.view.how import How, Level
from tasks.view.reports import RunLines
from tasks.view.table import coloured
from testground.verdict import Report, Word
from tests.contrast import assert_readable, contrast
from tests.tasks.view.test_draw import model_of


def test_the_ratio_is_that_of_wcag() -> None:
    assert contrast(16, 1.0) == pytest.approx(21.0)
    assert contrast(243, 1.0) == pytest.approx(4.54, abs=0.005)
    with pytest.raises(AssertionError):
        assert_readable("\x1b[38;5;46mgreen\x1b[0m", 1)
    with pytest.raises(AssertionError):
        assert_readable("\x1b[2mdim\x1b[0m", 0)


@pytest.mark.parametrize("most", [2, 10])
def test_the_view(most: int) -> None:
    assert_readable("\n".join(draw(model_of(20, 3).view(73.0, most), 140)), 4)


def test_the_tables() -> None:
    words = ("ok", "failed", "crashed", "incomplete", "fail", "warn")
    assert_readable(coloured("\n".join(f"host  {word}" for word in ("outcome", *words))), 3)


def test_the_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Display, "is_drawn", property(lambda self: True))
    monkeypatch.setattr(Display, "line", lambda self, text, *, wait=False: said.append(text))
    RunLines(Display()).said("single[000]", [Report(Word.FAIL, "no route"), Report(Word.OTHER, "hello")], 0)
    assert_readable("\n".join(said), 2)
    assert without_colours(said[0]).splitlines()[1].endswith("single[000] hello")


def test_an_applications_own_colours_are_left_out_and_the_end_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(Display, "is_drawn", property(lambda self: True))
    monkeypatch.setattr(Display, "line", lambda self, text, *, wait=False: said.append(text))
    display = Display()
    display.how = How(Level.STEPS)
    RunLines(display).said(
        "single[000]", [Report(Word.OTHER, "\x1b[1;32mgreen\x1b[0m \x1b[2J"), Report(Word.OK, "")], 0
    )
    shown, ended = without_colours(said[0]).splitlines()
    assert shown.endswith("single[000] green \\x1b[2J")
    assert ended.endswith("single[000] OK")
