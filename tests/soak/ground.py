"""Where the soak takes place: hosts, a sync service, and what happens to them."""

from __future__ import annotations

import json
import os
import pwd
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
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
from tests.launcher import warm_processes
from tests.masters_end import masters_in
from tests.nix_bed import private_nix
from tests.soak.kinds import Kind, kinds_of, plan_of, prepare, start_host
from tests.soak.trial import SoakFailedError, Trial

GRACE_S, TOLERATE_S = 2, 8
# After a fault: what the host waits for, the time to end what runs, and some for a loaded machine.
SETTLED_S = TOLERATE_S + 2 * GRACE_S + 25.0
CUT_S = 2.0
LOST_S = 2.0 * TOLERATE_S
# Signals to the instance; SIGKILL to its process group; nobody reads it; SIGSTOP for longer than is tolerated. The
# cable is pulled for 2 s, or for longer than is tolerated; sshd's processes are killed; masters are killed, or stopped;
# a power cut.
FAULTS = ("TERM", "INT", "KILL", "group", "reader", "stall", "cut", "unplug", "sshd", "master", "stuck", "reboot")
# What these do, only the instance itself feels; of a short cut, nobody feels anything.
OF_ONE = ("TERM", "INT", "KILL", "group", "reader", "stall")


@dataclass
class Ground:
    """A controller and its hosts."""

    directory: Path
    machine: Machine
    service: SyncService
    sync_port: int
    hosts: list[NetnsHost]
    kinds: dict[str, Kind]
    environ: Mapping[str, str]
    controller: Controller = field(init=False)
    listened: dict[str, set[int]] = field(init=False)
    plans: dict[str, FailingPlan] = field(init=False)

    def __post_init__(self) -> None:
        self.controller = Controller(self.machine.runtime, Path(self.machine.environ["REMOTE_RUNNER_CACHE_DIR"]))
        self.controller.cache.mkdir(mode=0o700, exist_ok=True)
        self.listened = {host.name: listening(host) for host in self.hosts}
        self.plans = {host.name: self._plan_of(host) for host in self.hosts}

    @classmethod
    @contextmanager
    def made(cls, directory: Path, hosts: int, code: Path | None = None) -> Iterator[Ground]:
        """Hosts s0, s1, …; with `code`, instances take `remote_runner` from that directory."""
        with ExitStack() as stack:
            kinds = {f"s{number}": kind for number, kind in enumerate(kinds_of(hosts))}
            environ = {} if code is None else {"PYTHONPATH": str(code)}
            if Kind.NIX in kinds.values():
                environ |= stack.enter_context(private_nix(directory / "nix-here")).environ
            lan = stack.enter_context(Lan.claim())
            keys = Keys.make(directory / "keys")
            machine = stack.enter_context(Machine.made(directory / "machine"))
            made = [
                stack.enter_context(start_host(kind, lan, directory / name, name=name, keys=keys))
                for name, kind in kinds.items()
            ]
            service = stack.enter_context(SyncService())
            wire = stack.enter_context(DelayProxy("127.0.0.1", service.port, 0.3))  # or choose would take no time
            yield cls(directory, machine, service, wire.port, made, kinds, {**environ, "PATH": machine.environ["PATH"]})

    def _plan_of(self, host: NetnsHost) -> FailingPlan:
        """What all plans of this host have in common."""
        entry = place_on(host, system=_system(), grace_s=GRACE_S, tolerate_s=TOLERATE_S).entry
        plan = FailingPlan(
            self.directory / f"plan-{host.name}",
            self.controller,
            hosts=f"  {host.name}: {json.dumps(entry)}\n",
            host=host.name,
            own_directory=False,
        )
        prepare(self.kinds[host.name], plan)
        return plan

    def start(self, run: str, host: NetnsHost) -> Trial:
        """Start an instance."""
        plan = plan_of(self.kinds[host.name], run, self.directory / run, self.plans[host.name])
        return Trial.start(run, host, plan, self.sync_port, self.environ)

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
                case "reader":
                    trial.is_heard = False
                    trial.held.stop_reading()
                case "stall":
                    process.send_signal(signal.SIGSTOP)
                    time.sleep(LOST_S)
                    process.send_signal(signal.SIGCONT)
                case "cut" | "unplug":
                    host.link_down()
                    time.sleep(CUT_S if fault == "cut" else LOST_S)
                    host.link_up()
                case "sshd":
                    return _signal_all(_sessions(host), signal.SIGKILL)
                case "master":
                    return _signal_all(self.masters(host), signal.SIGKILL)
                case "stuck":
                    return _signal_all(self.masters(host), signal.SIGSTOP)
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

    def clean(self, host: NetnsHost, *, cache: bool = False) -> None:
        """`fab clean` on the host leaves nothing of any run, and with `--cache` no root in a Nix store."""
        program = str(Path(sys.executable).with_name("remote-runner"))
        done = subprocess.run(
            [program, "clean", "--host", host.name, *(["--cache"] if cache else [])],
            cwd=self.plans[host.name].directory,
            env=dict(self.machine.environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        base = host.home / ".cache/remote-runner"
        left = sorted(path.name for path in (base / "runs").glob("*"))
        if done.returncode or left:
            raise SoakFailedError(f"leaked file on {host.name}: {left}\n{done.stdout}\n{done.stderr}")
        strange = {path.name for path in base.glob("*")} - {"runs", "artifacts", ".probe", "nix"}
        if strange:
            raise SoakFailedError(f"leaked file on {host.name}: {strange}")
        if self.kinds[host.name] is Kind.NIX:
            # The roots of what was pushed are the cache's.
            kept = "" if cache else f"{host.far_home}/.cache/remote-runner/nix/roots/"
            roots = [
                line for line in host.as_root("/usr/bin/nix-store --gc --print-roots").splitlines() if "->" in line
            ]
            leaked = [line for line in roots if "/remote-runner/" in line and not (kept and line.startswith(kept))]
            if leaked:
                raise SoakFailedError(f"leaked GC root on {host.name}: {leaked}\n{done.stdout}\n{done.stderr}")

    def nothing_listens(self, host: NetnsHost) -> None:
        """No forward is open there any more."""
        opened = listening(host) - self.listened[host.name]
        if opened:
            raise SoakFailedError(f"leaked forward on {host.name}: ports {sorted(opened)}")

    def what_stays_is_small(self) -> None:
        """Raise `SoakFailedError` for a master or a warm process with many descriptors or much memory."""
        for pid in (*self.masters(), *warm_processes(self.machine.runtime)):
            with suppress(OSError):
                files, kib = descriptors_of(pid), resident_kib(pid)
                if files > 100 or kib > 60_000:
                    raise SoakFailedError(f"process {pid} grew: {files} descriptors, {kib} KiB")

    def nothing_is_left_here(self) -> None:
        """When the masters have been asked to end: no process and no socket of ours."""
        end_s = time.monotonic() + 10
        while (pids := [*self.masters(), *self._processes_here()]) and time.monotonic() < end_s:
            time.sleep(0.1)  # as above
        sockets = [path.name for path in self.machine.runtime.rglob("*") if path.is_socket()]
        if pids or sockets:
            raise SoakFailedError(f"leaked process, master or socket here: processes {pids}, sockets {sockets}")

    def _processes_here(self) -> list[int]:
        """The processes of our instances and of what they started here, by a variable that only these have."""
        word = f"REMOTE_RUNNER_RUNTIME_DIR={self.machine.runtime}\0".encode()
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if word in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found


def _signal_all(pids: list[int], number: signal.Signals) -> bool:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(pids)


def descriptors_of(pid: int) -> int:
    """How many files a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


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
