"""Building the application for a system, by the plan's command or Nix: once per run, however many instances wait."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from remote_runner.artifact.attempt import Attempt
from remote_runner.artifact.content import hash_content
from remote_runner.artifact.nix.artifact import TABLE_VARIABLE, StoreArtifact
from remote_runner.artifact.nix.here import Nix, find_nix
from remote_runner.cancellation import Cancellation
from remote_runner.controller import Controller, with_home
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactError,
    ControllerError,
    DeadlineError,
    LocalProgramError,
    NoBuilderError,
    RemoteRunnerError,
    build_failed,
    no_nix,
)
from remote_runner.inventory.command_template import fill
from remote_runner.inventory.inventory import AppSettings
from remote_runner.inventory.kinds import Builder
from remote_runner.inventory.systems import System
from remote_runner.machine.files import safe_name
from remote_runner.machine.shell_words import expanded_by_shell, needs_shell, shell_line
from remote_runner.made_once import made_once

_KEPT_RUNS = 8
_KEPT_S = 3600.0


@dataclass(frozen=True)
class Artifact:
    """A file or folder built for a system; `hash` is that of its content, `program` what is started inside it.

    A single file counts as a folder that holds it, so `program` is then its name. choice: what built it, and why that.
    """

    path: Path
    hash: str
    size_bytes: int
    files: int
    program: str
    system: System
    choice: str = field(default="", compare=False)

    @property
    def here(self) -> bool:
        """It lies on this machine, as every result of a command does."""
        return True

    @classmethod
    def from_path(cls, path: Path, system: System, program: str | None = None) -> Self:
        """Hash what lies at `path` and find its program. Raises `ArtifactError`."""
        started = _find_program(path, program)
        content = hash_content(path)
        return cls(path, content.hash, content.size_bytes, content.files, started, system)

    def to_json(self) -> dict[str, Any]:
        """The artifact as JSON values."""
        return {**vars(self), "path": str(self.path), "system": str(self.system)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The artifact that `to_json` wrote."""
        return cls(**{**values, "path": Path(values["path"]), "system": System.parse(values["system"])})


AnyArtifact = Artifact | StoreArtifact


@dataclass(frozen=True)
class BuildCommand:
    """What is run for a build: the words, and where the result has to be."""

    argv: tuple[str, ...]
    directory: Path
    out: Path


@dataclass(frozen=True)
class BuilderChoice:
    """What builds an application, and why that: words for the build's message."""

    builder: Builder
    reason: str

    def __str__(self) -> str:
        return f"builder {self.builder.value}: {self.reason}"


def decide_builder(app: AppSettings, plan_dir: Path, environ: Mapping[str, str]) -> BuilderChoice:
    """What builds this application, which depends on the plan and not on this machine.

    Raises `NoBuilderError`.
    """
    if app.builder is not None:
        return BuilderChoice(app.builder, f"app.builder is {app.builder.value}")
    if app.flake is not None:
        return BuilderChoice(Builder.NIX, "app.flake is set")
    if _has_table(environ, app):
        return BuilderChoice(Builder.NIX, "Testground's Nix builder made this launcher")
    if app.command is not None:
        return BuilderChoice(Builder.COMMAND, "app.command is set")
    if (plan_dir / "flake.nix").exists():
        return BuilderChoice(Builder.NIX, "the plan has a flake.nix, and app.command is not set")
    raise NoBuilderError(
        f"nothing says how {app.name} is built: inventory.yaml has no app.command, and the plan no flake.nix",
        next_step="set app.command to a command that makes {out}, for example: go build -o {out} . "
        "(or write a flake.nix, or set app.flake)",
    )


def choose_builder(app: AppSettings, plan_dir: Path, environ: Mapping[str, str]) -> Nix | None:
    """Nix, where it is what builds this application; else `None`: then the inventory's command does.

    Raises `NoBuilderError`, and `RemoteRunnerError` where this machine has no Nix.
    """
    choice = decide_builder(app, plan_dir, environ)
    if choice.builder is Builder.COMMAND:
        return None
    nix = find_nix(environ)
    if nix is None:
        raise no_nix(f"{choice.reason}: the build of {app.name}")
    return nix


