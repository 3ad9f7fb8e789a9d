"""What ssh is started with, and what its words mean when it fails; pure values in, values out.

Sources: ssh(1), ssh_config(5), and the messages of OpenSSH 7.4 to 9.9.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from remote_runner.errors import (
    ControllerError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    LoginDeniedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget

_SOCKET_PATH_LIMIT = 104 - 1 - 17  # sun_path of macOS, its NUL, and the ".XXXXXXXXXXXXXXXX" that ssh binds first

# What a program started by ssh (ProxyCommand, Match exec, an agent's helper) may need of this process's environment.
_PASSED_ON = (
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "TERM", "TMPDIR", "XDG_RUNTIME_DIR"),
    *("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "WAYLAND_DISPLAY", "KRB5CCNAME", "GNUPGHOME"),
)

_LEAST_TOLERATED_S = 5.0


@dataclass(frozen=True)
class SshSettings:
    """How masters are kept, the same for all hosts.

    The keepalives give up when a host was silent for `alive_count` intervals, and at most one later.
    """

    persist_s: int = 300
    alive_interval_s: int = 10
    alive_count: int = 6

    @property
    def silent_s(self) -> float:
        """For how long a host may be silent."""
        return float(self.alive_interval_s * self.alive_count)

    @classmethod
    def tolerating(cls, tolerate_s: float) -> Self:
        """Settings that give a host up once it was silent for that long, and at most 10 s later.

        Not sooner than after 5 s: sshd on a busy machine answers late. TCP's own back-off adds to a cut up to its
        length, so cuts of up to half of `tolerate_s` pass unnoticed.
        """
        silent_s = max(_LEAST_TOLERATED_S, tolerate_s)
        interval_s = max(1, min(10, int(silent_s / 6)))
        return cls(alive_interval_s=interval_s, alive_count=math.ceil(silent_s / interval_s))


def master_options(target: SshTarget, settings: SshSettings) -> list[str]:
    """The words between `ssh` and the destination that make a master of this target, but for what is this start's own.

    The first value of an option counts: what a master cannot do without comes before the target's own options, and
    those before ours. `-N` takes the place of SessionType; ForkAfterAuthentication changes nothing, as ControlPersist
    forks when the socket listens.
    """
    needed = {
        "ControlMaster": "yes",
        "ControlPersist": str(settings.persist_s),
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "PermitLocalCommand": "no",
        "Tunnel": "no",
        "LogLevel": "VERBOSE",  # tells the address that it reached
    }
    ours = {
        "ServerAliveInterval": str(settings.alive_interval_s),
        "ServerAliveCountMax": str(settings.alive_count),
    }
    words = ["-N", "-T"]
    for key, value in (*needed.items(), *target.options, *ours.items()):
        words += ["-o", f"{key}={value}"]
    if target.user is not None:
        words += ["-l", target.user]
    if target.port is not None:
        words += ["-p", str(target.port)]
    if target.identity_file is not None:
        words += ["-i", escape_percent(target.identity_file)]
    return words


def escape_percent(path: str) -> str:
    """A path as ssh's token expansion leaves it alone."""
    return path.replace("%", "%%")


def master_argv(
    ssh: str, target: SshTarget, settings: SshSettings, socket_path: Path, *, connect_s: float, log: Path | None = None
) -> list[str]:
    """argv of a master that goes to the background once it is ready, and exits with 0 then.

    With a `log` it asks nobody anything (batch mode) and goes on writing its messages there; without, it may
    ask the user at the terminal. Raises `ControllerError` where the socket's path is too long.
    """
    if len(str(socket_path).encode()) > _SOCKET_PATH_LIMIT:
        raise ControllerError(
            f"{socket_path}: too long for a socket ({_SOCKET_PATH_LIMIT} bytes at most)",
            next_step="name a shorter directory with REMOTE_RUNNER_RUNTIME_DIR",
        )
    words = [ssh, "-S", escape_percent(str(socket_path))]
    words += ["-o", "BatchMode=no"] if log is None else ["-o", "BatchMode=yes", "-E", str(log)]
    words += master_options(target, settings)
    # After the target's own, and half of the time, so that a second address gets its turn.
    return [*words, "-o", f"ConnectTimeout={max(1, int(connect_s / 2))}", "--", target.host]


def master_key(target: SshTarget, settings: SshSettings, home: str) -> str:
    """A short name for everything that makes two masters interchangeable: options, destination, whose configuration."""
    text = "\0".join([*master_options(target, settings), target.host, home])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def ssh_environment(environ: Mapping[str, str], *, home: str, user: str) -> dict[str, str]:
    """The environment of an ssh child; Testground starts instances without HOME and USER."""
    kept = {name: environ[name] for name in _PASSED_ON if name in environ}
    return {"HOME": home, "USER": user, "LOGNAME": user, "PATH": "/usr/local/bin:/usr/bin:/bin", **kept}


