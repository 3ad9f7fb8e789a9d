"""What runs left on a host, and its cache of artifacts: listed, fetched, removed; each in one short session."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from remote_runner import far_shell
from remote_runner.artifact.far_artifact import Store
from remote_runner.deadline import Deadline
from remote_runner.errors import FarShellError, UnknownRunError
from remote_runner.host import Host, Session
from remote_runner.marks import Mark, MarkedReader, mark_for
from remote_runner.outputs import DEFAULT_LIMIT_BYTES, OutputsReport, unpack

# What a session here may take; removing a large directory is slow on some disks.
_SESSION_S = 300.0
_KEPT_NOISE_BYTES = 4096
# Of all a host says in one session; a run's record has less than 4 KiB.
_MOST_SAID_BYTES = 16 << 20


@dataclass(frozen=True)
class FarRun:
    """A run's directory on a host, and its record (`id`, `age` in seconds, `artifact`, …)."""

    host: str
    run_id: str
    directory: PurePosixPath
    is_alive: bool
    size_bytes: int
    record: Mapping[str, str]

    @property
    def age_s(self) -> float | None:
        """How long ago it began, by the host's own clock; `None` where the record does not say."""
        age = self.record.get("age", "")
        return float(age) if age.isdigit() else None


@dataclass(frozen=True)
class LeftArtifact:
    """An artifact on a host, or (`is_partial`) what a push that broke off left there.

    `directory`: its folder in the cache; or the root that keeps it in the host's Nix store (which alone knows its
    size); or the list of its closure in the user's own store. `age_s` is the time since its last use; `is_used` says
    that a run which is alive started from it.
    """

    host: str
    name: str
    directory: PurePosixPath
    is_used: bool
    age_s: int
    size_bytes: int

    @property
    def is_partial(self) -> bool:
        return self.name.startswith(".tmp-") or self.directory.parent.name == "store"

    @property
    def store(self) -> Store:
        return {"roots": Store.NIX, "closures": Store.USER}.get(self.directory.parent.name, Store.CACHE)


@dataclass(frozen=True)
class Removal:
    """What became of what should be removed: directories, and the names that the host does not know."""

    removed: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()


def list_runs(host: Host, *, directory: str | None = None, deadline: Deadline | None = None) -> tuple[FarRun, ...]:
    """Every run that has a directory on the host; `directory` is what inventory.yaml says for it."""
    found: list[FarRun] = []
    record: dict[str, str] = {}
    with _dialogue(host, "rr_list_runs", directory=directory, deadline=deadline) as marks:
        for mark in marks:
            if mark.kind == "run":
                record = {}
                place = PurePosixPath(mark.rest(3))
                if place.name in ("", ".."):
                    continue  # no directory has such a name
                is_alive, size_bytes = mark.words[1] == b"yes", int(mark.words[2]) * 1024
                found.append(FarRun(host.name, place.name, place, is_alive, size_bytes, record))
            elif mark.kind == "record":
                key, _, value = mark.rest(1).partition("=")
                record[key] = value
    return tuple(found)


def fetch_run(
    host: Host,
    run_id: str,
    outputs_dir: Path,
    *,
    directory: str | None = None,
    limit_bytes: int = DEFAULT_LIMIT_BYTES,
    deadline: Deadline | None = None,
) -> OutputsReport:
    """Bring the outputs of an earlier run into `outputs_dir`; the host keeps its copy.

    Raises `UnknownRunError`, and what `outputs.unpack` raises.
    """
    values = {"rr_wanted": run_id}
    with _dialogue(host, "rr_fetch_run", values, directory=directory, deadline=deadline) as marks:
        first = next(marks, None)
        if first is None or first.kind != "found":
            raise UnknownRunError(
                host.name,
                f"there is no run {run_id}",
                next_step=f"fab clean --dry-run --host {host.name} shows what is there",
            )
        report = unpack(
            marks.raw(),
            outputs_dir,
            host=host.name,
            far_outputs=f"{first.rest(1)}/outputs",
            limit_bytes=limit_bytes,
        )
        ended = next(marks, None)
        if ended is None or ended.kind != "tar" or int(ended.words[1]) > 1:
            raise FarShellError(
                host.name, f"tar of the outputs of {run_id} failed", stderr=marks.said(), next_step="look at them there"
            )
    return report


def remove_runs(
    host: Host,
    run_ids: Iterable[str] = (),
    *,
    older_than_s: float | None = None,
    end_alive: bool = False,
    grace_s: float = 10.0,
    directory: str | None = None,
    deadline: Deadline | None = None,
) -> Removal:
    """Remove these runs from the host, or with no names all of them, if they began `older_than_s` ago or earlier.

    One that is not over stays and is told of, unless `end_alive`: then its processes get TERM, after `grace_s` KILL.
    """
    values = {
        "rr_ids": _names(run_ids),
        "rr_older_s": "" if older_than_s is None else str(round(older_than_s)),
        "rr_end_alive": "1" if end_alive else "",
        "rr_grace_s": str(round(grace_s)),
    }
    with _dialogue(host, "rr_remove_runs", values, directory=directory, deadline=deadline) as marks:
        return _removal(marks)


def list_artifacts(
    host: Host, *, directory: str | None = None, deadline: Deadline | None = None
) -> tuple[LeftArtifact, ...]:
    """Every artifact that was pushed to the host."""
    found = []
    with _dialogue(host, "rr_list_artifacts", directory=directory, deadline=deadline) as marks:
        for mark in marks:
            if mark.kind == "artifact":
                place = PurePosixPath(mark.rest(4))
                is_used, age_s, size_bytes = mark.words[1] == b"yes", int(mark.words[2]), int(mark.words[3]) * 1024
                found.append(LeftArtifact(host.name, place.name, place, is_used, age_s, size_bytes))
    return tuple(found)


