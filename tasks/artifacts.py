"""Finding or building the artifacts that hosts need, for `fab build` and `fab push`."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from remote_runner.errors import NoBuilderError
from remote_runner.progress import Began, Ended
from tasks.command_line.task import Failed
from tasks.parallel import on_each
from tasks.plan import Plan
from tasks.say import note
from tasks.view.display import DISPLAY

if TYPE_CHECKING:
    from remote_runner.artifact.attempt import Attempt
    from remote_runner.artifact.build import AnyArtifact
    from remote_runner.instance.shared import Shared
    from remote_runner.inventory.inventory import AppSettings, HostEntry
    from remote_runner.inventory.systems import System


@dataclass(frozen=True)
class BuildTarget:
    """What one artifact is for: the application, its settings, a system, and the hosts that are alike in these."""

    app: AppSettings
    system: System
    hosts: tuple[HostEntry, ...]

    @property
    def build_s(self) -> float:
        """How long the build may take."""
        return max(entry.timeouts.build_s for entry in self.hosts)


async def targets_of(plan: Plan, shared: Shared, entries: Sequence[HostEntry], arch: str) -> list[BuildTarget]:
    """The builds that these hosts need, each once, in the order of the hosts; unknown systems are asked for."""
    systems = await on_each(entries, lambda entry: wanted_system(plan, shared, entry, arch))
    DISPLAY.expect("", [(entry.name, entry.name) for entry in entries])  # who has answered is not done yet
    found: dict[tuple[AppSettings, System], list[HostEntry]] = {}
    for entry, system in zip(entries, systems, strict=True):
        found.setdefault((entry.app, system), []).append(entry)
    return [BuildTarget(app, system, tuple(hosts)) for (app, system), hosts in found.items()]


async def wanted_system(plan: Plan, shared: Shared, entry: HostEntry, arch: str) -> System:
    """The system that `--arch` names, else the host's own (asked for where neither inventory nor memory says it)."""
    from remote_runner.inventory.known import known_of
    from remote_runner.inventory.systems import System

    if arch:
        system = System.parse(arch)
        if entry.system is not None and entry.system != system:
            raise Failed(f"--arch is {system}, and inventory.yaml says that {entry.name} is {entry.system}")
        return system
    return known_of(plan.controller, entry).system or (await shared.agent(entry, plan.environ)).system


async def build_artifact(plan: Plan, shared: Shared, target: BuildTarget) -> AnyArtifact:
    """Build by hand: always anew. With Nix it may be only the derivation, which one of the target's hosts can build."""
    from remote_runner.artifact.build import decide_builder
    from remote_runner.instance import steps
    from testground.local_exec import new_run_id

    try:
        choice = decide_builder(target.app, plan.directory, plan.environ)
    except NoBuilderError:
        if plan.is_plan:
            raise
        raise plan.missing() from None
    note(f"building {target.app.name} for {target.system} ({choice})")
    for entry in target.hosts:
        DISPLAY.tell(Began(entry.name, "build", entry.name))
    run_id = f"by-hand-{new_run_id()}"
    # The first builds; the others share what came of it, and are looked at.
    for entry in sorted(target.hosts, key=lambda entry: -entry.timeouts.build_s):
        artifact = await steps.build(
            shared, entry, target.system, plan_dir=plan.directory, run_id=run_id, environ=plan.environ
        )
    for entry in target.hosts:
        DISPLAY.tell(Ended(entry.name, "ok"))
    return artifact


async def given_artifact(plan: Plan, target: BuildTarget, given: str) -> AnyArtifact:
    """What was built already: a file, a folder, a store path, or a link to one."""
    from remote_runner.artifact.build import Artifact
    from remote_runner.artifact.nix.here import find_nix

    path = Path(given).absolute()
    if not path.exists():
        raise Failed(f"push: --artifact is {given}, and nothing is there; fab build prints an artifact's path")
    from remote_runner.artifact.nix.builder import is_in_store, store_artifact

    in_store = path if is_in_store(path) else path.resolve()  # `result`, as nix build leaves it, is a link
    if is_in_store(in_store):
        with new_attempt(plan, target) as attempt:
            nix = find_nix(plan.environ)
            return await asyncio.to_thread(store_artifact, nix, in_store, target.app, target.system, attempt)
    program = target.app.program if path.is_dir() else None
    return await asyncio.to_thread(Artifact.from_path, path, target.system, program)


@contextmanager
def new_attempt(plan: Plan, target: BuildTarget) -> Iterator[Attempt]:
    """A directory for what Nix says to a question, which goes at the end."""
    from remote_runner.artifact.attempt import Attempt
    from remote_runner.deadline import Deadline

    with tempfile.TemporaryDirectory(prefix="question-", dir=plan.controller.cache) as name:
        yield Attempt(Path(name), plan.directory, plan.environ, Deadline.after(target.build_s))


def artifact_json(artifact: AnyArtifact) -> dict[str, object]:
    """An artifact as JSON values; either kind has path, hash, program and system."""
    return {"path": str(artifact.path), "hash": artifact.hash, **artifact.to_json()}
