"""`python -m benchmarks.readme [FILE]`: write the README's "How fast" from the JSON of a run, else of the last."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.__main__ import RESULTS
from benchmarks.ground import ROOT
from benchmarks.report import readme_section, with_section


def main() -> None:
    """Ends with a message where there is no result."""
    files = [Path(name) for name in sys.argv[1:]] or sorted(RESULTS.glob("*.json"))
    if not files:
        sys.exit("no result yet: make bench")
    section = readme_section(json.loads(files[-1].read_text(encoding="utf-8")))
    readme = ROOT / "README.md"
    readme.write_text(with_section(readme.read_text(encoding="utf-8"), section), encoding="utf-8")


if __name__ == "__main__":
    main()
