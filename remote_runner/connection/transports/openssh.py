"""ssh's command line, and what its exit means. Pure.

Sources: ssh(1), ssh_config(5), and the messages of OpenSSH 7.6 to 9.9.

Verdicts come from ssh's exit status and from what ssh itself writes to the file of `-E` at LogLevel VERBOSE, up to
the first line that passes on a peer's words (a DISCONNECT may hold any text, with newlines). Banners, proxies and the
host's own stderr go elsewhere; they are shown, and decide nothing. No command that we suggest contains a peer's words.
"""

from __future__ import annotations

import math
import os
import pwd
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from remote_runner.errors import (
    FarShellError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    LocalProgramError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget

_LEAST_TOLERATED_S = 5.0
_SSH_FAILED = 255
# What no login's shell takes for anything but itself between single quotes, nor printf of the %b.
_PLAIN = frozenset(range(0x20, 0x7F)) - frozenset(b"'\\!")

# What a program started by ssh (ProxyCommand, Match exec, an agent's helper) may need of this process's environment.
_PASSED_ON = (
    *("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LC_ALL", "TERM", "TMPDIR", "XDG_RUNTIME_DIR"),
    *("SSH_AUTH_SOCK", "SSH_ASKPASS", "SSH_ASKPASS_REQUIRE", "DISPLAY", "WAYLAND_DISPLAY", "KRB5CCNAME", "GNUPGHOME"),
)

# What a user's configuration may say and a session of ours cannot do with: asked for by the option's name, given where
# this ssh knows the option (those of None every ssh knows).
_NEUTRAL = (
    ("ControlMaster", "no", None),
    ("ControlPersist", "no", None),  # under it a proxy's words go to /dev/null
    ("ClearAllForwardings", "yes", None),
    ("RemoteCommand", "none", None),
    ("RequestTTY", "no", None),
    ("PermitLocalCommand", "no", None),
    ("ForwardX11", "no", None),
    ("Tunnel", "no", None),
    ("LogLevel", "VERBOSE", None),  # tells the address that it reached
    ("ForkAfterAuthentication", "no", "forkafterauthentication"),
    ("StdinNull", "no", "stdinnull"),
    ("SessionType", "default", "sessiontype"),
    ("ChannelTimeout", "none", "channeltimeout"),
)


@dataclass(frozen=True)
class SshConfig:
    """What `ssh -G` says of a host: keywords in lower case, each with its first value."""

    values: Mapping[str, str]

    @classmethod
    def parse(cls, text: str) -> SshConfig:
        """Read its output; of a configuration that ssh cannot read it is empty."""
        values: dict[str, str] = {}
        for line in text.splitlines():
            key, _, value = line.partition(" ")
            values.setdefault(key.lower(), value.strip())
        return cls(values)

    @property
    def takes_any_key(self) -> bool:
        """Whether a host may show another key than the known one."""
        return self.values.get("stricthostkeychecking") in ("no", "off", "false")

    @property
    def control_path(self) -> Path | None:
        """The socket of a master that the user's configuration names."""
        value = self.values.get("controlpath", "none")
        return None if value == "none" else Path(value)

    @property
    def has_proxy(self) -> bool:
        """Whether another program or host is between."""
        return any(self.values.get(key, "none") != "none" for key in ("proxycommand", "proxyjump"))

    @property
    def known_names(self) -> tuple[str, ...]:
        """What the host may be called in known_hosts."""
        host, port = self.values.get("hostname", ""), self.values.get("port", "22")
        return tuple(
            name
            for name in (self.values.get("hostkeyalias", ""), host if port == "22" else f"[{host}]:{port}", host)
            if name not in ("", "none")
        )

    @property
    def known_hosts(self) -> tuple[str, ...]:
        """The files with known keys."""
        return tuple(
            word
            for key in ("userknownhostsfile", "globalknownhostsfile")
            for word in self.values.get(key, "").replace('"', "").split()
        )


def ping_interval_s(tolerate_s: float) -> float:
    """How often a sign of life is asked for."""
    return float(max(1, min(10, int(max(_LEAST_TOLERATED_S, tolerate_s) / 6))))


def config_argv(ssh: str, target: SshTarget) -> list[str]:
    """argv that prints the configuration of a target; nothing is connected to."""
    return [ssh, "-G", "-T", *_target_words(target), "--", target.host]


def shell_command(script: bytes) -> str:
    """One command line that has /bin/sh run the script, whose standard input is still untouched then.

    sh, bash, zsh, fish and tcsh read it alike.
    """
    text = "".join(chr(byte) if byte in _PLAIN else f"\\0{byte:03o}" for byte in script).replace("\\0012", "\\n")
    return f"""exec /bin/sh -c 'eval "$(printf %b "$1")"' sh '{text}'"""


def attach_argv(
    ssh: str,
    target: SshTarget,
    config: SshConfig,
    script: bytes,
    *,
    log: Path,
    tolerate_s: float,
    connect_s: float,
    control_path: str | None = "none",
) -> list[str]:
    """argv of a session that never prompts and has a shell there run the script.

    `control_path` is the socket of a master to use, "none", or `None` for the configuration's. The first value of an
    option counts: what a session cannot do without comes before the target's own options, and those before ours.
    """
    needed = [(key, value) for key, value, known in _NEUTRAL if known is None or known in config.values]
    if control_path is not None:
        needed.append(("ControlPath", control_path if control_path == "none" else escape_percent(control_path)))
    if config.takes_any_key:
        needed.append(("StrictHostKeyChecking", "accept-new"))
    interval_s = ping_interval_s(tolerate_s)
    ours = (
        ("ServerAliveInterval", f"{interval_s:.0f}"),
        ("ServerAliveCountMax", str(math.ceil(max(_LEAST_TOLERATED_S, tolerate_s) / interval_s))),
        # Half of the time, so that a second address gets its turn.
        ("ConnectTimeout", str(max(1, int(connect_s / 2)))),
    )
    words = [ssh, "-T", "-o", "BatchMode=yes", "-E", str(log), *_options(needed), *_target_words(target)]
    return [*words, *_options(ours), "--", target.host, shell_command(script)]


def login_argv(ssh: str, target: SshTarget, socket: Path, *, persist_s: int) -> list[str]:
    """argv of a master that may ask the user at the terminal, and goes to the background once it is ready."""
    needed = {
        "ControlMaster": "yes",
        "ControlPersist": str(persist_s),
        "ClearAllForwardings": "yes",
        "RemoteCommand": "none",
        "PermitLocalCommand": "no",
        "Tunnel": "no",
    }
    words = [ssh, "-S", escape_percent(str(socket)), "-N", "-T", "-o", "BatchMode=no", *_options(needed.items())]
    return [*words, *_target_words(target), "--", target.host]


def _options(pairs: Iterable[tuple[str, str]]) -> list[str]:
    return [word for key, value in pairs for word in ("-o", f"{key}={value}")]


def _target_words(target: SshTarget) -> list[str]:
    words = _options(target.options)
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


@dataclass(frozen=True)
class Account:
    """This process's user; in a container its number may have no entry in passwd."""

    home: str
    name: str
    shell: str

    @classmethod
    def here(cls, environ: Mapping[str, str]) -> Account:
        """By passwd, else by what the environment says."""
        try:
            user = pwd.getpwuid(os.getuid())
        except KeyError:
            return cls(environ.get("HOME", "/"), environ.get("USER", str(os.getuid())), "/bin/sh")
        return cls(user.pw_dir, user.pw_name, user.pw_shell or "/bin/sh")


def ssh_environment(environ: Mapping[str, str], account: Account) -> dict[str, str]:
    """The environment of an ssh child; Testground starts instances without HOME and USER."""
    kept = {name: environ[name] for name in _PASSED_ON if name in environ}
    ours = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    return {**ours, **kept}


def find_ssh(environ: Mapping[str, str]) -> str:
    """ssh's path by that environment's PATH. Raises `LocalProgramError`."""
    for directory in environ["PATH"].split(os.pathsep):
        path = Path(directory) / "ssh"
        if os.access(path, os.X_OK) and path.is_file():
            return str(path)
    raise LocalProgramError(["ssh"], f"not found on PATH ({environ['PATH']})", next_step="install OpenSSH's client")


_PEER = re.compile(r"^Authenticated to \S+ (?:\(\[(?P<address>[^\]]+)\]:\d+\)|\(via proxy\))", re.MULTILINE)


def peer_address(log: str) -> str:
    """The address that ssh says it reached; "" when a proxy or a master was between."""
    found = _PEER.search(log)
    return (found["address"] or "") if found else ""


def is_address(text: str) -> bool:
    """Whether it looks like an IPv4 or IPv6 address; a host says what it likes."""
    return re.fullmatch(r"[0-9A-Fa-f:.]{2,45}(%[A-Za-z0-9._-]{1,15})?", text) is not None


# From here on a line of ssh's own log may hold a peer's words, and whatever stands behind it as well.
_PEERS_WORDS = re.compile(r"^(Received disconnect from|Unable to negotiate with|Bad remote protocol)", re.MULTILINE)
# sshd ended the connection before the login. MaxStartups drops at random while many are at the door.
_DROPPED = re.compile(r"(kex|ssh)_exchange_identification|^Connection (closed|reset) by", re.MULTILINE)
_DENIED = re.compile(r"Permission denied \(([a-z0-9@.,-]*)\)\.")
_UNREACHABLE = re.compile(r"^ssh: connect to .*(No route to host|unreachable|timed out|Host is down)", re.MULTILINE)
_OFFENDING = re.compile(r"^Offending .*key in (.+):\d+$", re.MULTILINE)
_CHANGED = re.compile(r"^Host key for (\S+) has changed", re.MULTILINE)
_NOISE = re.compile(r"^(Authenticated to|Transferred:|Bytes per second:|Warning: Permanently added|@+$)")


def explain_failure(
    target: SshTarget, config: SshConfig, status: int | None, log: str, said: str, *, has_agent: bool
) -> HostError:
    """The error for an ssh that ended before the host answered; `status` is `None` when it was ended at the deadline.

    `log` is ssh's own, `said` what else came (stderr, and stdout before any word of ours), to be shown.
    `HandshakeDroppedError` alone is worth another attempt.
    """
    name = target.name
    log = log.replace("\r", "")
    lines = [line for line in (log + "\n" + said).replace("\r", "").splitlines() if line and not _NOISE.match(line)]
    stderr = "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)
    peers = _PEERS_WORDS.search(log)
    verdict = log[: peers.start()] if peers else log
    by_hand = f"ssh {_destination(target)} true"

    if _PEER.search(verdict) or status not in (None, _SSH_FAILED):
        return _after_login(name, status, stderr, by_hand)
    by_key = _host_key_failure(target, config, verdict, stderr, by_hand)
    if by_key is not None:
        return by_key
    if re.search(r"^ssh: Could not resolve hostname", verdict, re.MULTILINE):
        return HostUnresolvedError(
            name,
            f"the name {target.host!r} does not resolve",
            stderr=stderr,
            next_step="check the name, or give `host:` in inventory.yaml, or HostName in ~/.ssh/config",
        )
    if denied := _DENIED.search(verdict):
        methods = denied[1].split(",")
        offered = f" (it offers: {', '.join(methods)})" if methods else ""
        step = _denied_step(methods, f"fab hosts.login --host {name}", has_agent=has_agent)
        return HostError(name, f"the host refused the login{offered}", stderr=stderr, next_step=step)
    if re.search(r"^ssh: connect to host .*Connection refused", verdict, re.MULTILINE):
        return HostRefusedError(
            name,
            "the machine answers, but nothing listens at its ssh port",
            stderr=stderr,
            next_step=f"start sshd there, or correct the port; try: {by_hand}",
        )
    if "during banner exchange" in verdict and not config.has_proxy:
        return HandshakeDroppedError(
            name,
            "it accepts connections, but no ssh server answers on them",
            stderr=stderr,
            next_step="look at the load and the sshd of that machine",
        )
    if status is None or _UNREACHABLE.search(verdict):
        return HostUnreachableError(
            name,
            "no answer" if status is not None else "no login in time",
            stderr=stderr,
            next_step=f"check that it is on and connected; try: {by_hand}",
        )
    if peers:
        return SshFailedError(
            name,
            "its ssh server, or something in between, ended the connection before the login",
            stderr=stderr,
            next_step=f"try: {by_hand} (where an agent holds many keys, name one with `identity_file`)",
        )
    if config.has_proxy and not _DROPPED.search(said):
        return SshFailedError(
            name,
            "the connection through ProxyJump or ProxyCommand failed",
            stderr=stderr,
            next_step=f"try: {by_hand}",
        )
    if _DROPPED.search(verdict):
        return HandshakeDroppedError(
            name,
            "its ssh server kept closing new connections before the login",
            stderr=stderr,
            next_step="look at MaxStartups and the log of its sshd",
        )
    return SshFailedError(name, f"ssh ended with status {status}", stderr=stderr, next_step=f"try: {by_hand}")


def _after_login(name: str, status: int | None, stderr: str, by_hand: str) -> HostError:
    if status == _SSH_FAILED:
        return HostError(
            name,
            "it took the login, and closed the connection before anything was started",
            stderr=stderr,
            next_step="its sshd's log says why (a ForceCommand, a ChrootDirectory with a wrong owner, PAM's session, "
            "a limit)",
        )
    what = "did not answer in time" if status is None else f"ended with status {status}"
    return FarShellError(
        name,
        f"it took the login, but its shell {what} before our program was started",
        stderr=stderr,
        next_step=f"it has to run a command as any ssh host does (no ForceCommand, no nologin); try: {by_hand}",
    )


def _host_key_failure(
    target: SshTarget, config: SshConfig, verdict: str, stderr: str, by_hand: str
) -> HostError | None:
    name = target.name
    if "HOST IDENTIFICATION HAS CHANGED" in verdict or "REVOKED HOST KEY" in verdict:
        changed, offending = _CHANGED.search(verdict), _OFFENDING.search(verdict)
        known = changed[1] if changed and changed[1] in config.known_names else _known_name(target)
        file = offending[1] if offending and offending[1] in config.known_hosts else ""
        line = f"ssh-keygen -R {shlex.quote(known)}" + (f" -f {shlex.quote(file)}" if file else "")
        return HostKeyChangedError(
            name,
            "its host key is not the one that is known: the host was set up anew, or this is another machine",
            stderr=stderr,
            next_step=f"compare its fingerprint with the owner's; then: {line}",
        )
    if re.search(r"^Host key verification failed|host key is known for", verdict, re.MULTILINE):
        return HostKeyUnknownError(
            name,
            "its host key is not known here",
            stderr=stderr,
            next_step=f"compare the fingerprint and accept it: fab hosts.login --host {name}\n"
            f"    or by ssh itself: ssh -o StrictHostKeyChecking=ask {by_hand.removeprefix('ssh ')}",
        )
    return None


def _denied_step(methods: Sequence[str], login: str, *, has_agent: bool) -> str:
    if any(methods) and "publickey" not in methods:
        return f"the host takes no keys: open its connection once at the terminal, later steps use it: {login}"
    agent = "" if has_agent else " (there is no ssh agent: SSH_AUTH_SOCK is not set)"
    return f"give the host your public key, or open its connection once at the terminal: {login}{agent}"


def _destination(target: SshTarget) -> str:
    words = [f"-p {target.port}"] if target.port is not None else []
    words += [f"-i {shlex.quote(target.identity_file)}"] if target.identity_file is not None else []
    return " ".join([*words, f"{target.user}@{target.host}" if target.user is not None else target.host])


def _known_name(target: SshTarget) -> str:
    return f"[{target.host}]:{target.port}" if target.port not in (None, 22) else target.host
