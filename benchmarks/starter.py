"""Starts programs and waits for them: `python -S -E starter.py`, a small process of its own in a cgroup.

What it starts is in its cgroup from the first instruction on, without a shell between. One JSON object in a line of
stdin is a request, one in a line of stdout the answer. A request has `jobs`, each with argv, environ, cwd and stdout
(a file to append to, or null for a pipe that a `cat` reads to its end and drops, as Testground's reader would), `log`
for their stderr, and `limit_s`, after which all are killed.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from typing import Any

_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND


def main() -> None:
    """Answer until the end of stdin."""
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(request: dict[str, Any]) -> dict[str, Any]:
    places: dict[int, int] = {}
    before = _children_s()
    clock_s, began_s = time.time(), time.monotonic()
    statuses = [127] * len(request["jobs"])
    said = ""
    for place, job in enumerate(request["jobs"]):
        try:
            places[_start(job, request["log"])] = place
        except OSError as error:
            said = f"{job['argv'][0]}: {error.strerror}"

    def end(*_: object) -> None:
        for pid in places:
            os.killpg(pid, signal.SIGKILL)

    signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, request["limit_s"])
    while places:
        pid, status = os.wait()
        place = places.pop(pid, -1)
        if place >= 0:
            statuses[place] = os.waitstatus_to_exitcode(status)
    wall_s = time.monotonic() - began_s
    signal.setitimer(signal.ITIMER_REAL, 0)
    cpu_s = _children_s() - before
    return {"clock_s": clock_s, "wall_s": wall_s, "cpu_s": cpu_s, "statuses": statuses, "said": said}


def _start(job: dict[str, Any], log: str) -> int:
    os.chdir(job["cwd"])
    actions: list[tuple[Any, ...]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, log, _APPEND, 0o600),
    ]
    if job["stdout"] is not None:
        actions.append((os.POSIX_SPAWN_OPEN, 1, job["stdout"], _APPEND, 0o600))
        return os.posix_spawnp(job["argv"][0], job["argv"], job["environ"], file_actions=actions, setpgroup=0)
    reading, writing = os.pipe()
    drop = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    os.posix_spawnp("cat", ["cat"], job["environ"], file_actions=drop)
    os.close(reading)
    actions.append((os.POSIX_SPAWN_DUP2, writing, 1))
    try:
        return os.posix_spawnp(job["argv"][0], job["argv"], job["environ"], file_actions=actions, setpgroup=0)
    finally:
        os.close(writing)


def _children_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