def choose_artifacts(
    artifacts: Iterable[LeftArtifact], *, older_than_s: float = 0.0, keep_bytes: int | None = None
) -> tuple[LeftArtifact, ...]:
    """Which to remove: not in use, unused for `older_than_s`, and with `keep_bytes` only until the rest fits in that.

    The longest unused come first.
    """
    everything = sorted(artifacts, key=lambda artifact: -artifact.age_s)
    total_bytes = sum(artifact.size_bytes for artifact in everything)
    chosen = []
    for artifact in everything:
        if artifact.is_used or artifact.age_s < older_than_s:
            continue
        if keep_bytes is not None and total_bytes <= keep_bytes:
            break
        total_bytes -= artifact.size_bytes
        chosen.append(artifact)
    return tuple(chosen)


def remove_artifacts(
    host: Host, names: Iterable[str], *, directory: str | None = None, deadline: Deadline | None = None
) -> Removal:
    """Remove these from the host; one that a living run started from stays and is told of.

    In its Nix store they are only let go: its own garbage collection takes what nothing else there keeps.
    """
    wanted = _names(names)
    if not wanted:
        return Removal()
    with _dialogue(host, "rr_remove_artifacts", {"rr_ids": wanted}, directory=directory, deadline=deadline) as marks:
        return _removal(marks)


def _names(names: Iterable[str]) -> str:
    text = " ".join(names)
    return f" {text} " if text else ""


def _removal(marks: _Marks) -> Removal:
    told: dict[str, list[str]] = {"removed": [], "alive": [], "failed": [], "unknown": []}
    for mark in marks:
        if mark.kind in told:
            told[mark.kind].append(mark.rest(1))
    return Removal(**{kind: tuple(names) for kind, names in told.items()})


class _Marks:
    """The marks of one session after its first, up to the last; raises `FarShellError` when it ends before that."""

    def __init__(self, session: Session, reader: MarkedReader, noise: bytearray, deadline: Deadline) -> None:
        self._session = session
        self._reader = reader
        self._noise = noise
        self._deadline = deadline
        self._next: Mark | None = None
        self._said_bytes = 0

    def __iter__(self) -> Iterator[Mark]:
        return self

    def __next__(self) -> Mark:
        while True:
            item = self._next or self._reader.read()
            self._next = None
            if item is None:
                status = self._session.wait_exit(self._deadline)
                raise FarShellError(
                    self._session.host,
                    f"the session ended with status {status} before the script there was done",
                    stderr=self.said(),
                )
            if isinstance(item, Mark):
                if item.kind == "done":
                    self._next = item
                    raise StopIteration
                self._said_bytes += sum(map(len, item.words), 512)
                if self._said_bytes > _MOST_SAID_BYTES:
                    raise FarShellError(
                        self._session.host, f"its script says more than {_MOST_SAID_BYTES} bytes, and does not end"
                    )
                return item

    def raw(self) -> Iterator[bytes]:
        """The bytes up to the next mark."""
        while self._next is None:
            item = self._reader.read()
            if isinstance(item, bytes):
                yield item
            elif item is None:
                return
            else:
                self._next = item

    def said(self) -> str:
        return self._noise.decode("utf-8", "replace")


@contextmanager
def _dialogue(
    host: Host,
    call: str,
    values: Mapping[str, str] | None = None,
    *,
    directory: str | None,
    deadline: Deadline | None,
) -> Iterator[_Marks]:
    deadline = deadline or Deadline.after(_SESSION_S)
    mark = mark_for(far_shell.new_nonce())
    settings: dict[str, str | bytes] = {
        "rr_mark": mark,
        "rr_directory": directory or "",
        "rr_blanks": " \t\n",
        "rr_tar": "",
        **(values or {}),
    }
    payload = b"\n".join(
        (
            far_shell.load_script("base.sh", "supervisor.sh", "artifact/nix/user.sh", "leftovers.sh").encode(),
            *(name.encode() + b"=" + far_shell.quoted(value) for name, value in settings.items()),
            call.encode(),
            b"",
        )
    )
    stub = far_shell.far_script('eval "$(head -c "$rr_length")"', {"rr_length": str(len(payload))})
    with host.start_session(far_shell.far_command(), brief=True) as session:
        session.wait_opened(deadline)
        noise = bytearray()
        listener = threading.Thread(target=_listen, args=(os.dup(session.stderr_fd), noise), daemon=True)
        listener.start()
        with suppress(BrokenPipeError):  # the reason comes with the streams' end
            view = memoryview(stub + payload)
            while view:
                view = view[os.write(session.stdin_fd, view) :]
        marks = _Marks(session, MarkedReader(session.stdout_fd, mark, deadline=deadline), noise, deadline)
        next(marks)
        try:
            yield marks
        except (ValueError, IndexError) as error:
            raise FarShellError(
                host.name,
                f"what the script there says is not what ours says: {error}",
                next_step="look at what runs there in its place",
            ) from error
        # Read to the end, so that the place on the connection is free.
        for _ in marks:
            pass
        session.close_stdin()
        session.wait_exit(deadline)
        listener.join(1.0)


def _listen(fd: int, noise: bytearray) -> None:
    # A descriptor of its own: the session's may be closed, and its number be another's, while this waits.
    try:
        while data := os.read(fd, 65536):
            noise += data
            del noise[:-_KEPT_NOISE_BYTES]
    finally:
        os.close(fd)
