"""`fab report`: one run, or a comparison of several, as an HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import invoke

from remote_runner.errors import RemoteRunnerError
from tasks.command_line.task import Failed, task
from tasks.plan import Plan
from tasks.runs.find import run_meant
from tasks.say import say, show

# Measured with 2 to 1,000 instances, without and with metrics.
_PAGE_S = 0.05
_PAGE_OF_INSTANCE_S = 0.0004
_PAGE_OF_BYTE_S = 0.2e-6
# Nobody minds so little behind a run, nor so small a part of it.
_MOST_S = 1.0
_MOST_OF_RUN = 0.05


@task(
    help={
        "id": "the run's id, its beginning, or its directory; several are compared (default: the last run)",
        "out": "the file to write (default: report.html in the run's directory; of several, here)",
    },
    bare="id",
)
def report(c: invoke.Context, id: list[str] | None = None, out: str = "") -> None:  # noqa: A002 (the option's name)
    """Write a run as one HTML page: timeline, metrics, usage, ground truth; several runs are compared."""
    from remote_runner.report.write import REPORT_FILE, write_report

    plan = Plan.here()
    directories = list(dict.fromkeys(_directory(plan, one) for one in id or [""]))
    target = Path(out) if out else (directories[0] if len(directories) == 1 else Path.cwd()) / REPORT_FILE
    if target.is_dir():
        raise Failed(f"report: --out is {out!r}, a directory; name a file")
    write_report(directories, target, plan.controller.cache)
    show(str(target))


def _directory(plan: Plan, given: str) -> Path:
    """The directory of the run that was named. Raises `RunNotFoundError`."""
    if given and Path(given).is_dir():
        return Path(given).absolute()
    return run_meant(plan, [given] if given else None).directory


def is_cheap(outputs: Sequence[Path], duration_s: float) -> bool:
    """Whether a page of instances with these outputs is expected to take a second, or 5 % of what their run took."""
    from remote_runner.report.reading import size_bytes

    budget_s = max(_MOST_S, _MOST_OF_RUN * duration_s) - _PAGE_S - _PAGE_OF_INSTANCE_S * len(outputs)
    return budget_s >= 0 and _PAGE_OF_BYTE_S * sum(map(size_bytes, outputs)) <= budget_s


def report_after(plan: Plan, directory: Path) -> Path | None:
    """The page of a run that has just ended; where it fails why is said, and the run is as it was."""
    from remote_runner.report.write import REPORT_FILE, write_report

    try:
        write_report([directory], directory / REPORT_FILE, plan.controller.cache)
    except RemoteRunnerError as error:
        say(f"no report: {error}")
        return None
    except Exception as error:  # noqa: BLE001 (a fault in drawing ends no run)
        say(f"no report: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None
    return directory / REPORT_FILE
