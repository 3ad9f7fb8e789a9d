"""Where the soak takes place: hosts, a sync service, and what happens to them."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.ssh import SshSettings, master_key
from testground.sync.service import SyncService
from tests.delay import DelayProxy
from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import FailingPlan
from tests.integration.runs import Machine, listening, place_on
from tests.masters_end import masters_in
from tests.soak.trial import SLOW_RM, SLOW_TAR, SoakFailedError, Trial

GRACE_S, TOLERATE_S = 2, 8
# After a fault: what the host waits for, the time to end what runs, and some for a loaded machine.
SETTLED_S = TOLERATE_S + 2 * GRACE_S + 25.0
CUT_S = 2.0
FAULTS = ("TERM", "INT", "KILL", "group", "cut", "sshd", "master", "reboot")
# What these do, only the instance itself feels; of a short cut, nobody feels anything.
OF_ONE = ("TERM", "INT", "KILL", "group")


@dataclass
class Ground:
    """A controller and its hosts."""

    directory: Path
    machine: Machine
    service: SyncService
    sync_port: int
    hosts: list[NetnsHost]
    code: Path | None
    controller: Controller = field(init=False)
    listened: dict[str, set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.controller = Controller(self.machine.runtime, Path(self.machine.environ["REMOTE_RUNNER_CACHE_DIR"]))
        self.controller.cache.mkdir(mode=0o700, exist_ok=True)
        self.listened = {host.name: listening(host) for host in self.hosts}

    @classmethod
    @contextmanager
    def made(cls, directory: Path, hosts: int, code: Path | None = None) -> Iterator[Ground]:
        """Hosts s0, s1, …; with `code`, instances take `remote_runner` from that directory."""
        with ExitStack() as stack:
            lan = stack.enter_context(Lan.claim())
            keys = Keys.make(directory / "keys")
            machine = stack.enter_context(Machine.made(directory / "machine"))
            made = []
            for number in range(hosts):
                place = directory / f"s{number}"
                host = stack.enter_context(NetnsHost.start(lan, place, name=f"s{number}", keys=keys))
                host.here("/root/at").mkdir()
                host.here("/root/bin").mkdir()
                for name, text in (("tar", SLOW_TAR), ("rm", SLOW_RM)):
                    host.here(f"/root/bin/{name}").write_text(text, encoding="utf-8")
                    host.here(f"/root/bin/{name}").chmod(0o755)
                host.here("/root/.bashrc").write_text("export PATH=/root/bin:$PATH\n", encoding="utf-8")
                made.append(host)
            service = stack.enter_context(SyncService())
            wire = stack.enter_context(DelayProxy("127.0.0.1", service.port, 0.3))  # or choose would take no time
            yield cls(directory, machine, service, wire.port, made, code)

    def plan_of(self, host: NetnsHost) -> FailingPlan:
        """What all plans of this host have in common."""
        entry = place_on(host, system=_system(), grace_s=GRACE_S, tolerate_s=TOLERATE_S).entry
        return FailingPlan(
            self.directory / f"base-{host.name}-{time.monotonic_ns()}",
            self.controller,
            hosts=f"  {host.name}: {json.dumps(entry)}\n",
            host=host.name,
            own_directory=False,
        )

    def start(self, run: str, host: NetnsHost, base: FailingPlan) -> Trial:
        """Start an instance."""
        environ = {**self.machine.environ, "SYNC_PORT": str(self.sync_port)}
        if self.code is not None:
            environ["PYTHONPATH"] = str(self.code)
        return Trial.start(run, host, self.directory / run, base, environ)

    def key(self, host: NetnsHost) -> str:
        """What the masters' files of this host begin with."""
        return master_key(host.target, SshSettings.tolerating(TOLERATE_S), pwd.getpwuid(os.getuid()).pw_dir)

    @contextmanager
    def forwards_held(self, host: NetnsHost) -> Iterator[None]:
        """Nobody opens a forward to that host meanwhile."""
        with ExitStack() as stack:
            for number in range(10):
                lock: FileLock = self.controller.lock(f"{self.key(host)}-{number}-forwarding")
                stack.enter_context(lock.acquire(Deadline.after(30)))
            yield

    def masters(self, host: NetnsHost | None = None) -> list[int]:
        """The processes of our masters, of one host or all."""
        return masters_in(self.machine.runtime, self.key(host) if host else "")

    def strike(self, fault: str, trial: Trial) -> bool:
        """Make the fault happen to the instance (or its host); says whether there was anything to hit."""
        host, process = trial.host, trial.held.process
        with suppress(ProcessLookupError):
            match fault:
                case "TERM" | "INT" | "KILL":
                    process.send_signal(signal.Signals[f"SIG{fault}"])
                case "group":
                    os.killpg(process.pid, signal.SIGKILL)
                case "cut":
                    host.link_down()
                    time.sleep(CUT_S)
                    host.link_up()
                case "sshd":
                    return _kill_all(_sessions(host))
                case "master":
                    return _kill_all(self.masters(host))
                case "reboot":
                    host.kill()
                    host.boot()
        return True

    def settle(self, host: NetnsHost, runs: list[str]) -> None:
        """Nothing of these runs goes on: raises `SoakFailedError` when something still does."""
        end_s = time.monotonic() + SETTLED_S
        while left := [process for process in host.processes() if process.command]:
            if time.monotonic() > end_s:
                raise SoakFailedError(f"leaked process on {host.name}, after {', '.join(runs)}: {left}")
            time.sleep(0.1)  # nobody tells the end of processes that are not ours

    def clean(self, trial: Trial) -> None:
        """`fab clean` on the host leaves nothing of any run."""
        program = str(Path(sys.executable).with_name("remote-runner"))
        done = subprocess.run(
            [program, "clean", "--host", trial.host.name],
            cwd=trial.plan.directory,
            env=dict(self.machine.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        runs = trial.left_there().parent
        left = sorted(path.name for path in runs.iterdir()) if runs.exists() else []
        if done.returncode or left:
            raise SoakFailedError(f"leaked file on {trial.host.name}: {left}\n{done.stdout}\n{done.stderr}")
        strange = {path.name for path in runs.parent.iterdir()} - {"runs", "artifacts", ".probe"}
        if strange:
            raise SoakFailedError(f"leaked file on {trial.host.name}: {strange}")

    def nothing_listens(self, host: NetnsHost) -> None:
        """No forward is open there any more."""
        opened = listening(host) - self.listened[host.name]
        if opened:
            raise SoakFailedError(f"leaked forward on {host.name}: ports {sorted(opened)}")

    def masters_are_small(self) -> None:
        """Raise `SoakFailedError` for a master with many descriptors or much memory."""
        for pid in self.masters():
            with suppress(OSError):
                files, kib = len(list(Path(f"/proc/{pid}/fd").iterdir())), resident_kib(pid)
                if files > 100 or kib > 60_000:
                    raise SoakFailedError(f"a master grew: {files} descriptors, {kib} KiB")

    def nothing_is_left_here(self) -> None:
        """When the masters have been asked to end: no process and no socket of ours."""
        end_s = time.monotonic() + 10
        while (pids := self.masters()) and time.monotonic() < end_s:
            time.sleep(0.1)  # as above
        sockets = [path.name for path in self.machine.runtime.rglob("*") if path.is_socket()]
        if pids or sockets:
            raise SoakFailedError(f"leaked master or socket here: processes {pids}, sockets {sockets}")


def _kill_all(pids: list[int]) -> bool:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def resident_kib(pid: int) -> int:
    """What a process has in memory."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    return 0


def _sessions(host: NetnsHost) -> list[int]:
    """sshd's processes of connections, not the one that listens."""
    assert host.server is not None
    found = []
    done = subprocess.run(["ip", "netns", "pids", host.namespace], capture_output=True, text=True, check=True)
    for pid in map(int, done.stdout.split()):
        with suppress(OSError):
            if pid != host.server.pid and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd"):
                found.append(pid)
    return found


def _system() -> str:
    return f"{os.uname().machine}-linux"
