"""`fab local.*`: Testground's `run single`, `run composition` and sync service, without its daemon."""

from __future__ import annotations

import re
import signal
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoke

from remote_runner.errors import ControllerError, RemoteRunnerError, RunEnvironmentError
from remote_runner.typed import as_typed
from tasks.command_line.task import Failed, task
from tasks.command_line.values import pairs, positive, sync_address
from tasks.plan import Plan
from tasks.runs.report import is_cheap, report_after
from tasks.runs.summary import outcome_json, summary
from tasks.say import filled_to, near, note, result_width, say, show, show_json
from tasks.view.display import DISPLAY
from testground.errors import TestgroundError
from testground.sync import DEFAULT_PORT
from testground.tags import tag_of

if TYPE_CHECKING:
    from testground.composition import Composition, RunPlan
    from testground.local_exec import Command, RunOutcome
    from testground.runenv import ServiceAddress

# After Ctrl-C an instance stops its far side (grace_s of the host), fetches what there is and cleans.
STOP_GRACE_S = 60.0
_DOUBTS = 5
_MOST_S = 2_000_000  # as an inventory's timeouts: what all ways of waiting take

_RUN_OPTIONS = {
    "outputs": "directory below which outputs/local_exec/<plan>/<run>/<group>/<i>/ is made (default: this plan)",
    "sync_service": "HOST:PORT of a sync service that runs already (default: one of the run's own)",
    "influxdb": "the URL of an InfluxDB for the metrics; its instances reach it (default: none)",
    "redis": "the host of a Redis for old SDKs; its port is 6379 (default: none)",
    "timeout": "end the run after this many seconds",
    "json": "print the outcome as JSON on stdout instead of the summary",
    "dry_run": "print what would run, and run nothing",
}


