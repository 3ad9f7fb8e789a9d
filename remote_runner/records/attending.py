"""The records of runs that Testground's daemon runs: we see their instances only."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remote_runner.connection.workers import FILES
from remote_runner.controller import Controller, FileLock
from remote_runner.errors import RemoteRunnerError, RunRecordError
from remote_runner.instance.run_log import run_directory
from remote_runner.machine.files import safe_name
from remote_runner.secrets import Secrets
from testground.errors import TestgroundError
from testground.runenv import RunEnv

if TYPE_CHECKING:
    from remote_runner.records.run import RunRecord

TASK = "testground"
# The login to the first host goes first: it is what a short run takes longest for.
_SOON_S = 0.3


class Attending:
    """For one event loop. A run's record is written when an instance comes, and anew when no more of it are here."""

    def __init__(self) -> None:
        self._runs: dict[Path, _Attended] = {}
        self._later: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def instance(self, environ: Mapping[str, str], plan_dir: Path, controller: Controller) -> AsyncIterator[None]:
        """In the body the instance that `environ` describes runs."""
        run = self._run_of(environ, plan_dir, controller)
        if run is None:
            yield
            return
        run.here += 1
        try:
            yield
        finally:
            run.here -= 1
            if not run.here:
                del self._runs[run.directory]
                await run.write()
                run.begin()
                if not run.is_whole:  # a short run does not wait for what git says
                    later = asyncio.create_task(run.write_whole())
                    self._later.add(later)
                    later.add_done_callback(self._later.discard)

    def _run_of(self, environ: Mapping[str, str], plan_dir: Path, controller: Controller) -> _Attended | None:
        outputs, run_id, group = (environ.get(f"TEST_{name}", "") for name in ("OUTPUTS_PATH", "RUN", "GROUP_ID"))
        directory = run_directory(Path(outputs), run_id, group)
        if directory is None:
            return None
        run = self._runs.get(directory)
        if run is not None and run.knows(group):
            return run
        try:
            runenv = RunEnv.from_environ(environ)
        except TestgroundError:  # the instance tells
            return None
        if run is None:
            run = self._runs[directory] = _Attended(directory, runenv, environ, plan_dir, controller)
        run.add_group(runenv)
        return run

    async def close(self) -> None:
        """Return once every record is whole."""
        await asyncio.gather(*self._later, return_exceptions=True)


