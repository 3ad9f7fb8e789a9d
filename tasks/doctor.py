"""`fab doctor`: checks this machine and the hosts before a run."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import invoke

from remote_runner.sizes import count
from tasks.checks.between import addresses, check_between, ports_of
from tasks.checks.finding import HERE, Finding, Outcome, condensed, fail, findings_table
from tasks.checks.here import check_here
from tasks.checks.hosts import check_host
from tasks.command_line.task import Failed, task
from tasks.parallel import attempt_each
from tasks.plan import Plan
from tasks.say import result_width, show, show_json
from tasks.view.display import DISPLAY
from tasks.view.how import Level
from testground.errors import TestgroundError

if TYPE_CHECKING:
    from remote_runner.inventory.inventory import HostEntry


@task(
    shows=True,
    help={
        "host": "only these hosts: names, globs, @labels (default: all of the inventory)",
        "json": "print JSON: where, check, outcome, found, next_step, fixed",
        "fix": "apply what is safe: build the agent, remove what earlier runs and versions left here",
    },
)
def doctor(c: invoke.Context, host: list[str] | None = None, json: bool = False, fix: bool = False) -> None:
    """Check this machine, the hosts, and whether these reach each other; what to do about what is not well."""
    plan = Plan.here()
    entries = plan.select(host) if host else plan.inventory.hosts
    findings = plan.run(_check(plan, entries, fix=fix))
    if json:
        show_json([finding.to_json() for finding in findings])
    else:
        shown = findings if DISPLAY.level > Level.USUAL else condensed(findings)
        show(findings_table(shown, result_width()), has_outcomes=True)
    failed = [finding for finding in findings if finding.outcome is Outcome.FAIL]
    if failed:
        raise Failed(f"{count(len(failed), 'check')} of {len(findings)} failed")


async def _check(plan: Plan, entries: Sequence[HostEntry], *, fix: bool) -> list[Finding]:
    """This machine and all hosts at once, then the ways between those that answered."""
    from remote_runner.instance.addresses import own_address

    here = asyncio.create_task(asyncio.to_thread(check_here, plan, fix=fix))
    async with plan.shared() as shared:
        asked = await attempt_each(entries, lambda entry: check_host(shared, entry, plan.environ))
        found: list[Finding] = []
        alive = []
        for entry, answer in zip(entries, asked, strict=True):
            assert isinstance(answer, tuple)  # it raises nothing
            agent, findings = answer
            found += findings
            if agent is not None:
                alive.append((entry, agent))
        remote = [entry for entry, _ in alive if not entry.is_local]
        own = await asyncio.to_thread(own_address, remote, plan.environ) if remote else "127.0.0.1"
        found += await check_between(addresses(alive, own), _ports(plan, found))
    return [*await here, *found]


def _ports(plan: Plan, found: list[Finding]) -> tuple[int, ...]:
    from testground.manifest import Manifest

    path = plan.directory / "manifest.toml"
    if not path.exists():
        return ports_of(None)
    try:
        return ports_of(Manifest.load(path))
    except TestgroundError as error:
        found.append(fail(HERE, "manifest", str(error).partition("\n")[0]))
        return ports_of(None)
