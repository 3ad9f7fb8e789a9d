"""`fab fetch --run ID`: the outputs of an earlier run that are still on their host."""

from __future__ import annotations

from pathlib import Path

import invoke

from remote_runner.deadline import Deadline
from remote_runner.inventory.inventory import HostEntry
from remote_runner.job import is_run_id
from remote_runner.leftovers import fetch_run, list_runs
from remote_runner.runs import noted_run
from remote_runner.sizes import size
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.say import say, show, show_json
from tasks.task import Failed, task


@task(
    help={
        "run": "the run's id, as fab run printed it, or an instance's (fab clean --dry-run lists them)",
        "host": "where it was (default: the hosts this machine remembers, else the whole inventory)",
        "outputs": "directory for the outputs (default: outputs/run/ID here)",
        "json": "print JSON",
    }
)
def fetch(
    c: invoke.Context, run: str = "", host: list[str] | None = None, outputs: str = "", json: bool = False
) -> None:
    """Bring the outputs of a run that was kept, or that was cut off; they stay on the host as well."""
    if not run:
        raise Failed("fetch: say which run: --run ID")
    plan = Plan.here()
    base = Path(outputs) if outputs else plan.directory / "outputs" / "run"
    found = [item for items in on_each(_where(plan, run, host), lambda e: _fetch(plan, e, run, base)) for item in items]
    if not found:
        raise Failed(f"fetch: no host has outputs of run {run}; fab clean --dry-run lists what is there")
    if json:
        show_json(found)
        return
    for item in found:
        show(str(item["outputs"]))


def _where(plan: Plan, run: str, host: list[str] | None) -> tuple[HostEntry, ...]:
    if host:
        return plan.select(host)
    noted = noted_run(plan.controller, run)
    return plan.inventory.select(noted.hosts) if noted else plan.inventory.hosts


def _fetch(plan: Plan, entry: HostEntry, run: str, base: Path) -> list[dict[str, object]]:
    fetched: list[dict[str, object]] = []
    with plan.host(entry) as host:
        runs = [
            found
            for found in list_runs(host, directory=entry.directory)
            # Its name becomes that of a directory here.
            if run in (found.run_id, found.record.get("run")) and is_run_id(found.run_id)
        ]
        for found in runs:
            target = base / run / entry.name if found.run_id == run else base / run / entry.name / found.run_id
            report = fetch_run(
                host,
                found.run_id,
                target,
                directory=entry.directory,
                limit_bytes=entry.outputs_limit_bytes,
                deadline=Deadline.after(entry.timeouts.fetch_s),
            )
            files = "1 file" if report.files == 1 else f"{report.files} files"
            say(f"{entry.name}: {files} of {found.run_id}, {size(report.size_bytes)}")
            left_out = [str(left) for left in report.left_out]
            for left in left_out:
                say(f"{entry.name}: left out: {left}")
            fetched.append(
                {
                    "host": entry.name,
                    "id": found.run_id,
                    "outputs": str(target),
                    "files": report.files,
                    "left_out": left_out,
                }
            )
    return fetched
