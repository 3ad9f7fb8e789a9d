"""Real hosts for tests: an sshd of the test's own user on loopback.

    with UserSshd.start(directory) as host:         # any directory below tmp_path
        SshHost(host.target, …)                     # by explicit options
        host.ssh("uname -sm")                       # by the real client, for what a test looks at

`tests/hosts_netns.py` has whole machines (root needed), `tests/delay.py` a slow wire in front of either.
Everything is stopped by the pid that was started here, also when the test fails.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from remote_runner.inventory.ssh_target import SshTarget

SSHD_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
START_S = 20.0


def which(name: str) -> str:
    """The program's path, also where only root's PATH has it; raises FileNotFoundError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SSHD_PATH}")
    if found is None:
        raise FileNotFoundError(name)
    return found


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_banner(address: str, port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    """Return once an ssh server speaks there; raises RuntimeError with its log when it ended or never does."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RuntimeError(f"sshd ended with {server.returncode}:\n{log.read_text(errors='replace')}")
        with suppress(OSError), socket.create_connection((address, port), timeout=2) as probe:
            if probe.recv(4) == b"SSH-":
                return
        time.sleep(0.01)  # nothing tells when a foreign process listens
    raise RuntimeError(f"no ssh server at {address}:{port} after {START_S:g} s:\n{log.read_text(errors='replace')}")


@dataclass(frozen=True)
class Keys:
    """A client's key and a server's key, made by ssh-keygen."""

    client: Path
    server: Path

    @classmethod
    def make(cls, directory: Path) -> Keys:
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("client", "server"):
            if not (directory / name).exists():
                subprocess.run(
                    [
                        which("ssh-keygen"),
                        "-q",
                        "-t",
                        "ed25519",
                        "-N",
                        "",
                        "-C",
                        f"test {name}",
                        "-f",
                        directory / name,
                    ],
                    check=True,
                    stdin=subprocess.DEVNULL,
                )
        return cls(directory / "client", directory / "server")


@dataclass
class TestHost:
    """A host under test: where its sshd listens and what reaches it. Subclasses start and stop it."""

    __test__ = False  # pytest: not a test class

    name: str
    address: str
    port: int
    user: str
    directory: Path
    keys: Keys

    @property
    def known_hosts(self) -> Path:
        return self.directory / "known_hosts"

    @property
    def log(self) -> Path:
        """What sshd wrote (LogLevel VERBOSE), e.g. one "Connection from" line per TCP connection."""
        return self.directory / "sshd.log"

    @property
    def target(self) -> SshTarget:
        """The host by explicit options only; nothing of the user's own keys and known hosts is used."""
        return SshTarget(
            name=self.name,
            host=self.address,
            user=self.user,
            port=self.port,
            identity_file=str(self.keys.client),
            options=tuple(
                {
                    "UserKnownHostsFile": str(self.known_hosts),
                    "GlobalKnownHostsFile": "/dev/null",
                    "StrictHostKeyChecking": "yes",
                    "IdentitiesOnly": "yes",
                    "IdentityAgent": "none",
                    "KexAlgorithms": "curve25519-sha256",  # 0.07 s less per connection than the post-quantum one
                }.items()
            ),
        )

    def through(self, proxy_port: int) -> SshTarget:
        """The same host behind a proxy that listens on that port of 127.0.0.1 (see `tests/delay.py`)."""
        alias = ("HostKeyAlias", self._known_name())
        return replace(self.target, host="127.0.0.1", port=proxy_port, options=(*self.target.options, alias))

    def config_block(self) -> str:
        """The host as a block of ssh_config(5) under its name, for tests that say no more than the name."""
        target = self.target
        pairs = [
            ("HostName", target.host),
            ("Port", str(target.port)),
            ("User", str(target.user)),
            ("IdentityFile", str(target.identity_file)),
            *target.options,
        ]
        return f"Host {self.name}\n" + "".join(f"    {key} {value}\n" for key, value in pairs)

    def ssh_argv(self, *words: str) -> list[str]:
        """argv of the real client with a connection of its own, for what the test itself wants to see."""
        target = self.target
        options = [word for key, value in target.options for word in ("-o", f"{key}={value}")]
        where = ["-p", str(self.port), "-l", self.user, "-i", str(self.keys.client), "-o", "BatchMode=yes"]
        return [which("ssh"), "-F", "/dev/null", *options, *where, "--", self.address, *words]

    def ssh(self, command: str, *, input_bytes: bytes = b"") -> bytes:
        """stdout of a command there; raises CalledProcessError."""
        return subprocess.run(self.ssh_argv(command), input=input_bytes, check=True, capture_output=True).stdout

    def connections(self) -> int:
        """How many TCP connections sshd has taken since it started."""
        return self.log.read_text(errors="replace").count("Connection from ")

    def _known_name(self) -> str:
        return self.address if self.port == 22 else f"[{self.address}]:{self.port}"

    def _write_known_hosts(self) -> None:
        public = self.keys.server.with_suffix(".pub").read_text(encoding="ascii")
        self.known_hosts.write_text(f"{self._known_name()} {public}", encoding="ascii")

    def reached_at(self, address: str, port: int) -> Self:
        """The same host by another address and port, which its key is known for from now on."""
        other = replace(self, address=address, port=port)
        other._write_known_hosts()
        return other

    def stop(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


@dataclass
class UserSshd(TestHost):
    """An sshd of the test's own user on a free port of 127.0.0.1; MaxStartups and MaxSessions at their defaults.

    `HOME` there is a directory of its own, so that no start-up file of the developer's runs in it.
    """

    config: tuple[str, ...] = ()
    server: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls, directory: Path, *, name: str = "usershost", config: Sequence[str] = (), keys: Keys | None = None
    ) -> UserSshd:
        """Start one. `config` lines come first in sshd_config, where the first value of a keyword counts."""
        directory.mkdir(parents=True, exist_ok=True)
        keys = keys or Keys.make(directory / "keys")
        user = pwd.getpwuid(os.getuid()).pw_name
        host = cls(name, "127.0.0.1", free_port(), user, directory, keys, tuple(config))
        shutil.copyfile(keys.client.with_suffix(".pub"), directory / "authorized_keys")
        host._write_known_hosts()
        host.boot()
        return host

    def boot(self) -> None:
        """Start the sshd (again, after `kill`) on the same port."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd's empty directory for its unprivileged child
        settings = self.directory / "sshd_config"
        home = self.directory / "home"
        home.mkdir(exist_ok=True)
        lines = [
            *self.config,
            f"SetEnv HOME={home}",
            f"ListenAddress {self.address}:{self.port}",
            f"HostKey {self.keys.server}",
            f"AuthorizedKeysFile {self.directory}/authorized_keys",
            "PidFile none",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        settings.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        with self.log.open("ab") as log:
            self.server = subprocess.Popen(
                [which("sshd"), "-D", "-e", "-f", settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_for_banner(self.address, self.port, self.server, self.log)
        except RuntimeError:
            self.stop()
            raise

    def children(self) -> list[int]:
        """pids of the processes that serve connections, and of all below them."""
        return [] if self.server is None else descendants(self.server.pid)

    def kill(self) -> None:
        """End the sshd and everything that it started, at once, as a power cut would."""
        if self.server is None:
            return
        # Stopped first, so that nothing new is started while its descendants are ended.
        with suppress(ProcessLookupError):
            os.kill(self.server.pid, signal.SIGSTOP)
        for pid in [*descendants(self.server.pid), self.server.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.server.wait()
        self.server = None

    def stop(self) -> None:
        self.kill()


def descendants(root: int) -> list[int]:
    """pids of all processes below `root`, by /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    todo = [root]
    while todo:
        below = children.get(todo.pop(), [])
        found += below
        todo += below
    return found
