"""Runs on a real Slurm: its nodes are the hosts, and an allocation of the run's own goes with the run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.faults import FaultClock, fault
from tests.hosts import Keys
from tests.integration.runs import Ended, Machine, Outcome, Plan, ended, read_until, single_words, wait_for
from tests.integration.ways import ALONE, DIRECT, let_fab_start_by
from tests.needs import need
from tests.slurm_bed import SlurmBed

QUICK = 'echo "on $REMOTE_RUNNER_HOST" >"$TEST_OUTPUTS_PATH/where"; ok\n'
# What a terminal or a reader of lines would change.
BYTES = bytes(range(256)) * 64 + b"no end of a line"
CARRIED = "".join(f"\\{byte:03o}" for byte in range(256))
BINARY = (
    f"i=0; while [ $i -lt 64 ]; do printf '{CARRIED}'; i=$((i+1)); done >\"$TEST_OUTPUTS_PATH/bytes\"\n"
    "printf 'no end of a line' >>\"$TEST_OUTPUTS_PATH/bytes\"; ok\n"
)
WAITS = 'until [ -e "$GO" ]; do sleep 0.1; done; ok\n'
TOLERATE_S = 10
HOLD = 'event message_event "\\"x\\":1"; echo started >&2; exec sleep 600\n'


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmBed]:
    """Three nodes with four processors each."""
    need("slurm")
    with SlurmBed.started(tmp_path_factory.mktemp("slurm"), 3) as started:
        yield started


@pytest.fixture(autouse=True)
def _all_idle(bed: SlurmBed) -> Iterator[None]:
    yield
    for job in bed.jobs():
        bed.slurm("scancel", job, check=False)
    bed.wait_idle()


def on(bed: SlurmBed, machine: Machine) -> Machine:
    """The user's machine with Slurm's programs."""
    path = f"{bed.programs}{os.pathsep}{machine.environ['PATH']}"
    return Machine({**machine.environ, **bed.environ, "PATH": path}, machine.runtime)


def plan_on(
    bed: SlurmBed,
    tmp_path: Path,
    machine: Machine,
    script: str,
    slurm: Mapping[str, Any] | None = None,
    **defaults: Any,
) -> Plan:
    plan = Plan.of_script(tmp_path / "plan", on(bed, machine), script, [])
    with_slurm(plan, bed, slurm or {}, **defaults)
    return plan


def with_slurm(plan: Plan, bed: SlurmBed, slurm: Mapping[str, Any], **defaults: Any) -> None:
    """Let the plan's hosts be nodes of that Slurm."""
    file = plan.directory / "inventory.yaml"
    inventory = json.loads(file.read_text(encoding="utf-8"))
    inventory |= {"hosts": {}, "hosts_from": [{"slurm": {"nodes": 3, "time": "10m", **slurm}}]}
    inventory["defaults"] = {"directory": str(bed.local), "tolerate_s": TOLERATE_S, **defaults}
    file.write_text(json.dumps(inventory), encoding="utf-8")


@pytest.mark.parametrize("way", [None, DIRECT, ALONE])
def test_a_run_allocates_shares_and_gives_back(
    bed: SlurmBed, tmp_path: Path, machine: Machine, way: str | None
) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, {"slots": 2, "partition": "p", "options": ["--constraint=ib"]})
    if way is not None:
        let_fab_start_by(plan.directory, way)
    outcome = plan.single(6).all_ok()
    assert sorted(instance.host for instance in outcome.instances) == ["n1", "n1", "n2", "n2", "n3", "n3"]
    for instance in outcome.instances:
        assert instance.text("where") == f"on {instance.host}\n"
        assert instance.record["address"] == f"10.81.0.{instance.host[1:]}"
    said = outcome.ended.stderr
    assert said.count("is allocated") == 1
    bed.wait_given_back(10.0)
    assert plan.fab("clean", "--json").status == 0


