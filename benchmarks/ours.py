"""remote-runner as a contestant: a plan of its own, and instances started as Testground's daemon starts them."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.ground import CASES, ROOT, SlurmWay, Way, write_application
from benchmarks.stage import Stage
from benchmarks.stand import Job
from benchmarks.work import OURS, Contestant, Trial
from remote_runner.inventory.systems import System
from remote_runner.plan_import import import_plan
from testground.runenv import RunEnv
from tests.brokers_end import end_brokers
from tests.launcher import build

COMMAND: Mapping[str, str] = {"command": "cp application {out}"}
PYTHON, FAB = "`python -m remote_runner`", "`fab instance`"
_MANIFEST = """name = "benchmark"
[defaults]
builder = "exec:go"
runner = "local:exec"
[builders."exec:go"]
enabled = true
[runners."local:exec"]
enabled = true
""" + "".join(f'[[testcases]]\nname = "{case}"\ninstances = {{ min = 1, max = 1000, default = 1 }}\n' for case in CASES)


@dataclass
class Plan:
    """A plan in a Testground home, with what stands for its daemon's state; `cold` has to come first."""

    directory: Path
    argv: Sequence[str]
    stage: Stage
    remote: bool
    environ: dict[str, str]
    new: bool = False
    warm: bool = False
    _run: str = ""
    _instances: int = 0

    @classmethod
    def make(
        cls,
        stage: Stage,
        how: str = OURS,
        *,
        app: Mapping[str, str] = COMMAND,
        slots: int = 1,
        here: bool = False,
        new: bool = False,
        lay_down: Callable[[Path], object] = write_application,
    ) -> Plan:
        """Import one whose inventory has the stage's hosts (`here`: this machine). `how` an instance is started.

        `lay_down` writes what the plan consists of into its directory.
        """
        source = stage.directory / "source"
        source.mkdir()
        lay_down(source)
        for name in ("fabfile.py", "fabric.yaml"):
            shutil.copy(ROOT / name, source / name)
        (source / "manifest.toml").write_text(_MANIFEST, encoding="utf-8")
        inventory = json.dumps(_inventory(stage, app, slots, here))
        (source / "inventory.yaml").write_text(inventory, encoding="utf-8")
        environ = {**stage.ground.environ, **_slurm_environ(stage)}
        plan = import_plan(source, "benchmark", stage.directory / "home", environ=stage.ground.environ).path
        return cls(plan, _started_by(how, plan), stage, not here, environ, new)

    def cold(self) -> None:
        """From here on nothing is built, nothing pushed, and no process of ours runs, the broker too."""
        cache = self.stage.fresh("cache")
        self.environ["REMOTE_RUNNER_CACHE_DIR"] = str(cache)
        self._run = f"{self.stage.directory.name}-{cache.name}"
        self.disconnect()

    def new_run(self) -> None:
        """What is started from here on belongs to a run of its own."""
        self._run = f"{self.stage.directory.name}-{self.stage.fresh('run').name}"

    def disconnect(self) -> None:
        """The same, but that what is built stays."""
        runtime = self.environ.get("REMOTE_RUNNER_RUNTIME_DIR")
        if runtime:
            end_brokers(Path(runtime))
        self.stage.stand.clear()
        runtime = tempfile.mkdtemp(prefix="rr-", dir="/tmp")  # socket paths are short
        self.stage.stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        self.stage.stack.callback(end_brokers, Path(runtime))
        self.environ["REMOTE_RUNNER_RUNTIME_DIR"] = runtime
        self.forget_there()

    def forget_there(self) -> None:
        """Remove what the hosts have got from this plan, but for the agent's program, unless they are to be `new`."""
        for way in self.stage.ways:
            base = way.near / _base(self.stage)
            if self.new:
                shutil.rmtree(base, ignore_errors=True)
            for artifact in base.glob("artifacts/*"):
                _remove(artifact)

    def instances(self, case: str = "nothing", count: int = 1, *, drained: bool = False) -> list[Job]:
        """What Testground's `local:exec` would start for so many instances of the run that goes on since `cold`."""
        return [self._instance(case, count, drained) for _ in range(count)]

    def _instance(self, case: str, count: int, drained: bool) -> Job:
        self._instances += 1
        outputs = self.stage.directory / "outputs" / str(self._instances)
        outputs.mkdir(parents=True)
        environ = {
            "TEST_PLAN": "benchmark",
            "TEST_CASE": case,
            "TEST_RUN": self._run,
            "TEST_GROUP_ID": "single",
            "TEST_GROUP_INSTANCE_COUNT": str(count),
            "TEST_INSTANCE_COUNT": str(count),
            "TEST_INSTANCE_ROLE": "",
            "TEST_INSTANCE_PARAMS": "",
            "TEST_OUTPUTS_PATH": str(outputs),
            "TEST_TEMP_PATH": str(self.stage.ground.directory / "tmp"),
            "TEST_START_TIME": "2026-01-01T00:00:00Z",
            "TEST_SUBNET": "127.1.0.0/16",
            "TEST_SIDECAR": "false",
            "TEST_DISABLE_METRICS": "true",
            "TEST_CAPTURE_PROFILES": "",
            "TEST_REPO": "",
            "TEST_BRANCH": "",
            "TEST_TAG": "",
            "INFLUXDB_URL": "http://localhost:8086",
            "REDIS_HOST": "localhost",
            "SYNC_SERVICE_HOST": "localhost",
            "SYNC_SERVICE_PORT": str(self.stage.ground.sync.port),
        }
        RunEnv.from_environ(environ)
        stdout = None if drained else self.stage.log
        return Job(self.argv, {**environ, **self.environ}, self.directory, stdout)

    def fab(self, *words: str) -> Job:
        """A task by hand."""
        return Job([_fab(), *words], self.environ, self.directory, self.stage.log)


