"""One instance of the soak: where it is, how it ended, and whether that was right."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from remote_runner.connection.verbs.job import instance_id
from tests.hosts_netns import NetnsHost
from tests.integration.failing import GROUP, FailingPlan, event_bodies
from tests.integration.holding import Held
from tests.soak.kinds import FILES

# Forwards are opened beside the push, so that no instance can be seen between the two.
STEPS = ("choose", "build", "push", "run", "fetch", "clean")
STARTING = "starting"
END_S = 90.0


class SoakFailedError(Exception):
    """Something was lost, left or told wrongly."""


@dataclass
class Trial:
    """An instance on its way; `run` is its own Testground run."""

    run: str
    host: NetnsHost
    plan: FailingPlan
    held: Held
    is_heard: bool = True
    """Whether somebody read what it said to its end."""

    @classmethod
    def start(cls, run: str, host: NetnsHost, plan: FailingPlan, sync_port: int, environ: Mapping[str, str]) -> Trial:
        """Start it; `environ` are variables beside Testground's."""
        return cls(run, host, plan, Held.start(run, plan, plan.environ(sync_port, TEST_RUN=run, **environ)))

    @property
    def id(self) -> str:
        """Its name on the host."""
        return instance_id(self.run, GROUP, self.plan.outputs.name)

    def step(self) -> str:
        """The step that it is at, as far as it says so; "" when it has ended."""
        if self.held.process.poll() is not None:
            return ""
        said = bytes(self.held.said)
        for told, step in (
            (b'"fetch: ', "clean"),
            (b'"run: ended', "fetch"),
            (b'"push: ', "run"),
            (b'"build: ', "push"),
            (b'"choose: ', "build"),
        ):
            if told in said:
                return step
        if not said and not _catches(self.held.process.pid, signal.SIGTERM):
            return STARTING
        return "choose"

    def reach(self, step: str) -> bool:
        """Wait until it is at that step; False when it went past it, or ended."""
        end_s = time.monotonic() + END_S
        while time.monotonic() < end_s:
            now = self.step()
            if now == step:
                return True
            if not now or (now != STARTING and STEPS.index(now) > STEPS.index(step)):
                return False
            time.sleep(0.005)  # its steps are told by nobody to whom one could listen
        return False

    def _at(self, step: str) -> bool:
        return self.host.here(f"/root/at/{step}-{self.id}").exists()

    def left_there(self) -> Path:
        """Its directory on the host, seen from here."""
        return self.host.home / ".cache/remote-runner/runs" / self.id

    def finish(self) -> None:
        """Wait for its end; raises `SoakFailedError` when it does not come."""
        try:
            self.held.process.wait(END_S)
        except subprocess.TimeoutExpired as error:
            said = bytes(self.held.said).decode(errors="replace")
            where = f"{self.run} on {self.host.name}: did not end within {END_S:g} s, at the step {self.step()}"
            raise SoakFailedError(f"{where}\n{said}") from error
        self.held.reader.join(END_S)

    def judge(self, *, hit: bool) -> None:
        """Raise `SoakFailedError` unless it ended rightly: `hit` says that a fault may have made it fail."""
        said = bytes(self.held.said).decode(errors="replace")
        status = self.held.process.returncode
        events = event_bodies(said)
        names = [name for event in events for name in event]

        def wrong(what: str) -> SoakFailedError:
            return SoakFailedError(f"{self.run} on {self.host.name}: {what}\nexit status {status}\n{said}")

        if "crash_event" in names or "Traceback" in said:
            raise wrong("a crash of ours")
        here = self.plan.outputs
        is_whole = _text(here / "result") == f"{self.run}\n" and len(list(here.glob("file*"))) == FILES
        is_told = ("success_event" in names and "failure_event" not in names) or not self.is_heard
        if status == 0 and not (is_whole and is_told):
            raise wrong("wrong verdict: it says that all is well")
        if status and not hit:
            raise wrong("wrong verdict: nothing happened to it, and it failed")
        if status > 0 and self.is_heard:
            reasons = [str(event["failure_event"]["error"]) for event in events if "failure_event" in event]
            if not reasons or "next: " not in reasons[0]:
                raise wrong("wrong verdict: it failed without a reason and a next step")
        if self._at("wrote") and not is_whole and _text(self.left_there() / "outputs/result") != f"{self.run}\n":
            raise wrong("lost output: it is neither here nor on the host")


def _catches(pid: int, number: signal.Signals) -> bool:
    """Whether the process has a handler of its own for that signal: before, it is still Python's to end."""
    for line in _text(Path(f"/proc/{pid}/status")).splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