def test_every_byte_arrives(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    (instance,) = plan_on(bed, tmp_path, machine, BINARY).single().all_ok().instances
    assert (instance.outputs / "bytes").read_bytes() == BYTES


def test_the_nodes_of_an_allocation_are_the_hosts(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK)
    before = plan.fab("hosts")
    assert "a run allocates them" in before.stderr
    bed.slurm("salloc", "--no-shell", "--job-name=mine", "--nodes=2", "--constraint=ib")
    (job,) = bed.jobs()
    within = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "7"}
    shown = plan.fab("hosts", "--json", environ=within)
    assert [(one["host"], one["slots"], one["labels"], one["from"]) for one in json.loads(shown.stdout)] == [
        ("n1", 4, ["p", "ib"], "slurm"),
        ("n2", 4, ["p", "ib"], "slurm"),
    ]
    probed = json.loads(plan.fab("hosts", "--probe", "--json", environ=within).stdout)
    assert [one["error"] for one in probed] == [None, None]


def test_nodes_are_reached_by_ssh(bed: SlurmBed, tmp_path: Path, machine: Machine, keys: Keys) -> None:
    nodes = [bed.start_sshd(number, keys) for number in range(1, bed.nodes + 1)]
    go = tmp_path / "go"
    plan = plan_on(bed, tmp_path, machine, WAITS, {"slots": 1, "connect": "ssh"}, env={"GO": str(go)})
    run = plan.start(*single_words(3))
    read_until(run, "run: started in", 3)
    assert len(bed.jobs()) == 1
    assert bed.slurm("squeue", "-h", "-s", "-o", "%i").split() == []
    go.touch()
    outcome = Outcome.of(ended(run)).all_ok()
    assert sorted(instance.host for instance in outcome.instances) == ["n1", "n2", "n3"]
    assert [node.log.read_text().count("Accepted publickey") for node in nodes] == [1, 1, 1]
    bed.wait_given_back(10.0)


# Large artifacts


def large(plan: Plan, *programs: Path) -> Plan:
    """The plan with an artifact that is worth an sbcast; `programs` is a directory that stands first on PATH."""
    with (plan.directory / "application").open("ab") as file:
        file.write(b"exit\n#" + os.urandom(8).hex().encode() * (5 << 16))
    path = os.pathsep.join([*map(str, programs), plan.machine.environ["PATH"]])
    return replace(plan, machine=replace(plan.machine, environ={**plan.machine.environ, "PATH": path}))


def sbcast_that(bed: SlurmBed, directory: Path, does: str) -> Path:
    """A directory with another `sbcast`; in `does`, `sbcast` is the real one."""
    directory.mkdir()
    script = f'#!/bin/sh\nsbcast() {{ {bed.programs}/sbcast "$@"; }}\n{does}\n'
    (directory / "sbcast").write_text(script, encoding="utf-8")
    (directory / "sbcast").chmod(0o755)
    return directory


def brought(bed: SlurmBed, *words: str) -> list[str]:
    """What lies on the nodes that was being brought."""
    return bed.slurm("srun", *words, "--nodes=3", "find", str(bed.local / "artifacts"), "-name", ".tmp-*").split()


