"""`python -m benchmarks`: run all rows or some, print the tables, write the samples as JSON, and draw them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.ground import ground
from benchmarks.peers import INSTALLED
from benchmarks.report import Values, bounds_table, row_table, row_values
from benchmarks.rows import WORKS
from benchmarks.running import measure
from benchmarks.work import OURS, Result

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Exit status 1 when a bound is not met."""
    names = [work.name for work in WORKS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=names, metavar="ROW", help=f"one of {', '.join(names)}")
    parser.add_argument("--but", action="append", choices=names, default=[], metavar="ROW", help="leave a row out")
    parser.add_argument("--repeats", type=int, default=5, help="how often each is measured (5)")
    options = parser.parse_args()
    repeats = max(1, options.repeats)
    chosen = [work for work in WORKS if work.name in (options.only or names) and work.name not in options.but]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # with everything ended and removed
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{time.strftime('%Y-%m-%dT%H-%M-%S')}.json"
    began_s = time.monotonic()
    load_before = os.getloadavg()
    results: dict[str, dict[str, Result]] = {}
    values: Values = {}
    with ground() as everything:
        print(f"{_machine()}; {everything.accounts}; median of {repeats} (least to greatest)\n", flush=True)
        for number, work in enumerate(chosen, 1):
            results[work.name] = measure(work, everything, repeats)
            rows = [row_values(one, results) for one in chosen[:number]]
            print(row_table(rows[-1]), flush=True)
            values = {
                "machine": _machine(),
                "accounts": everything.accounts,
                "repeats": repeats,
                "seconds": round(time.monotonic() - began_s, 1),
                "load": [load_before, os.getloadavg()],
                "rows": rows,
            }
            # After each row: a run that is cut short has measured something as well.
            file.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(bounds_table(values["rows"]))
    print(f"{values['seconds']:.0f} s; all samples: {file}")
    print("`python -m benchmarks.page` puts them into docs/performance.md")
    _draw(file)
    return 1 if any(verdict["met"] is False for row in values["rows"] for verdict in row["bounds"]) else 0


def _draw(file: Path) -> None:
    python, picture = INSTALLED / "python", file.with_suffix(".png")
    if not python.exists():
        print("no plot: matplotlib is not installed (make build/peers/installed)")
        return
    done = subprocess.run([python, Path(__file__).with_name("plot.py"), file, picture, OURS], check=False)
    print(f"plot: {picture}" if done.returncode == 0 else "no plot: see above")


def _machine() -> str:
    return f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}"


if __name__ == "__main__":
    sys.exit(main())
