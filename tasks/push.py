"""`fab push`: pushes an artifact to one or more hosts."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import invoke

from tasks.artifacts import artifact_json, build_artifact, given_artifact, targets_of
from tasks.command_line.task import task
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.say import note, show, show_json, show_table

if TYPE_CHECKING:
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.artifact.push import Pushed
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.inventory import HostEntry


@task(
    shows=True,
    help={
        "host": "a host's name, a glob or @label; as often as needed (fab -H does the same)",
        "arch": "the hosts' system (default: each host's own)",
        "artifact": "a file, folder or store path that is built already, as fab build prints it (default: build it)",
        "json": "print JSON: host, directory, program, hash, what was sent",
        "dry_run": "print what would be sent where, and send nothing",
    },
)
def push(
    c: invoke.Context,
    host: list[str] | None = None,
    arch: str = "",
    artifact: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Bring the artifact to hosts, once for each, and print where it lies there."""
    plan = Plan.here()
    entries = plan.select(host)
    if dry_run:
        show_json(plan.run(_plan_pushes(plan, entries, arch, artifact)))
        return
    done = plan.run(_push(plan, entries, arch, artifact))
    if json:
        show_json([_pushed_json(entry, pushed) for entry, pushed in zip(entries, done, strict=True)])
    elif len(entries) == 1:
        show(str(done[0].directory))
    else:
        rows = [(entry.name, str(pushed.directory)) for entry, pushed in zip(entries, done, strict=True)]
        show_table(rows, header=("host", "directory"))


async def _push(plan: Plan, entries: Sequence[HostEntry], arch: str, given: str) -> list[Pushed]:
    from remote_runner.inventory.placement import Spread

    async with plan.shared() as shared:
        artifacts = await _artifacts(plan, shared, entries, arch, given)
        with ExitStack() as stack:
            shared.hold_nodes(plan.inventory.hosts, Spread.ROUND, stack, len(entries))
            return await on_each(entries, lambda entry: push_to(plan, shared, artifacts[entry.name], entry))


async def push_to(plan: Plan, shared: Shared, artifact: AnyArtifact, entry: HostEntry) -> Pushed:
    """Push, and report in a sentence what was sent."""
    from remote_runner.instance import steps

    pushed = await steps.push(shared, entry, artifact, plan.environ, lambda words: note(f"push: {words}"))
    how = "was there already" if pushed.present else pushed.words
    note(f"{entry.name}: {entry.app.name} {artifact.hash} {how} ({pushed.seconds:.2f} s)")
    return pushed


async def _artifacts(
    plan: Plan, shared: Shared, entries: Sequence[HostEntry], arch: str, given: str
) -> dict[str, AnyArtifact]:
    """The artifact for each host, by its name; hosts of the same system share a build."""
    artifacts: dict[str, AnyArtifact] = {}
    for target in await targets_of(plan, shared, entries, arch):
        artifact = await (given_artifact(plan, target, given) if given else build_artifact(plan, shared, target))
        artifacts |= {entry.name: artifact for entry in target.hosts}
    return artifacts


async def _plan_pushes(plan: Plan, entries: Sequence[HostEntry], arch: str, given: str) -> list[dict[str, object]]:
    async with plan.shared() as shared:
        artifacts = await _artifacts(plan, shared, entries, arch, given)
        return [_planned(entry, artifacts[entry.name]) for entry in entries]


def _planned(entry: HostEntry, artifact: AnyArtifact) -> dict[str, object]:
    from remote_runner.artifact.build import Artifact
    from remote_runner.inventory.kinds import StoreChoice

    where = entry.directory or "~/.cache/remote-runner (or what the host allows)"
    if not isinstance(artifact, Artifact) and entry.store is not StoreChoice.USER:
        where = "/nix/store" if entry.store is StoreChoice.NIX else f"/nix/store, else {where}"
    return {"host": entry.name, "base": where, **artifact_json(artifact)}


def _pushed_json(entry: HostEntry, pushed: Pushed) -> dict[str, object]:
    return {
        "host": entry.name,
        "directory": str(pushed.directory),
        "program": str(pushed.program),
        "hash": pushed.hash,
        "present": pushed.present,
        "store": pushed.store.value,
        "sent_bytes": pushed.sent_bytes,
        "sent_paths": pushed.sent_paths,
        "paths": pushed.paths,
        "built": pushed.built,
        "seconds": round(pushed.seconds, 3),
    }
