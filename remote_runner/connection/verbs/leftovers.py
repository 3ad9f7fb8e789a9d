"""What runs left on a host, and its cache of artifacts, as values. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.connection.verbs.validation import nonsense, pairs, texts, whole, words


@dataclass(frozen=True)
class FarRun:
    """A run's directory on a host, and its record (`id`, `age` in seconds, `artifact`, …); `problem`: why not."""

    host: str
    run_id: str
    directory: PurePosixPath
    is_alive: bool
    size_bytes: int
    record: Mapping[str, str]
    problem: str = ""

    @property
    def age_s(self) -> float | None:
        """How long ago it began, by the host's own clock; `None` where the record does not say."""
        age = self.record.get("age", "")
        return float(age) if age.isdecimal() and len(age) <= 12 else None

    def is_of(self, run: str) -> bool:
        """Whether it is that run, or one of its instances; where no record tells, its name begins with the run's."""
        by_name = bool(self.problem) and self.run_id.startswith(f"{run}-")
        return run in (self.run_id, self.record.get("run")) or by_name

    @classmethod
    def from_said(cls, host: str, said: Mapping[str, Any]) -> FarRun | None:
        """The run in a message; `None` where its name is not a directory's. Raises `FarShellError`."""
        directory, size_bytes, record = _directory(said), whole(said.get("size")), said.get("record")
        if size_bytes is None or not isinstance(record, dict):
            raise nonsense(host, said)
        if directory is None:
            return None
        lines = {words(key): words(value) for key, value in record.items()}
        is_alive, problem = said.get("alive") is True, words(said.get("problem"))
        return cls(host, directory.name, directory, is_alive, size_bytes, lines, problem)


@dataclass(frozen=True)
class FarRuns:
    """The runs on a host; there may be more in what is `unread` there: paths, and why."""

    runs: tuple[FarRun, ...]
    unread: tuple[tuple[str, str], ...] = ()


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

    @classmethod
    def from_said(cls, host: str, said: Mapping[str, Any]) -> LeftArtifact | None:
        """The artifact in a message; `None` where its name is not a file's. Raises `FarShellError`."""
        directory, age_s, size_bytes = _directory(said), whole(said.get("age_s")), whole(said.get("size"))
        if age_s is None or size_bytes is None:
            raise nonsense(host, said)
        if directory is None:
            return None
        return cls(host, directory.name, directory, said.get("used") is True, age_s, size_bytes)


@dataclass(frozen=True)
class Removal:
    """What became of what should be removed: directories, those that failed with why, and names that are unknown."""

    removed: tuple[str, ...] = ()
    alive: tuple[str, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    unknown: tuple[str, ...] = ()

    @classmethod
    def from_said(cls, said: Mapping[str, Any]) -> Removal:
        """What a message says of it."""
        failed = pairs(said.get("failed"))
        return cls(texts(said.get("removed")), texts(said.get("alive")), failed, texts(said.get("unknown")))


def choose_artifacts(artifacts: Iterable[LeftArtifact], older_than_s: float) -> list[LeftArtifact]:
    """Which to remove: not in use, unused for `older_than_s`; the longest unused come first."""
    going = [one for one in artifacts if not one.is_used and one.age_s >= older_than_s]
    return sorted(going, key=lambda artifact: -artifact.age_s)


def _directory(said: Mapping[str, Any]) -> PurePosixPath | None:
    place = PurePosixPath(words(said.get("directory")))
    return None if not place.is_absolute() or place.name in ("", "..") else place
