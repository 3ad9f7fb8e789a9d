"""Writing the record of a run of `fab local.*`: when it begins, and again when it has ended."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote_runner.controller import Controller
from remote_runner.errors import ControllerError, RemoteRunnerError
from remote_runner.instance.record import read_record
from remote_runner.instance.run_log import LOG_FILE, NEW_LOG
from remote_runner.records.places import note_place
from remote_runner.records.provenance import inventory_of_run, inventory_value, provenance, secrets_of_run
from remote_runner.records.run import Ended, RunRecord, completed
from remote_runner.secrets import Secrets
from testground.composition import RunPlan
from testground.local_exec import RunOutcome


class Recorder:
    """The record of one run in `directory`; what made the run is looked for in a thread meanwhile."""

    def __init__(
        self, plan_dir: Path, controller: Controller, environ: Mapping[str, str], directory: Path, record: RunRecord
    ) -> None:
        self._plan_dir = plan_dir
        self._controller = controller
        self._environ = environ
        self._directory = directory
        self._secrets: Secrets | None = Secrets()
        with suppress(RemoteRunnerError):  # each instance tells what is wrong with the inventory
            self._secrets = secrets_of_run(inventory_of_run(plan_dir, record.run, controller, environ), environ)
        self._record = record
        self._began_s = time.monotonic() - (time.time() - record.started_at)
        self._provenance: dict[str, Any] = {}
        self._asking = threading.Thread(target=self._ask, args=(environ,), name="provenance", daemon=True)
        self._asking.start()
        self._lock_fd = -1
        with suppress(OSError, ControllerError):  # the run itself tells
            directory.mkdir(parents=True, exist_ok=True)
            # Even while no instance writes to it, others must see that the run is not over.
            self._lock_fd = os.open(directory / LOG_FILE, NEW_LOG, 0o666)
            fcntl.flock(self._lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with suppress(ControllerError):
            record.write(directory, self._secrets)
            note_place(controller, record.run, directory)

    def _ask(self, environ: Mapping[str, str]) -> None:
        self._provenance = provenance(self._plan_dir, environ)

    def end(self, outcome: RunOutcome) -> RunRecord:
        """Write how it went. Raises `ControllerError`."""
        try:
            return self._end(outcome)
        finally:
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    def _end(self, outcome: RunOutcome) -> RunRecord:
        duration_s = time.monotonic() - self._began_s
        self._asking.join()
        found = [
            (Ended(one.group, one.number, one.outputs, one.verdict.value, one.reason), read_record(one.outputs))
            for one in outcome.instances
        ]
        ok = {group.id: group.ok for group in outcome.groups}
        made_by = dict(self._provenance)
        with suppress(RemoteRunnerError):
            inventory = inventory_of_run(self._plan_dir, self._record.run, self._controller, self._environ)
            self._secrets = secrets_of_run(inventory, self._environ)
            made_by["inventory"] = inventory_value(inventory, (one.host for _, one in found if one and one.host))
        ended = replace(
            self._record,
            outcome="ok" if outcome.ok else "cancelled" if outcome.cancelled else "failed",
            cancelled=outcome.cancelled,
            ended_at=round(self._record.started_at + duration_s, 6),
            duration_s=round(duration_s, 6),
            groups=[{**group, "ok": ok.get(group["id"], 0)} for group in self._record.groups],
        )
        self._record = completed(ended, self._directory, found, made_by)
        self._record.write(self._directory, self._secrets)
        return self._record


def begun(run: RunPlan, run_id: str, task: str, plan_dir: Path, inputs: Mapping[str, Any]) -> RunRecord:
    """The record of a run that begins now; `inputs` is what it was started with, beside its groups."""
    return RunRecord(
        run=run_id,
        plan=run.plan,
        case=run.case,
        name=run.name,
        task=task,
        started_at=round(time.time(), 6),
        inputs={"directory": str(plan_dir), "disable_metrics": run.disable_metrics, **inputs},
        groups=[
            {
                "id": group.id,
                "instances": group.instances,
                "ok": None,
                "params": dict(group.params),
                "profiles": dict(group.profiles),
            }
            for group in run.groups
        ],
    )
