"""What a tree of processes costs, by cgroups(7): CPU seconds and memory, however its processes leave one another.

Version 2 (Documentation/admin-guide/cgroup-v2.rst), or the controllers cpuacct and memory of version 1 where those are
mounted. Making one takes root.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_END_S = 10.0
_numbers = itertools.count(1)


class NoCgroupError(Exception):
    """No cgroup can be made here; the text says why."""


@dataclass(frozen=True)
class Parents:
    """The directories below which a cgroup is made: one in version 2, in version 1 that of each controller."""

    version: int
    cpu: Path
    memory: Path

    @classmethod
    def find(cls, mountinfo: str, own: str) -> Parents:
        """By the text of /proc/self/mountinfo and of /proc/self/cgroup. Raises `NoCgroupError`."""
        mounts = dict(_mounts(mountinfo))
        paths = {
            name: path for _, names, path in (line.split(":", 2) for line in own.split()) for name in names.split(",")
        }
        if "cpuacct" in mounts and "memory" in mounts:
            cpu, memory = (mounts[name] / paths[name].lstrip("/") for name in ("cpuacct", "memory"))
            return cls(1, cpu, memory)
        if "" not in mounts:
            raise NoCgroupError("no cgroups are mounted")
        # A cgroup has a controller where its parent hands it down, and who holds processes hands none down.
        top, here = mounts[""], mounts[""] / paths[""].lstrip("/")
        for parent in (here, *here.parents):
            control = parent / "cgroup.subtree_control"
            if control.exists() and "memory" in control.read_text(encoding="ascii").split():
                return cls(2, parent, parent)
            if parent == top:
                break
        raise NoCgroupError("no cgroup above this process hands the controller memory down")


def _mounts(mountinfo: str) -> Iterator[tuple[str, Path]]:
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        where = Path(before.split(" ")[4])
        if kind == "cgroup2":
            yield "", where
        elif kind == "cgroup":
            for name in options.split(","):
                yield name, where


@dataclass(frozen=True)
class Cgroup:
    """One cgroup of our own; `make` makes it."""

    version: int
    cpu: Path
    memory: Path

    @classmethod
    @contextmanager
    def make(cls, name: str) -> Iterator[Cgroup]:
        """An empty one; in the end what runs in it is killed and it is removed. Raises `NoCgroupError`."""
        try:
            own = Path("/proc/self/cgroup").read_text(encoding="utf-8")
            parents = Parents.find(Path("/proc/self/mountinfo").read_text(encoding="utf-8"), own)
            unique = f"{name}-{os.getpid()}-{next(_numbers)}"
            group = cls(parents.version, parents.cpu / unique, parents.memory / unique)
            for directory in group._directories:
                directory.mkdir()
        except OSError as error:
            raise NoCgroupError(f"{error.filename}: {error.strerror}") from error
        try:
            yield group
        finally:
            group.end()
            for directory in group._directories:
                directory.rmdir()

    @property
    def _directories(self) -> list[Path]:
        return sorted({self.cpu, self.memory})

    def add(self, pid: int) -> None:
        """Move a process into it; what that one starts later is in it as well."""
        for directory in self._directories:
            (directory / "cgroup.procs").write_text(str(pid), encoding="ascii")

    def cpu_s(self) -> float:
        """CPU seconds of all that was ever in it."""
        if self.version == 1:
            return int((self.cpu / "cpuacct.usage").read_text(encoding="ascii")) / 1e9
        return _field(self.cpu / "cpu.stat", "usage_usec") / 1e6

    def memory_bytes(self) -> int:
        """Memory of its processes' own; neither files nor what the kernel keeps of them."""
        return _field(self.memory / "memory.stat", "total_rss" if self.version == 1 else "anon")

    def limit_memory(self, size_bytes: int) -> None:
        """Let its processes take no more than that from now on; the kernel kills one that does."""
        limit, swap = ("limit_in_bytes", "swappiness") if self.version == 1 else ("max", "swap.max")
        for name, value in ((swap, 0), (limit, size_bytes)):
            (self.memory / f"memory.{name}").write_text(str(value), encoding="ascii")

    def pids(self) -> list[int]:
        """The processes in it."""
        return [int(pid) for pid in (self.memory / "cgroup.procs").read_text(encoding="ascii").split()]

    def pss_bytes(self) -> int:
        """Memory of its processes, pages that several share divided among them (proc(5), smaps_rollup)."""
        total = 0
        for pid in self.pids():
            with suppress(OSError):  # it has ended meanwhile
                total += _field(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") * 1024
        return total

    def end(self, keep: int = 0) -> None:
        """Kill what runs in it, but for the process `keep`. Raises RuntimeError when something survives."""
        deadline = time.monotonic() + _END_S
        while pids := [pid for pid in self.pids() if pid != keep]:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.memory}: {pids} survive SIGKILL")
            time.sleep(0.005)  # nothing tells when foreign processes are gone


def _field(file: Path, name: str) -> int:
    for line in file.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value.split()[0])
    return 0
