"""`fab build`: the application's artifact for a system."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import invoke

from tasks.artifacts import BuildTarget, artifact_json, build_artifact, new_attempt, targets_of
from tasks.command_line.task import Failed, task
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.push import push_to
from tasks.say import show, show_json

if TYPE_CHECKING:
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.inventory.inventory import AppSettings, HostEntry


@task(
    shows=True,
    help={
        "arch": "the system, as Nix names it: x86_64-linux, aarch64-darwin … (default: this machine's)",
        "host": "build what this host needs, with its own app settings; a name, a glob or @label, as often as needed",
        "flake": "what Nix builds, in place of app.flake: any flake reference",
        "app": "the application's name, in place of app.name: the flake's package",
        "json": "print JSON, one object for each artifact: path, hash, program, system, hosts, the builder's own",
        "dry_run": "print the commands that would run, as JSON, and build nothing (Nix evaluates)",
    },
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
    if dry_run:
        show_json(plan.run(_plan_builds(plan, entries, arch)))
        return
    built = plan.run(_build(plan, entries, arch))
    if json:
        named = bool(host)
        show_json(
            [
                {**artifact_json(artifact), "hosts": [entry.name for entry in target.hosts] if named else []}
                for target, artifact in built
            ]
        )
        return
    for _, artifact in built:
        show(str(artifact.path))


def _changed(app: AppSettings, flake: str, name: str) -> AppSettings:
    from remote_runner.inventory.kinds import Builder

    if "#" in flake:
        raise Failed(f"--flake is {flake!r}; expected a flake reference without #, for the package there is --app")
    if flake:
        app = replace(app, flake=flake, builder=Builder.NIX)
    return replace(app, name=name) if name else app


async def _build(plan: Plan, entries: Sequence[HostEntry], arch: str) -> list[tuple[BuildTarget, AnyArtifact]]:
    async with plan.shared() as shared:
        targets = await targets_of(plan, shared, entries, arch)
        built = [(target, await build_artifact(plan, shared, target)) for target in targets]
        for target, artifact in built:
            if not artifact.here:
                # This machine cannot build it; a push makes the hosts do so.
                await on_each(target.hosts, partial(push_to, plan, shared, artifact))
        return built


async def _plan_builds(plan: Plan, entries: Sequence[HostEntry], arch: str) -> list[dict[str, object]]:
    async with plan.shared() as shared:
        return [_planned(plan, target) for target in await targets_of(plan, shared, entries, arch)]


def _planned(plan: Plan, target: BuildTarget) -> dict[str, object]:
    # Where the result lies has a part that is new each time.
    from remote_runner.artifact.build import choose_builder, plan_build

    directory = plan.controller.cache / "builds" / "BUILD"
    what = {"app": target.app.name, "system": str(target.system)}
    nix = choose_builder(target.app, plan.directory, plan.environ)
    if nix is not None:
        from remote_runner.artifact.nix.builder import planned_commands

        with new_attempt(plan, target) as attempt:
            planned = planned_commands(nix, target.app, target.system, attempt, directory)
        return {**what, "directory": str(plan.directory), **planned}
    command = plan_build(target.app, target.system, plan.directory, directory / target.app.name)
    return {
        **what,
        "argv": list(command.argv),
        "directory": str(command.directory),
        "out": str(command.out),
    }
