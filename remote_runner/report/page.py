"""The report's page: one HTML file with data, charts and the drawing library, which may not use the network."""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from remote_runner.report.charts import COLOURS, OUTCOME_COLOURS, STEP_COLOURS, charts
from remote_runner.report.values import Run
from remote_runner.report.views import run_view

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main id="page"><noscript>This report is drawn by JavaScript, which is switched off here.</noscript></main>
<script type="application/json" id="report">{data}</script>
<script>{library}</script>
<script>{program}</script>
</body>
</html>
"""


def page(runs: Sequence[Run], library: str) -> str:
    """The page of one run, or of several with their comparison."""
    data = {
        "runs": [run_view(run) for run in runs],
        "comparison": _compared(runs),
        "charts": charts(),
        "colours": {"steps": STEP_COLOURS, "outcomes": OUTCOME_COLOURS, "labels": COLOURS},
    }
    library = library.replace("</script", "<\\/script")
    program = _ours("page.js")
    first = runs[0]
    title = f"{first.plan}:{first.case}, " + (f"{len(runs)} runs" if len(runs) > 1 else f"run {first.id}")
    return _PAGE.format(
        policy=_policy(library, program),
        title=escape(title),
        style=_ours("page.css"),
        data=_json(data),
        library=library,
        program=program,
    )


def _compared(runs: Sequence[Run]) -> dict[str, Any] | None:
    if len(runs) < 2:
        return None
    from remote_runner.report.comparison import comparison_view

    return comparison_view(runs)


def _ours(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """JSON that no text within can end the script by, nor begin a comment there."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _policy(*scripts: str) -> str:
    """Only these scripts run, and nothing is asked of any network. Vega makes functions of a chart's expressions."""
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} 'unsafe-eval'; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
