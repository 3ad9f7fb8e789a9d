"""Importing a plan into Testground's home, so that the daemon copies the plan's own files and finds this Python.

`testground plan import` makes a link instead. Then each run copies all that lies in the directory (`.git`, `.venv`),
and links inside it arrive as empty files.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from remote_runner.controller import home_directory
from remote_runner.deadline import Deadline
from remote_runner.errors import LocalProgramError, PlanImportError
from remote_runner.example import example_plan
from remote_runner.machine import process
from remote_runner.typed import typed_program
from testground.manifest import Manifest

SHIM = PurePath("exec-go")
COMMAND = SHIM / "command"
EXEC_PKG = f"./{SHIM}"
ASIDE = ".remote-runner-import-"
"""What the names of directories in Testground's home begin with in which an import is made."""
_ROOT = Path(__file__).resolve().parent.parent
_GIT_S = 60.0
_VERSION_CONTROL = {".git", ".hg", ".svn", ".jj"}
# What cargo, pytest, mypy and ruff put into a directory that can be made anew (https://bford.info/cachedir/).
_CACHE_TAG = "CACHEDIR.TAG"


@dataclass(frozen=True)
class Imported:
    """A plan in a Testground home: where it is, how many files of how many bytes it has there, and what chose them."""

    path: Path
    files: int
    size_bytes: int
    choice: str


def home_of_testground(environ: Mapping[str, str]) -> Path:
    """The home that `testground` uses (v0.6.0, pkg/config/loader.go). Raises `PlanImportError` where there is none."""
    given = environ.get("TESTGROUND_HOME")
    if given:
        return Path(given)
    found = environ.get("HOME") or home_directory(environ)
    if found is None:
        problem = f"user {os.getuid()} has no home: HOME is not set, and passwd does not know the user"
        raise PlanImportError(problem, next_step="name Testground's home with --home")
    home = Path(found)
    if (home / "testground").is_dir():
        return home / "testground"
    config = home / "Library" / "Application Support" if sys.platform == "darwin" else home / ".config"
    return Path(environ.get("XDG_CONFIG_HOME") or config) / "testground"


def instance_command() -> tuple[str, ...]:
    """What an instance is started with wherever its plan lies: `fab instance` by this Python, without Fabric.

    The plan's directory is no place for imports (-P): a copy of it would be compiled anew for each run. The last
    word is the program for hints, where it is not `fab`.
    """
    imports = f"import sys; sys.path.insert(0, {str(_ROOT)!r}); from remote_runner.__main__ import main"
    return (sys.executable, "-P", "-c", f"{imports}; sys.exit(main(*sys.argv[1:]))", *typed_program())


def check_builders(manifest: Manifest) -> None:
    """Raises `PlanImportError`, with what to add, where Testground would not build what starts an instance."""
    go = manifest.builders.get("exec:go")
    if go is None and "nix:generic" in manifest.builders:
        return  # it builds what its `attr` names
    if go is None:
        problem = 'builders: there is no "exec:go", by which Testground builds what starts an instance'
        next_step = f'add to it: [builders."exec:go"], and below that: exec_pkg = "{EXEC_PKG}"'
    elif "exec_pkg" not in go:
        problem = 'builders."exec:go" has no exec_pkg, so Testground would build no more than the plan\'s own package'
        next_step = f'add to it, below [builders."exec:go"]: exec_pkg = "{EXEC_PKG}"'
    elif go["exec_pkg"] != EXEC_PKG:
        problem = f'builders."exec:go".exec_pkg is {go["exec_pkg"]!r}, which is not what starts an instance'
        next_step = f'set it to "{EXEC_PKG}"'
    else:
        return
    raise PlanImportError(f"{manifest.file}: {problem}", next_step=next_step)


