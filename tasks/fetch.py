"""`fab fetch --run ID`: fetches the outputs of an earlier run that are still on its hosts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import invoke

from remote_runner.errors import HostError, OutputsError, RemoteRunnerError
from remote_runner.sizes import count, size
from tasks.command_line.task import Failed, task
from tasks.parallel import ask_each, raise_failed
from tasks.plan import Plan
from tasks.runs.find import hosts_of_run, id_on_hosts
from tasks.say import say, show, show_json

if TYPE_CHECKING:
    from remote_runner.connection.agent import Agent
    from remote_runner.inventory.inventory import HostEntry
    from remote_runner.outputs import OutputsReport

_MOST_TOLD = 20


@task(
    help={
        "run": "the run's id, or its beginning (default: the last run), or an instance's",
        "host": "where it was (default: the hosts this machine remembers, else the whole inventory)",
        "outputs": "directory for the outputs (default: outputs/run/ID here)",
        "json": "print JSON",
    }
)
def fetch(
    c: invoke.Context, run: str = "", host: list[str] | None = None, outputs: str = "", json: bool = False
) -> None:
    """Bring the outputs of a run that was kept, or that was cut off; they stay on the host as well."""
    plan = Plan.here()
    run = id_on_hosts(plan, run)
    entries = _where(plan, run, host)
    base = Path(outputs) if outputs else plan.directory / "outputs" / "run"
    results = ask_each(plan, entries, lambda agent, entry: _fetch(agent, entry, run, base))
    found = [one for result in results if not isinstance(result, RemoteRunnerError) for one in result]
    if json:
        show_json([one.to_json() for one in found])
    else:
        for one in found:
            if one.outputs.is_dir():  # nothing may have come
                show(str(one.outputs))
    raise_failed(entries, results)
    if not found:
        raise Failed(f"fetch: no host has outputs of run {run}; fab clean --dry-run lists what is there")
    if any(one.error for one in found):
        raise Failed(None)


@dataclass(frozen=True)
class _Fetched:
    """The outputs of one run on one host; `error` is why they are not whole."""

    host: str
    id: str
    outputs: Path
    report: OutputsReport
    error: str = ""

    def to_json(self) -> dict[str, object]:
        return {
            "host": self.host,
            "id": self.id,
            "outputs": str(self.outputs),
            "files": self.report.files,
            "left_out": [str(left) for left in self.report.left_out],
            "error": self.error or None,
        }


def _where(plan: Plan, run: str, host: list[str] | None) -> tuple[HostEntry, ...]:
    from remote_runner.runs import noted_run

    if host:
        return plan.select(host)
    noted = noted_run(plan.controller, run)
    names = noted.hosts if noted else hosts_of_run(plan, run)
    return plan.inventory.select(names) if names else plan.inventory.hosts


async def _fetch(agent: Agent, entry: HostEntry, run: str, base: Path) -> list[_Fetched]:
    from remote_runner.connection.verbs.job import is_run_id
    from remote_runner.outputs import OutputsReport

    fetched = []
    there = await agent.runs()
    for found in there.runs:
        # Its name becomes that of a directory here.
        if not found.is_of(run) or not is_run_id(found.run_id):
            continue
        target = base / run / entry.name if found.run_id == run else base / run / entry.name / found.run_id
        report, error = OutputsReport(), ""
        try:
            report = await agent.fetch_run(
                found.run_id, target, limit_bytes=entry.outputs_limit_bytes, within_s=entry.timeouts.fetch_s
            )
        except OutputsError as failed:  # of this run; there may be others
            error = str(failed)
            say(error)
        else:
            say(f"{entry.name}: {count(report.files, 'file')} of {found.run_id}, {size(report.size_bytes)}")
        say_left_out(entry.name, report)
        fetched.append(_Fetched(entry.name, found.run_id, target, report, error))
    for place, why in there.unread:
        failure = HostError(
            entry.name,
            f"{place} cannot be read: {why}",
            next_step=f"make it readable there, then fab fetch --host {entry.name} --run {run}",
        )
        if not fetched:
            raise failure
        say(str(failure))
    return fetched


def say_left_out(host: str, report: OutputsReport) -> None:
    """Say what of some outputs did not come, or not as it was at one moment."""
    told = [f"left out: {left}" for left in report.left_out] + list(report.far_messages)
    for words in told[:_MOST_TOLD]:
        say(f"{host}: {words}")
    if len(told) > _MOST_TOLD:
        say(f"{host}: … and {len(told) - _MOST_TOLD} more")
