from __future__ import annotations

import platform

import pytest

from remote_runner.errors import UnknownSystemError
from remote_runner.inventory.systems import SYSTEMS, System

# sysname, machine, LONG_BIT -> Nix's name, GOOS, GOARCH, GOARM
UNAMES = [
    ("Linux", "x86_64", 64, "x86_64-linux", "linux", "amd64", ""),
    ("Linux", "x86_64", 32, "i686-linux", "linux", "386", ""),
    ("Linux", "x86_64", 0, "x86_64-linux", "linux", "amd64", ""),
    ("Linux", "i686", 32, "i686-linux", "linux", "386", ""),
    ("Linux", "i386", 0, "i686-linux", "linux", "386", ""),
    ("Linux", "aarch64", 64, "aarch64-linux", "linux", "arm64", ""),
    ("Linux", "aarch64", 32, "armv7l-linux", "linux", "arm", "7"),
    ("Linux", "armv8l", 32, "armv7l-linux", "linux", "arm", "7"),
    ("Linux", "armv7l", 32, "armv7l-linux", "linux", "arm", "7"),
    ("Linux", "armv6l", 32, "armv6l-linux", "linux", "arm", "6"),
    ("Linux", "armv5tejl", 32, "armv5tel-linux", "linux", "arm", "5"),
    ("Linux", "riscv64", 64, "riscv64-linux", "linux", "riscv64", ""),
    ("Linux", "ppc64le", 64, "powerpc64le-linux", "linux", "ppc64le", ""),
    ("Linux", "ppc64", 64, "powerpc64-linux", "linux", "ppc64", ""),
    ("Linux", "s390x", 64, "s390x-linux", "linux", "s390x", ""),
    ("Linux", "loongarch64", 64, "loongarch64-linux", "linux", "loong64", ""),
    ("Darwin", "arm64", 64, "aarch64-darwin", "darwin", "arm64", ""),
    ("Darwin", "x86_64", 64, "x86_64-darwin", "darwin", "amd64", ""),
    ("FreeBSD", "amd64", 64, "x86_64-freebsd", "freebsd", "amd64", ""),
    ("FreeBSD", "arm64", 0, "aarch64-freebsd", "freebsd", "arm64", ""),
    ("OpenBSD", "amd64", 0, "x86_64-openbsd", "openbsd", "amd64", ""),
    ("NetBSD", "i386", 0, "i686-netbsd", "netbsd", "386", ""),
]


@pytest.mark.parametrize(("sysname", "machine", "bits", "name", "goos", "goarch", "goarm"), UNAMES)
def test_a_machine_gets_its_names(
    sysname: str, machine: str, bits: int, name: str, goos: str, goarch: str, goarm: str
) -> None:
    system = System.from_uname(sysname, machine, bits)
    assert str(system) == name
    assert (system.goos, system.goarch, system.goarm) == (goos, goarch, goarm)
    assert System.parse(name) == system
    assert (system.arch, system.os) == tuple(name.split("-"))


@pytest.mark.parametrize(
    ("sysname", "machine", "bits", "given"),
    [
        ("Linux", "x86_64", 64, {"x86_64-linux", "i686-linux"}),
        ("Linux", "x86_64", 0, {"x86_64-linux", "i686-linux"}),
        ("Linux", "x86_64", 32, {"i686-linux"}),  # its libraries are
        ("Linux", "aarch64", 64, {"aarch64-linux", "armv7l-linux", "armv6l-linux", "armv5tel-linux"}),
        ("Linux", "aarch64", 32, {"armv7l-linux", "armv6l-linux", "armv5tel-linux"}),
        ("Linux", "armv6l", 32, {"armv6l-linux", "armv5tel-linux"}),
        ("Darwin", "arm64", 64, {"aarch64-darwin"}),
        ("Darwin", "x86_64", 64, {"x86_64-darwin"}),
        ("FreeBSD", "amd64", 64, {"x86_64-freebsd"}),
    ],
)
def test_what_a_machine_runs(sysname: str, machine: str, bits: int, given: set[str]) -> None:
    system = System.from_uname(sysname, machine, bits)
    assert {name for name in SYSTEMS if system.runs(System.parse(name))} == given


def test_every_known_name_reads_back() -> None:
    assert len(SYSTEMS) == len(set(SYSTEMS)) > 20
    assert [str(System.parse(name)) for name in SYSTEMS] == list(SYSTEMS)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("linux/amd64", ("x86_64-linux",)),
        ("arm64-darwin", ("aarch64-darwin",)),
        ("x86_64", ("x86_64-linux", "x86_64-darwin")),
        ("Linux x86_64", ("x86_64-linux",)),
        ("x86_64-linus", ("x86_64-linux", "x86_64-darwin")),
        ("aarch64-linux\n", ("aarch64-linux", "aarch64-linux")),
        ("", ()),
        ("-", ()),
        ("vax-vms", ()),
    ],
)
def test_another_name_is_refused_with_what_may_be_meant(text: str, nearest: tuple[str, ...]) -> None:
    with pytest.raises(UnknownSystemError) as caught:
        System.parse(text)
    assert set(caught.value.nearest) <= set(nearest) | set(SYSTEMS)
    if nearest:
        assert caught.value.nearest[0] == nearest[0]
        assert nearest[0] in str(caught.value)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(("sysname", "machine"), [("SunOS", "i86pc"), ("Linux", "alpha"), ("", "")])
def test_a_machine_without_a_name_is_refused(sysname: str, machine: str) -> None:
    with pytest.raises(UnknownSystemError, match="not a known system"):
        System.from_uname(sysname, machine)


def test_this_machine_has_a_system() -> None:
    local = System.local()
    assert str(local) in SYSTEMS
    assert local.os == platform.system().lower()
