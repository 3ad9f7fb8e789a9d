"""`fab push`: an artifact into the cache of one or more hosts."""

from __future__ import annotations

from pathlib import Path

import invoke

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.nix.here import find_nix
from remote_runner.artifact.push import Pushed, time_for_push
from remote_runner.artifact.push import push as push_artifact
from remote_runner.deadline import Deadline
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.kinds import StoreChoice
from tasks.build import Kind, build_artifact, kinds_of_hosts, new_attempt, shown
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.say import say, show, show_json, table
from tasks.task import Failed, task


@task(
    help={
        "host": "a host's name, a glob or @label; as often as needed (fab -H does the same)",
        "arch": "the hosts' system (default: each host's own)",
        "artifact": "a file, folder or store path that is built already, as fab build prints it (default: build it)",
        "json": "print JSON: host, directory, program, hash, what was sent",
        "dry_run": "print what would be sent where, and send nothing",
    }
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
    artifacts = _artifacts(plan, entries, arch, artifact)
    if dry_run:
        show_json([_planned(entry, artifacts[entry.name]) for entry in entries])
        return
    done = on_each(entries, lambda entry: push_to(plan, entry, artifacts[entry.name]))
    if json:
        show_json(
            [
                {
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
                for entry, pushed in zip(entries, done, strict=True)
            ]
        )
    elif len(entries) == 1:
        show(str(done[0].directory))
    else:
        show(
            table(
                [(e.name, str(pushed.directory)) for e, pushed in zip(entries, done, strict=True)],
                header=("host", "directory"),
            )
        )


def _planned(entry: HostEntry, artifact: AnyArtifact) -> dict[str, object]:
    where = entry.directory or "~/.cache/remote-runner (or what the host allows)"
    if not isinstance(artifact, Artifact) and entry.store is not StoreChoice.USER:
        where = "/nix/store" if entry.store is StoreChoice.NIX else f"/nix/store, else {where}"
    return {"host": entry.name, "base": where, **shown(artifact)}


def push_to(plan: Plan, entry: HostEntry, artifact: AnyArtifact) -> Pushed:
    """Push, and say in a sentence what that was."""
    with plan.host(entry) as host:
        deadline = Deadline.after(time_for_push(entry, artifact))
        pushed = push_artifact(
            host,
            entry,
            artifact,
            controller=plan.controller,
            deadline=deadline,
            environ=plan.environ,
            report=lambda words: say(f"push: {words}"),
        )
    how = "was there already" if pushed.present else pushed.words
    say(f"{entry.name}: {entry.app.name} {artifact.hash} {how} ({pushed.seconds:.2f} s)")
    return pushed


def _artifacts(plan: Plan, entries: tuple[HostEntry, ...], arch: str, given: str) -> dict[str, AnyArtifact]:
    """The artifact for each host's name; one build for each kind of host."""
    artifacts: dict[str, AnyArtifact] = {}
    for kind in kinds_of_hosts(plan, entries, arch):
        artifact = _given(plan, kind, given) if given else build_artifact(plan, kind)
        artifacts |= {entry.name: artifact for entry in kind.hosts}
    return artifacts


def _given(plan: Plan, kind: Kind, given: str) -> AnyArtifact:
    path = Path(given).absolute()
    if not path.exists():
        raise Failed(f"push: --artifact is {given}, and nothing is there; fab build prints an artifact's path")
    from remote_runner.artifact.nix.builder import is_in_store, store_artifact

    in_store = path if is_in_store(path) else path.resolve()  # `result`, as nix build leaves it, is a link
    if is_in_store(in_store):
        with new_attempt(plan, kind.build_s) as attempt:
            return store_artifact(find_nix(plan.environ), in_store, kind.app, kind.system, attempt)
    return Artifact.from_path(path, kind.system, kind.app.program if path.is_dir() else None)
