"""Asking Slurm's programs for an allocation's nodes, and for the state of jobs and nodes.

Sources: salloc(1), squeue(1), scontrol(1), scancel(1), as of Slurm 22.05.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remote_runner.controller import with_home
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, LocalProgramError, SourceError
from remote_runner.inventory.sources.source import Listing, SlurmConnect, SlurmSource
from remote_runner.machine.process import Finished, run

ASK_S = 20.0
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "SLURM_CONF")
# `fab local.*` hands its instances these; all other variables of an allocation would be options of srun.
JOB, CONF = "REMOTE_RUNNER_SLURM_JOB_ID", "REMOTE_RUNNER_SLURM_CONF"
ENDED_STATES = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
# A job whose nodes are not done with it yet does not say why it ended.
_COMPLETING_S = 5.0
_DOWN_STATES = ("DOWN", "FAIL", "NOT_RESPONDING", "POWERED_DOWN", "*")


def passed_to_instances(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables by which an instance finds the Slurm and the allocation that its run is started in."""
    given = {JOB: environ.get("SLURM_JOB_ID", ""), CONF: environ.get("SLURM_CONF", "")}
    return {name: value for name, value in given.items() if value}


def slurm_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """That of Slurm's programs: little of ours, for a step takes all of it over the wire in clear."""
    kept = {name: environ[name] for name in _PASSED_ON if name in environ}
    conf = {"SLURM_CONF": environ[CONF]} if CONF in environ and "SLURM_CONF" not in kept else {}
    return with_home({**conf, **kept})


def job_around(environ: Mapping[str, str]) -> str:
    """The allocation that this runs in, "" where there is none."""
    job = environ.get("SLURM_JOB_ID") or environ.get(JOB) or ""
    return job if job.isdecimal() else ""


@dataclass(frozen=True)
class SlurmPrograms:
    """What is asked, and for whom: `source` stands in messages."""

    source: str
    environ: Mapping[str, str]

    def ask(self, *argv: str, seconds: float = ASK_S) -> str:
        """What it prints, having ended with 0. Raises `SourceError`."""
        finished = self.run(*argv, seconds=seconds)
        if finished.status:
            raise self.failed(
                f"{argv[0]} ended with status {finished.status}", finished.stderr.decode(errors="replace")
            )
        return finished.stdout.decode(errors="replace")

    def run(self, *argv: str, seconds: float = ASK_S) -> Finished:
        """Run it to its end. Raises `SourceError` where it cannot be started, or takes longer."""
        try:
            return run(argv, deadline=Deadline.after(seconds), environ=self.environ)
        except LocalProgramError as error:
            raise SourceError(self.source, str(error), next_step="install Slurm's programs (slurm-client)") from error
        except DeadlineError as error:
            raise self.failed(f"{argv[0]} did not answer within {error.seconds:g} s") from error

    def failed(self, reason: str, said: str = "", next_step: str = "") -> SourceError:
        """The error for what went wrong."""
        if "contact slurm controller" in said or "answer" in reason:
            next_step = "see whether slurmctld runs (scontrol ping), and run it again"
        words = "\n".join(line for line in said.splitlines() if line.strip())
        return SourceError(self.source, reason, said=words, next_step=next_step or "see what Slurm says above")


def read_nodes(source: SlurmSource, job: str, slurm: SlurmPrograms) -> Listing:
    """The nodes of an allocation as hosts. Raises `SourceError`."""
    said = fields_of(slurm.ask("scontrol", "-o", "-d", "show", "job", job))
    if said.get("JobState") not in ("RUNNING", "CONFIGURING"):
        raise slurm.failed(f"job {job} is {said.get('JobState')}, and has no nodes", next_step="allocate anew (salloc)")
    hosts: list[tuple[str, Mapping[str, Any]]] = []
    for nodes, processors in _allocated(slurm.ask("scontrol", "-o", "-d", "show", "job", job)):
        names = slurm.ask("scontrol", "show", "hostnames", nodes).split()
        found = {one["NodeName"]: one for one in map(fields_of, _lines(slurm, nodes)) if "NodeName" in one}
        for name in names:
            node = found.get(name, {})
            features = [word for word in node.get("ActiveFeatures", "").split(",") if word and word != "(null)"]
            address = node.get("NodeAddr", "")
            values = {"slots": source.slots or max(1, min(processors, 1000)), "labels": [said["Partition"], *features]}
            hosts.append((name, {**values, **({"address": address} if address else {})}))
    return Listing(str(source), tuple(hosts), job=job, by_step=source.connect is SlurmConnect.SRUN)


def _lines(slurm: SlurmPrograms, nodes: str) -> list[str]:
    return slurm.ask("scontrol", "-o", "show", "node", nodes).splitlines()


def _allocated(text: str) -> list[tuple[str, int]]:
    """Each group of nodes of a job (as a list of Slurm's), with the number of its processors."""
    return [(nodes, count_ids(ids)) for nodes, ids in re.findall(r"\bNodes=(\S+) CPU_IDs=(\S+)", text)]


def count_ids(text: str) -> int:
    """How many numbers `0-3,8` means."""
    bounds = re.findall(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    return sum(int(last or first) - int(first) + 1 for first, last in bounds)


def fields_of(line: str) -> dict[str, str]:
    """The `Name=value` words of one line of scontrol's; a value that has spaces is cut."""
    return dict(reversed([(name, value) for name, value in re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", line)]))


def why_lost(job: str, node: str, slurm: SlurmPrograms) -> str:
    """Why nothing runs on the node any more, as Slurm says it; "" where the job and the node are well.

    Raises `SourceError` where Slurm does not say.
    """
    until_s = time.monotonic() + _COMPLETING_S
    while True:
        asked = slurm.run("scontrol", "-o", "show", "job", job, seconds=5.0)
        said = fields_of(asked.stdout.decode(errors="replace"))
        state = said.get("JobState", "")
        if state != "COMPLETING" or time.monotonic() > until_s:
            break
        time.sleep(0.1)  # nothing tells when a job's nodes are done with it
    if asked.status and "Invalid job id" in asked.stderr.decode(errors="replace"):
        return f"Slurm knows job {job} no more"
    if state in (*ENDED_STATES, "COMPLETING"):
        reason = said.get("Reason", "None")
        who = f" {by}" if state == "CANCELLED" and (by := _cancelled_by(job, slurm)) else ""
        words = {"TIMEOUT": "its time limit is over", "PREEMPTED": "another job took its place", "CANCELLED": "scancel"}
        why = words.get(state, "" if reason == "None" else reason)
        return f"Slurm says of job {job}: {state}{who}" + (f" ({why})" if why else "")
    found = slurm.run("scontrol", "-o", "show", "node", node, seconds=5.0).stdout.decode(errors="replace")
    node_state = fields_of(found).get("State", "")
    if any(word in node_state for word in _DOWN_STATES):
        because = re.search(r"\bReason=(.*?)(?: \[|$)", found.strip())
        return f"Slurm says of node {node}: {node_state}" + (f" ({because[1]})" if because else "")
    return ""


def _cancelled_by(job: str, slurm: SlurmPrograms) -> str:
    """`by UID`, where the site keeps accounts: nobody else knows who cancelled."""
    try:
        asked = slurm.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "State", seconds=5.0)
    except SourceError:  # it is not installed, or the accounts do not answer
        return ""
    found = re.search(r"CANCELLED (by \d+)", asked.stdout.decode(errors="replace"))
    return found[1] if found else ""


def position(priorities: Sequence[int], own: int) -> int:
    """The place in a queue of jobs with these priorities, the own among them; from 1."""
    return 1 + sum(priority > own for priority in priorities)
