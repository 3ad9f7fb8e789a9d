"""What earlier runs left in our directories on this machine: found by age and use, then removed."""

from __future__ import annotations

import enum
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.broker.place import DIRECTORY, BrokerPlace
from remote_runner.connection.bootstrap.program import identity
from remote_runner.connection.transports.login import is_listening
from remote_runner.controller import Controller
from remote_runner.errors import PlanImportError
from remote_runner.machine.files import size_of

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
_ASIDE = ("question-*", "asking-*", "salloc-*", "template/new.*")


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


@dataclass(frozen=True)
class Stale:
    """A file or directory here that is not needed any more."""

    kind: StaleKind
    path: Path
    age_s: float
    size_bytes: int


def list_stale(
    controller: Controller, environ: Mapping[str, str], *, older_than_s: float = USUAL_AGE_S
) -> tuple[Stale, ...]:
    """What may go: builds, parsed inventories and programs of that age, old notes, what listens no more, free locks.

    `environ` says where temporary directories are made.
    """
    cache, runtime = controller.cache, controller.runtime
    programs = (path for path in cache.glob("agents/*") if path.name != identity())
    return (
        *_aged(StaleKind.BUILD, cache.glob("builds/*"), max(older_than_s, _LEAST_BUILD_AGE_S)),
        *_aged(StaleKind.PROGRAM, programs, max(older_than_s, _LEAST_BUILD_AGE_S)),
        *_aged(StaleKind.INVENTORY, cache.glob("*.yaml.*.json"), older_than_s),
        *_aged(StaleKind.NOTE, cache.glob("runs/*.json"), max(older_than_s, _NOTE_AGE_S)),
        *_aged(StaleKind.CONTACT, runtime.glob("systems/*"), max(older_than_s, _DAY_S)),
        *_aged(StaleKind.LOG, filter(_has_no_writer, runtime.glob("ssh-*.log"))),
        *_aged(StaleKind.LOGIN, (path for path in runtime.glob("login-*") if not is_listening(path))),
        *_aged(
            StaleKind.BROKER, (path for path in runtime.glob(f"{DIRECTORY}/*") if not is_listening(_place(path).socket))
        ),
        *_aged(StaleKind.OLDER, _of_older_versions(runtime)),
        *_left_temporary(Path(environ.get("TMPDIR") or "/tmp"), older_than_s),
        *_aged(StaleKind.TEMP, (path for name in _ASIDE for path in cache.glob(name)), max(older_than_s, _DAY_S)),
        *_aged(StaleKind.TEMP, _left_imports(environ), max(older_than_s, _DAY_S)),
        *(
            lock
            for lock in _aged(StaleKind.LOCK, runtime.glob("locks/*"), older_than_s)
            if _is_free(controller, lock.path.name)
        ),
    )


def remove_stale(controller: Controller, stale: Stale) -> bool:
    """Remove it unless it is in use again; returns whether it is gone."""
    path = stale.path
    if stale.kind in (StaleKind.LOCK, StaleKind.BROKER):
        lock = controller.lock(path.name if stale.kind is StaleKind.LOCK else _place(path).lock_name)
        if not lock.try_acquire():
            return False
        with lock:  # waiting processes notice that the file was replaced
            if stale.kind is StaleKind.BROKER and is_listening(_place(path).socket):
                return False
            path.unlink(missing_ok=True)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    return not os.path.lexists(path)


def _aged(kind: StaleKind, paths: Iterable[Path], older_than_s: float = 0.0) -> Iterator[Stale]:
    for path in sorted(paths):
        with suppress(FileNotFoundError):  # another process removes as well
            age_s = max(0.0, time.time() - path.lstat().st_mtime)
            if age_s >= older_than_s:
                yield Stale(kind, path, age_s, size_of(path))


def _place(path: Path) -> BrokerPlace:
    """The broker that a file in its directory belongs to."""
    return BrokerPlace(path.with_name(path.name.partition(".")[0]))


def _has_no_writer(log: Path) -> bool:
    found = _LOG.fullmatch(log.name)
    return found is not None and not _is_alive(int(found[1]))


def _of_older_versions(runtime: Path) -> Iterator[Path]:
    """Sockets of control masters and of warm processes on which nobody listens, what belongs to them, and markers."""
    yield from runtime.glob("pushed/*")
    for path in runtime.glob("warm/*"):
        if not is_listening(_place(path).socket):
            yield path
    for path in runtime.iterdir():
        found = _MASTERS_FILE.fullmatch(path.name)
        if found and not path.is_dir() and not is_listening(path.with_name(found[1])):
            yield path


def _left_temporary(parent: Path, older_than_s: float) -> Iterator[Stale]:
    """Temporary directories of killed instances and demos: ours name the process, Testground's do not."""
    ours: list[Path] = []
    others: list[Path] = []
    for path in (*parent.glob("testground*"), *parent.glob("remote-runner-demo-*")):
        with suppress(FileNotFoundError):
            found, status = _TEMP.fullmatch(path.name), path.lstat()
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


def _left_imports(environ: Mapping[str, str]) -> Iterator[Path]:
    """What killed imports left in the Testground home that `testground` uses."""
    from remote_runner.plan_import import ASIDE, home_of_testground

    with suppress(PlanImportError):
        yield from (home_of_testground(environ) / "plans").glob(f"{ASIDE}*")


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
    if not lock.try_acquire():
        return False
    lock.release()
    return True