def _has_table(environ: Mapping[str, str], app: AppSettings) -> bool:
    if not environ.get(TABLE_VARIABLE):
        return False
    from remote_runner.artifact.nix.table import table_of

    return bool(table_of(environ, app.name))


def plan_build(app: AppSettings, system: System, plan_dir: Path, out: Path) -> BuildCommand:
    """The command for a system, filled in. Raises `NoBuilderError` when the inventory has none."""
    if app.command is None:
        raise NoBuilderError(
            f"nothing says how {app.name} is built for {system}: app.command is not set in inventory.yaml",
            next_step="set it to a command that makes {out}, for example: go build -o {out} .",
        )
    values = {
        "system": str(system),
        "os": system.os,
        "arch": system.arch,
        "goos": system.goos,
        "goarch": system.goarch,
        "goarm": system.goarm,
        "out": str(out),
        "python": sys.executable,
        "plan": str(plan_dir),
    }
    return BuildCommand(fill(app.command, values), plan_dir, out)


def build_for(
    app: AppSettings,
    system: System,
    *,
    plan_dir: Path,
    run_id: str | None,
    controller: Controller,
    environ: Mapping[str, str],
    deadline: Deadline,
    cancellation: Cancellation | None = None,
    began: Callable[[Path], None] | None = None,
) -> AnyArtifact:
    """The application's artifact for a system: the run's first process builds it, the others wait and share.

    `cancellation` ends the build, and leaves it to the next who waits; `began` gets its log where this one builds.
    A failure is shared as well, within the run only. Without a `run_id` (by hand) it is always built.
    Raises `NoBuilderError`, `RemoteRunnerError`, `DeadlineError` (waiting for another process's build); with Nix also
    `EvaluationFailedError`.
    """
    choice = decide_builder(app, plan_dir, environ)
    nix = choose_builder(app, plan_dir, environ)
    if nix is None:
        plan_build(app, system, plan_dir, Path("out"))
    run = safe_name(run_id) if run_id else f"by-hand-{os.urandom(6).hex()}"
    how = [str(app.command), app.program] if nix is None else [nix.nix, app.flake, app.build_on.value, app.program]
    settings = json.dumps([str(plan_dir), app.name, str(system), *how])
    key = f"{app.name}-{system}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    directory = controller.cache / "builds" / run / key
    result = directory / "result.json"

    def is_settled() -> bool:
        if cancellation is not None:
            cancellation.check()
        return result.exists()

    def make() -> dict[str, Any]:
        _sweep(directory.parent)
        # A directory for each attempt: who was killed while building may have left what still writes.
        attempt = Attempt(directory / os.urandom(6).hex(), plan_dir, environ, deadline, cancellation)
        _make_directory(attempt.directory)
        if began is not None:
            began(attempt.log)
        return _outcome(app, system, nix, attempt)

    _make_directory(directory)
    values = made_once(controller, result, f"builds {app.name} for {system}", make, is_settled, deadline)
    kind = StoreArtifact if values["builder"] == Builder.NIX.value else Artifact
    return replace(kind.from_json(values["artifact"]), choice=str(choice))


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        next_step = "make room there, or name another place with REMOTE_RUNNER_CACHE_DIR"
        raise ControllerError(f"{directory}: cannot be made: {error.strerror}", next_step=next_step) from error


def _outcome(app: AppSettings, system: System, nix: Nix | None, attempt: Attempt) -> dict[str, Any]:
    if nix is None:
        return {"builder": Builder.COMMAND.value, "artifact": _run_command(app, system, attempt).to_json()}
    from remote_runner.artifact.nix.builder import build_with_nix

    return {"builder": Builder.NIX.value, "artifact": build_with_nix(nix, app, system, attempt).to_json()}


