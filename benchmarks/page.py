"""`python -m benchmarks.page [FILE …]`: write docs/performance.md's table from the JSON of a run, else of the last.

Of several files the later one's rows count. A row without a result is left out.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.__main__ import RESULTS
from benchmarks.ground import ROOT
from benchmarks.report import Values, table_section, with_section
from benchmarks.rows import WORKS

PAGE = ROOT / "docs" / "performance.md"


def main() -> None:
    """Ends with a message where there is no result at all."""
    files = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))[-1:]
    runs: list[Values] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = {row["name"]: row for run in runs for row in run["rows"]}
    if not rows:
        sys.exit("no results: run make bench first")
    section = table_section({**runs[0], "rows": [rows[work.name] for work in WORKS if work.name in rows]})
    PAGE.write_text(with_section(PAGE.read_text(encoding="utf-8"), section), encoding="utf-8")


if __name__ == "__main__":
    main()