@task(
    shows=True,
    help={
        "testcase": "the test case, as the manifest names it",
        "instances": "how many instances (default: what the manifest says)",
        "test_param": "name=value, as often as needed",
        **_RUN_OPTIONS,
    },
)
def single(
    c: invoke.Context,
    testcase: str = "",
    instances: str = "",
    test_param: list[str] | None = None,
    outputs: str = "",
    sync_service: str = "",
    influxdb: str = "",
    redis: str = "",
    timeout: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Run one test case, as `testground run single --runner local:exec` does."""
    from testground.composition import single as single_composition

    plan = Plan.here()
    if not testcase:
        raise Failed(f"name a test case: --testcase {' | '.join(case.name for case in plan.manifest.testcases)}")
    planned = single_composition(
        plan.manifest,
        testcase,
        instances=positive(instances, "instances") if instances else None,
        test_params=dict(pairs(test_param or [], "test-param")),
    )
    services = _services(sync_service, influxdb, redis)
    _run(plan, planned, (), "local.single", outputs, services, timeout, json, dry_run)


@task(
    shows=True,
    help={
        "file": "the composition (default: composition.toml of the plan)",
        "run_ids": "only these [[runs]], by id: --run-ids a,b, or as often as needed",
        **_RUN_OPTIONS,
    },
    short={"file": "f"},
)
def composition(
    c: invoke.Context,
    file: str = "",
    run_ids: list[str] | None = None,
    outputs: str = "",
    sync_service: str = "",
    influxdb: str = "",
    redis: str = "",
    timeout: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Run a composition, as `testground run composition -f FILE` does."""
    from remote_runner.connection.bootstrap.program import find_go
    from testground.composition import Composition
    from testground.composition import run_ids as ids_of
    from testground.template import Templates

    plan = Plan.here()
    if not file and not plan.is_plan:
        raise plan.missing()
    templates = Templates(plan.environ, plan.controller.cache, find_go)
    loaded = Composition.load(Path(file) if file else plan.directory / "composition.toml", templates)
    services = _services(sync_service, influxdb, redis)
    _run(plan, loaded, ids_of(run_ids or ()), "local.composition", outputs, services, timeout, json, dry_run)


@task(name="sync-service", help={"port": f"the port on loopback (default {DEFAULT_PORT}; 0 takes a free one)"})
def sync_service(c: invoke.Context, port: str = str(DEFAULT_PORT)) -> None:
    """Serve Testground's sync service on loopback until Ctrl-C; prints its port."""
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise Failed(f"--port is {port!r}; expected a TCP port")
    from testground.sync.service import serve_forever

    serve_forever(int(port), lambda found: show(str(found)))


@dataclass(frozen=True)
class Ran:
    """A run that is over: how it went, what of which instances is still on which host, and who ended it early.

    hosts: where each instance was (`single[003]`).
    """

    outcome: RunOutcome
    left_there: Mapping[str, Sequence[str]]
    hosts: Mapping[str, str]
    signal: signal.Signals | None
    warnings: Sequence[str] = ()
    """What was said before it began."""

    @property
    def status(self) -> int:
        """The exit status that says so: 128 + n where signal n ended it."""
        return 128 + self.signal if self.signal else 0 if self.outcome.ok else 1


@dataclass(frozen=True)
class Services:
    """What the instances of a run are given: nothing else of this machine is forwarded to its hosts."""

    sync: ServiceAddress | None = None
    influxdb_url: str = ""
    redis_host: str = ""

    def to_json(self) -> dict[str, str | None]:
        """For a run's record; a password in a URL stays out."""
        url = re.sub(r"//[^/]*@", "//***@", self.influxdb_url)
        sync = None if self.sync is None else f"{self.sync.host}:{self.sync.port}"
        return {"sync_service": sync, "influxdb": url or None, "redis": self.redis_host or None}


def _services(sync_service: str, influxdb: str, redis: str) -> Services:
    from remote_runner.instance.services import services_from

    try:
        services_from({"INFLUXDB_URL": influxdb})
    except RunEnvironmentError as error:
        raise Failed(f"--influxdb is {influxdb!r}; expected {error.expected}") from error
    return Services(sync_address(sync_service) if sync_service else None, influxdb, redis)


@contextmanager
def instance_starter(plan: Plan) -> Iterator[Command]:
    """What starts instances: they are coroutines of this process."""
    from remote_runner.broker.in_process import InProcess

    with InProcess(plan.directory, plan.controller, plan.environ, DISPLAY.tell) as starter:
        yield starter


def run_all(
    plan: Plan,
    plans: Sequence[RunPlan],
    *,
    task: str,
    outputs: Path,
    services: Services,
    timeout_s: float | None,
    run_id: str = "",
    repeats: Mapping[str, Any] | None = None,
) -> list[Ran]:
    """Run the plans one after the other, with a sync service of their own where none is given.

    `task` is what was typed, for the record of each run; `repeats` is what stands there too where one (`run_id`)
    repeats another.
    """
    from remote_runner.broker.in_process import InProcess
    from remote_runner.connection.verbs.job import instance_id
    from remote_runner.instance.steps import CHOOSE_STATE
    from remote_runner.inventory.sources.slurm import passed_to_instances
    from remote_runner.records.recorder import Recorder, begun
    from remote_runner.records.sync_log import ClientNames, write_sync_log
    from tasks.view.reports import RunLines
    from testground.local_exec import StopRequest, new_run_id, outputs_root
    from testground.local_exec import run as run_plan
    from testground.runenv import ServiceAddress
    from testground.sync.service import SyncService

    inputs = {
        "outputs": str(outputs.absolute()), "timeout_s": timeout_s, **services.to_json(), **(repeats or {})
    }  # fmt: skip
    ids = iter([run_id] if run_id else [new_run_id() for _ in plans])
    done = []
    with ExitStack() as stack:
        service: SyncService | None = None
        names = ClientNames()
        address = services.sync
        if address is None:
            service = stack.enter_context(SyncService(name_of=names))
            address = ServiceAddress("localhost", service.port)
        starter = stack.enter_context(instance_starter(plan))
        if service is not None and isinstance(starter, InProcess):
            starter.tell_whose(service.port, names)
        stop = StopRequest()
        stack.callback(stop.close)
        stack.enter_context(stop.on_signals())
        for run in plans:
            if stop.count:
                break
            run_id = next(ids)
            directory = outputs_root(outputs.absolute(), run.plan, run_id)
            try:
                recorder = Recorder(
                    plan.directory,
                    plan.controller,
                    plan.environ,
                    directory,
                    begun(run, run_id, task, plan.directory, inputs),
                )
                who = [
                    (tag_of(group.id, number), group.id) for group in run.groups for number in range(group.instances)
                ]
                name = f" ({run.name})" if len(plans) > 1 else ""
                DISPLAY.expect(f"{run.case}{name}, run {run_id}", who)
                outcome = run_plan(
                    run,
                    run_id=run_id,
                    command=starter,
                    outputs=outputs,
                    environ={**plan.environ, **passed_to_instances(plan.environ)},
                    sync_service=address,
                    influxdb_url=services.influxdb_url,
                    redis_host=services.redis_host,
                    listener=RunLines(DISPLAY),
                    stop=stop,
                    grace_s=STOP_GRACE_S,
                    timeout_s=timeout_s,
                )
                if service is not None:
                    instances = {
                        instance_id(outcome.run, one.group, one.number): tag_of(one.group, one.number)
                        for one in outcome.instances
                    }
                    write_sync_log(directory, service.journal_of(outcome.run), names, instances, without=CHOOSE_STATE)
                    service.forget_run(outcome.run)
                try:
                    recorder.end(outcome)
                except ControllerError as error:
                    say(str(error))
                hosts = {name: DISPLAY.host_of(name) for name, _ in who}
                done.append(Ran(outcome, DISPLAY.left_there(), hosts, stop.signal, run.warnings))
            except (RemoteRunnerError, TestgroundError, OSError) as error:
                if not done:
                    raise
                # What has run is told all the same.
                say(f"{run.case}, run {run_id}: {error}")
                break
    return done


def show_summary(ran: Ran) -> None:
    """The summary, what was warned of at its beginning, what there is to doubt, and where the outputs are."""
    from remote_runner.truth.observation import run_doubts

    text = summary(ran.outcome, ran.left_there, ran.hosts, result_width(), filled_to())
    doubts = run_doubts(ran.outcome.outputs)
    told = [as_typed(f"warning: {warning}") for warning in dict.fromkeys(ran.warnings)]
    told += [f"doubt: {doubt}" for doubt in doubts[:_DOUBTS]]
    told += [f"doubt: {len(doubts) - _DOUBTS} more stand in run.json"] if len(doubts) > _DOUBTS else []
    for line in told:
        text += "\n" + textwrap.fill(line, filled_to() or len(line), subsequent_indent="       ")
    show(f"{text}\noutputs: {near(ran.outcome.outputs)}", has_outcomes=True)


def show_report(plan: Plan, ran: Ran, tell: Callable[[str], None] = show) -> None:
    """Write the run's page, where that takes little of the run's time, and tell where it is, or how to have it."""
    from remote_runner.report.library import is_installed

    outcome = ran.outcome
    if not is_installed():
        return
    if not is_cheap([instance.outputs for instance in outcome.instances], outcome.duration_s):
        tell(as_typed(f"its page: fab report {outcome.run}"))
        return
    page = report_after(plan, outcome.outputs)
    if page is not None:
        tell(f"report: {near(page)}")


def _run(
    plan: Plan,
    composition: Composition,
    only: Sequence[str],
    task: str,
    outputs: str,
    services: Services,
    timeout: str,
    as_json: bool,
    dry_run: bool,
) -> None:
    from testground.composition import plan_runs

    plans = plan_runs(composition, plan.manifest, only=only)
    for warning in dict.fromkeys(warning for run in plans for warning in run.warnings):
        say(warning)
    if dry_run:
        show_json([_planned(plan, run) for run in plans])
        return
    run_and_tell(
        plan,
        plans,
        task=task,
        outputs=Path(outputs) if outputs else plan.directory,
        services=services,
        timeout_s=_seconds(timeout) if timeout else None,
        as_json=as_json,
    )


def run_and_tell(plan: Plan, plans: Sequence[RunPlan], *, as_json: bool, **given: Any) -> None:
    """Run them (`run_all`), and tell how it went. Raises `Failed` where one did not go well."""
    done = run_all(plan, plans, **given)
    DISPLAY.end()
    for run, ran in zip(plans, done, strict=False):
        outcome = ran.outcome
        name = f" ({run.name})" if len(plans) > 1 else ""
        note(f"\nrun {outcome.run} of {outcome.plan}:{outcome.case}{name}, {outcome.duration_s:.1f} s")
        if not as_json:
            show_summary(ran)
    if as_json:
        show_json([outcome_json(ran.outcome) for ran in done])
    for ran in done:
        show_report(plan, ran, note if as_json else show)
    if len(done) < len(plans) or any(ran.status for ran in done):
        raise Failed(None, max((ran.status for ran in done), default=1) or 1)


def _planned(plan: Plan, run: RunPlan) -> dict[str, object]:
    return {
        "run": run.name,
        "plan": run.plan,
        "case": run.case,
        "directory": str(plan.directory),
        "groups": [
            {"id": group.id, "instances": group.instances, "params": dict(group.params)} for group in run.groups
        ],
    }


def _seconds(timeout: str) -> float:
    seconds = positive(timeout, "timeout")
    if seconds > _MOST_S:
        raise Failed(f"--timeout is {seconds}; expected at most {_MOST_S}")
    return float(seconds)