_PEER = re.compile(r"^Authenticated to \S+ (?:\(\[(?P<address>[^\]]+)\]:\d+\)|\(via proxy\))", re.MULTILINE)


def peer_address(log: str) -> str | None:
    """The address that a master says it reached; `None` when a proxy was between, or its log does not tell."""
    found = list(_PEER.finditer(log))  # a jump host's ssh may have written before it
    return found[-1]["address"] if found else None


def is_address(text: str) -> bool:
    """Whether it looks like an IPv4 or IPv6 address; a host says what it likes."""
    return re.fullmatch(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?", text) is not None


# ssh's own words for a connection that sshd ended before the login. MaxStartups drops at random while many are
# at the door; newer servers say so in a line instead of a banner.
_DROPPED = re.compile(
    r"(kex|ssh)_exchange_identification|Connection (closed|reset) by|Exceeded MaxStartups"
    r"|Not allowed at this time|Connection to .* closed by remote host"
)
_DENIED = re.compile(r"Permission denied \(([^)]*)\)")
_OFFENDING = re.compile(r"^Offending .*key in (\S+?):\d+", re.MULTILINE)
_NOISE = re.compile(r"^(Authenticated to|Transferred:|Bytes per second:|Warning: Permanently added|@+$)")


def explain_failure(target: SshTarget, status: int | None, log: str, *, has_agent: bool) -> HostError:
    """The error for a master that did not come up; `status` is `None` when it was ended at the deadline.

    `HandshakeDroppedError` alone is worth another attempt.
    """
    name = target.name
    stderr = "\n".join(line for line in log.replace("\r", "").splitlines() if line and not _NOISE.match(line))
    login = f"fab hosts.login --host {name}"
    known_name = _known_name(target)
    by_hand = f"ssh {_destination(target)} true"
    if "HOST IDENTIFICATION HAS CHANGED" in log or "REVOKED HOST KEY" in log:
        offending = _OFFENDING.search(log)
        where = f" -f {offending[1]}" if offending else ""
        return HostKeyChangedError(
            name,
            "its host key is not the one that is known: the host was set up anew, or this is another machine",
            stderr=stderr,
            next_step=f"compare its fingerprint with the owner's; then: ssh-keygen -R {known_name}{where}",
        )
    if "Host key verification failed" in log or "host key is known for" in log:
        return HostKeyUnknownError(
            name,
            "its host key is not known here",
            stderr=stderr,
            next_step=f"compare the fingerprint and accept it: {login}\n"
            f"    or, without fab: ssh -o StrictHostKeyChecking=ask {by_hand.removeprefix('ssh ')}",
        )
    if "Could not resolve hostname" in log:
        return HostUnresolvedError(
            name,
            f"the name {target.host!r} does not resolve",
            stderr=stderr,
            next_step="check the name, or give `host:` in inventory.yaml, or HostName in ~/.ssh/config",
        )
    denied = _DENIED.search(log)
    if denied or "Too many authentication failures" in log:
        methods = denied[1].split(",") if denied else []
        return LoginDeniedError(
            name, methods, stderr=stderr, next_step=_denied_step(methods, login, has_agent=has_agent)
        )
    if "Connection refused" in log:
        return HostRefusedError(
            name,
            "the machine answers, but nothing listens at its ssh port",
            stderr=stderr,
            next_step=f"start sshd there, or correct the port; try: {by_hand}",
        )
    if "during banner exchange" in log:
        return HandshakeDroppedError(
            name,
            "it takes connections, but no ssh server speaks on them",
            stderr=stderr,
            next_step="look at the load and the sshd of that machine",
        )
    if status is None or re.search("No route to host|unreachable|timed out|Host is down", log):
        return HostUnreachableError(
            name,
            "no answer" if status is not None else "no login within the time for it",
            stderr=stderr,
            next_step=f"check that it is on and connected; try: {by_hand}",
        )
    if _DROPPED.search(log):
        return HandshakeDroppedError(
            name,
            "its ssh server went on closing new connections before the login",
            stderr=stderr,
            next_step="look at MaxStartups and the log of its sshd",
        )
    return SshFailedError(name, f"ssh ended with status {status}", stderr=stderr, next_step=f"try: {by_hand}")


def _denied_step(methods: Sequence[str], login: str, *, has_agent: bool) -> str:
    if methods and "publickey" not in methods:
        return f"the host takes no keys: open its connection once at the terminal, later steps use it: {login}"
    agent = "" if has_agent else " (no ssh agent is in sight: SSH_AUTH_SOCK is not set)"
    return f"give the host your public key, or open its connection once at the terminal: {login}{agent}"


def _destination(target: SshTarget) -> str:
    words = [f"-p {target.port}"] if target.port is not None else []
    words += [f"-i {target.identity_file}"] if target.identity_file is not None else []
    return " ".join([*words, f"{target.user}@{target.host}" if target.user is not None else target.host])


def _known_name(target: SshTarget) -> str:
    return f"'[{target.host}]:{target.port}'" if target.port not in (None, 22) else target.host
