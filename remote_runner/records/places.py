"""Where records are: below the plan's outputs, or where a note on this machine points."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.controller import Controller
from remote_runner.errors import RunNotFoundError, RunRecordError
from remote_runner.instance.run_log import LOG_FILE
from remote_runner.machine.files import write_atomically
from remote_runner.records.run import RUNNING, RunRecord

_MOST_NOTES = 2000
_SHORTEST = 4
_MOST_NAMED = 5


@dataclass(frozen=True)
class FoundRun:
    """A run whose record is here."""

    directory: Path
    record: RunRecord

    @property
    def run(self) -> str:
        return self.record.run

    @property
    def is_alive(self) -> bool:
        """Whether somebody still writes what its instances say."""
        return is_written(self.directory)

    @property
    def outcome(self) -> str:
        """Its outcome; `lost` for a run whose end nobody could write."""
        if self.record.outcome == RUNNING and not self.is_alive:
            return "lost"
        return self.record.outcome


@dataclass(frozen=True)
class FoundRuns:
    """The runs whose records are here, the oldest first, and what of that cannot be read."""

    runs: list[FoundRun]
    unread: list[RunRecordError]

    @property
    def ids(self) -> list[str]:
        """The runs' ids, also of those of which only that can be told."""
        return [*(one.run for one in self.runs), *(error.run for error in self.unread if error.run)]


def is_written(directory: Path) -> bool:
    """Whether a process holds the run's log open; also where that cannot be told."""
    try:
        fd = _opened(directory / LOG_FILE)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS gives an exclusive lock to those who may write
    except FileNotFoundError:
        raise
    except OSError:  # somebody else's, or on a disk that cannot be written
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def note_place(controller: Controller, run: str, directory: Path) -> None:
    """Remember where a run's record is, if that can be written; the oldest notes go."""
    notes = _notes(controller)
    write_atomically(notes / run, os.fsencode(directory), optional=True)
    with suppress(OSError):
        for old in sorted(notes.iterdir())[:-_MOST_NOTES]:
            old.unlink(missing_ok=True)


def forget_place(controller: Controller, run: str) -> None:
    """The run's record is not there any more."""
    with suppress(OSError):
        (_notes(controller) / run).unlink(missing_ok=True)


def _notes(controller: Controller) -> Path:
    return controller.cache / "recorded"


def found_runs(controller: Controller, outputs: Path) -> FoundRuns:
    """Every run whose record is below `outputs` or was noted."""
    found = FoundRuns([], [])
    places = {path.name: path for path in _noted(controller, found.unread)}
    for plan in _listed(outputs / "outputs/local_exec", found.unread):
        places |= {path.name: path for path in _listed(plan, found.unread)}
    for place in places.values():
        try:
            record = RunRecord.read(place)
        except RunRecordError as error:
            found.unread.append(error)
        else:
            if record is not None:
                found.runs.append(FoundRun(place, record))
    found.runs.sort(key=lambda one: one.record.started_at)
    return found


def _noted(controller: Controller, unread: list[RunRecordError]) -> Iterator[Path]:
    for note in _listed(_notes(controller), unread):
        try:
            yield Path(os.fsdecode(note.read_bytes()))
        except FileNotFoundError:  # the oldest notes go
            continue
        except OSError as error:
            unread.append(RunRecordError(note, error.strerror or str(error)))


def _listed(directory: Path, unread: list[RunRecordError]) -> list[Path]:
    """What is in a directory, nothing where that is none."""
    try:
        return list(directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        unread.append(RunRecordError(directory, error.strerror or str(error)))
        return []


def choose_run(found: FoundRuns, given: str) -> FoundRun:
    """The run that an id or the beginning of one means, the last one for "".

    Raises `RunNotFoundError`, `RunRecordError` where the record of that run cannot be read.
    """
    if given:
        run = chosen_id(found.ids, given)
        for one in found.runs:
            if one.run == run:
                return one
        raise next(error for error in found.unread if error.run == run)
    if not found.runs:
        raise RunNotFoundError("no run is recorded here", next_step="run one: fab local.single, or fab demo")
    return found.runs[-1]


def chosen_id(ids: list[str], given: str) -> str:
    """The one of these ids that `given` is, or the beginning of. Raises `RunNotFoundError`."""
    if given in ids:
        return given
    meant = [one for one in dict.fromkeys(ids) if one.startswith(given)] if len(given) >= _SHORTEST else []
    if len(meant) == 1:
        return meant[0]
    if meant:
        named = ", ".join(meant[-_MOST_NAMED:])
        raise RunNotFoundError(
            f"{given} is the beginning of {len(meant)} runs: {named}", next_step="give more of the id"
        )
    raise RunNotFoundError(f"there is no run {given} here", next_step="fab runs lists them")
