"""`python -m benchmarks.readme [FILE …]`: write the README's "How fast" from the JSON of a run, else of the last.

Of several files the later one's rows count.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.__main__ import RESULTS
from benchmarks.ground import ROOT
from benchmarks.report import Values, readme_section, with_section
from benchmarks.rows import WORKS


def main() -> None:
    """Ends with a message where a row has no result."""
    files = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))[-1:]
    runs: list[Values] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows = {row["name"]: row for run in runs for row in run["rows"]}
    missing = [work.name for work in WORKS if work.name not in rows]
    if missing:
        sys.exit(f"no result of: {', '.join(missing)}\nrun make bench first")
    section = readme_section({**runs[0], "rows": [rows[work.name] for work in WORKS]})
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), section), encoding="utf-8")


if __name__ == "__main__":
    main()
