"""The embedded sync service against Testground's own, where `sync-service` is on PATH: latencies, rate, memory.

Each start of a service has a network namespace of its own, since the official one's port cannot be chosen, and starts
take turns. Root or user namespaces are needed; without them there are no rows.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence

from benchmarks.ground import ROOT, Ground
from benchmarks.measuring import END_S, Row, Samples
from benchmarks.sync_load import Cost

CLIENTS = 200
EMBEDDED = [sys.executable, "-c", "from testground.sync.service import serve_forever; serve_forever()"]
OFFICIAL = "sync-service"


def sync_service(ground: Ground, repeats: int) -> Iterator[Row]:
    """Rows about what an instance waits for, and what serving it costs."""
    if not _can_be_alone():
        return
    official = shutil.which(OFFICIAL)
    ours, theirs = list[Cost](), list[Cost]()
    for _ in range(repeats):
        ours.append(_cost(EMBEDDED))
        if official is not None:
            theirs.append(_cost([official]))

    def row(subject: str, value: Callable[[Cost], float], unit: str, digits: int, times: float) -> Row:
        """A row whose value may be so many times the official one's; a rate at least that."""
        mine, other = ([value(cost) for cost in costs] for costs in (ours, theirs))
        is_rate = times < 1
        met = None
        if other:
            limit, measured = times * Samples(tuple(other)).median, Samples(tuple(mine)).median
            met = measured >= limit if is_rate else measured <= limit
        return Row(
            f"sync service: {subject}",
            Samples(tuple(mine)).show(unit, digits),
            f"{OFFICIAL}: {Samples(tuple(other)).show(unit, digits)}" if other else "—",
            f"{'≥' if is_rate else '≤'} {times:g} times",
            met,
            {"ours": mine, OFFICIAL: other},
        )

    yield row("from publish to subscriber", lambda cost: cost.publish_s * 1e3, "ms", 2, 1)
    waited = f"a barrier of {CLIENTS} instances, from the last entry to the last answer"
    yield row(waited, lambda cost: cost.barrier_s * 1e3, "ms", 2, 2)
    yield row(f"signal_entry, {CLIENTS} instances at once", lambda cost: cost.entries_per_s, "a second", 0, 0.5)
    load = Samples(tuple(cost.client_cpu_s_per_entry for cost in ours)).show("µs", 1, 1e6)
    entry = f"processor time of a signal_entry, beside the load's own of {load}"
    yield row(entry, lambda cost: cost.cpu_s_per_entry * 1e6, "µs", 1, 2)
    yield row(f"memory with {CLIENTS} instances", lambda cost: cost.memory_bytes / 1e6, "MB", 0, 2)


def _unshare() -> list[str]:
    return ["unshare", "-n" if os.geteuid() == 0 else "-rn"]


def _can_be_alone() -> bool:
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        return False
    return subprocess.run([*_unshare(), "true"], capture_output=True, check=False).returncode == 0


def _cost(service: Sequence[str]) -> Cost:
    """What one start of a service has shown. Raises RuntimeError when it did not do its work."""
    alone = [*_unshare(), "sh", "-ec", 'ip link set lo up; exec "$@"', "sh"]
    argv = [*alone, sys.executable, "-m", "benchmarks.sync_load", str(CLIENTS), *service]
    done = subprocess.run(argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, timeout=END_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{service[0]} under load: {done.stderr.decode(errors='replace')[-2000:]}")
    return Cost(**json.loads(done.stdout))
