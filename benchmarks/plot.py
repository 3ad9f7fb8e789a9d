"""Draws the wall times of a run: `python plot.py RESULT.json PICTURE OURS`, by the Python that has matplotlib."""

from __future__ import annotations

import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

_COLUMNS = 3
_TITLE_CHARACTERS = 62
_OURS, _OTHERS, _SPREAD = "#1f6fb4", "#b8bec6", "#444444"


def main(file: str, picture: str, ours: str) -> None:
    """One small chart for each row: a bar for each contestant, the median, with least and greatest as a line."""
    rows = [row for row in json.loads(Path(file).read_text(encoding="utf-8"))["rows"] if _timed(row)]
    lines = -(-len(rows) // _COLUMNS)
    heights = [max(len(_timed(row)) for row in rows[at : at + _COLUMNS]) + 2 for at in range(0, len(rows), _COLUMNS)]
    figure, places = pyplot.subplots(
        lines, _COLUMNS, figsize=(6.4 * _COLUMNS, 1 + 0.3 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for place in places.flat[len(rows) :]:
        place.axis("off")
    for number, (place, row) in enumerate(zip(places.flat, rows, strict=False)):
        _chart(place, row, ours, bars=heights[number // _COLUMNS] - 2)
    figure.suptitle("Wall time: median, least and greatest; dashed: the bound of remote-runner\n", fontsize=11)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)


def _timed(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [one for one in row["contestants"] if one["trials"]]


def _chart(place: Any, row: dict[str, Any], ours: str, bars: int) -> None:
    contestants = _timed(row)[::-1]
    times = [[trial["wall_s"] for trial in one["trials"]] for one in contestants]
    middles = [statistics.median(one) for one in times]
    spread = [
        [m - min(t) for m, t in zip(middles, times, strict=True)],
        [max(t) - m for m, t in zip(middles, times, strict=True)],
    ]
    colours = [_OURS if one["name"] == ours else _OTHERS for one in contestants]
    names = [one["name"].replace("`", "").replace("\\", "") for one in contestants]
    place.barh(names, middles, xerr=spread, color=colours, ecolor=_SPREAD, capsize=2)
    widest = max(max(one) for one in times)
    for at, (one, middle, series) in enumerate(zip(contestants, middles, times, strict=True)):
        failed = max(trial.get("failed", 0) for trial in one["trials"])
        words = f" {middle:.3g} s" + (f", {failed:.0f} failed" if failed else "")
        place.text(max(series), at, words, va="center", fontsize=8)
    place.set_xlim(0, 1.3 * widest)
    place.set_ylim(len(contestants) - bars - 0.6, len(contestants) - 0.4)  # bars of one size along a line of charts
    for verdict in row["bounds"]:
        if verdict["measure"] == "wall_s" and verdict["limit"] is not None and verdict["limit"] < 1.3 * widest:
            place.axvline(verdict["limit"], color="#c0392b", linestyle="--", linewidth=1)
    place.set_title(textwrap.fill(row["title"], _TITLE_CHARACTERS), fontsize=9)
    place.tick_params(labelsize=8)
    place.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    main(*sys.argv[1:])