class _Attended:
    def __init__(
        self, directory: Path, runenv: RunEnv, environ: Mapping[str, str], plan_dir: Path, controller: Controller
    ) -> None:
        self.here = 0
        self.directory = directory
        self._runenv = runenv
        self._environ = environ
        self._plan_dir = plan_dir
        self._controller = controller
        self._groups: dict[str, dict[str, Any]] = {}
        self._secrets: Secrets | None = Secrets()
        self._asking: asyncio.Future[dict[str, Any]] | None = None
        self._soon = asyncio.get_running_loop().call_later(_SOON_S, self.begin)

    @property
    def is_whole(self) -> bool:
        """Whether what made the run is known, and could be written."""
        return self._asking is not None and self._asking.done()

    def begin(self) -> None:
        """Mark its record as running, unless it is already."""
        self._soon.cancel()
        self._asking = self._asking or FILES.run(self._begin)

    def knows(self, group: str) -> bool:
        """Whether an instance of that group has been here."""
        return group in self._groups

    def add_group(self, runenv: RunEnv) -> None:
        """The first instance of a group is here."""
        self._groups[runenv.group_id] = {
            "id": runenv.group_id,
            "instances": runenv.group_instance_count,
            "ok": None,
            "params": dict(runenv.params),
            "profiles": dict(runenv.capture_profiles),
        }

    async def write(self) -> None:
        """Write how it stands."""
        made_by = self._asking.result() if self._asking is not None and self._asking.done() else {}
        await FILES.run(partial(self._write, made_by))

    async def write_whole(self) -> None:
        """The same, once everything is known."""
        if self._asking is not None:
            await asyncio.wait([self._asking])
        await self.write()

    def _begin(self) -> dict[str, Any]:
        """Write the record that says that it runs, and find out what made it; in a thread."""
        from remote_runner.records.provenance import inventory_of_run, provenance, secrets_of_run

        with suppress(RemoteRunnerError):  # each instance tells what is wrong with the inventory
            inventory = inventory_of_run(self._plan_dir, self._runenv.run, self._controller, self._environ)
            self._secrets = secrets_of_run(inventory, self._environ)
        with suppress(RemoteRunnerError), self._record_lock():
            if self._before() is None:
                self._put(self._begun(time.time()), is_first=True)
        return provenance(self._plan_dir, self._environ, testground=True)

    def _begun(self, started_at: float) -> RunRecord:
        from remote_runner.records.run import RunRecord

        runenv = self._runenv
        return RunRecord(
            run=runenv.run,
            plan=runenv.plan,
            case=runenv.case,
            name="",
            task=TASK,
            started_at=round(started_at, 6),
            inputs={
                "directory": str(self._plan_dir),
                "disable_metrics": runenv.disable_metrics,
                "sync_service": f"{runenv.sync_service_host}:{runenv.sync_service_port}",
                "influxdb": re.sub(r"//[^/]*@", "//***@", runenv.influxdb_url) or None,
                "redis": runenv.redis_host or None,
            },
            groups=list(self._groups.values()),
        )

    def _before(self) -> RunRecord | None:
        """The record as it is; `None` also where it cannot be read, for then it is made anew."""
        from remote_runner.records.run import RunRecord

        with suppress(RunRecordError):
            return RunRecord.read(self.directory)
        return None

    def _record_lock(self) -> FileLock:
        """For reading and writing the record: another process may have instances of the same run."""
        return self._controller.lock(f"record-{safe_name(self._runenv.run)}")

    def _write(self, made_by: Mapping[str, Any]) -> None:
        with suppress(RemoteRunnerError), self._record_lock():
            self._write_alone(made_by)

    def _write_alone(self, made_by: Mapping[str, Any]) -> None:
        from remote_runner.records.provenance import inventory_of_run, inventory_value, secrets_of_run
        from remote_runner.records.run import RUNNING, Ended, completed, records_below

        before = self._before()
        if before is not None and before.task != TASK:
            return  # `fab local.*` keeps it
        found = [(place, one) for place, one in records_below(self.directory) if one.run == self._runenv.run]
        records = [record for _, record in found]
        if not records:
            return
        began_at = min(record.started_at for record in records)
        ended_at = max(record.started_at + record.duration_s for record in records)
        made_by = dict(made_by)
        with suppress(RemoteRunnerError):
            inventory = inventory_of_run(self._plan_dir, self._runenv.run, self._controller, self._environ)
            self._secrets = secrets_of_run(inventory, self._environ)
            made_by["inventory"] = inventory_value(inventory, (record.host for record in records if record.host))
        # Groups of instances that another broker runs, or that have ended before.
        groups = {group["id"]: dict(group) for group in (() if before is None else before.groups)} | self._groups
        for name, group in groups.items():
            group["ok"] = sum(record.outcome == "ok" for record in records if record.group == name)
        is_over = len(records) >= self._runenv.instance_count
        outcome = "ok" if all(record.outcome == "ok" for record in records) else "failed"
        record = replace(
            self._begun(began_at),
            outcome=outcome if is_over else RUNNING,
            ended_at=round(ended_at, 6) if is_over else None,
            duration_s=round(ended_at - began_at, 6) if is_over else None,
            groups=list(groups.values()),
        )
        instances = [(Ended(one.group, one.index, place), one) for place, one in found]
        self._put(completed(record, self.directory, instances, made_by), is_first=before is None)

    def _put(self, record: RunRecord, *, is_first: bool) -> None:
        from remote_runner.records.places import note_place

        with suppress(RemoteRunnerError, OSError):  # no disk for it; the instances tell of theirs
            record.write(self.directory, self._secrets)
        if is_first:
            note_place(self._controller, self._runenv.run, self.directory)
