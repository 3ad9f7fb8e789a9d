"""`python -m benchmarks`: run all or some, print the table, write the samples as JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.crossing import count, far_away
from benchmarks.crowds import crowds
from benchmarks.files import files
from benchmarks.ground import Ground, ground
from benchmarks.measuring import Row
from benchmarks.nix import nix
from benchmarks.start_up import start_up
from benchmarks.streams import streams
from benchmarks.sync_service import sync_service

SUBJECTS: dict[str, Callable[[Ground, int], Iterator[Row]]] = {
    "count": count,
    "far-away": far_away,
    "crowds": crowds,
    "streams": streams,
    "files": files,
    "start-up": start_up,
    "nix": nix,
    "sync-service": sync_service,
}
RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Exit status 1 when a bound is not met."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="measure this alone (may be repeated)")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured (5)")
    options = parser.parse_args()
    repeats = max(1, options.repeats)
    began_s = time.monotonic()
    rows: list[Row] = []
    print(f"{_machine()}; median of {repeats} (least to greatest)\n")
    print("| | remote-runner | the script, or as named | bound | met |\n| --- | --- | --- | --- | --- |", flush=True)
    with ground() as all_of_it:
        for name in options.only or SUBJECTS:
            for row in SUBJECTS[name](all_of_it, repeats):
                rows.append(row)
                met = "" if row.met is None else "yes" if row.met else "**no**"
                print(f"| {row.subject} | {row.ours} | {row.other} | {row.bound} | {met} |", flush=True)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    values = {
        "machine": _machine(),
        "repeats": repeats,
        "seconds": round(time.monotonic() - began_s, 1),
        "load_after": os.getloadavg(),
        "rows": [vars(row) for row in rows],
    }
    file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"all samples: {file}", file=sys.stderr)
    return 1 if any(row.met is False for row in rows) else 0


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
