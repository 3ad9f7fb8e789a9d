"""What earlier runs left in our directories on this machine: found by age and use, then removed."""

from __future__ import annotations

import enum
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from remote_runner.broker.place import DIRECTORY, BrokerPlace
from remote_runner.connection.bootstrap.program import identity
from remote_runner.connection.transports.login import is_listening
from remote_runner.controller import Controller
from remote_runner.errors import ControllerError, PlanImportError
from remote_runner.machine.files import remove_tree, size_of

# A running run reads its build until it has pushed it, and its inventory at the start.
USUAL_AGE_S = 3600.0
# Anything younger may belong to a build or push that is still going on.
_LEAST_BUILD_AGE_S = 600.0
_NOTE_AGE_S = 30 * 86400.0
_DAY_S = 86400.0
_LEAST_TEMP_AGE_S = 60.0  # between its making and its process
# Files of the versions that kept control masters: KEY-NUMBER, the socket, and what else begins so.
_MASTERS_FILE = re.compile(r"([0-9a-f]{12}-\d+)(?:\D.*)?")
_LOG = re.compile(r"ssh-(\d+)-[0-9a-f]+\.log")
_TEMP = re.compile(r"(?:testground|remote-runner-demo)(?:-(\d+)-)?[A-Za-z0-9_]*")
# Of a question to Nix or to a source of hosts, and of a build of the program for templates, that was killed.
_ASIDE = tuple(map(PurePath, ("question-*", "asking-*", "salloc-*", "template/new.*")))
IN_USE = "is in use again"


class StaleKind(enum.Enum):
    """What kind of thing was left."""

    BUILD = "build"
    PROGRAM = "program of another version"
    INVENTORY = "parsed inventory"
    NOTE = "note of a run"
    CONTACT = "note of a host"
    LOG = "log of an ended connection"
    LOGIN = "ended login"
    BROKER = "dead broker"
    OLDER = "file of an older version"
    TEMP = "temporary directory"
    LOCK = "lock"
    UNREAD = "directory"


@dataclass(frozen=True)
class Stale:
    """A file or directory here that is not needed any more; or one of which a `problem` keeps that from being told."""

    kind: StaleKind
    path: Path
    age_s: float
    size_bytes: int
    problem: str = ""


def list_stale(
    controller: Controller, environ: Mapping[str, str], *, older_than_s: float = USUAL_AGE_S
) -> tuple[Stale, ...]:
    """What may go: builds, parsed inventories and programs of that age, old notes, what listens no more, free locks.

    `environ` says where temporary directories are made. Of a directory that cannot be read that is told.
    """
    cache, runtime, old_s = controller.cache, controller.runtime, max(older_than_s, _LEAST_BUILD_AGE_S)
    look = _Look()
    programs = (path for path in look.into(cache / "agents") if path.name != identity())
    asides = (path for pattern in _ASIDE for path in look.into(cache / pattern.parent, pattern.name))
    brokers = (path for path in look.into(runtime / DIRECTORY) if not is_listening(_place(path).socket))
    logins = (path for path in look.into(runtime, "login-*") if not is_listening(path))
    return (
        *_aged(StaleKind.BUILD, look.into(cache / "builds"), old_s),
        *_aged(StaleKind.PROGRAM, programs, old_s),
        *_aged(StaleKind.INVENTORY, look.into(cache, "*.yaml.*.json"), older_than_s),
        *_aged(StaleKind.NOTE, look.into(cache / "runs", "*.json"), max(older_than_s, _NOTE_AGE_S)),
        *_aged(StaleKind.CONTACT, look.into(runtime / "systems"), max(older_than_s, _DAY_S)),
        *_aged(StaleKind.LOG, filter(_has_no_writer, look.into(runtime, "ssh-*.log"))),
        *_aged(StaleKind.LOGIN, logins),
        *_aged(StaleKind.BROKER, brokers),
        *_aged(StaleKind.OLDER, _of_older_versions(runtime, look)),
        *_left_temporary(Path(environ.get("TMPDIR") or "/tmp"), look, older_than_s),
        *_aged(StaleKind.TEMP, asides, max(older_than_s, _DAY_S)),
        *_aged(StaleKind.TEMP, _left_imports(environ, look), max(older_than_s, _DAY_S)),
        *(
            lock
            for lock in _aged(StaleKind.LOCK, look.into(runtime / "locks"), older_than_s)
            if lock.problem or _is_free(controller, lock.path.name)
        ),
        *look.unread(),
    )


