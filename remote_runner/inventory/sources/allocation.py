"""A run's own Slurm allocation: made by the first of its processes, released by the last.

Each process of the run holds a shared lock while it has instances. Whoever can take it exclusively is the last, or
comes after all are dead (`fab clean`), and cancels the job by its name: that is known before Slurm knows the job.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import ControllerError, LocalProgramError, SourceError
from remote_runner.inventory.sources.program import Asking
from remote_runner.inventory.sources.slurm import SlurmPrograms, position, slurm_environment
from remote_runner.inventory.sources.source import SlurmSource
from remote_runner.machine.files import write_atomically
from remote_runner.machine.process import end, ends_within, last_lines, start

_ALIVE = "PENDING,CONFIGURING,RUNNING,SUSPENDED"
_LOOK_S = 2.0
# Nothing that waiting helps against, unless somebody changes the partition or the limits.
_NEVER = ("BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit", "InvalidAccount", "InvalidQOS")
_GRANTED = re.compile(r"Granted job allocation (\d+)")


@dataclass(frozen=True)
class Allocation:
    """What is known of one before it is made: a name for its lock, its record and the job."""

    controller: Controller
    key: str

    @classmethod
    def of(cls, controller: Controller, run_id: str, plan_dir: Path) -> Allocation:
        """That of a run, the same in all its processes."""
        return cls(controller, hashlib.sha256(repr((run_id, str(plan_dir))).encode()).hexdigest()[:16])

    @property
    def name(self) -> str:
        """The job's."""
        return f"remote-runner-{self.key}"

    @property
    def record(self) -> Path:
        return self.controller.cache / "allocations" / f"{self.key}.json"

    def lock(self, *, shared: bool) -> FileLock:
        """Shared while instances of the run are alive; exclusive when none is."""
        return self.controller.lock(f"allocation-{self.key}", shared=shared)

    def count_ended(self, instances: int) -> int:
        """Add that many instances to those of the run that have ended; how many these are, in all processes."""
        file = self.record.with_suffix(".ended")
        with self.controller.lock(f"allocation-ended-{self.key}"):
            try:
                total = int(file.read_text(encoding="ascii")) + instances
            except (OSError, ValueError):
                total = instances
            if self.record.exists():
                write_atomically(file, str(total).encode(), optional=True)
        return total

    def is_needed(self) -> bool:
        """Whether some process has instances of the run."""
        lock = self.lock(shared=False)
        is_free = lock.try_acquire()
        lock.release()
        return not is_free

    def give_back(self, environ: Mapping[str, str]) -> bool:
        """Cancel the job unless an instance of the run is alive; whether it did. Raises `SourceError`."""
        lock = self.lock(shared=False)
        if not lock.try_acquire():
            return False
        with lock:
            if not self.record.exists():
                return True  # none was made
            slurm = SlurmPrograms("slurm", {**environ, **_recorded(self.record, "environ", {})})
            slurm.ask("scancel", f"--name={self.name}")
            # Its status 0 was seen with a job that stayed: slurmctld had just been started.
            if left := slurm.ask("squeue", "-h", "-o", "%i", "-t", _ALIVE, f"--name={self.name}").split():
                raise slurm.failed(f"job {left[0]} is still there after scancel")
            for file in (self.record, self.record.with_suffix(".ended")):
                file.unlink(missing_ok=True)
        return True


def left_allocations(controller: Controller) -> Iterator[tuple[Allocation, float, str]]:
    """Those that have a record, each with its age in seconds and its run. Raises `ControllerError`."""
    directory = controller.cache / "allocations"
    try:
        for record in sorted(directory.iterdir()):
            if record.suffix == ".json":
                with suppress(FileNotFoundError):  # another process gives it back
                    age_s = max(0.0, time.time() - record.stat().st_mtime)
                    yield Allocation(controller, record.stem), age_s, str(_recorded(record, "run", ""))
    except FileNotFoundError:
        return
    except OSError as error:
        raise ControllerError(
            f"{error.filename}: cannot be read: {error.strerror}",
            next_step="make it accessible, then fab clean: it says which allocations are left",
        ) from error


