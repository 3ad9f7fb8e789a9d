"""What a host says of itself to probe.sh, as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from remote_runner.errors import UnknownSystemError
from remote_runner.inventory.systems import System

# What sshd_config(5) says that holds where the file says nothing.
_SSHD_DEFAULTS = {"maxsessions": "10", "maxstartups": "10:30:100", "allowtcpforwarding": "yes"}


class NixAccess(Enum):
    """What a login may do with the Nix store there (`rr_nix_access` in nix/store.sh), or that there is no Nix."""

    ROOT = "root"
    OWNER = "owner"
    TRUSTED = "trusted"
    UNTRUSTED = "untrusted"
    REFUSED = "refused"
    FOREIGN = "foreign"
    NONE = "none"


@dataclass(frozen=True)
class Nix:
    """The Nix of a host: `nix_store` is that program's path there, `why` the daemon's words where it serves no one."""

    access: NixAccess
    nix_store: str | None = None
    version: str | None = None
    why: str = ""


@dataclass(frozen=True)
class Clock:
    """How far a host's clock is ahead of this machine's, in seconds (behind where negative), and how sure that is."""

    offset_s: float
    uncertainty_s: float


@dataclass(frozen=True)
class SshdLimits:
    """Settings of the host's sshd for this login; `source` is where they were read."""

    max_sessions: int
    max_startups: str
    allow_tcp_forwarding: str
    source: str


@dataclass(frozen=True)
class HostFacts:
    """What is known of a host; `None` where it did not say.

    system: `None` where `uname` (SYSNAME:MACHINE:LONG_BIT, as in `System.unames`) has no name here.
    base: the directory for runs and artifacts; `base_problem` says why there is none.
    user_namespaces: tried, with a mount namespace; `user_namespaces_problem` has the words of who refused.
    """

    uname: str | None = None
    system: System | None = None
    kernel: str | None = None
    user: str | None = None
    shell: str | None = None
    base: str | None = None
    base_problem: str = ""
    free_bytes: int | None = None
    user_namespaces: bool | None = None
    user_namespaces_problem: str = ""
    python: str | None = None
    nix: Nix | None = None
    clock: Clock | None = None
    sshd: SshdLimits | None = None


def facts_of(answers: Sequence[tuple[str, str]], asked: tuple[float, float] | None) -> HostFacts:
    """The facts in the marked lines of probe.sh (word, rest), as many as came.

    `asked` is when this machine asked for the time there and when it had the answer, in seconds of its own clock.
    """
    said = dict(answers)
    uname = said.get("system")
    userns, _, userns_problem = said.get("userns", "").partition(" ")
    return HostFacts(
        uname=uname,
        system=_system(uname),
        kernel=said.get("kernel") or None,
        user=said.get("user") or None,
        shell=said.get("shell") or None,
        base=said.get("base"),
        base_problem=said.get("no-base", "").rstrip("; "),
        free_bytes=_free_bytes(said.get("free", "")),
        user_namespaces={"yes": True, "no": False}.get(userns),
        user_namespaces_problem=userns_problem,
        python=_last_word(said.get("python", "")),
        nix=_nix(said),
        clock=None if asked is None else _clock(said, *asked),
        sshd=_sshd([rest for word, rest in answers if word == "sshd"], said.get("sshd-read")),
    )


def _system(uname: str | None) -> System | None:
    try:
        return System.from_said(uname or "")
    except UnknownSystemError:
        return None


def _last_word(text: str) -> str | None:
    return text.split()[-1] if text.split() else None


def _free_bytes(line: str) -> int | None:
    """The available KiB in a line of `df -Pk`: before the percentage (a device's name may hold spaces)."""
    words = line.split()
    for before, word in pairwise(words):
        if word.endswith("%") and before.isdecimal():
            return int(before) * 1024
    return None


def _nix(said: Mapping[str, str]) -> Nix | None:
    if "no-nix" in said:
        return Nix(NixAccess.NONE)
    access, _, why = said.get("nix-access", "").partition(" ")
    if not access:
        return None
    return Nix(NixAccess(access), said.get("nix"), _last_word(said.get("nix-version", "")), why)


def _clock(said: Mapping[str, str], asked_s: float, answered_s: float) -> Clock | None:
    """The host looked at its clock between asking and answer; a clock that shows whole seconds is between two."""
    word, more_s = ("clock", 0.0) if "clock" in said else ("seconds", 0.5)
    try:
        there_s = float(said.get(word, ""))
    except ValueError:
        return None
    offset_s = there_s + more_s - (asked_s + answered_s) / 2
    return Clock(offset_s, (answered_s - asked_s) / 2 + more_s)


def _sshd(lines: Sequence[str], source: str | None) -> SshdLimits | None:
    if source is None:
        return None
    found: dict[str, str] = {}
    for line in lines:
        key, *values = line.replace("=", " ", 1).replace('"', " ").split()
        if values:
            found.setdefault(key.lower(), values[0])  # sshd takes the first
    limits = {**_SSHD_DEFAULTS, **found}
    sessions = limits["maxsessions"]
    if not sessions.isdecimal():
        return None
    return SshdLimits(int(sessions), limits["maxstartups"], limits["allowtcpforwarding"].lower(), source)


def closure_way(facts: HostFacts) -> str | None:
    """How a Nix closure gets to the host: `nix` (copied into its store), `build` (built there from its derivation),
    `user` (into a store of the user's own); `None` where none of them will do, or not enough is known."""
    if facts.nix is None:
        return None
    if facts.nix.access in (NixAccess.ROOT, NixAccess.OWNER, NixAccess.TRUSTED):
        return "nix"
    if facts.nix.access is NixAccess.UNTRUSTED:
        return "build"
    return "user" if facts.user_namespaces else None


def remarks(facts: HostFacts, expected: System | None) -> list[str]:
    """What somebody who wants to use the host has to know; `expected` is the inventory's `system`."""
    found = []
    if facts.uname is not None and expected is not None and facts.uname not in expected.unames.split():
        found.append(f"inventory.yaml says {expected}")
    if facts.uname is not None and facts.system is None:
        found.append("its system has no name here")
    if facts.base_problem:
        found.append(f"no directory there will do ({facts.base_problem})")
    if facts.nix is not None and closure_way(facts) is None:
        why = facts.nix.why or f"Nix: {facts.nix.access.value}"
        userns = facts.user_namespaces_problem or "none"
        found.append(f"takes no Nix closures ({why}; user namespaces: {userns})")
    if facts.sshd is not None and facts.sshd.allow_tcp_forwarding in ("no", "local"):
        found.append(f"AllowTcpForwarding {facts.sshd.allow_tcp_forwarding}: the services cannot be reached from there")
    return found
