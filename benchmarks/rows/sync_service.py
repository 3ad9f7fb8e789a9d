"""The embedded sync service against Testground's own: latencies, rate, memory.

Each start of a service has a network namespace of its own, since the official one's port cannot be chosen. Root or
user namespaces are needed.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from benchmarks.ground import ROOT, Ground, Way
from benchmarks.stage import Stage
from benchmarks.stand import Job
from benchmarks.sync_load import Cost
from benchmarks.work import OURS, Bound, Contestant, Trial, Work
from tests.hosts import which

CLIENTS = 200
OFFICIAL = "`sync-service`"
_EMBEDDED = [sys.executable, "-c", "from testground.sync.service import serve_forever; serve_forever()"]


@contextmanager
def _no_host(ground: Ground) -> Iterator[Sequence[Way]]:
    yield []


def _cost(stage: Stage, service: Sequence[str]) -> Trial:
    """What one start of a service has shown; the wall time is that of a barrier."""
    unshare = [which("unshare"), "-n" if os.geteuid() == 0 else "-rn"]
    alone = [*unshare, "sh", "-ec", f'{which("ip")} link set lo up; exec "$@"', "sh"]
    said = stage.fresh("said")
    argv = [*alone, sys.executable, "-m", "benchmarks.sync_load", str(CLIENTS), *service]
    trial, _ = stage.measure([Job(argv, stage.ground.environ, ROOT, said)])
    cost = Cost(**json.loads(said.read_text(encoding="utf-8")))
    return {
        **trial,
        "wall_s": cost.barrier_s,
        "publish_s": cost.publish_s,
        "entry_s": 1 / cost.entries_per_s,
        "entry_cpu_s": cost.cpu_s_per_entry,
        "entry_cpu_of_the_load_s": cost.client_cpu_s_per_entry,
        "service_bytes": float(cost.memory_bytes),
    }


def _official(stage: Stage) -> Trial:
    program = shutil.which("sync-service")
    if program is None:
        raise RuntimeError("Testground's sync-service is not on PATH")
    return _cost(stage, [program])


def _bound(words: str, measure: str, times: float) -> Bound:
    return Bound(f"{words}: {times:g} × `sync-service`", measure, times=times, of=OFFICIAL, of_measure=measure)


WORKS = (
    Work(
        "sync-service",
        f"sync service: a barrier of {CLIENTS} instances, from the last entry to the last answer",
        _no_host,
        (
            Contestant(OURS, lambda stage: _cost(stage, _EMBEDDED)),
            Contestant(OFFICIAL, _official, lacks="nothing: it is Testground's own"),
        ),
        (
            _bound("the barrier", "wall_s", 2),
            _bound("from publish to subscriber", "publish_s", 1),
            _bound(f"time of a signal_entry, {CLIENTS} at once", "entry_s", 2),
            _bound("processor time of a signal_entry", "entry_cpu_s", 2),
            _bound("memory", "service_bytes", 2),
        ),
    ),
)