def test_a_large_artifact_goes_to_all_nodes_by_one_sbcast(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    told = tmp_path / "told"
    programs = sbcast_that(bed, tmp_path / "bin", f'echo >>{told}; sbcast "$@"')
    plan = large(plan_on(bed, tmp_path, machine, QUICK, {"slots": 2}), programs)
    outcome = plan.single(6).all_ok()
    assert told.read_text() == "\n"
    assert outcome.ended.stderr.count("sent by sbcast, ") == 3
    bed.wait_given_back(10.0)
    assert brought(bed) == []
    bed.slurm("salloc", "--no-shell", "--nodes=3")
    within = {"SLURM_JOB_ID": bed.jobs()[0]}
    assert plan.fab("push", "--host", "*", environ=within).stderr.count("was there already") == 3
    assert large(plan).fab("push", "--host", "*", environ=within).stderr.count("sent by sbcast, ") == 3
    assert "sbcast" not in large(plan).fab("push", "--host", "n1,n2", environ=within).stderr


@pytest.mark.parametrize(
    ("does", "words"),
    [
        ("echo 'sbcast: error: no way' >&2; exit 1", "sbcast ended with status 1: sbcast: error: no way"),
        ('sbcast "$1" /etc/hostname "$3"', "what sbcast brought is not the artifact"),
        ("true", "what sbcast brought is not the artifact"),
    ],
    ids=["fails", "brings-something-else", "brings-nothing"],
)
def test_a_large_artifact_comes_where_sbcast_is_no_help(
    bed: SlurmBed, tmp_path: Path, machine: Machine, does: str, words: str
) -> None:
    programs = sbcast_that(bed, tmp_path / "bin", does)
    outcome = large(plan_on(bed, tmp_path, machine, QUICK, {"slots": 1}), programs).single(3).all_ok()
    assert outcome.ended.stderr.count(words) == 3
    assert "sent by" not in outcome.ended.stderr
    assert brought(bed) == []


def test_nodes_with_a_home_in_common_need_no_sbcast(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    programs = sbcast_that(bed, tmp_path / "bin", "exit 1")
    plan = plan_on(bed, tmp_path, machine, QUICK, {"slots": 1}, directory=str(tmp_path / "home"))
    said = large(plan, programs).single(3).all_ok().ended.stderr
    assert said.count("(sent, ") == 1
    assert "through the node's step" not in said


def test_what_sbcast_brought_goes_with_a_killed_controller(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    came, go = tmp_path / "came", tmp_path / "go"
    does = f'sbcast "$@"; touch {came}; until [ -e {go} ]; do sleep 0.1; done'
    plan = large(plan_on(bed, tmp_path, machine, QUICK, {"slots": 1}), sbcast_that(bed, tmp_path / "bin", does))
    run = plan.start(*single_words(3))
    wait_for(came.exists, 60.0)
    within = ("--overlap", f"--jobid={bed.jobs()[0]}")
    assert len(brought(bed, *within)) == 2 * 3  # the file, and where it is to be unpacked
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    go.touch()
    wait_for(lambda: brought(bed, *within) == [], 20.0)
    assert plan.fab("clean", "--json").status == 0


def test_ctrl_c_gives_the_allocation_back(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, HOLD, grace_s=1)
    run = plan.start(*single_words(2))
    read_until(run, "started in", 2)
    assert len(bed.jobs()) == 1
    os.kill(run.pid, signal.SIGINT)
    assert ended(run).status != 0
    bed.wait_given_back(5.0)


# What goes wrong


@dataclass
class Waiting:
    """A run whose applications wait, one on each node, until they are let go."""

    plan: Plan
    fab: subprocess.Popen[bytes]
    go: Path
    job: str

    @classmethod
    def started(cls, bed: SlurmBed, tmp_path: Path, machine: Machine, **slurm: Any) -> Waiting:
        go = tmp_path / "go"
        plan = plan_on(bed, tmp_path, machine, WAITS, {"slots": 1, **slurm}, env={"GO": str(go)}, grace_s=1)
        fab = plan.start(*single_words(3))
        read_until(fab, "run: started in", 3)
        (job,) = bed.jobs()
        return cls(plan, fab, go, job)

    def verdicts(self) -> dict[str, tuple[str, str]]:
        """Let go of what still waits: for each node the verdict and the reason."""
        self.go.touch()
        outcome = Outcome.of(ended(self.fab))
        assert "Traceback" not in outcome.ended.stderr
        return {instance.host: (instance.verdict, instance.reason) for instance in outcome.instances}


@fault(
    "a node of a Slurm allocation dies (slurmd and all else on it)",
    "its instances fail; those on other nodes go on",
    "`tolerate_s` + 10 s",
)
def test_a_node_dies(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    run = Waiting.started(bed, tmp_path, machine)
    clock.start()
    bed.kill_node(2)
    read_until(run.fab, "FAIL")
    clock.stop(TOLERATE_S + 10)
    found = run.verdicts()
    bed.revive(2)
    assert (found["n1"], found["n3"]) == (("ok", ""), ("ok", ""))
    assert found["n2"][0] == "failed"
    assert found["n2"][1].startswith("remote-runner: n2: ")


def test_another_node_takes_the_instance_of_one_that_is_dead(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, {"slots": 1}, on_unreachable="next")
    bed.slurm("salloc", "--no-shell", "--no-kill", "--nodes=3")
    (job,) = bed.jobs()
    bed.kill_node(2)
    outcome = Outcome.of(plan.fab(*single_words(3), environ={"SLURM_JOB_ID": job})).all_ok()
    bed.revive(2)
    assert sorted(instance.host for instance in outcome.instances) in (["n1", "n1", "n3"], ["n1", "n3", "n3"])


@pytest.mark.parametrize(
    ("words", "why", "bound_s"),
    [
        pytest.param(
            ["scancel", "JOB"],
            "CANCELLED",
            10,
            marks=fault(
                "a run's Slurm job is cancelled from outside (scancel)", "its instances fail, with that reason", "10 s"
            ),
        ),
        pytest.param(
            ["scontrol", "update", "JobId=JOB", "EndTime=now"],
            "its time limit is over",
            60,  # slurmctld looks at limits every 30 s
            marks=fault("the time limit of a run's Slurm job is over", "its instances fail, with that reason", "60 s"),
        ),
        pytest.param(
            ["sbatch", "--partition=urgent", "--nodes=3", "--output=/dev/null", "--wrap=true"],
            "another job took its place",
            20,
            marks=fault("another job preempts a run's Slurm job", "its instances fail, with that reason", "20 s"),
        ),
    ],
    ids=["cancelled", "time-limit", "preempted"],
)
def test_the_job_ends(
    bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock, words: list[str], why: str, bound_s: float
) -> None:
    run = Waiting.started(bed, tmp_path, machine)
    clock.start()
    bed.slurm(*(word.replace("JOB", run.job) for word in words))
    read_until(run.fab, "FAIL", 3)
    clock.stop(bound_s)
    for verdict, reason in run.verdicts().values():
        assert verdict == "failed"
        assert why in reason
        assert f"Slurm says of job {run.job}: " in reason


@fault("slurmctld is started anew during a run", "nothing: steps do not need it", "30 s")
def test_slurmctld_is_started_anew(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    run = Waiting.started(bed, tmp_path, machine)
    clock.start()
    bed.stop_controller()
    bed.start_controller()
    found = run.verdicts()
    clock.stop(30)
    assert set(found.values()) == {("ok", "")}
    bed.wait_given_back(10.0)


def failing(plan: Plan) -> tuple[Ended, str]:
    """A run that fails before its start, and what its instance says of that."""
    outcome = plan.single(1)
    assert outcome.ended.status == 1
    assert "Traceback" not in outcome.ended.stderr
    return outcome.ended, outcome.instances[0].reason


@fault("slurmctld is down when a run begins", "the run fails in a sentence", "40 s")
def test_slurmctld_is_down(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK)
    impatient = bed.conf.with_name("impatient.conf")  # each of Slurm's programs tries for that long
    impatient.write_text(bed.conf.read_text().replace("MessageTimeout=5", "MessageTimeout=2"), encoding="utf-8")
    environ = {**plan.machine.environ, "SLURM_CONF": str(impatient)}
    plan = replace(plan, machine=replace(plan.machine, environ=environ))
    bed.stop_controller()
    try:
        clock.start()
        _, reason = failing(plan)
        clock.stop(40)
    finally:
        bed.start_controller()
    assert "hosts_from: slurm: salloc ended with status" in reason
    assert "contact slurm controller" in reason
    assert "scontrol ping" in reason


@fault(
    "the controller is killed, and its Slurm allocation stays",
    "`fab clean` finds it by its record and gives it back",
    "15 s",
)
def test_the_controller_is_killed(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    run = Waiting.started(bed, tmp_path, machine)
    os.killpg(run.fab.pid, signal.SIGKILL)
    run.fab.wait()
    assert bed.jobs() == [run.job]
    clock.start()
    cleaned = run.plan.fab("clean", "--json")
    bed.wait_given_back(10.0)
    clock.stop(15)
    (found,) = [one for one in json.loads(cleaned.stdout) if one["kind"] == "allocation"]
    assert found["outcome"] == "removed"
    ended(run.fab)


@fault(
    "all nodes of a Slurm partition are taken", "that is told; the run fails after `allocate_s`", "`allocate_s` + 8 s"
)
def test_there_is_no_room(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, timeouts={"allocate_s": 3})
    bed.slurm("salloc", "--no-shell", "--nodes=2")
    jobs = bed.jobs()
    clock.start()
    run, reason = failing(plan)
    clock.stop(11)
    assert bed.jobs() == jobs
    assert "no nodes were allocated within 3 s" in reason
    assert "waits in partition p, at place 1 of 1 (" in run.stderr


def test_ctrl_c_ends_the_waiting_for_nodes(bed: SlurmBed, tmp_path: Path, machine: Machine) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK)
    bed.slurm("salloc", "--no-shell", "--nodes=2")
    jobs = bed.jobs()
    run = plan.start(*single_words(2))
    read_until(run, "waits in partition p")
    os.kill(run.pid, signal.SIGINT)
    assert ended(run).status != 0
    assert bed.jobs() == jobs
    assert not list((Path(plan.machine.environ["REMOTE_RUNNER_CACHE_DIR"]) / "allocations").glob("*.json"))


@fault(
    "Slurm takes no more jobs (`MaxJobCount`)", "that is told; the run fails after `allocate_s`", "`allocate_s` + 8 s"
)
def test_the_queue_is_full(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, timeouts={"allocate_s": 3})
    bed.slurm("salloc", "--no-shell", "--nodes=1")
    jobs = bed.jobs()
    with bed.settings("MaxJobCount=1"):
        clock.start()
        run, reason = failing(plan)
        clock.stop(11)
        assert bed.jobs() == jobs
    assert "no nodes were allocated within 3 s" in reason
    assert "Slurm job queue full" in reason
    assert "Slurm job queue full" in run.stderr


@fault(
    "a partition, a feature or an option of salloc's that does not exist; more nodes than there are",
    "the run fails in a sentence",
    "10 s",
)
@pytest.mark.parametrize(
    ("slurm", "words"),
    [
        ({"partition": "nope"}, "invalid partition specified: nope"),
        ({"options": ["--constraint=gold"]}, "Invalid feature specification"),
        ({"options": ["--nonsense"]}, "unrecognized option '--nonsense'"),
        ({"nodes": 9}, "PartitionNodeLimit"),
    ],
)
def test_what_slurm_does_not_have(
    bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock, slurm: dict[str, Any], words: str
) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK, slurm)
    clock.start()
    _, reason = failing(plan)
    clock.stop(10)
    assert words in reason
    assert "next: " in reason
    assert bed.jobs() == []


@fault("two runs at once in one Slurm allocation", "nothing: both run, and the allocation stays", "30 s")
def test_two_runs_at_once(bed: SlurmBed, tmp_path: Path, machine: Machine, clock: FaultClock) -> None:
    plan = plan_on(bed, tmp_path, machine, QUICK)
    bed.slurm("salloc", "--no-shell", "--nodes=2")
    (job,) = bed.jobs()
    clock.start()
    runs = [plan.start(*single_words(4), environ={"SLURM_JOB_ID": job, "SLURM_NTASKS": "7"}) for _ in range(2)]
    for run in runs:
        Outcome.of(ended(run)).all_ok()
    clock.stop(30)
    assert bed.jobs() == [job]
