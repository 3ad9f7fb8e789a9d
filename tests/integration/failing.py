"""A plan made to fail in one way, an instance of it as Testground starts it, and what its end has to be like."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from remote_runner.controller import Controller
from testground.runenv import RunEnv
from testground.sync.service import SyncService

RUN = "failing"
GROUP = "single"
# Ends well, after writing a file; tests of faults put their own in its place.
APPLICATION = """#!/bin/sh
echo written >"$TEST_OUTPUTS_PATH/written"
printf '{"ts":1,"msg":"","group_id":"single","run_id":"failing","event":{"success_event":{"group":"single"}}}\\n'
"""
END_S = 60.0
SMALL_MIB = 8  # the disk that fills up, once the agent's program is on it
_TIMEOUTS = {"connect_s": 20, "build_s": 20, "push_s": 20, "fetch_s": 20}


@dataclass(frozen=True)
class Ended:
    """How an instance ended; `events` are the bodies of its event lines, each a mapping with one key."""

    status: int
    stdout: str
    stderr: str
    outputs: Path
    events: tuple[Mapping[str, Mapping[str, object]], ...] = ()

    @property
    def failures(self) -> list[str]:
        """The reasons of its failure events."""
        return [str(event["failure_event"]["error"]) for event in self.events if "failure_event" in event]

    @property
    def messages(self) -> list[str]:
        """The texts of its message events."""
        return [str(event["message_event"]["message"]) for event in self.events if "message_event" in event]

    def failure(self, *words: str) -> str:
        """The one reason why it failed: it holds every one of `words` and the next step, and no traceback is near."""
        said = f"{self.stdout}\n{self.stderr}"
        assert "Traceback" not in said, said
        assert not [event for event in self.events if "crash_event" in event], said
        assert self.status != 0, said
        assert len(self.failures) == 1, said
        reason = self.failures[0]
        for word in words:
            assert word in reason, f"{word!r} is not in: {reason}"
        _, _, next_step = reason.partition("\n  next: ")
        assert next_step.strip(), reason
        return reason


def event_bodies(stdout: str) -> tuple[Mapping[str, Mapping[str, object]], ...]:
    """The bodies of the event lines among the lines of an instance's stdout."""
    bodies = []
    for line in stdout.splitlines():
        try:
            value = json.loads(line)
        except ValueError:
            continue
        if isinstance(value, dict) and "event" in value:
            bodies.append(value["event"])
    return tuple(bodies)


@dataclass
class FailingPlan:
    """A plan of one application in a directory of the test.

    `hosts` is the inventory's text below `hosts:`, and `host` the name of the one that is tried. With `own_directory`
    everything on a host lies in `far`, which keeps hosts that share this machine's files away from the user's home.
    `argv` is what an instance is started by.
    """

    directory: Path
    controller: Controller
    hosts: str = "  localhost:\n"
    host: str = "localhost"
    command: str | None = "cp application {out}"
    program: str | None = None
    own_directory: bool = True
    timeouts: dict[str, float] = field(default_factory=lambda: dict(_TIMEOUTS))
    params: dict[str, str] = field(default_factory=dict)
    argv: tuple[str, ...] = (sys.executable, "-m", "remote_runner")

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True)
        self.outputs = self.directory / "instance outputs"
        self.outputs.mkdir()
        self.far = self.directory / "far"
        self.write_application(APPLICATION)

    def on(self, host: str) -> None:
        """Run on this host, which ssh knows by its name."""
        self.host, self.hosts = host, f"  {host}:\n"

    def write_application(self, text: str | bytes) -> Path:
        """What the build copies; a `str` is a script."""
        path = self.directory / "application"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        path.chmod(0o755)
        return path

    def write_inventory(self) -> None:
        """`inventory.yaml` by the fields."""
        app = {"name": "failing", "command": self.command, "program": self.program}
        defaults: dict[str, object] = {"grace_s": 1, "timeouts": self.timeouts}
        if self.own_directory:
            defaults["directory"] = str(self.far)
        # JSON is YAML.
        given = json.dumps({key: value for key, value in app.items() if value is not None})
        text = f"app: {given}\ndefaults: {json.dumps(defaults)}\nhosts:\n{self.hosts}"
        (self.directory / "inventory.yaml").write_text(text, encoding="utf-8")

    def environ(self, sync_port: int, **changes: str | None) -> dict[str, str]:
        """What `local:exec` hands over, this machine's directories of the test, and `changes` (`None` takes out)."""
        temp = self.directory / "temp"
        temp.mkdir(exist_ok=True)
        runenv = RunEnv(
            plan="failing",
            case="fail",
            run=RUN,
            group_id=GROUP,
            instance_count=1,
            group_instance_count=1,
            outputs_path=self.outputs,
            temp_path=temp,
            params=self.params,
            start_time="2026-11-24T02:00:53Z",
            subnet="127.1.0.0/16",
            sync_service_host="localhost",
            sync_service_port=sync_port,
        )
        environ = runenv.to_environ(path=os.environ["PATH"])
        environ["REMOTE_RUNNER_RUNTIME_DIR"] = str(self.controller.runtime)
        environ["REMOTE_RUNNER_CACHE_DIR"] = str(self.controller.cache)
        for name, value in changes.items():
            environ.pop(name, None)
            if value is not None:
                environ[name] = value
        return environ

    def run(self, **changes: str | None) -> Ended:
        """One instance to its end, with a sync service of its own."""
        self.write_inventory()
        with SyncService() as service:
            return self.run_with(self.environ(service.port, **changes))

    def start(self, environ: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """One instance, running; the inventory is there already."""
        return subprocess.Popen(
            self.argv,
            cwd=self.directory,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run_with(self, environ: Mapping[str, str]) -> Ended:
        """One instance to its end; the inventory is there already."""
        return self.end(self.start(environ))

    def end(self, process: subprocess.Popen[bytes]) -> Ended:
        """Wait for the instance; it is killed when it takes longer than any of these tests may."""
        try:
            out, err = process.communicate(timeout=END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            raise AssertionError(f"the instance did not end within {END_S:g} s:\n{out!r}\n{err!r}") from None
        stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
        return Ended(process.returncode, stdout, stderr, self.outputs, event_bodies(stdout))

    def far_runs(self) -> list[str]:
        """What is left of runs in `far`."""
        runs = self.far / "runs"
        return sorted(entry.name for entry in runs.iterdir()) if runs.exists() else []

    def record(self) -> dict[str, object]:
        """The instance's own record in its outputs."""
        found: dict[str, object] = json.loads((self.outputs / "remote-runner.json").read_text(encoding="utf-8"))
        return found