def _run_command(app: AppSettings, system: System, attempt: Attempt) -> Artifact:
    from remote_runner.machine.process import how_ended, last_lines

    command = plan_build(app, system, attempt.plan_dir, attempt.directory / app.name)
    log = attempt.log

    def failed(reason: str, next_step: str = "") -> RemoteRunnerError:
        said = last_lines(log)
        return build_failed(app.name, str(system), reason, log=str(log), said=said, next_step=next_step)

    shown = " ".join(command.argv)
    try:
        status = attempt.run(command.argv, log=log, environ=with_home(attempt.environ))
    except LocalProgramError as error:
        raise failed(error.args[0], _next_to_start(app.command or (), error)) from error
    except DeadlineError as error:
        raise failed(
            f"`{shown}` did not end within {error.seconds:g} s", "raise timeouts.build_s in inventory.yaml"
        ) from error
    if status:
        hint = _next_to_correct(app.command or ())
        raise failed(
            f"`{shown}` ended with {how_ended(status)}",
            f"{hint}; `fab build --arch {system}` does this build alone, in {attempt.plan_dir}",
        )
    try:
        return Artifact.from_path(command.out, system, app.program)
    except ArtifactError as error:
        raise failed(f"`{shown}` succeeded, but {error.args[0]}", error.next_step) from error


def _next_to_start(command: Sequence[str], error: LocalProgramError) -> str:
    """What to do about a command (its placeholders not filled in) that could not be started."""
    if needs_shell(command):
        return f"there is no shell; to have one, in inventory.yaml: app.command: {shell_line(command)}"
    return error.next_step or f"install {command[0]}, or set app.command in inventory.yaml"


def _next_to_correct(command: Sequence[str]) -> str:
    """What to do about a command that failed."""
    if word := expanded_by_shell(command):
        return f"{word} is passed on as it is: there is no shell; to have one: app.command: {shell_line(command)}"
    if not any("{out}" in word for word in command):
        return "app.command does not say {out}, where the result has to lie"
    return "fix what it reports above"


def _find_program(path: Path, program: str | None) -> str:
    try:
        if not path.is_dir():
            found = path.stat()
            if program is not None:
                raise ArtifactError(
                    f"{path} is a file, and app.program says that {program} lies inside it",
                    next_step="make a folder, or leave app.program out",
                )
            if not found.st_size:
                raise ArtifactError(f"{path} is empty")
            return _executable(path, path.name)
        if not any(path.iterdir()):
            raise ArtifactError(f"{path} is an empty folder")
    except FileNotFoundError as error:
        raise ArtifactError(f"{path} is not there", next_step="the command has to make {out}") from error
    if program is None:
        names = ", ".join(sorted(entry.name for entry in path.iterdir())[:8])
        raise ArtifactError(
            f"{path} is a folder, and nothing says which program in it is started (it holds {names})",
            next_step="set app.program in inventory.yaml",
        )
    return _executable(path / program, str(PurePosixPath(program)))


def _executable(path: Path, name: str) -> str:
    next_step = "app.program in inventory.yaml is the program's path inside the result"
    # Only what is sent counts: a link out of the result may lead nowhere on the host.
    if not path.is_file():
        near = ", ".join(sorted(entry.name for entry in path.parent.iterdir())[:8]) if path.parent.is_dir() else ""
        beside = f" (beside it: {near})" if near else ""
        raise ArtifactError(f"the program {name} is not in the result{beside}", next_step=next_step)
    if not path.stat().st_mode & 0o100:
        raise ArtifactError(f"the program {name} is not executable", next_step="let the command make it so (chmod +x)")
    return name


def _sweep(current: Path) -> None:
    """Remove the builds of old runs: not of this one, of the last few, or of the last hour."""
    import shutil  # takes 4 ms, and only who builds needs it

    others = []
    for run in current.parent.iterdir():
        try:
            others.append((run.stat().st_mtime, run))
        except FileNotFoundError:
            continue  # another process sweeps as well
    old = sorted(others, reverse=True)[_KEPT_RUNS:]
    for changed_s, run in old:
        if run != current and changed_s < time.time() - _KEPT_S:
            shutil.rmtree(run, ignore_errors=True)  # `fab clean` tells why one stays
