"""`python -m tests.soak`: faults at random steps for some minutes; ends with 1 and the reason when anything was wrong.

The seed that it prints repeats the order of the faults (`--seed`). Needs root, for namespaces.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts_netns import NetnsHost
from tests.soak.ground import CONNECTING, FAULTS, OF_NONE, OF_ONE, RESUMED, Ground, descriptors_of, resident_kib
from tests.soak.trial import STEPS, SoakFailedError

Pair = tuple[str, str]
_MOST_GROWTH_KIB = 60_000
_MOST_MORE_FILES = 100  # those of the instances that run at either moment


@dataclass
class Soak:
    """The pairs of fault and step that are still to come, those that have been, and what went wrong."""

    ground: Ground
    end_s: float
    at_once: int
    seed: int
    pairs: list[Pair]
    only_once: bool
    fired: Counter[Pair] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    instances: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._random.shuffle(self.pairs)
        self._open = deque(self.pairs)

    def next_pair(self) -> Pair | None:
        """What shall happen next; first every pair once. `None` when the time is over, or something was wrong."""
        with self._lock:
            if self.failures or time.monotonic() > self.end_s:
                return None
            if self._open:
                return self._open.popleft()
            return None if self.only_once else self._random.choice(self.pairs)

    def missed(self, pair: Pair) -> None:
        """The instance had gone on before the fault: it comes again."""
        with self._lock:
            self._open.append(pair)

    def work(self, host: NetnsHost) -> None:
        """One host's part: batch after batch."""
        words = ""
        try:
            while (pair := self.next_pair()) is not None:
                words = " at ".join(pair)
                self.batch(host, pair)
            words = "no fault"
            if not self.failures:
                self.batch(host, None)
                self.ground.nothing_listens(host)
                self.ground.clean(host, cache=True)
        except SoakFailedError as failure:
            log = "\n".join(host.log.read_text(encoding="utf-8", errors="replace").splitlines()[-30:])
            with self._lock:
                self.failures.append(f"{words}: {failure}\nsshd of {host.name} said:\n{log}")
        except BaseException as error:
            with self._lock:
                self.failures.append(f"the soak itself: {type(error).__name__}: {error}")
            raise

    def batch(self, host: NetnsHost, pair: Pair | None) -> None:
        """Some instances on a host; a fault meets the first of them at its step (with `None` there is none)."""
        ground = self.ground
        fault, step = pair or ("", "")
        with self._lock:
            first = self.instances
            self.instances += self.at_once
        with ExitStack() as stack:
            trials = []
            for number in range(first, first + self.at_once):
                trial = ground.start(f"soak{number}", host)
                stack.callback(trial.held.close)
                trials.append(trial)
            hits_all = is_felt = hit = False
            if pair is not None:
                hit = trials[0].reach(step) and ground.strike(fault, trials[0])
                if hit:
                    is_felt = fault not in OF_NONE and (fault not in RESUMED or step in CONNECTING)
                    hits_all = is_felt and fault not in OF_ONE
                    self.fired[pair] += 1
                else:
                    self.missed(pair)
            for trial in trials:
                trial.finish()
            ground.settle(host, [trial.run for trial in trials])
            for trial in trials:
                trial.judge(hit=hits_all or (is_felt and trial is trials[0]))
                ground.service.forget_run(trial.run)
            ground.clean(host)

    def table(self) -> str:
        """Which fault fired how often at which step."""
        width = max(map(len, FAULTS))
        lines = [" " * width + "".join(f"{step:>9}" for step in STEPS)]
        lines += [f"{fault:<{width}}" + "".join(f"{self.fired[fault, step]:>9}" for step in STEPS) for fault in FAULTS]
        return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Run it; the exit status."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(4)))
    parser.add_argument("--hosts", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=2, help="instances at once on each host")
    parser.add_argument("--pairs", default="", help="only these, once: KILL:run,cut:fetch")
    parser.add_argument("--code", type=Path, help="a directory from which instances take remote_runner")
    given = parser.parse_args(argv)
    pairs = [(fault, step) for fault in FAULTS for step in STEPS]
    if given.pairs:
        pairs = [(fault, step) for fault, _, step in (word.partition(":") for word in given.pairs.split(","))]
    print(f"soak: seed {given.seed}, {given.minutes:g} minutes, {given.hosts} hosts, {given.at_once} at once on each")
    sys.stdout.flush()
    before_kib = before_files = 0
    with tempfile.TemporaryDirectory(prefix="rr-soak-") as name:
        with Ground.made(Path(name), given.hosts, given.code) as ground:
            print("hosts: " + ", ".join(f"{name} {kind.value}" for name, kind in ground.kinds.items()), flush=True)
            began_s = time.monotonic()
            end_s = began_s + given.minutes * 60
            soak = Soak(ground, end_s, given.at_once, given.seed, pairs, bool(given.pairs))
            workers = [threading.Thread(target=soak.work, args=(host,)) for host in ground.hosts]
            for worker in workers:
                worker.start()
            for worker in workers:
                while worker.is_alive():
                    worker.join(1.0)
                    if not before_kib and time.monotonic() > began_s + given.minutes * 60 / 4:
                        before_kib, before_files = resident_kib(os.getpid()), descriptors_of(os.getpid())
            try:
                if not soak.failures:
                    ground.what_stays_is_small()
                    ground.nothing_is_left()
            except SoakFailedError as failure:
                soak.failures.append(str(failure))
    if before_files and (files := descriptors_of(os.getpid())) > before_files + _MOST_MORE_FILES:
        soak.failures.append(f"leaked descriptors: {before_files} became {files}, with the sync service's")
    grown_kib = resident_kib(os.getpid()) - before_kib if before_kib else 0
    if grown_kib > _MOST_GROWTH_KIB:
        soak.failures.append(f"memory growth: {grown_kib} KiB, with the sync service in it")
    print(soak.table())
    missing = [f"{fault} at {step}" for fault, step in pairs if not soak.fired[fault, step]]
    print(f"{soak.instances} instances, {soak.fired.total()} faults, memory {grown_kib:+d} KiB, seed {given.seed}")
    if missing and (given.minutes >= 10 or given.pairs):
        soak.failures.append(f"never fired: {', '.join(missing)}")
    for reason in soak.failures:
        print(f"FAILED: {reason}")
    return 1 if soak.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
