"""The launcher as Testground makes it of a plan, and the warm processes that launchers of a test have started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from remote_runner.plan_import import add_shim
from tests.hosts import which

_END_S = 10.0


def build(plan: Path, artifact: Path) -> None:
    """What the builder exec:go does in the plan's directory."""
    environ = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    for words in (["mod", "tidy"], ["build", "-gcflags=all=-N -l", "-o", str(artifact), "./exec-go"]):
        subprocess.run([which("go"), *words], cwd=plan, env=environ, check=True)


def launcher_of(plan: Path) -> Path:
    """The launcher of a plan, in its directory, with this Python's words."""
    add_shim(plan)
    artifact = plan / "launcher"
    build(plan, artifact)
    return artifact


def warm_processes(runtime: Path) -> list[int]:
    """The process ids of those that have begun to take instances, by their logs."""
    found = []
    for log in runtime.glob("warm/*.log"):
        words = log.read_text(encoding="utf-8").split()
        found += [int(words[1])] if words[:1] == ["process"] else []
    return found


def children(pid: int) -> list[int]:
    """A process's children, those that have ended but were not waited for among them."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def end_warm(runtime: Path) -> None:
    """End them, and wait until each has; instances that they have forked go on."""
    for pid in warm_processes(runtime):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        until_s = time.monotonic() + _END_S
        while not is_gone(pid):
            assert time.monotonic() < until_s, f"warm process {pid} does not end"
            time.sleep(0.01)
    for path in runtime.glob("warm/*"):
        path.unlink()


def is_gone(pid: int) -> bool:
    """Whether the process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
