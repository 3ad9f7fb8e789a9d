"""Systems (processor and operating system) as Nix names them: `x86_64-linux`, `aarch64-darwin`."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Self

from remote_runner.errors import UnknownSystemError

# Nix's name of a processor -> Go's (go tool dist list), GOARM.
_GO: dict[str, tuple[str, str]] = {
    "x86_64": ("amd64", ""),
    "aarch64": ("arm64", ""),
    "i686": ("386", ""),
    "armv7l": ("arm", "7"),
    "armv6l": ("arm", "6"),
    "armv5tel": ("arm", "5"),
    "riscv64": ("riscv64", ""),
    "powerpc64le": ("ppc64le", ""),
    "powerpc64": ("ppc64", ""),
    "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
    "mips64el": ("mips64le", ""),
    "mipsel": ("mipsle", ""),
}

# What uname -m says where that differs from Nix's name.
_MACHINES: dict[str, str] = {
    "amd64": "x86_64",
    "arm64": "aarch64",
    "armv8b": "aarch64",
    "armv8l": "armv7l",  # a 32-bit process on a 64-bit kernel
    "armv7": "armv7l",
    "armv7b": "armv7l",
    "armv6": "armv6l",
    "armv5tejl": "armv5tel",
    "i86pc": "i686",
    "i386": "i686",
    "i486": "i686",
    "i586": "i686",
    "ppc64le": "powerpc64le",
    "ppc64": "powerpc64",
}

# What a 32-bit userland on a 64-bit kernel runs (Raspberry Pi OS is installed so).
_NARROW: dict[str, str] = {"x86_64": "i686", "aarch64": "armv7l"}

_OPERATING_SYSTEMS: dict[str, str] = {
    "Linux": "linux",
    "Darwin": "darwin",
    "FreeBSD": "freebsd",
    "NetBSD": "netbsd",
    "OpenBSD": "openbsd",
}

# What else a processor runs without an emulator (Linux is built so everywhere). An emulator that a host may have
# (binfmt_misc, Rosetta) does not count: it cannot be told whether it is meant to be used.
_ALSO_RUNS: dict[str, tuple[str, ...]] = {
    "x86_64": ("i686",),
    "aarch64": ("armv7l", "armv6l", "armv5tel"),
    "armv7l": ("armv6l", "armv5tel"),
    "armv6l": ("armv5tel",),
}


SYSTEMS = tuple(f"{arch}-{name}" for name in _OPERATING_SYSTEMS.values() for arch in _GO)
"""The names `System.parse` takes, those of Linux first."""


@dataclass(frozen=True)
class System:
    """A processor (`arch`) and an operating system (`os`); `str()` is Nix's name of the pair."""

    arch: str
    os: str

    def __str__(self) -> str:
        return f"{self.arch}-{self.os}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `ARCH-OS`; raises `UnknownSystemError` with the nearest known names."""
        arch, dash, operating_system = text.partition("-")
        if not dash or arch not in _GO or operating_system not in _OPERATING_SYSTEMS.values():
            raise UnknownSystemError(text, _nearest(text))
        return cls(arch, operating_system)

    @classmethod
    def from_uname(cls, sysname: str, machine: str, long_bits: int = 0) -> Self:
        """What `uname -s`, `uname -m` and (unless 0) `getconf LONG_BIT` say of a machine.

        Raises `UnknownSystemError` for what has no name here.
        """
        arch = _MACHINES.get(machine, machine)
        if long_bits == 32:
            arch = _NARROW.get(arch, arch)
        operating_system = _OPERATING_SYSTEMS.get(sysname)
        if operating_system is None or arch not in _GO:
            raise UnknownSystemError(f"{sysname} {machine}", ())
        return cls(arch, operating_system)

    @classmethod
    def local(cls) -> Self:
        """This machine's system, as programs run here by this Python's userland see it."""
        name = os.uname()
        return cls.from_uname(name.sysname, name.machine, 64 if sys.maxsize > 2**32 else 32)

    def runs(self, other: System) -> bool:
        """Whether a machine of this system runs, without an emulator, what is built for the other."""
        return other.os == self.os and other.arch in _runs(self)

    @property
    def goos(self) -> str:
        """Go's name of the operating system (`GOOS`)."""
        return self.os

    @property
    def goarch(self) -> str:
        """Go's name of the processor (`GOARCH`)."""
        return _GO[self.arch][0]

    @property
    def goarm(self) -> str:
        """The version that `GOARM` wants on 32-bit ARM, "" elsewhere."""
        return _GO[self.arch][1]


def _runs(system: System) -> tuple[str, ...]:
    """The processors whose programs a machine of that system runs."""
    return (system.arch, *(_ALSO_RUNS.get(system.arch, ()) if system.os == "linux" else ()))


def _nearest(text: str) -> tuple[str, ...]:
    import difflib

    # "linux/amd64", "arm64-darwin", "x86_64" and "Linux x86_64" are what people write instead.
    words = [word for word in text.replace("/", "-").replace(" ", "-").split("-") if word]
    arch = next((a for a in (_as_arch(word) for word in words) if a), None)
    names = {word.lower() for word in words} & set(_OPERATING_SYSTEMS.values())
    if arch:
        return tuple(f"{arch}-{name}" for name in sorted(names) or ("linux", "darwin"))
    return tuple(difflib.get_close_matches(text, SYSTEMS, n=2))


def _as_arch(word: str) -> str | None:
    word = _MACHINES.get(word.lower(), word.lower())
    if word in _GO:
        return word
    return next((arch for arch, (goarch, _) in _GO.items() if goarch == word), None)
