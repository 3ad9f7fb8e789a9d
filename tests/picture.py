"""Writes docs/live-view.svg and docs/report.png: `make demo` as it is seen in a terminal, and its report in a browser.

`python -m tests.picture`, by hand; it takes tmux and chromium.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.chromium import browser
from tests.tmux import Tmux

ROOT = Path(__file__).parent.parent
WIDTH, HEIGHT = 100, 30
_LIMIT_S = 120.0
_LOOK_S = 0.2
_LAST_S = 6.0


def record(line: str, until: str) -> list[tuple[float, str]]:
    """The screens of a terminal in which that line is typed, each with how long it was seen; up to the prompt."""
    frames: list[tuple[float, str]] = []
    with tempfile.TemporaryDirectory() as name:
        environ = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ} | {"LANG": "C.UTF-8"}
        with Tmux.started(Path(name), WIDTH, HEIGHT, environ, ROOT) as tmux:
            tmux.wait_for(lambda screen: screen.startswith("$"))
            tmux.type(line)
            ends_s = time.monotonic() + _LIMIT_S
            while time.monotonic() < ends_s:
                plain = tmux.screen()
                screen = tmux.screen(colours=True)
                if not frames or frames[-1][1] != screen:
                    frames.append((_LOOK_S, screen))
                else:
                    frames[-1] = (frames[-1][0] + _LOOK_S, screen)
                if until in plain and plain.rstrip().endswith("$"):
                    break
                time.sleep(_LOOK_S)
    return [*frames[:-1], (_LAST_S, frames[-1][1])]


def animated(frames: Sequence[tuple[float, str]], title: str) -> str:
    """One SVG that shows the frames in turn, without anything from elsewhere."""
    total_s = sum(seconds for seconds, _ in frames)
    begin_s, parts = 0.0, []
    for number, (seconds, screen) in enumerate(frames):
        drawn = _still(screen, title, number)
        ends_s = begin_s + seconds
        times = f"0;{begin_s / total_s:.4f};{min(1.0, ends_s / total_s):.4f}"
        parts.append(
            f'<g><animate attributeName="display" values="none;inline;none" keyTimes="{times}" dur="{total_s:.1f}s" '
            f'calcMode="discrete" repeatCount="indefinite"/>{drawn}</g>'
        )
        begin_s = ends_s
    size = re.search(r'viewBox="([^"]+)"', parts[-1])
    assert size
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{size[1]}">{"".join(parts)}</svg>\n'


def _still(screen: str, title: str, number: int) -> str:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, legacy_windows=False)
        for line in (screen.splitlines() + [""] * HEIGHT)[:HEIGHT]:
            text = Text.from_ansi(line)
            text.pad_right(WIDTH - text.cell_len)
            console.print(text, no_wrap=True, overflow="crop")
    svg = console.export_svg(title=title, unique_id=f"f{number}")
    svg = re.sub(r"<!--.*?-->", "", svg, flags=re.DOTALL)
    return re.sub(r"@font-face\s*\{.*?\}", "", svg, flags=re.DOTALL)  # its fonts would come from the network


def picture_report(target: Path) -> None:
    """The first screen of the last report here."""
    report = max(ROOT.glob("outputs/local_exec/*/*/report.html"), key=lambda path: path.stat().st_mtime)
    with tempfile.TemporaryDirectory() as name, browser(Path(name)) as page:
        page.size(1085, 880)
        page.open(report)
        page.picture(target, whole=False)


if __name__ == "__main__":
    seen = record("make demo ARGS='--instances 8'", "report:")
    (ROOT / "docs" / "live-view.svg").write_text(animated(seen, "make demo"), encoding="utf-8")
    picture_report(ROOT / "docs" / "report.png")
