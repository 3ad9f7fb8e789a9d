"""Building with Nix: evaluate here, then realise here, or leave that to the target."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from remote_runner.artifact.attempt import Attempt
from remote_runner.artifact.nix import verbs
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.build_machines import BuildMachines
from remote_runner.artifact.nix.here import Nix
from remote_runner.artifact.nix.table import table_of
from remote_runner.artifact.nix.verbs import STORE_PATH, Package, derivation_system
from remote_runner.errors import (
    ArtifactError,
    EvaluationFailedError,
    LocalProgramError,
    RemoteRunnerError,
    build_failed,
    no_nix,
)
from remote_runner.inventory.inventory import AppSettings, HostEntry
from remote_runner.inventory.kinds import BuildOn
from remote_runner.inventory.systems import System

DEFAULT_FLAKE = "."
# What Nix says of a file that git does not track: 2.8 of the copy without it, later versions of git.
_UNTRACKED = ("No such file or directory", "not tracked by Git", "does not exist", "does not contain a 'flake.nix'")

# A store that is another user's, one that was never set up (Debian's nix-bin alone), a daemon that does not listen.
# Nix 2.8 puts the path between ', 2.34 between ".
_STORE_REFUSED = re.compile(r"""['"]/nix[^'"]*['"].*(Permission denied|not permitted)|daemon.*(refused|No such file)""")


def build_with_nix(nix: Nix, app: AppSettings, system: System, attempt: Attempt) -> StoreArtifact:
    """The application's output, realised here if this machine or its remote builders can; else its derivation.

    What is needed of it is rooted in the attempt's directory. Raises `EvaluationFailedError`, and `RemoteRunnerError`
    where nothing builds it (`build_on: local`), or its build fails.
    """
    try:
        package = _rooted_package(nix, app, system, attempt)
        why_not_here = "app.build_on is target"
        if app.build_on is not BuildOn.TARGET:
            why_not_here = _why_not_here(nix, attempt, package)
        if not why_not_here:
            verbs.realise(nix, attempt, package, attempt.directory / "out", app=app.name, system=str(system))
        elif app.build_on is BuildOn.LOCAL:
            raise _nothing_builds(
                app.name,
                str(system),
                here=why_not_here,
                target="app.build_on is local",
                next_step="set app.build_on: auto in inventory.yaml, or give Nix a remote builder or extra-platforms",
            )
    except LocalProgramError as error:
        raise build_failed(app.name, str(system), str(error)) from error
    program = app.program or package.program
    if not why_not_here:
        _check_program(app, system, Path(package.out), program, attempt.log)
    return StoreArtifact(package.out, package.drv, program, app.name, system, not why_not_here, why_not_here)


def planned_commands(
    nix: Nix, app: AppSettings, system: System, attempt: Attempt, directory: Path
) -> dict[str, object]:
    """What a build would run, after an evaluation: its command lines (the root lies in `directory`), what they make."""
    flake = app.flake or DEFAULT_FLAKE
    package = _rooted_package(nix, app, system, attempt)
    why_not_here = "app.build_on is target"
    if app.build_on is not BuildOn.TARGET:
        why_not_here = _why_not_here(nix, attempt, package)
    argv = () if why_not_here else verbs.realise_argv(nix, package, directory / "out")
    return {
        "evaluation": list(verbs.evaluate_argv(nix, flake, str(system), app.name)),
        "argv": list(argv),
        "drv": package.drv,
        "out": package.out,
        "here": not why_not_here,
        "why_not_here": why_not_here,
    }


def check_target(artifact: StoreArtifact, entry: HostEntry) -> None:
    """Raise `RemoteRunnerError` where the target is to build, and is this machine, which cannot."""
    if artifact.here or not entry.is_local or entry.app.build_on is BuildOn.TARGET:
        return
    raise _nothing_builds(
        artifact.app,
        str(artifact.system),
        here=artifact.why_not_here,
        target="no host was named that could build it",
        next_step=f"name a host that is {artifact.system} and has Nix (fab build --host NAME), give Nix here a remote "
        f"builder for it (`builders` in nix.conf), or let it emulate (`extra-platforms = {artifact.system}`)",
    )


def _nothing_builds(app: str, system: str, *, here: str, target: str, next_step: str) -> RemoteRunnerError:
    """The error where neither this machine, nor its remote builders, nor the target builds it."""
    return RemoteRunnerError(
        f"{app} for {system} can be built nowhere:\n  here: {here}\n  on the target: {target}", next_step=next_step
    )


def store_artifact(nix: Nix | None, path: Path, app: AppSettings, system: System, attempt: Attempt) -> StoreArtifact:
    """The artifact that lies at a store path, given by hand.

    Raises `ArtifactError`, and `RemoteRunnerError` where this machine has no Nix.
    """
    if nix is None:
        raise no_nix(f"{path}, as a store path,")
    found = STORE_PATH.match(str(path))
    assert found is not None, path
    out, inside = Path(found[0]), str(path)[found.end() + 1 :]
    if not verbs.is_valid(nix, attempt, str(out)):
        raise ArtifactError(f"{out} is not valid in this machine's store", next_step="build it here, or fab build")
    program = inside or app.program or f"bin/{app.name}"
    if missing := _missing_program(out, program):
        next_step = "set app.program in inventory.yaml, or give the program's whole path as --artifact"
        raise ArtifactError(missing, next_step=next_step)
    return StoreArtifact(str(out), verbs.deriver(nix, attempt, str(out)), program, app.name, system, here=True)


def is_in_store(path: Path) -> bool:
    """Whether a path lies in the Nix store."""
    return STORE_PATH.match(str(path)) is not None


def _rooted_package(nix: Nix, app: AppSettings, system: System, attempt: Attempt) -> Package:
    root = attempt.directory / "drv"
    known = table_of(nix.environ, app.name) if app.flake is None else {}
    if str(system) in known:
        package = known[str(system)]
        if not verbs.root_derivation(nix, attempt, package.drv, root):
            raise EvaluationFailedError(
                f"{app.name} for {system}",
                f"{package.drv} is no longer in this machine's store",
                next_step="build the flake's remote-runner again",
            )
        return package
    flake = app.flake or DEFAULT_FLAKE
    for _ in range(2):
        package = _evaluate(nix, attempt, flake, app.name, str(system))
        if verbs.root_derivation(nix, attempt, package.drv, root):
            return package
        # Collected between the two. The root is there now, so that the second one stays.
    log = attempt.directory / "root.log"
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    raise EvaluationFailedError(package.drv, "does not stay in this machine's store", log=str(log), said=said)


def _evaluate(nix: Nix, attempt: Attempt, flake: str, app: str, system: str, tries: int = 5) -> Package:
    try:
        return verbs.evaluate(nix, attempt, flake, system, app)
    except EvaluationFailedError as error:
        if tries > 1 and f"{attempt.plan_dir}/outputs/" in str(error):
            # A directory that is in no git repository is copied whole, also what other instances write there just now.
            return _evaluate(nix, attempt, flake, app, system, tries - 1)
        has = verbs.packages(nix, attempt, flake)
        if has is not None and app not in has.get(system, ()):
            raise EvaluationFailedError(
                verbs.attribute(flake, system, app),
                f"the flake has no such package; it has {_described(has)}",
                next_step="app.name in inventory.yaml (or --app) is the package's name; app.flake is the flake",
            ) from error
        if has is None and (hint := _hint(attempt.plan_dir, flake, error)):
            error.next_step = hint
        raise


def _described(packages: Mapping[str, tuple[str, ...]]) -> str:
    words = [f"{', '.join(names[:8])} for {system}" for system, names in packages.items() if names]
    return "; ".join(words) or "none"


def _hint(plan_dir: Path, flake: str, error: EvaluationFailedError) -> str:
    """What else to look at when Nix cannot use its store, or read a flake in a directory."""
    if _STORE_REFUSED.search(str(error)):
        return (
            "this user cannot use the Nix store of this machine: let its administrator set Nix up for it (nix-daemon), "
            "or set app.builder: command in inventory.yaml"
        )
    if not flake.startswith((".", "/")):
        return ""
    directory = (plan_dir / flake.partition("?")[0]).resolve()
    in_git = any((parent / ".git").exists() for parent in (directory, *directory.parents))
    if in_git and any(words in str(error) for words in _UNTRACKED):
        return f"Nix sees only what git tracks: git add what it misses, or set app.flake: path:{directory}"
    if not (directory / "flake.nix").exists():
        return f"there is no flake.nix in {directory}: write one, or set app.flake (or app.builder: command)"
    return ""


def _why_not_here(nix: Nix, attempt: Attempt, package: Package) -> str:
    drvs = verbs.missing(nix, attempt, package)
    if not drvs:
        return ""
    systems = {derivation_system(Path(drv).read_text(encoding="utf-8", errors="replace")) for drv in drvs}
    return BuildMachines.from_config(verbs.config(nix, attempt)).why_not(systems)


def _check_program(app: AppSettings, system: System, out: Path, program: str, log: Path) -> None:
    if missing := _missing_program(out, program):
        by = "app.program in inventory.yaml" if app.program else "the package's meta.mainProgram, else its name"
        raise build_failed(
            app.name,
            str(system),
            f"{missing}; {by} says that it is started",
            log=str(log),
            next_step="set app.program in inventory.yaml, or meta.mainProgram in the package",
        )


def _missing_program(out: Path, program: str) -> str:
    """What is wrong with a program in an output, "" for nothing."""
    path = out / program
    if path.is_file():
        return "" if os.access(path, os.X_OK) else f"{path} is not executable"
    near = sorted(entry.name for entry in path.parent.iterdir())[:8] if path.parent.is_dir() else []
    return f"{path} is not there" + (f" (beside it: {', '.join(near)})" if near else "")
