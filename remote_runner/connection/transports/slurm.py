"""A step of a Slurm allocation as the transport to one of its nodes."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress

from remote_runner.connection.bootstrap.handshake import AgentGoneError
from remote_runner.connection.transports.pipes import Pipes
from remote_runner.connection.transports.transport import CommandTransport
from remote_runner.deadline import Deadline
from remote_runner.errors import HostError, HostUnreachableError, SourceError
from remote_runner.inventory.sources.slurm import SlurmPrograms, slurm_environment, why_lost

# What srun and the node's slurmstepd say of a step's end. srun's status is not asked: it is 0 after a node's failure.
_ENDS = (
    (re.compile(r"DUE TO TIME LIMIT"), "its time limit is over"),
    (re.compile(r"DUE TO PREEMPTION"), "another job took its place"),
    (re.compile(r"DUE TO NODE FAILURE|Node failure on|NODE FAIL"), "the node failed"),
    (re.compile(r"CANCELLED AT|Force Terminated"), "it was cancelled"),
)
_NOISE = ("cluster configuration lacks support for cpu binding",)


def step_argv(job: str, node: str) -> list[str]:
    """A shell on that node, beside the other steps of the allocation, with all that is allocated there.

    Without --unbuffered what it writes comes only with the next end of a line.
    """
    return [
        *("srun", "--overlap", f"--jobid={job}", f"--nodelist={node}", "--nodes=1", "--ntasks=1"),
        *("--cpu-bind=none", "--chdir=/", "--unbuffered", "sh", "-s"),
    ]


class StepTransport(CommandTransport):
    """A node by a step. Where the step is lost, Slurm is asked why, and what ran there is over with it."""

    def __init__(self, name: str, job: str, environ: Mapping[str, str]) -> None:
        super().__init__(name, step_argv(job, name), environ)
        self._job = job
        self._pipes: Pipes | None = None

    async def start(self, script: bytes, *, first: bool, deadline: Deadline) -> Pipes:
        """See `Transport.start`. Raises `AgentGoneError` where another step would find nothing."""
        if not first and (why := await self.why_ended_there()):
            raise AgentGoneError(why)
        self._pipes = Pipes(self._argv, slurm_environment(self.environ), opening=script)
        return self._pipes

    def explain(self, status: int | None, said: str) -> HostError:
        """See `Transport.explain`."""
        what = "did not answer in time" if status is None else f"ended with status {status}"
        why = reason_in(said)
        return HostUnreachableError(
            self.name,
            f"no step of job {self._job} starts there: srun {what}" + (f"; {why}" if why else ""),
            stderr=without_noise(said),
            next_step=f"scontrol show node {self.name}; scontrol show job {self._job}",
        )

    def last_words(self) -> str:
        """See `Transport.last_words`."""
        said = "" if self._pipes is None else self._pipes.words()
        lines = without_noise(said).splitlines()
        why = reason_in(said)
        last = "".join(c for c in lines[-1][:200] if c.isprintable()) if lines else ""
        return f"Slurm ended its step: {why}" if why else last

    async def why_ended_there(self) -> str:
        """See `Transport.why_ended_there`. A SIGTERM reaches applications seconds before the end of their job."""
        slurm = SlurmPrograms("slurm", slurm_environment(self.environ))
        with suppress(SourceError):  # slurmctld is started anew: the step itself does not need it
            return await asyncio.to_thread(why_lost, self._job, self.name, slurm)
        return ""


def reason_in(said: str) -> str:
    """Why a step ended, as its end is told on stderr; "" where that does not say."""
    return next((words for pattern, words in _ENDS if pattern.search(said)), "")


def without_noise(said: str) -> str:
    """The messages, without those that come every time."""
    return "\n".join(line for line in said.splitlines() if line.strip() and not any(noise in line for noise in _NOISE))
