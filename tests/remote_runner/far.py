"""A place to run jobs in, for the contract that every host and every sh must keep; and what such a run said."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remote_runner.artifact.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.host import Host, Session
from remote_runner.job import Job
from remote_runner.local_host import LocalHost
from remote_runner.supervisor import EventKind, RunResult, SupervisorEvent, start_run, supervise
from tests.hosts import Keys, UserSshd, which
from tests.needs import need

WAIT_S = 30.0
LOCAL_SHELLS = ("dash", "bash", "bash as sh", "busybox")
USER_STORES = ("user store", "user store with bash")
# A copy of env(1) as the program of an artifact, which starts what a test gives it.
_ENV = "/nix/store/00000000000000000000000000000000-env"


@dataclass
class Running:
    """A run on its way: what it said so far, and how to end it."""

    job: Job
    outputs: Path
    session: Session
    stop: threading.Event = field(default_factory=threading.Event)
    stdout: bytes = b""
    stderr: bytes = b""
    events: list[SupervisorEvent] = field(default_factory=list)
    result: RunResult | None = None
    error: BaseException | None = None
    _news: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def take(self, stream: str, data: bytes) -> None:
        with self._news:
            setattr(self, stream, getattr(self, stream) + bytes(data))
            self._news.notify_all()

    def take_event(self, event: SupervisorEvent) -> None:
        with self._news:
            self.events.append(event)
            self._news.notify_all()

    def wait_for(self, text: bytes) -> None:
        """Until the application has said this on stdout."""
        with self._news:
            assert self._news.wait_for(lambda: text in self.stdout or self.error is not None, WAIT_S), self.stdout
        assert self.error is None, self.error

    def wait_started(self) -> None:
        with self._news:
            assert self._news.wait_for(lambda: EventKind.STARTED in self.kinds or self.error is not None, WAIT_S)
        assert self.error is None, self.error

    @property
    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]

    def finish(self) -> RunResult:
        """Wait for the end; raises what `supervise` raised."""
        assert self._thread is not None
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), f"not over: {self.events}"
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


@dataclass
class Far:
    """A host, the sh that its supervisor runs in, and a directory on it for runs (all on this machine's disk)."""

    host: Host
    shell: str
    directory: Path
    outputs: Path
    in_store: bool = False
    count: int = 0

    @contextmanager
    def start(
        self, *argv: str | bytes, environment: Mapping[str, str | bytes] | None = None, **job: Any
    ) -> Iterator[Running]:
        """Start a job; it is ended at the end of the block, whatever happened."""
        self.count += 1
        if self.in_store:
            argv, job = ("bin/env", *argv), {"artifact": FarArtifact(Store.USER, _ENV), **job}
        values: dict[str, Any] = {
            "instance_id": f"run-{self.count}",
            "argv": argv,
            "environment": environment or {},
            "directory": str(self.directory),
            "grace_s": 5,
            "tolerate_s": 20,
        }
        sinks = {name: job.pop(f"{name}_sink", None) for name in ("stdout", "stderr")}
        made = Job(**{**values, **job})
        with start_run(self.host, made.seat, self.shell) as started:
            running = Running(made, self.outputs / f"{self.count}", started.session)

            def body() -> None:
                try:
                    running.result = supervise(
                        started,
                        running.job,
                        stdout=sinks["stdout"] or (lambda data: running.take("stdout", data)),
                        stderr=sinks["stderr"] or (lambda data: running.take("stderr", data)),
                        outputs_dir=running.outputs,
                        stop=running.stop,
                        on_event=running.take_event,
                        host=self.host,
                    )
                except BaseException as error:  # noqa: BLE001 (raised again by finish)
                    with running._news:
                        running.error = error
                        running._news.notify_all()

            running._thread = threading.Thread(target=body)
            running._thread.start()
            try:
                yield running
            finally:
                running.stop.set()
                running._thread.join(WAIT_S)

    def run(self, *argv: str | bytes, environment: Mapping[str, str | bytes] | None = None, **job: Any) -> Running:
        """Run a job to its end; raises what `supervise` raised."""
        with self.start(*argv, environment=environment, **job) as running:
            running.finish()
        return running

    def sh(self, script: str, *words: str, **job: Any) -> Running:
        """Run a shell script as the application."""
        return self.run("/bin/sh", "-c", script, "sh", *words, **job)

    def runs(self) -> list[str]:
        """The names of the runs that have a directory there."""
        runs = self.directory / "runs"
        return sorted(path.name for path in runs.iterdir()) if runs.exists() else []


@contextmanager
def open_far(kind: str, directory: Path, controller: Controller, keys: Keys | None = None) -> Iterator[Far]:
    """One of `LOCAL_SHELLS` or `USER_STORES`, or "ssh"."""
    base, outputs = directory / "far base", directory / "outputs"
    if kind == "ssh":
        need("ssh")
        from remote_runner.masters import SshHost

        with UserSshd.start(directory / "sshd", keys=keys) as server:
            with SshHost(server.target, controller, os.environ) as host:
                yield Far(host, "/bin/sh", base, outputs)
        return
    in_store = kind in USER_STORES
    if in_store:
        need("netns")
        _make_store(base)
        kind = "bash" if "bash" in kind else "dash"
    shell = local_shell(kind, directory)
    path = os.environ["PATH"]
    if kind == "busybox":
        applets = directory / "applets"
        applets.mkdir()
        subprocess.run(["busybox", "--install", "-s", str(applets)], check=True)
        path = f"{applets}:{path}"
    yield Far(LocalHost(environ={"HOME": str(directory), "PATH": path}), shell, base, outputs, in_store)


def _make_store(base: Path) -> None:
    """A store of the user's own, as a push leaves it."""
    store = base / "store"
    program = store / _ENV[1:] / "bin/env"
    program.parent.mkdir(parents=True)
    shutil.copy(which("env"), program)
    for name in ("closures", "root"):
        (store / name).mkdir()
    (store / "closures" / Path(_ENV).name).write_text(f"{Path(_ENV).name}\n")
    (store / f"how.{os.uname().nodename}").write_text("kept\n")
    base.chmod(0o700)


def local_shell(kind: str, directory: Path) -> str:
    """What stands for /bin/sh in the command line."""
    name = kind.partition(" ")[0]
    need(name)
    found = shutil.which(name)
    assert found is not None
    if kind == "busybox":
        return f"{found} sh"
    if kind == "bash as sh":
        (directory / "sh").symlink_to(found)
        return shlex.quote(str(directory / "sh"))
    return found


def is_running(pid: int) -> bool:
    """Whether the process is there and more than a name that nobody has asked for yet."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def wait_gone(*pids: int) -> None:
    """Until these processes have ended."""
    deadline = time.monotonic() + WAIT_S
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, f"still there: {[pid for pid in pids if is_running(pid)]}"
        time.sleep(0.02)  # nobody tells the end of a process that is not ours
