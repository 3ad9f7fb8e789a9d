"""A real Slurm on network namespaces: nodes n1, n2, … and a machine with slurmctld, from Debian's packages.

`programs` is a directory for PATH: each of Slurm's programs, and ssh, run on the controller's machine. All machines
know the user `tester`, as whom `as_tester` starts a program.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.hosts import Keys, TestHost, which
from tests.hosts_netns import ORDINARY_UID, ORDINARY_USER

_READY_S = 60.0
_CONF = """\
ClusterName=bed
SlurmctldHost={controller}(10.81.0.254)
SlurmUser=root
AuthInfo=socket={directory}/run/munge.sock
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool/%n
SlurmctldPidFile={directory}/run/ctld.pid
SlurmdPidFile={directory}/run/d.%n.pid
SlurmctldLogFile={directory}/log/ctld.log
SlurmdLogFile={directory}/log/d.%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
InactiveLimit=10
SlurmdTimeout=5
MessageTimeout=5
KillWait=2
MpiDefault=none
NodeName=n[1-{nodes}] CPUs={cpus} Feature=ib State=UNKNOWN {addresses}
PartitionName=p Nodes=ALL Default=YES State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL State=UP PriorityTier=9
"""


@dataclass
class SlurmBed:
    """One that runs; files of each node's own are below `local`, which is another directory on each."""

    directory: Path
    nodes: int
    prefix: str
    _machines: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @classmethod
    @contextmanager
    def started(cls, directory: Path, nodes: int, cpus: int = 4) -> Iterator[SlurmBed]:
        """Make the network, start all daemons, and wait until every node is idle."""
        bed = cls(directory, nodes, f"rrs{os.getpid()}")
        with ExitStack() as stack:
            stack.callback(bed._end)
            bed._make_network()
            bed._write(cpus)
            bed._start_munge()
            bed.start_controller()
            for number in range(1, nodes + 1):
                bed.start_node(number)
            bed.wait_idle()
            yield bed

    def node_pids(self) -> list[int]:
        """The processes on all nodes."""
        return [pid for number in range(1, self.nodes + 1) for pid in _pids(f"{self.prefix}-{number}")]

    @property
    def conf(self) -> Path:
        return self.directory / "slurm.conf"

    @property
    def local(self) -> Path:
        return self.directory / "local"

    @property
    def local_of_tester(self) -> Path:
        """A directory of the ordinary user's own, on each node another one."""
        return self.directory / f"local-of-{ORDINARY_USER}"

    @property
    def programs(self) -> Path:
        return self.directory / "bin"

    @property
    def environ(self) -> dict[str, str]:
        """Variables by which a program finds it."""
        return {"SLURM_CONF": str(self.conf)}

    def slurm(self, *argv: str, check: bool = True) -> str:
        """What one of Slurm's programs prints."""
        environ = {**os.environ, **self.environ}
        return subprocess.run(
            [str(self.programs / argv[0]), *argv[1:]],
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=check,
            timeout=_READY_S,
        ).stdout

    def jobs(self) -> list[str]:
        """The numbers of the jobs that wait, run or end."""
        return self.slurm("squeue", "-h", "-o", "%i").split()

    def wait_given_back(self, timeout_s: float) -> None:
        """Return once no job waits or runs. One that was given back may still be ending there (COMPLETING)."""
        end_s = time.monotonic() + timeout_s
        while self.slurm("squeue", "-h", "-t", "PENDING,CONFIGURING,RUNNING,SUSPENDED", "-o", "%i"):
            assert time.monotonic() < end_s, self.slurm("squeue", "-o", "%i %T %r %N")
            time.sleep(0.2)  # as in _wait

    def wait_idle(self, timeout_s: float = _READY_S) -> None:
        """Return once all nodes are idle."""
        self._wait(
            lambda: self.slurm("sinfo", "-h", "-p", "p", "-t", "idle", "-o", "%D", check=False).strip(), timeout_s
        )

    def _wait(self, idle: object, timeout_s: float) -> None:
        assert callable(idle)
        end_s = time.monotonic() + timeout_s
        while (seen := idle()) != str(self.nodes):
            assert time.monotonic() < end_s, f"idle: {seen!r} of {self.nodes}\n{self.slurm('sinfo', '-N', check=False)}"
            time.sleep(0.2)  # each look starts four programs beside the daemons that are looked at

    def start_controller(self) -> None:
        """Start slurmctld."""
        self._on("c", f"{self._own(f'{self.prefix}-c')}; exec slurmctld")

    def stop_controller(self) -> None:
        """Kill slurmctld, and return when it is gone."""
        _kill([int((self.directory / "run" / "ctld.pid").read_text())])

    @contextmanager
    def settings(self, *lines: str) -> Iterator[None]:
        """Have these lines in slurm.conf, and a slurmctld that has read them."""
        before = self.conf.read_text(encoding="utf-8")
        self._begin_with(before + "\n".join(lines) + "\n")
        try:
            yield
        finally:
            self._begin_with(before)

    def _begin_with(self, conf: str) -> None:
        self.conf.write_text(conf, encoding="utf-8")
        # Asked to end, since a killed one forgets the jobs of the last seconds.
        _kill([int((self.directory / "run" / "ctld.pid").read_text())], signal.SIGTERM)
        self.start_controller()

    def start_node(self, number: int) -> None:
        """Start a node: its slurmd, in a process namespace, for an agent looks through all processes of its machine."""
        script = f"{self._own_files(number)}; mount -t proc proc /proc; slurmd -D -N n{number} & wait $!"
        argv = [*self._there(str(number), "--pid", "--fork", "--kill-child"), script]
        null = subprocess.DEVNULL  # what it says stands in its log
        self._machines.append(
            subprocess.Popen(
                argv, env=self._daemons_environ, stdin=null, stdout=null, stderr=null, start_new_session=True
            )
        )

    def start_sshd(self, number: int, keys: Keys) -> TestHost:
        """Let root log in to a node by ssh under its name; there its files are others than in a step of Slurm's."""
        place = self.directory / f"ssh-n{number}"
        place.mkdir()
        host = TestHost(f"n{number}", f"10.81.0.{number}", 22, "root", place, keys).reached_at(f"10.81.0.{number}", 22)
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        shutil.copyfile(keys.client.with_suffix(".pub"), place / "authorized_keys")
        lines = [f"HostKey {keys.server}", f"AuthorizedKeysFile {place}/authorized_keys", "StrictModes no"]
        lines += ["PidFile none", "UsePAM no", "LogLevel VERBOSE"]
        (place / "sshd_config").write_text("\n".join(lines) + "\n", encoding="utf-8")
        start = f"{which('sshd')} -f {place}/sshd_config -E {host.log}"
        self._on(str(number), f"{self._own_files(number)}; exec {start}")
        with (self.directory / "ssh_config").open("a", encoding="utf-8") as config:
            config.write(host.config_block())
        return host

    def as_tester(self) -> tuple[str, ...]:
        """What comes before a command that the ordinary user starts on the controller's machine."""
        become = f"exec setpriv --reuid {ORDINARY_UID} --regid {ORDINARY_UID} --clear-groups"
        return (*self._there("c"), f'{self._own(f"{self.prefix}-c")}; {become} "$@"', "sh")

    def kill_node(self, number: int) -> None:
        """Kill slurmd and all else on that node, and return when it is gone."""
        _kill(_pids(f"{self.prefix}-{number}"))

    def revive(self, number: int) -> None:
        """Let a node that was killed serve again."""
        self.start_node(number)
        self.slurm("scontrol", "update", f"NodeName=n{number}", "State=RESUME", check=False)

    def _own(self, name: str) -> str:
        return f"set -e; hostname {name}; mount --bind {self.directory}/passwd /etc/passwd"

    def _own_files(self, number: int) -> str:
        root = f"mount -t tmpfs -o mode=755 local {self.local}"
        tester = f"mount -t tmpfs -o mode=700,uid={ORDINARY_UID},gid={ORDINARY_UID} local {self.local_of_tester}"
        return f"{self._own(f'n{number}')}; {root}; {tester}"

    def _there(self, where: str, *own: str) -> tuple[str, ...]:
        return (which("ip"), "netns", "exec", f"{self.prefix}-{where}", "unshare", "-u", "-m", *own, "sh", "-c")

    @property
    def _daemons_environ(self) -> dict[str, str]:
        return {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", **self.environ}

    def _on(self, where: str, script: str) -> None:
        subprocess.run(
            [*self._there(where), script],
            env=self._daemons_environ,
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=_READY_S,
        )

    def _make_network(self) -> None:
        batch, c = [], f"{self.prefix}-c"
        places = [c, *(f"{self.prefix}-{n}" for n in range(1, self.nodes + 1))]
        batch += [f"netns add {place}" for place in places]
        _ip(batch)
        _ip(
            [
                "link set lo up",
                "link add name sbridge type bridge",
                "addr add 10.81.0.254/24 dev sbridge",
                "link set sbridge up",
            ],
            c,
        )
        for number, place in enumerate(places[1:], 1):
            _ip(
                [f"link add v{number} type veth peer name eth0 netns {place}", f"link set v{number} master sbridge up"],
                c,
            )
            _ip(["link set lo up", f"addr add 10.81.0.{number}/24 dev eth0", "link set eth0 up"], place)

    def _write(self, cpus: int) -> None:
        for place in (
            *map(self.directory.joinpath, ("run", "state", "spool", "log", "bin")),
            self.local,
            self.local_of_tester,
        ):
            place.mkdir(parents=True, exist_ok=True)
        values = {"controller": f"{self.prefix}-c", "directory": self.directory, "nodes": self.nodes, "cpus": cpus}
        addresses = f"NodeAddr=10.81.0.[1-{self.nodes}]"
        self.conf.write_text(_CONF.format(addresses=addresses, **values), encoding="utf-8")
        (self.directory / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n", encoding="utf-8")
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        lines = [line for line in lines if line.split(":")[0] != ORDINARY_USER]
        lines.append(f"{ORDINARY_USER}:*:{ORDINARY_UID}:{ORDINARY_UID}::/:/bin/sh")
        (self.directory / "passwd").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (self.directory / "ssh_config").touch()
        names = ("salloc", "sbatch", "sbcast", "scancel", "scontrol", "sinfo", "squeue", "srun")
        commands = {name: which(name) for name in names}
        with suppress(FileNotFoundError):
            commands["ssh"] = f"{which('ssh')} -F {self.directory}/ssh_config"
        for name, command in commands.items():
            path = self.programs / name
            path.write_text(
                f"#!/bin/sh\nexec ip netns exec {self.prefix}-c unshare -u sh -c "
                f'\'hostname {self.prefix}-c; exec "$0" "$@"\' {command} "$@"\n',
                encoding="utf-8",
            )
            path.chmod(0o755)

    def _start_munge(self) -> None:
        run = self.directory / "run"
        key = self.directory / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        words = [f"-S{run}/munge.sock", f"--key-file={key}", f"--pid-file={run}/munged.pid", f"--seed-file={run}/seed"]
        subprocess.run(
            [which("munged"), "--force", *words, f"--log-file={self.directory}/log/munged.log"],
            check=True,
            timeout=_READY_S,
        )

    def _end(self) -> None:
        places = [f"{self.prefix}-{where}" for where in ("c", *range(1, self.nodes + 1))]
        end_s = time.monotonic() + _READY_S
        # One that is killed may have started another in the meantime.
        while (pids := [pid for place in places for pid in _pids(place)]) and time.monotonic() < end_s:
            _kill(pids)
        for machine in self._machines:
            machine.wait(_READY_S)
        with suppress(FileNotFoundError, ValueError):
            _kill([int((self.directory / "run" / "munged.pid").read_text())])
        for place in places:
            subprocess.run(["ip", "netns", "del", place], capture_output=True, check=False, timeout=_READY_S)
        shutil.rmtree(self.directory / "spool", ignore_errors=True)


def _ip(lines: Sequence[str], netns: str | None = None) -> None:
    where = [] if netns is None else ["-n", netns]
    subprocess.run(["ip", *where, "-batch", "-"], input="\n".join(lines).encode(), check=True, timeout=_READY_S)


def _pids(netns: str) -> list[int]:
    said = subprocess.run(
        ["ip", "netns", "pids", netns], capture_output=True, text=True, check=False, timeout=_READY_S
    ).stdout
    return [int(pid) for pid in said.split()]


def _kill(pids: Sequence[int], by: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, by)
    end_s = time.monotonic() + 10.0
    for pid in pids:
        while Path(f"/proc/{pid}/exe").exists() and time.monotonic() < end_s and _lives(pid):
            time.sleep(0.01)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
