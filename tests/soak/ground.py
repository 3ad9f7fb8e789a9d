"""Where the soak takes place: hosts, a sync service, and what happens to them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.brokers_end import brokers, connections, end_brokers
from tests.delay import DelayProxy
from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import FailingPlan
from tests.integration.runs import Machine, listening, place_on
from tests.nix_bed import private_nix
from tests.soak.kinds import Kind, kinds_of, plan_of, prepare, start_host
from tests.soak.trial import SoakFailedError, Trial

GRACE_S, TOLERATE_S = 2, 8
# After a fault: what the host waits for, the time to end what runs, and some for a loaded machine.
SETTLED_S = TOLERATE_S + 2 * GRACE_S + 25.0
CUT_S = 2.0
LOST_S = 2.0 * TOLERATE_S
RTT_S = 0.2
# Signals to the launcher; nobody reads the instance; SIGSTOP to the launcher. The cable is pulled for 2 s, or for
# longer than is tolerated. ssh here, sshd's processes of connections there, the broker or the agent is killed; or
# (`-stop`) stopped for longer than is tolerated. A power cut.
FAULTS = (
    *("TERM", "INT", "KILL", "reader", "stall", "cut", "unplug", "ssh", "ssh-stop", "sshd", "broker", "broker-stop"),
    *("agent", "agent-stop", "reboot"),
)
# What these do, only the instance itself feels.
OF_ONE = ("TERM", "INT", "KILL", "reader")
# Of these nobody feels anything, but that it takes longer; where a connection is made at that moment, it may fail.
OF_NONE = ("stall", "cut")
RESUMED = ("ssh", "ssh-stop", "sshd")
CONNECTING = ("choose", "build", "push")


@dataclass
class Ground:
    """Hosts, each with a user here who runs on it alone: a broker that is killed is that of one host."""

    directory: Path
    machines: dict[str, Machine]
    service: SyncService
    sync_port: int
    hosts: list[NetnsHost]
    proxies: dict[str, DelayProxy]
    kinds: dict[str, Kind]
    environ: Mapping[str, str]
    listened: dict[str, set[int]] = field(init=False)
    plans: dict[str, FailingPlan] = field(init=False)

    def __post_init__(self) -> None:
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
            machines = {name: stack.enter_context(Machine.made(directory / f"machine-{name}")) for name in kinds}
            made = [
                stack.enter_context(start_host(kind, lan, directory / name, name=name, keys=keys))
                for name, kind in kinds.items()
            ]
            proxies = {host.name: stack.enter_context(DelayProxy(host.address, host.port, RTT_S)) for host in made}
            service = stack.enter_context(SyncService())
            wire = stack.enter_context(DelayProxy("127.0.0.1", service.port, 0.3))  # or choose would take no time
            yield cls(directory, machines, service, wire.port, made, proxies, kinds, environ)

    def _plan_of(self, host: NetnsHost) -> FailingPlan:
        """What all plans of this host have in common."""
        reached = host.reached_at("127.0.0.1", self.proxies[host.name].port)
        entry = place_on(reached, system=_system(), grace_s=GRACE_S, tolerate_s=TOLERATE_S).entry
        machine = self.machines[host.name]
        controller = Controller(machine.runtime, Path(machine.environ["REMOTE_RUNNER_CACHE_DIR"]))
        controller.cache.mkdir(mode=0o700, exist_ok=True)
        plan = FailingPlan(
            self.directory / f"plan-{host.name}",
            controller,
            hosts=f"  {host.name}: {json.dumps(entry)}\n",
            host=host.name,
            own_directory=False,
        )
        prepare(self.kinds[host.name], plan)
        return plan

    def start(self, run: str, host: NetnsHost) -> Trial:
        """Start an instance."""
        plan = plan_of(self.kinds[host.name], run, self.directory / run, self.plans[host.name])
        environ = {**self.environ, "PATH": self.machines[host.name].environ["PATH"]}
        return Trial.start(run, host, plan, self.sync_port, environ)

    def strike(self, fault: str, trial: Trial) -> bool:
        """Make the fault happen to the instance (or its host); says whether there was anything to hit."""
        host, process = trial.host, trial.held.process
        runtime = self.machines[host.name].runtime
        with suppress(ProcessLookupError):
            match fault:
                case "TERM" | "INT" | "KILL":
                    process.send_signal(signal.Signals[f"SIG{fault}"])
                case "reader":
                    trial.is_heard = False
                    trial.held.stop_reading()
                case "stall":
                    return _hold([process.pid])
                case "cut" | "unplug":
                    host.link_down()
                    time.sleep(CUT_S if fault == "cut" else LOST_S)
                    host.link_up()
                case "sshd":
                    return _signal_all(host.sessions(), signal.SIGKILL)
                case "ssh":
                    return _signal_all(connections(runtime), signal.SIGKILL)
                case "broker":
                    return _signal_all(brokers(runtime), signal.SIGKILL)
                case "agent":
                    return _signal_all(host.agents(), signal.SIGKILL)
                case "ssh-stop":
                    return _hold(connections(runtime))
                case "broker-stop":
                    return _hold(brokers(runtime))
                case "agent-stop":
                    return _hold(host.agents())
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
            env=dict(self.machines[host.name].environ),
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        base = host.home / ".cache/remote-runner"
        left = sorted(path.name for path in (base / "runs").glob("*"))
        if done.returncode or left:
            raise SoakFailedError(f"leaked file on {host.name}: {left}\n{done.stdout}\n{done.stderr}")
        strange = {path.name for path in base.glob("*")} - {"runs", "artifacts", "agents", "nix"}
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
        """No forward is open there any more, but for a moment after its last user."""
        end_s = time.monotonic() + 10
        while opened := listening(host) - self.listened[host.name]:
            if time.monotonic() > end_s:
                raise SoakFailedError(f"leaked forward on {host.name}: ports {sorted(opened)}")
            time.sleep(0.1)  # as above

    def what_stays_is_small(self) -> None:
        """Raise `SoakFailedError` for a broker or an ssh with many descriptors or much memory."""
        for machine in self.machines.values():
            for pid in (*connections(machine.runtime), *brokers(machine.runtime)):
                with suppress(OSError):
                    files, kib = descriptors_of(pid), resident_kib(pid)
                    if files > 100 or kib > 80_000:
                        raise SoakFailedError(f"process {pid} grew: {files} descriptors, {kib} KiB")

    def nothing_is_left(self) -> None:
        """End the brokers; then there is no process and no socket of ours, here or on a host."""
        runtimes = [machine.runtime for machine in self.machines.values()]
        for runtime in runtimes:
            end_brokers(runtime)
        end_s = time.monotonic() + SETTLED_S
        while (pids := self._processes(runtimes)) and time.monotonic() < end_s:
            time.sleep(0.1)  # as above
        sockets = [path.name for runtime in runtimes for path in runtime.rglob("*") if path.is_socket()]
        if pids or sockets:
            raise SoakFailedError(f"leaked process or socket here, or agent there: processes {pids}, sockets {sockets}")

    def _processes(self, runtimes: list[Path]) -> list[int]:
        """ssh and what our instances started here, by a variable that only these have; agents there."""
        found = [
            pid for host in self.hosts for program in ("agent", "serve", "session") for pid in host.agents(program)
        ]
        found += [pid for runtime in runtimes for pid in connections(runtime)]
        words = [f"REMOTE_RUNNER_RUNTIME_DIR={runtime}\0".encode() for runtime in runtimes]
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environ = (entry / "environ").read_bytes()
                found += [int(entry.name)] if any(word in environ for word in words) else []
        return found


def _hold(pids: list[int]) -> bool:
    """Stop them for longer than is tolerated."""
    _signal_all(pids, signal.SIGSTOP)
    time.sleep(LOST_S)
    return _signal_all(pids, signal.SIGCONT)


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


def _system() -> str:
    return f"{os.uname().machine}-linux"
