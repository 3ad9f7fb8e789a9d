"""`fab build`: the application's artifact for a system."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import invoke

from remote_runner.artifact.attempt import Attempt
from remote_runner.artifact.build import AnyArtifact, Artifact, build_for, choose_builder, plan_build
from remote_runner.deadline import Deadline
from remote_runner.inventory.inventory import AppSettings, HostEntry
from remote_runner.inventory.kinds import Builder
from remote_runner.inventory.systems import System
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.say import say, show, show_json
from tasks.task import Failed, task


@task(
    help={
        "arch": "the system, as Nix names it: x86_64-linux, aarch64-darwin … (default: this machine's)",
        "host": "build what this host needs, with its own app settings; a name, a glob or @label, as often as needed",
        "flake": "what Nix builds, in place of app.flake: any flake reference",
        "app": "the application's name, in place of app.name: the flake's package",
        "json": "print JSON, one object for each artifact: path, hash, program, system, hosts, the builder's own",
        "dry_run": "print the commands that would run, as JSON, and build nothing (Nix evaluates)",
    }
)
def build(
    c: invoke.Context,
    arch: str = "",
    host: list[str] | None = None,
    flake: str = "",
    app: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Build the application for an architecture and print where the artifact is."""
    plan = Plan.here()
    entries = plan.select(host) if host else (plan.inventory.this_host,)
    entries = tuple(replace(entry, app=_changed(entry.app, flake, app)) for entry in entries)
    kinds = kinds_of_hosts(plan, entries, arch)
    if dry_run:
        show_json([_planned(plan, kind) for kind in kinds])
        return
    built = [(kind, build_artifact(plan, kind)) for kind in kinds]
    for kind, artifact in built:
        _build_there(plan, kind, artifact)
    if json:
        names = [[entry.name for entry in kind.hosts] if host else [] for kind, _ in built]
        show_json([{**shown(artifact), "hosts": hosts} for (_, artifact), hosts in zip(built, names, strict=True)])
        return
    for _, artifact in built:
        show(str(artifact.path))


def _changed(app: AppSettings, flake: str, name: str) -> AppSettings:
    if "#" in flake:
        raise Failed(f"--flake is {flake!r}; expected a flake reference without #, for the package there is --app")
    if flake:
        app = replace(app, flake=flake, builder=Builder.NIX)
    return replace(app, name=name) if name else app


def _build_there(plan: Plan, kind: Kind, artifact: AnyArtifact) -> None:
    """Where this machine cannot build it, a push makes its hosts do so."""
    if artifact.here:
        return
    from tasks.push import push_to

    on_each(kind.hosts, lambda entry: push_to(plan, entry, artifact))


def shown(artifact: AnyArtifact) -> dict[str, object]:
    """An artifact as JSON values; either kind has path, hash, program and system."""
    return {"path": str(artifact.path), "hash": artifact.hash, **artifact.to_json()}


@dataclass(frozen=True)
class Kind:
    """Hosts that one artifact serves: the same application, settings and system."""

    app: AppSettings
    system: System
    build_s: float
    hosts: tuple[HostEntry, ...]


def kinds_of_hosts(plan: Plan, entries: Sequence[HostEntry], arch: str) -> list[Kind]:
    """The builds that these hosts need, each once, in the order of the hosts; unknown systems are asked for."""
    systems = on_each(entries, lambda entry: wanted_system(plan, entry, arch))
    found: dict[tuple[AppSettings, System], list[HostEntry]] = {}
    for entry, system in zip(entries, systems, strict=True):
        found.setdefault((entry.app, system), []).append(entry)
    return [
        Kind(app, system, max(entry.timeouts.build_s for entry in hosts), tuple(hosts))
        for (app, system), hosts in found.items()
    ]


def _planned(plan: Plan, kind: Kind) -> dict[str, object]:
    # Where the result lies has a part that is new each time.
    directory = plan.controller.cache / "builds" / "BUILD"
    what = {"app": kind.app.name, "system": str(kind.system)}
    nix = choose_builder(kind.app, plan.directory, plan.environ)
    if nix is not None:
        from remote_runner.artifact.nix.builder import planned_commands

        with new_attempt(plan, kind.build_s) as attempt:
            planned = planned_commands(nix, kind.app, kind.system, attempt, directory)
        return {**what, "directory": str(plan.directory), **planned}
    command = plan_build(kind.app, kind.system, plan.directory, directory / kind.app.name)
    return {
        **what,
        "argv": list(command.argv),
        "directory": str(command.directory),
        "out": str(command.out),
    }


def wanted_system(plan: Plan, entry: HostEntry, arch: str) -> System:
    """The system that `--arch` names, else the host's own (asked for where the inventory does not say)."""
    if arch:
        system = System.parse(arch)
        if entry.system is not None and entry.system != system:
            raise Failed(f"--arch is {system}, and inventory.yaml says that {entry.name} is {entry.system}")
        return system
    from remote_runner.probe import probe_system

    with plan.host(entry) as host:
        deadline = Deadline.after(entry.timeouts.connect_s)
        return probe_system(host, entry, controller=plan.controller, deadline=deadline)


@contextmanager
def new_attempt(plan: Plan, build_s: float) -> Iterator[Attempt]:
    """A directory for what Nix says to a question, which goes at the end."""
    with tempfile.TemporaryDirectory(prefix="question-", dir=plan.controller.cache) as name:
        yield Attempt(Path(name), plan.directory, plan.environ, Deadline.after(build_s))


def build_artifact(plan: Plan, kind: Kind) -> AnyArtifact:
    """Build by hand: always anew. With Nix it may be only the derivation, which one of the kind's hosts can build."""
    say(f"building {kind.app.name} for {kind.system}")
    artifact = build_for(
        kind.app,
        kind.system,
        plan_dir=plan.directory,
        run_id=None,
        controller=plan.controller,
        environ=plan.environ,
        deadline=Deadline.after(kind.build_s),
    )
    if not isinstance(artifact, Artifact):
        from remote_runner.artifact.nix.builder import check_target

        for entry in kind.hosts:
            check_target(artifact, entry)
    return artifact