def import_plan(plan: Path, name: str, home: Path, *, environ: Mapping[str, str]) -> Imported:
    """Copy the plan's own files to `plans/<name>` in the home; what an earlier import left there is replaced.

    Links are followed, a plan without Go's shim gets it. Raises `PlanImportError`.
    """
    target = home.absolute() / "plans" / name
    if plan.resolve() in (target, *target.parents):
        raise PlanImportError(f"{plan}: is in Testground's home itself", next_step="import the plan that you work on")
    if not target.is_symlink() and target.exists() and not (target / COMMAND).exists():
        next_step = f"remove it (testground plan rm --yes --plan {name}), or name another home with --home"
        raise PlanImportError(f"{target}: exists, and is no import of this program", next_step=next_step)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f"{ASIDE}{target.name}-", dir=target.parent))
        try:
            fresh = aside / "plan"
            names, choice = own_files(plan, environ)
            _copy(plan, names, fresh)
            add_shim(fresh)
            if os.path.lexists(target):
                target.rename(aside / "old")
            fresh.rename(target)
        finally:
            shutil.rmtree(aside, ignore_errors=True)  # `fab clean` finds and tells what stays
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        next_step = "name another home with --home, or move what is there"
        raise PlanImportError(f"{where}{error.strerror or error}", next_step=next_step) from error
    sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
    return Imported(target, len(sizes), sum(sizes), choice)


def own_files(plan: Path, environ: Mapping[str, str]) -> tuple[list[PurePath], str]:
    """The files that make up the plan, below its directory, and what chose them.

    In a checkout of git, what it tracks or would add; else all but version control, environments of Python, caches
    and what runs put into `outputs`. `.testgroundignore` is left to `testground`, which reads it in the copy.
    """
    names, why_not = _by_git(plan, environ)
    if names:
        return sorted(set(names)), "what git tracks or would add"
    return sorted(set(_by_looking(plan))), f"all but caches, outputs and version control, since {why_not}"


def _by_git(plan: Path, environ: Mapping[str, str]) -> tuple[list[PurePath], str]:
    """What git lists, or why it lists nothing."""
    git = shutil.which("git", path=environ.get("PATH"))
    if git is None:
        return [], "git is not on PATH"
    # Not whose checkout it is, only what is in it: nothing of it is run but its ignore rules.
    argv = [git, "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = process.run(argv, deadline=Deadline.after(_GIT_S), environ=environ, cwd=plan)
    except LocalProgramError as error:
        return [], str(error)
    if done.status != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return [], f"git says: {said[0]}" if said else f"git ended with status {done.status}"
    names = [PurePath(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name]
    return [name for name in names if os.path.lexists(plan / name)], "git lists nothing of it"


def _by_looking(plan: Path) -> Iterator[PurePath]:
    for directory, folders, files in os.walk(plan):
        here = Path(directory)
        folders[:] = [name for name in folders if not _is_left_out(plan, here / name)]
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = [name for name in folders if name not in links]
        for name in (*files, *links):
            if name not in _VERSION_CONTROL:  # a file in a git worktree
                yield (here / name).relative_to(plan)


def _is_left_out(plan: Path, folder: Path) -> bool:
    return (
        folder.name in _VERSION_CONTROL
        or folder.name == "__pycache__"
        or folder == plan / "outputs"
        or (folder / "pyvenv.cfg").exists()
        or (folder / _CACHE_TAG).exists()
    )


def _copy(plan: Path, names: Iterable[PurePath], target: Path) -> None:
    target.mkdir()
    for name in names:
        source, copy = plan / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():  # a link to a folder, or a checkout within the checkout
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns(*_VERSION_CONTROL, "__pycache__"))
        else:
            shutil.copy2(source, copy)


def add_shim(plan: Path) -> None:
    """Put beside the plan what Testground builds: the launcher, where it has none, and the words of this Python."""
    if not (plan / "go.mod").exists():
        shutil.copyfile(example_plan() / "go.mod", plan / "go.mod")
    if not (plan / SHIM / "main.go").exists():
        (plan / SHIM).mkdir(exist_ok=True)
        for source in (example_plan() / SHIM).glob("*.go"):
            shutil.copyfile(source, plan / SHIM / source.name)
    (plan / COMMAND).write_bytes(os.fsencode("\n".join(instance_command()) + "\n"))
