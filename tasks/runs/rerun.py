"""`fab rerun`: repeats a run from its record, after saying what differs now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import invoke

from remote_runner.errors import RemoteRunnerError
from remote_runner.sizes import count, listed
from tasks.command_line.task import Failed, task
from tasks.command_line.values import sync_address
from tasks.local import Services, run_and_tell
from tasks.plan import Plan
from tasks.runs.find import run_meant
from tasks.say import filled_to, say, show_json
from tasks.view.failures import ranges
from tasks.view.table import filled
from testground.tags import tag_of

if TYPE_CHECKING:
    from remote_runner.records.places import FoundRun
    from remote_runner.records.repeating import Part
    from remote_runner.records.run import RunRecord
    from testground.composition import RunPlan
    from testground.manifest import TestCase

_MOST_STATES = 5


@task(
    shows=True,
    help={
        "id": "the run's id, or its beginning (default: the last run)",
        "failed": "only as many instances of each group as failed, on the hosts on which they failed",
        "outputs": "directory for the outputs (default: where the run's are)",
        "json": "print the outcome as JSON on stdout instead of the summary",
        "dry_run": "print what differs and what would run, and run nothing",
    },
    bare="id",
)
def rerun(
    c: invoke.Context,
    id: list[str] | None = None,  # noqa: A002 (the option's name)
    failed: bool = False,
    outputs: str = "",
    json: bool = False,
    dry_run: bool = False,
) -> None:
    """Repeat a run from its record; says first what differs now: plan, application, hosts, versions."""
    from remote_runner.records.repeating import differences, masked_params, part_of, repeated, with_new_params
    from remote_runner.secrets import MASK
    from testground.local_exec import new_run_id

    here = Plan.here()
    found = run_meant(here, id)
    record = found.record
    run = repeated(record, failed=failed)
    if not run.groups:
        say(f"no instance of run {record.run} failed")
        return
    if hidden := masked_params(run):
        raise Failed(
            f"rerun: the record has {MASK} in the place of what is secret, or may have been, in {', '.join(hidden)}; "
            "start it anew, with that given: fab local.single or local.composition"
        )
    part = part_of(record, run)
    repeats = {"repeats": record.run, **({} if part is None else {"repeats_part": asdict(part)})}
    with _plan_of(here, record) as plan:
        case = next((case for case in plan.manifest.testcases if case.name.replace("/", "-") == run.case), None)
        run, differ = with_new_params(run, {} if case is None else case.default_params())
        if part is not None:
            if case is not None:
                _check_number(case, record, run)
            run = replace(run, warnings=tuple(_warnings(found, run, part)))
        run_id = new_run_id()
        differ += differences(record, *_now(plan, record, run_id))
        differs = "this differs now:" if differ else "nothing recorded differs now"
        begins = f"run {record.run} again, as {run_id}; {differs}"
        for words in (begins, *(f"  {words}" for words in differ), *run.warnings):
            say(filled(words, filled_to()))
        if dry_run:
            groups = [{"id": one.id, "instances": one.instances, "params": dict(one.params)} for one in run.groups]
            show_json({**repeats, "case": run.case, "groups": groups, "differs": differ})
            return
        run_and_tell(
            plan,
            [run],
            task="demo" if record.task == "demo" else "rerun",
            outputs=Path(outputs or record.inputs.get("outputs") or here.directory),
            services=_services(record),
            timeout_s=record.inputs.get("timeout_s"),
            as_json=json,
            run_id=run_id,
            repeats=repeats,
        )


def _check_number(case: TestCase, record: RunRecord, run: RunPlan) -> None:
    """Raises `Failed` where the test case does not take as many instances as failed."""
    if not case.minimum <= run.instances <= case.maximum:
        raise Failed(
            f"rerun: {count(run.instances, 'instance')} of run {record.run} failed; "
            f"test case {case.name} takes {case.minimum} to {case.maximum}\n"
            f"  next: repeat all of them: fab rerun {record.run}"
        )


def _warnings(found: FoundRun, run: RunPlan, part: Part) -> Iterator[str]:
    """What a success of some of the instances does not say."""
    from remote_runner.records.barriers import arrivals_and_waits
    from remote_runner.records.sync_log import sync_lines

    now = [tag_of(group.id, number) for group in run.groups for number in range(group.instances)]
    yield (
        f"only {run.instances} of {part.of} instances: {', '.join(ranges(part.instances)) or 'some'} of {found.run} "
        f"again, as {', '.join(ranges(now))}; TEST_INSTANCE_COUNT is {run.instances}"
    )
    _, waits = arrivals_and_waits(sync_lines(found.directory), ())
    if states := list(dict.fromkeys(wait.state for wait in waits)):
        which = "the barrier" if len(states) == 1 else "the barriers"
        yield (
            f"the instances of {found.run} waited for each other ({which} {listed(states, _MOST_STATES)}): some may "
            f"succeed where all together fail; to repeat all: fab rerun {found.run}"
        )


@contextmanager
def _plan_of(here: Plan, record: RunRecord) -> Iterator[Plan]:
    """The plan that the run was of; Testground's own copy of it is not taken, but the one that one stands in."""
    if record.task == "demo":
        from tasks.demo import demo_plan

        with demo_plan(here) as plan:
            yield plan
        return
    plan = (
        here if record.task == "testground" else replace(here, directory=Path(record.inputs["directory"]), is_plan=True)
    )
    if not (plan.directory / "manifest.toml").is_file() or plan.manifest.name != record.plan:
        raise Failed(
            f"rerun: {plan.directory} is not the plan {record.plan}; go to where that is now, and name the run"
        )
    if record.task == "testground":
        say("this run was Testground's; it is repeated without its daemon")
    yield plan


def _services(record: RunRecord) -> Services:
    sync, influxdb = record.inputs.get("sync_service"), record.inputs.get("influxdb") or ""
    if "***@" in influxdb:
        say("the password of its InfluxDB is not kept, so this run has none")
        influxdb = ""
    if record.task == "testground":
        return Services()
    return Services(sync_address(sync) if sync else None, influxdb, record.inputs.get("redis") or "")


def _now(plan: Plan, record: RunRecord, run_id: str) -> tuple[dict[str, Any], dict[str, str]]:
    """What makes the run now, and what would be run on each system (which is built for it)."""
    from remote_runner.records.provenance import inventory_of_run, inventory_value, provenance

    made_by = provenance(plan.directory, plan.environ)
    names = [host["name"] for host in record.hosts]
    with suppress(RemoteRunnerError):  # each instance will tell
        inventory = inventory_of_run(plan.directory, run_id, plan.controller, plan.environ)
        value = inventory_value(inventory, names)
        if record.task != "demo":  # whose second machine has other ports each time
            made_by["inventory"] = inventory.secrets(plan.environ).hide_in(value)
    return made_by, plan.run(_built(plan, record, run_id))


async def _built(plan: Plan, record: RunRecord, run_id: str) -> dict[str, str]:
    from remote_runner.inventory.systems import System

    built: dict[str, str] = {}
    async with plan.shared() as shared:
        for host in record.hosts:
            if host["system"] and host["system"] not in built:
                with suppress(RemoteRunnerError):  # its instances will tell
                    entry = plan.inventory.host(host["name"])
                    artifact = await shared.artifact(
                        entry.app,
                        System.parse(host["system"]),
                        plan_dir=plan.directory,
                        run_id=run_id,
                        environ=plan.environ,
                        build_s=entry.timeouts.build_s,
                    )
                    built[host["system"]] = artifact.hash
    return built
