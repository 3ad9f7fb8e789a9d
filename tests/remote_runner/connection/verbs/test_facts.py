"""What a host says of itself, and what is believed of it."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import pytest

from remote_runner.connection.verbs.facts import (
    WHAT,
    Clock,
    ClockExchange,
    HostFacts,
    Nix,
    NixAccess,
    clock_of,
)
from remote_runner.inventory.systems import System
from tests.remote_runner.connection.fake_link import GREETING

SAID: dict[str, Any] = {
    "load": {"1": 0.5, "5": 1, "15": 2},
    "memory": {"total": 8 << 30, "available": 2 << 30, "swap_total": 0, "swap_free": 0},
    "cores": {"usable": 4, "online": 8},
    "kernel": {"name": "Linux", "release": "6.1.0", "version": "#1 SMP"},
    "disk": {"path": "/home/u", "free": 5 << 30, "total": 9 << 30},
    "shell": {"path": "/bin/zsh"},
    "namespaces": {"user": False, "problem": "operation not permitted"},
    "python": {"path": "/usr/bin/python3", "version": "3.11.2"},
    "nix": {"access": "trusted", "path": "/nix/bin/nix-store", "version": "2.24.1", "why": ""},
    "limits": {"nofile": 1024, "nproc": None},
    "system": {"name": "Debian GNU/Linux 12 (bookworm)"},
    "processor": {"name": "Cortex-A72"},
    "governor": {"name": "ondemand"},
    "virtualization": {"kind": "none"},
}


def test_what_a_host_says() -> None:
    looks = [ClockExchange(10.0, 15.5, 11.0), ClockExchange(20.0, 25.25, 20.5), ClockExchange(30.0, 40.0, 34.0)]
    assert HostFacts.from_said(GREETING, SAID, looks) == HostFacts(
        system=System("x86_64", "linux"),
        hostname="dex",
        user="u",
        base="/home/u/.cache/remote-runner",
        kernel="6.1.0",
        shell="/bin/zsh",
        cores=4,
        memory_bytes=8 << 30,
        available_bytes=2 << 30,
        load=0.5,
        free_bytes=5 << 30,
        user_namespaces=False,
        user_namespaces_problem="operation not permitted",
        python="3.11.2",
        nix=Nix(NixAccess.TRUSTED, "/nix/bin/nix-store", "2.24.1"),
        clock=Clock(5.0, 0.25),
        most_files=1024,
        system_name="Debian GNU/Linux 12 (bookworm)",
        processor="Cortex-A72",
        cores_online=8,
        governor="ondemand",
        virtualization="none",
        swap_bytes=0,
    )


def test_a_host_that_says_nothing() -> None:
    facts = HostFacts.from_said(GREETING, {})
    assert facts == HostFacts(facts.system, "dex", "u", "/home/u/.cache/remote-runner")
    assert (facts.closure_way(), facts.remarks(None)) == (None, [])


@pytest.mark.parametrize(
    "nonsense", [math.nan, math.inf, -1, -1e300, 10**400, "7", True, None, [], {}, "x" * 10_000, "\x1b[2J", [{}]]
)
def test_nonsense_of_a_hostile_host_is_not_known(nonsense: Any) -> None:
    lies = {what: dict.fromkeys(fact, nonsense) for what, fact in SAID.items()}
    facts = HostFacts.from_said(GREETING, lies)
    text = json.dumps(asdict(replace(facts, nix=None)), allow_nan=False)
    assert len(text) < 4000
    assert "\\u001b" not in text
    assert (facts.load, facts.cores, facts.memory_bytes, facts.free_bytes, facts.nix) == (None,) * 5
    assert HostFacts.from_said(GREETING, dict.fromkeys(WHAT, nonsense)).remarks(None) == []
    assert clock_of({"clock": {"ns": nonsense}}) is None


def test_the_clock_of_a_host() -> None:
    assert clock_of({"clock": {"ns": 1_500_000_000}}) == 1.5
    assert clock_of({}) is None


@pytest.mark.parametrize(
    ("access", "namespaces", "way"),
    [
        (NixAccess.ROOT, None, "nix"),
        (NixAccess.OWNER, None, "nix"),
        (NixAccess.TRUSTED, False, "nix"),
        (NixAccess.UNTRUSTED, None, "build"),
        (NixAccess.REFUSED, True, "user"),
        (NixAccess.FOREIGN, False, None),
        (NixAccess.NONE, True, "user"),
        (NixAccess.NONE, None, None),
    ],
)
def test_how_a_closure_gets_there(access: NixAccess, namespaces: bool | None, way: str | None) -> None:
    facts = replace(HostFacts.from_said(GREETING, {}), nix=Nix(access), user_namespaces=namespaces)
    assert facts.closure_way() == way
    assert bool(facts.remarks(None)) == (way is None)


def test_a_system_that_the_inventory_says_otherwise() -> None:
    facts = HostFacts.from_said(GREETING, {})
    assert facts.remarks(System("aarch64", "linux")) == ["inventory.yaml says aarch64-linux"]
    assert facts.remarks(System("i686", "linux")) == []
