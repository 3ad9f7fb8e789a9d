from __future__ import annotations

import pytest

from remote_runner.host_facts import (
    Clock,
    HostFacts,
    Nix,
    NixAccess,
    SshdLimits,
    closure_way,
    facts_of,
    remarks,
)
from remote_runner.inventory.systems import System

X86 = System("x86_64", "linux")

# What a Debian machine says, line by line.
SAID = [
    ("clock", "1000.500000000"),
    ("system", "Linux:aarch64:64"),
    ("kernel", "6.1.0-13-arm64"),
    ("user", "ann"),
    ("shell", "/usr/bin/fish"),
    ("base", "/home/ann/.cache/remote runner"),
    ("free", "/dev/disk 1 20000 10000 7000 59% /home"),
    ("userns", "yes"),
    ("python", "Python 3.11.2"),
    ("sshd", "maxsessions 10"),
    ("sshd", "maxstartups 10:30:100"),
    ("sshd", "allowtcpforwarding yes"),
    ("sshd-read", "sshd -T"),
    ("nix", "/usr/bin/nix-store"),
    ("nix-version", "nix-store (Nix) 2.8.0"),
    ("nix-access", "untrusted"),
    ("end", ""),
]


def test_everything_that_is_said() -> None:
    assert facts_of(SAID, (1000.0, 1000.25)) == HostFacts(
        uname="Linux:aarch64:64",
        system=System("aarch64", "linux"),
        kernel="6.1.0-13-arm64",
        user="ann",
        shell="/usr/bin/fish",
        base="/home/ann/.cache/remote runner",
        free_bytes=7000 * 1024,
        user_namespaces=True,
        python="3.11.2",
        nix=Nix(NixAccess.UNTRUSTED, "/usr/bin/nix-store", "2.8.0"),
        clock=Clock(0.375, 0.125),
        sshd=SshdLimits(10, "10:30:100", "yes", "sshd -T"),
    )


@pytest.mark.parametrize("lines", range(len(SAID)))
def test_what_was_not_said_is_not_known(lines: int) -> None:
    facts = facts_of(SAID[:lines], (1000.0, 1000.25) if lines else None)
    assert (facts.nix is None) == (lines < 16)
    assert (facts.sshd is None) == (lines < 13)
    assert (facts.clock is None) == (lines < 1)
    assert closure_way(facts) == ("build" if lines == 16 else None)
    assert remarks(facts, None) == []


@pytest.mark.parametrize(
    ("said", "asked", "clock"),
    [
        (("clock", "1000.5"), (1000.0, 1001.0), Clock(0.0, 0.5)),
        (("clock", "940.25"), (1000.0, 1000.5), Clock(-60.0, 0.25)),
        (("clock", "1100.25"), (1000.0, 1000.5), Clock(100.0, 0.25)),
        # It showed 1000 at any time until 1001.
        (("seconds", "1000"), (1000.25, 1000.75), Clock(0.0, 0.75)),
        (("seconds", "1060"), (1000.5, 1000.5), Clock(60.0, 0.5)),
        (("seconds", "soon"), (1000.0, 1000.5), None),
    ],
)
def test_the_clock_is_half_the_round_trip_off(
    said: tuple[str, str], asked: tuple[float, float], clock: Clock | None
) -> None:
    assert facts_of([said], asked).clock == clock


@pytest.mark.parametrize(
    ("lines", "limits"),
    [
        ([], SshdLimits(10, "10:30:100", "yes", "/etc/ssh/sshd_config")),
        (["MaxSessions 3", "maxsessions 9"], SshdLimits(3, "10:30:100", "yes", "/etc/ssh/sshd_config")),
        (["MaxSessions=4", 'MaxStartups "5"'], SshdLimits(4, "5", "yes", "/etc/ssh/sshd_config")),
        (["AllowTcpForwarding Local", "MaxSessions"], SshdLimits(10, "10:30:100", "local", "/etc/ssh/sshd_config")),
        (["MaxSessions many"], None),
    ],
)
def test_the_limits_of_sshd(lines: list[str], limits: SshdLimits | None) -> None:
    answers = [*(("sshd", line) for line in lines), ("sshd-read", "/etc/ssh/sshd_config")]
    assert facts_of(answers, None).sshd == limits


@pytest.mark.parametrize(
    ("line", "free_bytes"),
    [
        ("/dev/sda1 1000 900 100 90% /", 102400),
        ("map auto home of ann 1000 900 100 90% /Users/ann", 102400),
        ("tmpfs - - - - /", None),
        ("", None),
    ],
)
def test_the_room_on_the_disk(line: str, free_bytes: int | None) -> None:
    assert facts_of([("free", line)], None).free_bytes == free_bytes


@pytest.mark.parametrize(
    ("access", "userns", "way"),
    [
        ("root", False, "nix"),
        ("owner", False, "nix"),
        ("trusted", False, "nix"),
        ("untrusted", True, "build"),
        ("refused", True, "user"),
        ("foreign", True, "user"),
        ("none", True, "user"),
        ("refused", False, None),
        ("foreign", False, None),
        ("none", None, None),
    ],
)
def test_how_a_closure_gets_there(access: str, userns: bool | None, way: str | None) -> None:
    assert closure_way(HostFacts(nix=Nix(NixAccess(access)), user_namespaces=userns)) == way


@pytest.mark.parametrize(
    ("facts", "remark"),
    [
        (HostFacts(uname="Linux:aarch64:64", system=System("aarch64", "linux")), "inventory.yaml says x86_64-linux"),
        (HostFacts(uname="Linux:x86_64:32", system=System("i686", "linux")), "inventory.yaml says x86_64-linux"),
        (HostFacts(base_problem="/tmp: not ours"), "no directory there will do (/tmp: not ours)"),
        (
            HostFacts(nix=Nix(NixAccess.NONE), user_namespaces=False, user_namespaces_problem="unshare: no space"),
            "takes no Nix closures (Nix: none; user namespaces: unshare: no space)",
        ),
        (
            HostFacts(nix=Nix(NixAccess.REFUSED, why="error: not allowed"), user_namespaces=False),
            "takes no Nix closures (error: not allowed; user namespaces: none)",
        ),
        (
            HostFacts(sshd=SshdLimits(10, "10:30:100", "no", "sshd -T")),
            "AllowTcpForwarding no: the services cannot be reached from there",
        ),
    ],
)
def test_what_has_to_be_known_is_remarked(facts: HostFacts, remark: str) -> None:
    assert remarks(facts, X86) == [remark]


def test_what_is_well_is_not_remarked() -> None:
    facts = facts_of([*SAID, ("system", "Linux:x86_64:64")], None)
    assert remarks(facts, X86) == []
    assert remarks(facts, System("i686", "linux")) == []
    assert remarks(facts_of([("system", "SunOS:i86pc:64")], None), None) == ["its system has no name here"]