def _recorded(record: Path, key: str, default: Any) -> Any:
    """A value of an allocation's record. The job is known by the record's name, also where that was cut off."""
    try:
        return json.loads(record.read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, LookupError, TypeError):
        return default


def allocate(source: SlurmSource, asking: Asking, run_id: str) -> str:
    """Make the allocation of a run: the job's number. The run holds the lock already.

    Raises `SourceError`, `WorkCancelledError`; nothing of it is left in the queue then.
    """
    allocation = Allocation.of(asking.controller, run_id, asking.plan_dir)
    slurm = SlurmPrograms(str(source), slurm_environment(asking.environ))
    conf = {name: slurm.environ[name] for name in ("SLURM_CONF",) if name in slurm.environ}
    write_atomically(allocation.record, json.dumps({"run": run_id, "environ": conf}).encode())
    try:
        return _make(source, asking, slurm, allocation.name)
    except BaseException:
        with suppress(SourceError):
            slurm.ask("scancel", f"--name={allocation.name}")
            allocation.record.unlink(missing_ok=True)
        raise


def salloc_argv(source: SlurmSource, name: str) -> list[str]:
    """How it is asked for; a node that fails does not take the others with it."""
    argv = ["salloc", "--no-shell", "--no-kill", f"--job-name={name}", f"--nodes={source.nodes}"]
    if source.partition:
        argv.append(f"--partition={source.partition}")
    if source.time:
        argv.append(f"--time={source.time}")
    return [*argv, *source.options]


def _make(source: SlurmSource, asking: Asking, slurm: SlurmPrograms, name: str) -> str:
    deadline = Deadline.after(asking.allocate_s)
    with TemporaryDirectory(prefix="salloc-", dir=asking.controller.cache) as directory:
        log = Path(directory) / "log"
        null, words = os.open(os.devnull, os.O_RDWR), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            process = start(
                salloc_argv(source, name), stdin=null, stdout=null, stderr=words, environ=slurm.environ, cwd="/"
            )
        except LocalProgramError as error:
            raise SourceError(str(source), str(error), next_step="install Slurm's programs (slurm-client)") from error
        finally:
            os.close(null)
            os.close(words)
        told = ""
        try:
            while not ends_within(process, min(_LOOK_S, deadline.remaining_s), asking.cancellation):
                if asking.cancellation is not None:
                    asking.cancellation.check()
                waiting = _waiting(slurm, name, last_lines(log, 1))
                if any(reason in waiting for reason in _NEVER):
                    raise slurm.failed(
                        f"waiting is useless: {waiting}",
                        next_step="ask for what the partition has (scontrol show partition)",
                    )
                if deadline.expired:
                    raise slurm.failed(
                        f"no nodes were allocated within {asking.allocate_s:g} s: {waiting}",
                        next_step="ask for less, or raise defaults.timeouts.allocate_s in inventory.yaml",
                    )
                if waiting != told:
                    asking.report(f"{source}: {waiting}")
                    told = waiting
        finally:
            end(process)
        granted = _GRANTED.search(log.read_text(encoding="utf-8", errors="replace"))
        if granted is None or process.returncode:
            said = last_lines(log, 10)
            raise slurm.failed(
                f"salloc ended with status {process.returncode}",
                said,
                "correct the entry of hosts_from in inventory.yaml",
            )
        asking.report(f"{source}: job {granted[1]} is allocated")
        return granted[1]


def _waiting(slurm: SlurmPrograms, name: str, said: str) -> str:
    """How it stands in the queue, in words."""
    try:
        line = slurm.ask("squeue", "-h", "-t", "PD", f"--name={name}", "-o", "%i|%P|%r|%S|%Q").strip()
        job, partition, reason, expected, priority = line.splitlines()[0].split("|")
        queue = slurm.ask("squeue", "-h", "-t", "PD", f"--partition={partition}", "-o", "%Q").split()
        place = position([int(one) for one in queue], int(priority))
    except (SourceError, ValueError, IndexError):
        return said or "Slurm has not answered yet"
    when = "" if expected == "N/A" else f", expected to start at {expected}"
    return f"job {job} waits in partition {partition}, at place {place} of {len(queue)} ({reason}){when}"
