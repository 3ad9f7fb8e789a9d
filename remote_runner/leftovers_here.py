"""What earlier runs left in this machine's own directories: found by age and by who still uses it, then removed."""

from __future__ import annotations

import enum
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, MasterError
from remote_runner.mux import MuxConnection
from remote_runner.warm_protocol import WarmPlace

# A run that goes on reads its build until it has pushed it, and its inventory at the start.
USUAL_AGE_S = 3600.0
# Shorter than that nobody can mean: what builds or pushes at this moment would lose it.
_LEAST_BUILD_AGE_S = 600.0
_NOTE_AGE_S = 30 * 86400.0
_ANSWER_S = 5.0


class StaleKind(enum.Enum):
    """What kind of thing was left."""

    BUILD = "build"
    INVENTORY = "parsed inventory"
    NOTE = "note of a run"
    CONNECTION = "dead connection"
    WARM = "dead warm process"
    MARKER = "marker"
    LOCK = "lock"


@dataclass(frozen=True)
class Stale:
    """A file or directory here that nobody needs any more; for what listened its socket, or its log."""

    kind: StaleKind
    path: Path
    age_s: float
    size_bytes: int


def list_stale(controller: Controller, *, older_than_s: float = USUAL_AGE_S) -> tuple[Stale, ...]:
    """What may go: builds, parsed inventories and markers of that age, old notes, free locks, what listens no more."""
    cache, runtime = controller.cache, controller.runtime
    found = [
        *_aged(StaleKind.BUILD, cache.glob("builds/*"), max(older_than_s, _LEAST_BUILD_AGE_S)),
        *_aged(StaleKind.INVENTORY, cache.glob("*.yaml.*.json"), older_than_s),
        *_aged(StaleKind.NOTE, cache.glob("runs/*.json"), max(older_than_s, _NOTE_AGE_S)),
        *_aged(StaleKind.MARKER, runtime.glob("systems/*"), max(older_than_s, 86400.0)),
        *_aged(StaleKind.MARKER, runtime.glob("pushed/*"), max(older_than_s, 86400.0)),
    ]
    dead = {stem for stem in _master_stems(runtime) if not _answers(runtime / stem)}
    for path in sorted(runtime.iterdir()):
        if path.is_dir() or _stem(path) not in dead:
            continue
        found += _aged(StaleKind.CONNECTION, [path], 0.0)
    found += _aged(StaleKind.WARM, [path for path in runtime.glob("warm/*") if not _takes_instances(path)], 0.0)
    found += [
        stale
        for stale in _aged(StaleKind.LOCK, (runtime / "locks").glob("*"), older_than_s)
        if _is_free(controller, stale.path.name)
    ]
    return tuple(found)


def remove_stale(controller: Controller, stale: Stale) -> bool:
    """Remove it, unless somebody has begun to use it; says whether it is gone."""
    if stale.kind is StaleKind.BUILD:
        import shutil

        shutil.rmtree(stale.path, ignore_errors=True)
    elif stale.kind is StaleKind.LOCK:
        lock = controller.lock(stale.path.name)
        if not lock.try_acquire():
            return False
        with lock:  # who waits for it finds that it is another file now
            stale.path.unlink(missing_ok=True)
    elif stale.kind is StaleKind.WARM:
        start = controller.lock(_warm_place(stale.path).lock_name)
        if not start.try_acquire():
            return False
        with start:
            if _takes_instances(stale.path):
                return False
            stale.path.unlink(missing_ok=True)
    elif stale.kind is StaleKind.CONNECTION:
        stem = _stem(stale.path)
        start = controller.lock(f"{stem}-start")
        if not start.try_acquire():
            return False
        with start:
            if _answers(controller.runtime / stem):
                return False
            stale.path.unlink(missing_ok=True)
    else:
        stale.path.unlink(missing_ok=True)
    return not stale.path.exists()


def _aged(kind: StaleKind, paths: Iterator[Path] | list[Path], older_than_s: float) -> Iterator[Stale]:
    for path in sorted(paths):
        with suppress(FileNotFoundError):  # somebody else removes as well
            age_s = time.time() - path.lstat().st_mtime
            if age_s >= older_than_s:
                yield Stale(kind, path, max(0.0, age_s), _size_bytes(path))


def _size_bytes(path: Path) -> int:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return found.st_size
    total = 0
    for entry in path.rglob("*"):
        with suppress(FileNotFoundError):
            total += entry.lstat().st_size
    return total


def _stem(path: Path) -> str:
    """KEY-NUMBER, the master that a file of the runtime directory belongs to ("" for other files)."""
    key, dash, rest = path.name.partition("-")
    number = rest.partition(".")[0].partition("-")[0]
    return f"{key}-{number}" if dash and number.isdigit() else ""


def _master_stems(runtime: Path) -> set[str]:
    return {_stem(path) for path in runtime.iterdir() if not path.is_dir()} - {""}


def _answers(socket_path: Path) -> bool:
    """Whether a master listens there; one that is silent counts as alive."""
    try:
        MuxConnection(socket_path, Deadline.after(_ANSWER_S)).close()
    except DeadlineError:
        return True
    except MasterError:
        return False
    return True


def _warm_place(path: Path) -> WarmPlace:
    """The warm process that a file in its directory belongs to."""
    return WarmPlace(path.with_name(path.name.partition(".")[0]))


def _takes_instances(path: Path) -> bool:
    """Whether the warm process of this file listens; one that is silent counts as alive."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            asking.connect(str(_warm_place(path).socket))
        except OSError:
            return False
    return True


def _is_free(controller: Controller, name: str) -> bool:
    lock = controller.lock(name)
    if not lock.try_acquire():
        return False
    lock.release()
    return True
