"""Writing the report of one or more runs to a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from remote_runner.machine.files import write_atomically
from remote_runner.report.library import script
from remote_runner.report.page import page
from remote_runner.report.reading import read_run

REPORT_FILE = "report.html"


def write_report(directories: Sequence[Path], target: Path, cache: Path) -> None:
    """Write the page of these runs. Raises `ControllerError`: no run there, no library, no room."""
    library = script(cache)
    text = page([read_run(directory) for directory in directories], library)
    # A name from a host may hold half a character; the page shows that it does.
    write_atomically(target, text.encode("utf-8", "replace"), mode=0o644)