def _slurm_environ(stage: Stage) -> dict[str, str]:
    """The variables by which Slurm is found, where the hosts are its nodes."""
    way = stage.ways[0]
    if not isinstance(way, SlurmWay):
        return {}
    bed = way.bed
    return {**bed.environ, "PATH": f"{bed.programs}{os.pathsep}{stage.ground.environ['PATH']}"}


def _inventory(stage: Stage, app: Mapping[str, str], slots: int, here: bool) -> dict[str, Any]:
    if isinstance(stage.ways[0], SlurmWay):
        bed = stage.ways[0].bed
        more = {"directory": f"{bed.local}/{_base(stage)}", "env": {"FAR": str(bed.directory)}}
        return {
            "app": {"name": "application", **app},
            "defaults": {"system": str(System.local()), **more},
            "hosts_from": [{"slurm": {"nodes": bed.nodes, "slots": slots, "time": "30m"}}],
        }

    def entry(way: Way) -> dict[str, Any]:
        target = way.target
        return {
            "ssh": {
                "host": target.host,
                "user": target.user,
                "port": target.port,
                "identity_file": target.identity_file,
                "options": way.options,
            },
            "directory": f"{way.far}/{_base(stage)}",
            "env": {"FAR": way.far},
            "slots": slots,
        }

    hosts: dict[str, Any] = {way.host.name: entry(way) for way in stage.ways}
    if here:
        hosts = {"localhost": {"directory": str(stage.directory / "base")}}
    return {"app": {"name": "application", **app}, "defaults": {"system": str(System.local())}, "hosts": hosts}


def _remove(artifact: Path) -> None:
    """An artifact is read-only on its host."""
    for folder in (artifact, *(path for path in artifact.rglob("*") if path.is_dir() and not path.is_symlink())):
        folder.chmod(0o700)
    shutil.rmtree(artifact)


def _base(stage: Stage) -> str:
    return f"base-{stage.directory.name}"


def _started_by(how: str, plan: Path) -> list[str]:
    if how == PYTHON:
        return [sys.executable, "-m", "remote_runner"]
    if how == FAB:
        return [_fab(), "instance"]
    if shutil.which("go") is None:
        raise RuntimeError("no Go here, which Testground's builder exec:go compiles the launcher with")
    launcher = plan / "launcher"
    build(plan, launcher)
    return [str(launcher)]


def _fab() -> str:
    return str(Path(sys.executable).parent / "fab")


@dataclass(frozen=True)
class Instance:
    """One instance that went well: its record, its outputs."""

    record: Mapping[str, Any]
    outputs: Path

    @classmethod
    def of(cls, job: Job) -> Instance | None:
        """That of a job that has ended; None where it did not go well."""
        outputs = Path(job.environ["TEST_OUTPUTS_PATH"])
        try:
            record = json.loads((outputs / "remote-runner.json").read_text(encoding="utf-8"))
            came = (outputs / "case").read_text(encoding="utf-8") == f"{job.environ['TEST_CASE']}\n"
        except FileNotFoundError:
            return None
        return cls(record, outputs) if came and record["outcome"] == "ok" else None

    @property
    def steps_s(self) -> dict[str, float]:
        """Seconds of each of its steps, as measures."""
        return {f"step_{step['name']}_s": float(step["duration_s"]) for step in self.record["steps"]}


def run(
    plan: Plan,
    case: str = "nothing",
    count: int = 1,
    *,
    drained: bool = False,
    during: Callable[[], None] = lambda: None,
    check: Callable[[Instance], None] = lambda instance: None,
) -> dict[str, float]:
    """So many instances at once, measured: `failed` counts those whose outputs did not come home as well.

    Of one, the steps too. `check` looks at each that went well, before its outputs are removed. Raises RuntimeError
    where none goes well.
    """
    jobs = plan.instances(case, count, drained=drained)
    trial, _ = plan.stage.measure(jobs, starts=count if plan.remote else 0, during=during)
    went_well = [instance for job in jobs if (instance := Instance.of(job))]
    for instance in went_well:
        check(instance)
    shutil.rmtree(plan.stage.directory / "outputs")
    if not went_well:
        raise RuntimeError("no instance's outputs came home")
    trial["failed"] = max(trial["failed"], float(count - len(went_well)))
    if count == 1:
        trial.update(went_well[0].steps_s)
    return trial


def _plan(stage: Stage, make: Callable[[Stage], Plan]) -> Plan:
    """The stage's plan; made when it is first asked for."""
    if "plan" not in stage.kept:
        stage.kept["plan"] = make(stage)
    plan: Plan = stage.kept["plan"]
    return plan


def cold(how: str = OURS, *, go: Callable[[Plan], Trial] = run, **settings: Any) -> Contestant:
    """A contestant that has nothing warm: no process, no connection, nothing built, nothing pushed."""
    make = partial(Plan.make, how=how, **settings)
    return Contestant(how, lambda stage: go(_plan(stage, make)), lambda stage: _plan(stage, make).cold())


def warm(
    how: str = OURS,
    *,
    go: Callable[[Plan], Trial] = run,
    warm_up: Callable[[Plan], object] = run,
    ready: Callable[[Plan], object] = run,
    **settings: Any,
) -> Contestant:
    """A contestant that has done a run's `warm_up` before, and what `ready` does (an instance) before each time."""
    make = partial(Plan.make, how=how, **settings)

    def prepare(stage: Stage) -> None:
        plan = _plan(stage, make)
        if not plan.warm:
            plan.cold()
            warm_up(plan)
            plan.warm = True
        ready(plan)

    return Contestant(how, lambda stage: go(_plan(stage, make)), prepare)
