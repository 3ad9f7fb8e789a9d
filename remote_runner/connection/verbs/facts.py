"""Facts about a host, as values. Pure.

Each number is checked: one that is not a number, or impossible, counts as unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from remote_runner.connection.link import Greeting
from remote_runner.connection.verbs.validation import real, whole, words
from remote_runner.inventory.systems import System

# In the order in which docs/protocol.md has them; the clock is asked for by itself.
WHAT = (
    *("load", "memory", "cores", "kernel", "disk", "shell", "namespaces", "python", "nix", "limits"),
    *("system", "processor", "governor", "virtualization"),
)

_MOST_LOAD = 1e6
_MOST_CORES = 1 << 20
_LONGEST_TEXT = 400


class NixAccess(Enum):
    """What a login may do with the Nix store there, or that there is no Nix."""

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
class ClockExchange:
    """One look at a host's clock: when it was asked for and answered here, and what it showed between."""

    asked_s: float
    there_s: float
    answered_s: float

    @property
    def clock(self) -> Clock:
        """What it says of the host's clock."""
        return Clock(self.there_s - (self.asked_s + self.answered_s) / 2, abs(self.answered_s - self.asked_s) / 2)


@dataclass(frozen=True)
class HostFacts:
    """What is known of a host; `None` where it did not say.

    base: the directory for runs and artifacts, `free_bytes` what this user may still write there.
    memory_bytes, available_bytes: all of it, and what a new program can have. load: of the last minute.
    cores: those that a program there may use, `cores_online` all that the machine runs.
    governor: what sets the cores' frequency. virtualization: the container or hypervisor, or "none".
    user_namespaces: tried, with a mount namespace; `user_namespaces_problem` has the words of who refused.
    most_files, most_processes: the limits of a process that is started there; `None` also where they are unlimited.
    """

    system: System
    hostname: str
    user: str
    base: str
    kernel: str | None = None
    shell: str | None = None
    cores: int | None = None
    memory_bytes: int | None = None
    available_bytes: int | None = None
    load: float | None = None
    free_bytes: int | None = None
    user_namespaces: bool | None = None
    user_namespaces_problem: str = ""
    python: str | None = None
    nix: Nix | None = None
    clock: Clock | None = None
    most_files: int | None = None
    most_processes: int | None = None
    system_name: str | None = None
    processor: str | None = None
    cores_online: int | None = None
    governor: str | None = None
    virtualization: str | None = None
    swap_bytes: int | None = None

    @classmethod
    def from_said(
        cls, greeting: Greeting, said: Mapping[str, Any], exchanges: Sequence[ClockExchange] = ()
    ) -> HostFacts:
        """The facts in the answer to the request `facts`; of the looks at the clock the surest counts."""
        namespaces, memory = _fact(said, "namespaces"), _fact(said, "memory")
        able = namespaces.get("user")
        return cls(
            system=greeting.system,
            hostname=words(greeting.hostname, _LONGEST_TEXT),
            user=words(greeting.user, _LONGEST_TEXT),
            base=words(str(greeting.base)),
            kernel=_text(said, "kernel", "release"),
            shell=_text(said, "shell", "path"),
            cores=whole(_fact(said, "cores").get("usable"), _MOST_CORES) or None,
            memory_bytes=whole(memory.get("total")),
            available_bytes=whole(memory.get("available")),
            load=real(_fact(said, "load").get("1"), 0, _MOST_LOAD),
            free_bytes=whole(_fact(said, "disk").get("free")),
            user_namespaces=able if isinstance(able, bool) else None,
            user_namespaces_problem=words(namespaces.get("problem"), _LONGEST_TEXT),
            python=_text(said, "python", "version"),
            nix=_nix(_fact(said, "nix")),
            clock=min((look.clock for look in exchanges), key=lambda clock: clock.uncertainty_s, default=None),
            most_files=whole(_fact(said, "limits").get("nofile")),
            most_processes=whole(_fact(said, "limits").get("nproc")),
            system_name=_text(said, "system", "name"),
            processor=_text(said, "processor", "name"),
            cores_online=whole(_fact(said, "cores").get("online"), _MOST_CORES) or None,
            governor=_text(said, "governor", "name"),
            virtualization=_text(said, "virtualization", "kind"),
            swap_bytes=whole(memory.get("swap_total")),
        )

    def closure_way(self) -> str | None:
        """How a Nix closure gets to the host: `nix` (copied into its store), `build` (built there from its derivation),
        `user` (into a store of the user's own); `None` where none of them will do, or not enough is known."""
        if self.nix is None:
            return None
        if self.nix.access in (NixAccess.ROOT, NixAccess.OWNER, NixAccess.TRUSTED):
            return "nix"
        if self.nix.access is NixAccess.UNTRUSTED:
            return "build"
        return "user" if self.user_namespaces else None

    def remarks(self, expected: System | None) -> list[str]:
        """What a user of the host has to know; `expected` is the inventory's `system`."""
        found = []
        if expected is not None and not self.system.runs(expected):
            found.append(f"inventory.yaml says {expected}")
        if self.nix is not None and self.closure_way() is None:
            why = self.nix.why or f"Nix: {self.nix.access.value}"
            userns = self.user_namespaces_problem or "none"
            found.append(f"takes no Nix closures ({why}; user namespaces: {userns})")
        return found


def clock_of(said: Mapping[str, Any]) -> float | None:
    """The host's time in the answer to a request for its clock, in seconds since 1970."""
    nanoseconds = whole(_fact(said, "clock").get("ns"), 1 << 63)
    return None if nanoseconds is None else nanoseconds / 1e9


def _fact(said: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    fact = said.get(name)
    return fact if isinstance(fact, dict) else {}


def _text(said: Mapping[str, Any], name: str, key: str) -> str | None:
    return words(_fact(said, name).get(key), _LONGEST_TEXT) or None


def _nix(fact: Mapping[str, Any]) -> Nix | None:
    try:
        access = NixAccess(fact.get("access"))
    except ValueError:
        return None
    path, version = words(fact.get("path")), words(fact.get("version"), _LONGEST_TEXT)
    return Nix(access, path or None, version or None, words(fact.get("why"), _LONGEST_TEXT))
