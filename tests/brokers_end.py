"""Finds what a test left running here and ends it: brokers, and the ssh processes of connections."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_END_S = 10.0


def brokers(runtime: Path) -> list[int]:
    """The process ids of those that have begun to take instances, by their logs."""
    found = []
    for log in runtime.glob("broker/*.log"):
        words = log.read_text(encoding="utf-8").split()
        found += [int(words[1])] if words[:1] == ["process"] else []
    return found


def end_brokers(runtime: Path) -> None:
    """End them, and wait until each has; what they have started on hosts ends with them."""
    for pid in brokers(runtime):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        until_s = time.monotonic() + _END_S
        while not is_gone(pid):
            if time.monotonic() > until_s:
                os.kill(pid, signal.SIGKILL)
                raise AssertionError(f"broker {pid} does not end")
            time.sleep(0.01)  # it is not our child
    for path in runtime.glob("broker/*"):
        path.unlink()


def connections(runtime: Path, host: str = "") -> list[int]:
    """The ssh processes of connections, to all hosts or to the one of that name, by their log files in `runtime`."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            is_ours = any(word.startswith(f"{runtime}/".encode()) for word in words)
            if is_ours and words[0].endswith(b"ssh") and (not host or host.encode() in words):
                found.append(int(entry.name))
    return found


def children(pid: int) -> list[int]:
    """A process's children, those that have ended but were not waited for among them."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