def remove_stale(controller: Controller, stale: Stale) -> str:
    """Remove it unless it is in use again; why it is still there, "" where it is gone."""
    path = stale.path
    try:
        if stale.problem:
            return stale.problem
        if stale.kind in (StaleKind.LOCK, StaleKind.BROKER):
            lock = controller.lock(path.name if stale.kind is StaleKind.LOCK else _place(path).lock_name)
            if not lock.try_acquire():
                return IN_USE
            with lock:  # waiting processes notice that the file was replaced
                if stale.kind is StaleKind.BROKER and is_listening(_place(path).socket):
                    return IN_USE
                path.unlink(missing_ok=True)
        elif path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        where = "" if error.filename in (None, str(path)) else f"{error.filename}: "
        return f"cannot be removed: {where}{error.strerror or error}"
    except ControllerError as error:
        return f"cannot be removed: {error}"
    return ""


class _Look:
    """Looks into directories, and knows which could not be read."""

    def __init__(self) -> None:
        self._unread: dict[Path, str] = {}

    def into(self, directory: Path, pattern: str = "*") -> list[Path]:
        """What is in the directory under such names; nothing where it is none."""
        try:
            found = sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._unread[directory] = error.strerror or str(error)
            return []
        return [path for path in found if fnmatchcase(path.name, pattern)]

    def unread(self) -> Iterator[Stale]:
        """What could not be looked into until now."""
        for path, why in self._unread.items():
            yield Stale(StaleKind.UNREAD, path, 0.0, 0, f"cannot be read: {why}")


def _aged(kind: StaleKind, paths: Iterable[Path], older_than_s: float = 0.0) -> Iterator[Stale]:
    for path in sorted(paths):
        try:
            age_s = max(0.0, time.time() - path.lstat().st_mtime)
            if age_s >= older_than_s:
                yield Stale(kind, path, age_s, size_of(path))
        except FileNotFoundError:  # another process removes as well
            continue
        except OSError as error:
            yield Stale(kind, path, 0.0, 0, f"cannot be looked at: {error.strerror}")


def _place(path: Path) -> BrokerPlace:
    """The broker that a file in its directory belongs to."""
    return BrokerPlace(path.with_name(path.name.partition(".")[0]))


def _has_no_writer(log: Path) -> bool:
    found = _LOG.fullmatch(log.name)
    return found is not None and not _is_alive(int(found[1]))


def _of_older_versions(runtime: Path, look: _Look) -> Iterator[Path]:
    """Sockets of control masters and of warm processes on which nobody listens, what belongs to them, and markers."""
    yield from look.into(runtime / "pushed")
    for path in look.into(runtime / "warm"):
        if not is_listening(_place(path).socket):
            yield path
    for path in look.into(runtime):
        found = _MASTERS_FILE.fullmatch(path.name)
        if found and not path.is_dir() and not is_listening(path.with_name(found[1])):
            yield path


def _left_temporary(parent: Path, look: _Look, older_than_s: float) -> Iterator[Stale]:
    """Temporary directories of killed instances and demos: ours name the process, Testground's do not."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in look.into(parent):
        found = _TEMP.fullmatch(path.name)
        with suppress(OSError):  # of somebody else
            status = path.lstat()
            if found and stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                if not found[1]:
                    others.append(path)
                elif not _is_alive(int(found[1])):
                    ours.append(path)
    yield from _aged(StaleKind.TEMP, ours)
    if others:
        used = _used_temporary()
        # Where nothing tells who uses one, only its age does.
        least_s = max(older_than_s, _DAY_S) if used is None else _LEAST_TEMP_AGE_S
        yield from _aged(StaleKind.TEMP, (path for path in others if str(path) not in (used or ())), least_s)


def _left_imports(environ: Mapping[str, str], look: _Look) -> Iterator[Path]:
    """What killed imports left in the Testground home that `testground` uses."""
    from remote_runner.plan_import import ASIDE, home_of_testground

    with suppress(PlanImportError):
        yield from look.into(home_of_testground(environ) / "plans", f"{ASIDE}*")


def _used_temporary() -> set[str] | None:
    """The directories that are some process's TEST_TEMP_PATH; `None` where the system does not tell (no /proc)."""
    if not Path("/proc/self/environ").exists():
        return None
    used = set()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            for variable in environ.read_bytes().split(b"\0"):
                if variable.startswith(b"TEST_TEMP_PATH="):
                    used.add(os.fsdecode(variable.partition(b"=")[2]))
    return used


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _is_free(controller: Controller, name: str) -> bool:
    lock = controller.lock(name)
    try:
        if not lock.try_acquire():
            return False
    except ControllerError:
        return True  # who removes it tells
    lock.release()
    return True
