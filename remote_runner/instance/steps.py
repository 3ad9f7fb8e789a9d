"""The steps of an instance, each one function from values to values: choose, build, push, forward, run, fetch, clean.

`run_instance` and the tasks `build`, `push` and `run` call the very same; a user's fabfile may chain them otherwise.
What only a host is needed for is imported where it is used: it is loaded while the first login goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.cancellation import Cancellation
from remote_runner.errors import RemoteRunnerError
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.placement import PARAM, Entry, Placement, needs_groups, parse_entries, place, places_after
from remote_runner.inventory.systems import System
from testground.runenv import RunEnv
from testground.sync.client import service_address

if TYPE_CHECKING:
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.artifact.push import Pushed
    from remote_runner.connection.agent import Agent
    from remote_runner.connection.verbs.job import Job
    from remote_runner.connection.verbs.run import Exited, Left, Run, Sink
    from remote_runner.instance.forwarding import Forwarded
    from remote_runner.outputs import OutputsReport

CHOOSE_STATE = "choose_server"
CHOOSE_TOPIC = "choose_server_groups"
_GROUPS_S = 60.0


@dataclass(frozen=True)
class Chosen:
    """An instance's number and its place; `others` are the places that follow it in the list, `entries` the list."""

    number: int
    placement: Placement
    others: Iterator[Placement]
    entries: tuple[Entry, ...]


async def choose(shared: Shared, inventory: Inventory, runenv: RunEnv, environ: Mapping[str, str]) -> Chosen:
    """Take the instance's number from the sync service, and find its place in the list of hosts.

    Raises `RemoteRunnerError` where there is no place for it, `SyncError`.
    """
    listed = parse_entries(runenv.params.get(PARAM, ""))
    entries = inventory.entries if listed is None else inventory.complete(listed)
    group = runenv.group_id
    earlier: list[str] = []
    sync = await shared.sync_service(*service_address(environ))
    number = await sync.signal_entry(runenv, CHOOSE_STATE)
    if needs_groups(entries):
        await sync.publish(runenv, CHOOSE_TOPIC, {"number": number, "group": group})
        groups: dict[int, str] = {}
        published = sync.subscribe(runenv, CHOOSE_TOPIC, timeout_s=_GROUPS_S)
        async for message in published:
            other, name = _published_group(message)
            if 0 < other <= number:  # an application may publish there as well, whatever and without end
                groups[other] = name
            if all(earlier_number in groups for earlier_number in range(1, number + 1)):
                break
        await published.aclose()
        earlier = [groups[other] for other in range(1, number)]
    placement = place(entries, number, group, earlier, inventory.spread)
    return Chosen(number, placement, places_after(entries, placement, group), entries)


async def build(
    shared: Shared, entry: HostEntry, system: System, *, plan_dir: Path, run_id: str, environ: Mapping[str, str]
) -> AnyArtifact:
    """The application for a host's system, built once for each run. Raises what `build_for`, `check_target` raise."""
    from remote_runner.artifact.build import Artifact

    artifact = await shared.artifact(
        entry.app, system, plan_dir=plan_dir, run_id=run_id, environ=environ, build_s=entry.timeouts.build_s
    )
    if not isinstance(artifact, Artifact):
        from remote_runner.artifact.nix.builder import check_target

        check_target(artifact, entry)
    return artifact


async def push(
    shared: Shared,
    entry: HostEntry,
    artifact: AnyArtifact,
    environ: Mapping[str, str],
    report: Callable[[str], None],
) -> Pushed:
    """Bring it to the host, once for each connection; `report` is told the progress of a long push.

    Raises what `push_artifact` raises.
    """
    return await shared.push(entry, artifact, environ, report)


async def forward(
    shared: Shared, entry: HostEntry, environ: Mapping[str, str], report: Callable[[str], None]
) -> Forwarded:
    """A way to each service that `environ` names, and the inventory's own forwards; a context manager that lets go.

    Raises `PortTakenError`, `RunEnvironmentError`, and what the connection raises.
    """
    from remote_runner.instance.forwarding import open_forwards

    return await open_forwards(shared, entry, environ, report)


async def run(agent: Agent, job: Job, *, stdin: bool = False) -> Run:
    """Start the application; its stdin is fed by `Run.write_stdin`, or empty. Raises what `Agent.start_run` raises."""
    return await agent.start_run(job, stdin=stdin)


async def follow(run: Run, stdout: Sink, stderr: Sink, stop: Cancellation) -> Exited:
    """Pass its streams on until it and all that it left behind have ended; `stop` ends it there.

    Raises `HostLostError`, and `HostError` where it could not be started.
    """
    return await run.follow(stdout, stderr, stop)


async def fetch(
    run: Run,
    outputs: Path,
    limit_bytes: int,
    umask: int | None = None,
    taken: Callable[[int], None] | None = None,
) -> OutputsReport:
    """Bring its outputs home; `umask` holds for what is made, `taken` hears how much of large ones came.

    Raises `OutputsError`, `DeadlineError`, `HostLostError`.
    """
    return await run.fetch(outputs, limit_bytes=limit_bytes, umask=umask, taken=taken)


async def clean(run: Run, *, keep: bool = False) -> Left:
    """Remove its directory there, or leave it for `fetch`; what is left of it."""
    return await (run.keep() if keep else run.clean())


def _published_group(published: object) -> tuple[int, str]:
    """An instance's number and group, as it published them."""
    match published:
        case {"number": int(number), "group": str(group)}:
            return number, group
    raise RemoteRunnerError(
        f"topic {CHOOSE_TOPIC}: found {repr(published)[:200]}, expected an instance's number and group",
        next_step="run the same remote-runner for all instances, and let the application publish on other topics",
    )
