"""Whole machines for tests (root needed): a network namespace each, with its own sshd, home, temporary directories.

    with Lan.claim() as lan, NetnsHost.start(lan, directory, name="t1") as host: …

Port 22, an address of its own on a bridge, MaxStartups and MaxSessions at their defaults. Concurrent test processes
take different subnets; what a killed test process left on a subnet is removed by the next that claims it.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from tests.hosts import SSHD_PATH, Keys, TestHost, wait_for_banner, which

ORDINARY_USER = "tester"
ORDINARY_UID = 4242
_SUBNETS = range(16, 240)
# A root directory with everything but $without: what is shared with this machine is mounted into it.
_COMPOSE = """mkdir -p "$root"
mount -t tmpfs none "$root"
for entry in /*; do
    case $without in *" $entry "*) continue ;; esac
    if [ -L "$entry" ]; then
        cp -P "$entry" "$root$entry"
    elif [ -d "$entry" ]; then
        mkdir "$root$entry"
        case $entry in
        /proc | /dev | /sys | /run) mount --rbind "$entry" "$root$entry" ;;
        *) mount --bind "$entry" "$root$entry" ;;
        esac
    fi
done"""


def _ip(*words: str) -> str:
    done = subprocess.run([which("ip"), *words], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"ip {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


@dataclass
class Lan:
    """A bridge with the controller's address 10.77.`subnet`.1 on it; hosts get the addresses from .10 on."""

    subnet: int
    claim_socket: socket.socket = field(repr=False)
    next_host: int = 10

    @property
    def bridge(self) -> str:
        return f"rrb{self.subnet}"

    @property
    def controller_address(self) -> str:
        return f"10.77.{self.subnet}.1"

    @classmethod
    def claim(cls) -> Lan:
        """The first subnet that no living test process has; remains of a dead one on it are removed."""
        for subnet in _SUBNETS:
            claim_socket = socket.socket(socket.AF_UNIX)
            try:
                claim_socket.bind(f"\0remote-runner-tests-10.77.{subnet}")  # abstract: gone with its process
            except OSError:
                claim_socket.close()
                continue
            lan = cls(subnet, claim_socket)
            lan._sweep()
            _ip("link", "add", lan.bridge, "type", "bridge")
            _ip("addr", "add", f"{lan.controller_address}/24", "dev", lan.bridge)
            _ip("link", "set", lan.bridge, "up")
            return lan
        raise RuntimeError("all subnets 10.77.16.0/24 to 10.77.239.0/24 are taken")

    def _sweep(self) -> None:
        for line in _ip("netns", "list").splitlines():
            namespace = line.split()[0]
            if namespace.startswith(f"rr{self.subnet}-"):
                end_namespace(namespace)
        with suppress(RuntimeError):
            _ip("link", "del", self.bridge)

    def close(self) -> None:
        self._sweep()
        self.claim_socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def end_namespace(namespace: str) -> None:
    """End everything that runs in the namespace, and remove it."""
    _end_processes(namespace)
    # Its link by itself: the kernel takes a namespace down a while after it was deleted, and the name stays taken.
    with suppress(RuntimeError):
        _ip("link", "del", namespace.replace("rr", "rrv", 1))
    with suppress(RuntimeError):
        _ip("netns", "del", namespace)


def _end_processes(namespace: str) -> None:
    deadline = time.monotonic() + 10
    while pids := _ip("netns", "pids", namespace).split():
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        if time.monotonic() > deadline:
            raise RuntimeError(f"{namespace}: {' '.join(pids)} survive SIGKILL")


@dataclass(frozen=True)
class FarProcess:
    """A process on a host under test."""

    pid: int
    command: str


@dataclass
class NetnsHost(TestHost):
    """A machine as a network namespace: own home, /tmp, /var/tmp, /dev/shm and host name; see `start`."""

    namespace: str = ""
    link: str = ""
    login_shell: str | None = None
    sh: str | None = None
    config: tuple[str, ...] = ()
    binds: Mapping[str, Path] = field(default_factory=dict)
    root: Path | None = None
    without: tuple[str, ...] = ()
    before_sshd: tuple[str, ...] = ()
    server: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls,
        lan: Lan,
        directory: Path,
        *,
        name: str,
        ordinary_user: bool = False,
        login_shell: str | None = None,
        sh: str | None = None,
        config: Sequence[str] = (),
        binds: Mapping[str, Path] | None = None,
        root: Path | None = None,
        without: Sequence[str] = (),
        before_sshd: Sequence[str] = (),
        keys: Keys | None = None,
    ) -> NetnsHost:
        """Start one.

        `name` becomes its host name. `ordinary_user`: log in as `tester` instead of root. `login_shell`: a path, or
        "busybox" for its sh. `sh`: a program that stands at /bin/sh there (path). `config`: first lines of sshd_config.
        `binds`: far path to a file or directory here that is mounted on it (e.g. {"/nix": …}).
        `root`: a tree that is its root directory in place of this machine's. `without`: entries of the root
        directory that are not there (e.g. "/nix"). `before_sshd`: lines in sh, run there by root at every boot.
        """
        number = lan.next_host
        lan.next_host += 1
        for place in ("root", "home", "tmp", "vartmp", "shm", "mnt"):
            (directory / place).mkdir(parents=True, exist_ok=True)
        for place in ("tmp", "vartmp", "shm"):
            (directory / place).chmod(0o1777)
        (directory / "root").chmod(0o700)
        user_home = directory / "home" / ORDINARY_USER
        user_home.mkdir(exist_ok=True)
        os.chown(user_home, ORDINARY_UID, ORDINARY_UID)
        keys = keys or Keys.make(directory / "keys")
        host = cls(
            name=name,
            address=f"10.77.{lan.subnet}.{number}",
            port=22,
            user=ORDINARY_USER if ordinary_user else "root",
            directory=directory,
            keys=keys,
            namespace=f"rr{lan.subnet}-{number}",
            link=f"rrv{lan.subnet}-{number}",
            login_shell=login_shell,
            sh=sh,
            config=tuple(config),
            binds=dict(binds or {}),
            root=root,
            without=tuple(without),
            before_sshd=tuple(before_sshd),
        )
        host._write_known_hosts()
        host._write_etc()
        _ip("netns", "add", host.namespace)
        try:
            _ip("link", "add", host.link, "type", "veth", "peer", "name", "eth0", "netns", host.namespace)
            _ip("link", "set", host.link, "master", lan.bridge, "up")
            _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", "eth0")
            _ip("-n", host.namespace, "link", "set", "eth0", "up")
            _ip("-n", host.namespace, "link", "set", "lo", "up")
            host.boot()
        except BaseException:
            host.stop()
            raise
        return host

    @property
    def home(self) -> Path:
        """The far home directory, seen from here."""
        return self.directory / ("root" if self.user == "root" else f"home/{ORDINARY_USER}")

    @property
    def far_home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{ORDINARY_USER}"

    def here(self, far_path: str) -> Path:
        """A far path below a home, /tmp, /var/tmp or /dev/shm, seen from here."""
        mounts = {"/root": "root", "/home": "home", "/tmp": "tmp", "/var/tmp": "vartmp", "/dev/shm": "shm"}
        for mount, place in mounts.items():
            if far_path == mount or far_path.startswith(f"{mount}/"):
                return self.directory / place / far_path[len(mount) :].lstrip("/")
        raise ValueError(f"{far_path} is not the host's own")

    def _write_etc(self) -> None:
        # sshd reads these through /mnt, which stays visible when /tmp becomes the host's own.
        mnt = self.directory / "mnt"
        shutil.copyfile(self.keys.server, mnt / "host_key")
        (mnt / "host_key").chmod(0o600)
        shutil.copyfile(self.keys.client.with_suffix(".pub"), mnt / "authorized_keys")
        shell = self.login_shell or "/bin/bash"
        if shell == "busybox":
            (mnt / "ash").unlink(missing_ok=True)
            (mnt / "ash").symlink_to(which("busybox"))
            shell = "/mnt/ash"
        passwd = [
            line
            for line in Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
            if line.split(":")[0] not in ("root", "sshd", ORDINARY_USER)
        ]
        passwd += [
            f"root:*:0:0:root:/root:{shell}",
            "sshd:*:105:65534::/run/sshd:/usr/sbin/nologin",
            f"{ORDINARY_USER}:*:{ORDINARY_UID}:{ORDINARY_UID}::/home/{ORDINARY_USER}:{shell}",
        ]
        (mnt / "passwd").write_text("\n".join(passwd) + "\n", encoding="utf-8")
        lines = [
            *self.config,
            "HostKey /mnt/host_key",
            "AuthorizedKeysFile /mnt/authorized_keys",
            "PermitRootLogin prohibit-password",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        (mnt / "sshd_config").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def boot(self) -> None:
        """Start the machine (again, after `kill`); what its files hold stays."""
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                [
                    *(which("ip"), "netns", "exec", self.namespace, which("unshare"), "-m", "-u"),
                    *("sh", "-ec", "\n".join(self._boot_steps()), self.name, str(self.directory)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for_banner(self.address, self.port, self.server, self.log)

    def _boot_steps(self) -> list[str]:
        """Lines in sh: $0 is the machine's name, $1 its directory, $root what its root directory is before it moves."""
        steps = ['echo "$0" > /proc/sys/kernel/hostname']
        binds = dict(self.binds)
        if self.without:
            steps += [f'root=$1/tree without=" {" ".join(self.without)} "', _COMPOSE]
        elif self.root:
            steps += [f'root="{self.root}"', 'mount --bind "$root" "$root"']
            steps += [f'mount --rbind /{place} "$root/{place}"' for place in ("proc", "dev", "sys")]
        else:
            steps += ["root="]
            if Path("/nix").is_dir():
                binds.setdefault(
                    "/nix", self.directory / "nix"
                )  # not the controller's, which a test may have put there
                binds["/nix"].mkdir(exist_ok=True)
        steps += ['mount --bind "$1/mnt" "$root/mnt"', 'mount --bind "$1/mnt/passwd" "$root/etc/passwd"']
        if self.sh:
            steps += [f"mount --bind {which(self.sh)} $(readlink -f /bin/sh)"]
        steps += [f'mount --bind "{source}" "$root{far}"' for far, source in binds.items()]
        mounts = {"root": "/root", "home": "/home", "shm": "/dev/shm", "vartmp": "/var/tmp", "tmp": "/tmp"}
        steps += [f'mount --bind "$1/{place}" "$root{far}"' for place, far in mounts.items()]
        # Not chroot: a process in one may not make a user namespace.
        steps += ['if [ "$root" ]; then mkdir -p "$root/.old"; cd "$root"; pivot_root . .old; umount -l /.old; fi']
        steps += ["cd /", f"export PATH={SSHD_PATH}", *self.before_sshd]
        sshd = "/usr/sbin/sshd" if self.root else which("sshd")
        return [*steps, f"exec env -i PATH={SSHD_PATH} {sshd} -D -e -f /mnt/sshd_config"]

    def as_root(self, command: str, *, check: bool = True) -> str:
        """stdout of a command in sh there, by root and without ssh; raises CalledProcessError unless `check` is off."""
        assert self.server is not None
        argv = [which("nsenter"), "-t", str(self.server.pid), "-m", "-u", "-n", "-r", "-w"]
        argv += ["/usr/bin/env", "-i", f"PATH={SSHD_PATH}", "HOME=/root", "/bin/sh", "-c", command]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=check, timeout=120)
        return done.stdout.rstrip("\n")

    def processes(self) -> list[FarProcess]:
        """What runs there, but for sshd's own and the agents that wait while their broker does."""
        found = []
        for pid in _ip("netns", "pids", self.namespace).split():
            with suppress(OSError):
                raw = (Path("/proc") / pid / "cmdline").read_bytes()
                command = raw.replace(b"\0", b" ").decode(errors="replace").strip()
                if "/qemu-binfmt/" in command.split(" ")[0]:
                    command = command.split(" ", 2)[-1]  # behind the emulator and the program's path: argv
                program = command.split()[0].rstrip(":") if command else ""
                if program and not program.endswith("sshd") and "/agents/" not in program:
                    found.append(FarProcess(int(pid), command))
        return found

    def sessions(self) -> list[int]:
        """sshd's processes of connections, not the one that listens."""
        assert self.server is not None
        found = []
        for pid in map(int, _ip("netns", "pids", self.namespace).split()):
            with suppress(OSError):
                if pid != self.server.pid and Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sshd"):
                    found.append(pid)
        return found

    def agents(self, program: str = "agent") -> list[int]:
        """The processes of our program there: `agent`, `serve` (the guardian) or `session`."""
        found = []
        for pid in map(int, _ip("netns", "pids", self.namespace).split()):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"/agents/" in words[0] and program.encode() in words[1:2]:
                    found.append(pid)
        return found

    def link_down(self) -> None:
        """Pull the cable."""
        _ip("link", "set", self.link, "down")

    def link_up(self) -> None:
        _ip("link", "set", self.link, "up")

    def dropping(self) -> None:
        """Drop all packets to and from it, silently: its port of the switch is taken out."""
        _ip("link", "set", self.link, "nomaster")

    def passing(self) -> None:
        """Let packets through again."""
        _ip("link", "set", self.link, "master", f"rrb{self.address.split('.')[2]}")

    def carried_bytes(self) -> int:
        """What has gone over its cable so far, both ways."""
        counters = Path("/sys/class/net") / self.link / "statistics"
        return sum(int((counters / name).read_text(encoding="ascii")) for name in ("rx_bytes", "tx_bytes"))

    def slow_down(self, megabits: int) -> None:
        """Let its cable carry no more than so many megabits a second, each way."""
        words = ["root", "tbf", "rate", f"{megabits}mbit", "burst", "32k", "latency", "400ms"]
        for prefix, device in (([], self.link), ([which("ip"), "netns", "exec", self.namespace], "eth0")):
            subprocess.run([*prefix, which("tc"), "qdisc", "add", "dev", device, *words], check=True)

    def speed_up(self) -> None:
        """Undo `slow_down`."""
        for prefix, device in (([], self.link), ([which("ip"), "netns", "exec", self.namespace], "eth0")):
            subprocess.run([*prefix, which("tc"), "qdisc", "del", "dev", device, "root"], check=True)

    @contextmanager
    def losing_packets(self) -> Iterator[None]:
        """In the body a queue behind it takes no more than a few packets, and drops those that come faster."""
        qdisc = [which("ip"), "netns", "exec", self.namespace, which("tc"), "qdisc"]
        words = ["root", "tbf", "rate", "20mbit", "burst", "4k", "limit", "20k"]
        subprocess.run([*qdisc, "add", "dev", "eth0", *words], check=True)
        try:
            yield
        finally:
            subprocess.run([*qdisc, "del", "dev", "eth0", "root"], check=True)

    def kill(self) -> None:
        """End every process there at once, as a power cut does; `boot` starts it again."""
        _end_processes(self.namespace)
        if self.server is not None:
            self.server.wait()
            self.server = None

    def stop(self) -> None:
        end_namespace(self.namespace)
        if self.server is not None:
            self.server.wait()
            self.server = None
