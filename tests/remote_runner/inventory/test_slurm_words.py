"""What Slurm's programs print, as values; no Slurm is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from remote_runner.connection.transports.slurm import reason_in, without_noise
from remote_runner.errors import InventoryError
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.sources.allocation import salloc_argv
from remote_runner.inventory.sources.slurm import (
    SlurmPrograms,
    count_ids,
    fields_of,
    job_around,
    passed_to_instances,
    position,
    slurm_environment,
    why_lost,
)
from remote_runner.inventory.sources.source import Listing, SlurmConnect, SlurmSource


def parse(slurm: str) -> Inventory:
    return Inventory.parse(f"hosts_from:\n  - slurm: {slurm}\n", Path("/plan/inventory.yaml"))


def test_an_entry_becomes_words_of_salloc() -> None:
    (source,) = parse("{nodes: 20, partition: bench, time: 1h, options: [--constraint=ib]}").sources
    assert source == SlurmSource(20, "bench", "60", ("--constraint=ib",), None, SlurmConnect.SRUN)
    assert salloc_argv(source, "x") == [
        *("salloc", "--no-shell", "--no-kill", "--job-name=x", "--nodes=20"),
        *("--partition=bench", "--time=60", "--constraint=ib"),
    ]


@pytest.mark.parametrize(
    ("written", "minutes"), [("30m", "30"), ("90s", "2"), ("2d", "2880"), ("1-12:00", "1-12:00"), ("45", "45")]
)
def test_a_time_is_slurms_or_has_a_unit(written: str, minutes: str) -> None:
    (source,) = parse(f'{{time: "{written}"}}').sources
    assert isinstance(source, SlurmSource)
    assert source.time == minutes


@pytest.mark.parametrize("wrong", ["{time: soon}", "{nodes: 0}", "{connect: telnet}", "{node: 3}", "{options: -n}"])
def test_what_slurm_is_not_asked_for(wrong: str) -> None:
    with pytest.raises(InventoryError, match=r"hosts_from\[0\]\.slurm"):
        parse(wrong)


@pytest.mark.parametrize(("connect", "by_step"), [("srun", True), ("ssh", False)])
def test_a_node_is_reached_by_a_step_or_by_ssh(connect: str, by_step: bool) -> None:
    hosts: tuple[tuple[str, dict[str, Any]], ...] = (("n1", {"address": "192.0.2.1", "slots": 4}), ("n2", {}))
    listing = Listing("slurm", hosts, job="7", by_step=by_step)
    text = "hosts: {n2: {connect: {command: docker exec -i n2 sh}}}\n"
    inventory = Inventory.parse(text, Path("/plan/inventory.yaml")).with_hosts([listing])
    n2, n1 = inventory.hosts
    assert (n1.job, n1.by_step, n1.slots, n1.address) == ("7", by_step, 4, "192.0.2.1")
    assert n1.ssh is not None
    assert n1.ssh.host == "n1"
    assert not n2.by_step  # what the inventory says of the way there wins


def test_scontrol_is_read() -> None:
    assert count_ids("0-3,8,10-11") == 7
    assert count_ids("(null)") == 0
    assert count_ids("9" * 5000)
    line = "NodeName=n1 State=DOWN* NodeAddr=192.0.2.1 ReqB:S:C:T=0:0:*:* Reason=Not responding [slurm@now]"
    assert fields_of(line) == {
        "NodeName": "n1",
        "State": "DOWN*",
        "NodeAddr": "192.0.2.1",
        "ReqB:S:C:T": "0:0:*:*",
        "Reason": "Not",
    }
    assert position([10, 30, 20], 20) == 2


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT T DUE TO TIME LIMIT ***", "its time limit is over"),
        ("slurmstepd-n1: error: *** STEP 1.0 ON n1 CANCELLED AT T DUE TO PREEMPTION ***", "another job took its place"),
        ("srun: error: Node failure on n1", "the node failed"),
        ("slurmstepd-n1: error: *** STEP 7.2 ON n2 CANCELLED AT T ***", "it was cancelled"),
        ("hello", ""),
    ],
)
def test_the_end_of_a_step_has_a_reason(said: str, why: str) -> None:
    assert reason_in(said) == why
    assert without_noise(f"srun: cluster configuration lacks support for cpu binding\n\n{said}\n") == said


@pytest.mark.parametrize(("accounts", "who"), [("CANCELLED by 1000", " by 1000"), ("", ""), (None, "")])
def test_who_cancelled_is_told_where_a_site_keeps_accounts(tmp_path: Path, accounts: str | None, who: str) -> None:
    for name, said in (("scontrol", "JobId=7 JobState=CANCELLED Reason=None"), ("sacct", accounts)):
        if said is None:
            continue
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{said}'\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    why = why_lost("7", "n1", SlurmPrograms("slurm", {"PATH": str(tmp_path)}))
    assert why == f"Slurm says of job 7: CANCELLED{who} (scancel)"


def test_an_allocations_variables_are_no_options_of_ours() -> None:
    around = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "9", "SLURM_CONF": "/etc/s.conf", "TOKEN": "x", "PATH": "/bin"}
    assert job_around(around) == "7"
    handed_on = passed_to_instances(around)
    assert job_around(handed_on) == "7"
    for environ in (around, {**handed_on, "PATH": "/bin"}):
        found = slurm_environment(environ)
        assert found["SLURM_CONF"] == "/etc/s.conf"
        assert set(found) <= {"PATH", "HOME", "SLURM_CONF"}
    assert job_around({"SLURM_JOB_ID": "7; rm"}) == ""
