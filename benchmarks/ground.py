"""What a benchmark stands on: hosts with stock sshds, a sync service, and one small application on every host."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cgroups import Cgroup, NoCgroupError
from remote_runner.inventory.ssh_target import SshTarget
from testground.sync.service import SyncService
from tests.hosts import Keys, TestHost, UserSshd, which
from tests.hosts_netns import Lan, NetnsHost
from tests.nix_bed import NixHere, own_mounts, private_nix
from tests.slurm_bed import SlurmBed

ROOT = Path(__file__).parent.parent
LIVE_S = 60
"""How long the application lives in the test case `live`."""
PAUSE_S = 10
"""And in the test case `pause`."""
# FAR holds what it streams and copies, laid down there before, and `ran`, where each start leaves a file: a process
# number comes again within one run of thousands.
APPLICATION = r"""#!/bin/sh
[ -z "$FAR" ] || : >"$FAR/ran/$$-${REMOTE_RUNNER_NUMBER:-}"
case $TEST_CASE in
    nothing) ;;
    live) sleep LIVE_S ;;
    pause) sleep PAUSE_S ;;
    lines | line) cat "$FAR/$TEST_CASE" ;;
    files) cp -R "$FAR/files" "$TEST_OUTPUTS_PATH/" ;;
    barrier) cd "$FAR" && python3 -m benchmarks.barrier 9 0 || exit ;;
    barriers) cd "$FAR" && python3 -m benchmarks.barrier 20 0.5 || exit ;;
esac
echo "$TEST_CASE" >"$TEST_OUTPUTS_PATH/case"
printf '{"ts":1,"msg":"","group_id":"single","run_id":"","event":{"success_event":{"group":"single"}}}\n'
""".replace("LIVE_S", str(LIVE_S)).replace("PAUSE_S", str(PAUSE_S))
CASES = ("nothing", "live", "pause", "lines", "line", "files", "barrier", "barriers")
_IN_MEMORY_BYTES = 10 << 30


@dataclass(frozen=True)
class Way:
    """A host with the target by which it is reached, itself or through a proxy."""

    host: TestHost
    target: SshTarget

    @property
    def far(self) -> str:
        """The directory on the host where the application and its input lie, as the host names it."""
        return "/mnt" if isinstance(self.host, NetnsHost) else str(self.host.directory)

    @property
    def near(self) -> Path:
        """The same directory, seen from here."""
        return self.host.directory / "mnt" if isinstance(self.host, NetnsHost) else self.host.directory

    @property
    def options(self) -> dict[str, str]:
        """Of the target's options those without which no connection comes about; its key exchange is ssh's choice."""
        return {key: value for key, value in self.target.options if key != "KexAlgorithms"}

    def application(self, case: str, outputs: str) -> str:
        """A command line that runs the application there, with nothing around it."""
        values = {"FAR": self.far, "TEST_CASE": case, "TEST_OUTPUTS_PATH": outputs}
        return " ".join(["env", *(f"{key}={value}" for key, value in values.items()), f"{self.far}/application"])


@dataclass(frozen=True)
class SlurmWay(Way):
    """All nodes of a Slurm, which share this machine's files; nothing connects to its host and target."""

    bed: SlurmBed


@dataclass
class Ground:
    """All of one benchmark run; a context manager made by `ground`."""

    directory: Path
    sync: SyncService
    keys: Keys
    lan: Lan | None
    nix: NixHere | None
    stack: ExitStack
    environ: dict[str, str]
    there: Cgroup | None
    accounts: str
    hosts: list[TestHost] = field(default_factory=list)

    def ways(self, count: int = 1) -> list[Way]:
        """The first hosts, started when they are first asked for."""
        while len(self.hosts) < count:
            name = f"bench{len(self.hosts)}"
            place = self.directory / name
            started: TestHost
            if self.lan is not None:
                started = NetnsHost.start(self.lan, place, name=name, keys=self.keys)
            else:
                started = UserSshd.start(place, name=name, keys=self.keys)
            self.hosts.append(self.stack.enter_context(started))
            self.adopt(started)
        return [Way(host, host.target) for host in self.hosts[:count]]

    def adopt(self, host: TestHost) -> None:
        """Count what a host costs from now on, and put the application on it."""
        assert isinstance(host, NetnsHost | UserSshd)
        assert host.server is not None
        if self.there is not None:
            self.there.add(host.server.pid)
        way = Way(host, host.target)
        (way.near / "ran").mkdir()
        write_application(way.near)
        (way.near / "benchmarks").mkdir()  # what the cases `barrier` and `barriers` start
        for name in ("__init__.py", "barrier.py", "sync_load.py"):
            shutil.copy(Path(__file__).with_name(name), way.near / "benchmarks")


@contextmanager
def slurm(ground: Ground, nodes: int) -> Iterator[SlurmWay]:
    """A Slurm with so many nodes, in a directory of its own: in another one's it would find that one's jobs."""
    directory = Path(tempfile.mkdtemp(prefix="slurm-", dir=ground.directory))
    with SlurmBed.started(directory, nodes, cpus=200) as bed:
        if ground.there is not None:
            for pid in bed.node_pids():
                ground.there.add(pid)
        host = TestHost("slurm", "127.0.0.1", 1, "root", bed.directory, ground.keys)
        host.log.touch()
        (bed.directory / "ran").mkdir()
        write_application(bed.directory)
        yield SlurmWay(host, host.target, bed)


def write_application(directory: Path) -> None:
    """Write the application there."""
    place = directory / "application"
    place.write_text(APPLICATION, encoding="utf-8")
    place.chmod(0o755)


@contextmanager
def ground() -> Iterator[Ground]:
    """Everything a benchmark needs, below one temporary directory; gone in the end, processes too."""
    root = os.geteuid() == 0
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="rr-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        environ = {"PATH": os.environ["PATH"], "HOME": pwd.getpwuid(os.getuid()).pw_dir}
        if root and sys.platform == "linux" and _available_bytes() > _IN_MEMORY_BYTES:
            # In memory, so that no row measures a disk. Before there is any thread, which would see the disk.
            own_mounts(str(directory))
            subprocess.run([which("mount"), "-t", "tmpfs", "-o", "mode=755", "none", str(directory)], check=True)
            stack.callback(subprocess.run, [which("umount"), "--lazy", str(directory)], check=True)
        nix = None
        program = shutil.which("nix-store")
        if root and program and not os.path.realpath(program).startswith("/nix/"):
            nix = stack.enter_context(private_nix(directory / "nix-here"))
            environ.update(nix.environ)
        (directory / "tmp").mkdir()
        keys = Keys.make(directory / "keys")
        sync = stack.enter_context(SyncService())
        there = None
        try:
            there = stack.enter_context(Cgroup.make("rr-bench-hosts"))
            accounts = f"cgroups, version {there.version}"
        except NoCgroupError as error:
            accounts = f"no cgroups ({error}): CPU of what a contestant waits for, no memory, nothing of the hosts"
        lan = stack.enter_context(Lan.claim()) if root and shutil.which("ip") else None
        yield Ground(directory, sync, keys, lan, nix, stack, environ, there, accounts)


def _available_bytes() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
