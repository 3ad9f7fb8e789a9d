"""The steps of an instance, each one function from values to values: choose, build, push, forward, run, fetch, clean.

`run_instance` and the tasks `build`, `push` and `run` call the very same; a user's fabfile may chain them otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.push import Pushed
from remote_runner.cancellation import Cancellation
from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.job import Job
from remote_runner.connection.verbs.run import Exited, Run, Sink
from remote_runner.instance.choosing import Chosen, choose
from remote_runner.instance.forwarding import Forwarded, open_forwards
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import HostEntry
from remote_runner.inventory.systems import System
from remote_runner.outputs import OutputsReport

__all__ = ["Chosen", "build", "choose", "clean", "fetch", "follow", "forward", "push", "run"]


async def build(
    shared: Shared, entry: HostEntry, system: System, *, plan_dir: Path, run_id: str, environ: Mapping[str, str]
) -> AnyArtifact:
    """The application for a host's system, built once for each run. Raises what `build_for`, `check_target` raise."""
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
    return await open_forwards(shared, entry, environ, report)


async def run(agent: Agent, job: Job, *, stdin: bool = False) -> Run:
    """Start the application; its stdin is fed by `Run.write_stdin`, or empty. Raises what `Agent.start_run` raises."""
    return await agent.start_run(job, stdin=stdin)


async def follow(run: Run, stdout: Sink, stderr: Sink, stop: Cancellation) -> Exited:
    """Pass its streams on until it and all that it left behind have ended; `stop` ends it there.

    Raises `SupervisorLostError`, `ProgramUnusableError`.
    """
    loop = asyncio.get_running_loop()
    stopping: list[asyncio.Task[None]] = []

    def end() -> None:
        loop.call_soon_threadsafe(lambda: stopping.append(loop.create_task(run.stop(stop.reason))))

    stop.then(end)
    try:
        return await run.follow(stdout, stderr)
    finally:
        stop.forget(end)
        await asyncio.gather(*stopping, return_exceptions=True)


async def fetch(
    run: Run,
    outputs: Path,
    limit_bytes: int,
    umask: int | None = None,
    taken: Callable[[int], None] | None = None,
) -> OutputsReport:
    """Bring its outputs home; `umask` holds for what is made, `taken` hears how much of large ones came.

    Raises `OutputsError` and its kinds, `DeadlineError`, `HostLostError`.
    """
    return await run.fetch(outputs, limit_bytes=limit_bytes, umask=umask, taken=taken)


async def clean(run: Run, *, keep: bool = False) -> None:
    """Remove its directory there, or leave it for `fetch`."""
    await (run.keep() if keep else run.clean())
