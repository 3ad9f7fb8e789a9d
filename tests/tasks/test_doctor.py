"""`fab doctor` on real hosts: what is well, what is not, and how long it takes."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_runner.controller import Controller
from tests.hosts import Keys, TestHost, free_port
from tests.hosts_netns import Lan, NetnsHost
from tests.tasks.conftest import APP
from tests.tasks.fab import PlanDirectory

PORT = 8188
MANIFEST = f"""
name = "greeter"
[[testcases]]
name = "greet"
instances = {{ min = 1, max = 5, default = 1 }}
[testcases.params.server_port]
type = "int"
default = {PORT}
"""


def found(plan: PlanDirectory, *words: str, status: int = 0) -> dict[tuple[str, str], dict[str, Any]]:
    """What `--json` tells, by place and check."""
    ran = plan.fab("doctor", "--json", *words)
    assert ran.status == status, f"{ran.out}\n{ran.words}"
    return {(one["where"], one["check"]): one for one in ran.data}


@pytest.fixture
def two(
    netns_host: NetnsHost, lan: Lan, tmp_path: Path, keys: Keys, known_by_name: Callable[[TestHost], str]
) -> Iterator[tuple[NetnsHost, NetnsHost]]:
    """Two machines in one network."""
    known_by_name(netns_host)
    with NetnsHost.start(lan, tmp_path / "t2", name="t2", keys=keys) as other:
        known_by_name(other)
        yield netns_host, other


def test_two_hosts_that_are_well_reach_each_other(plan: PlanDirectory, two: tuple[NetnsHost, NetnsHost]) -> None:
    plan.write("manifest.toml", MANIFEST)
    plan.inventory(f"{APP}hosts: {{t1: {{}}, t2: {{}}}}\n")
    checks = found(plan)
    for host, other in (("t1", "t2"), ("t2", "t1")):
        for check in ("login", "host key", "directory", "agent", "space", "clock", "limits", "namespaces", "Nix"):
            assert (host, check) in checks
        assert checks[host, f"to hosts :{PORT}"]["outcome"] == "ok"
        assert checks[host, f"to hosts :{PORT}"]["found"] == f"reaches {other}"
    assert {check for where, check in checks if where == "here"} >= {
        *("Python", "ssh", "Go", "agent", "Nix", "daemon", "port 5050", "port 8086", "port 6379"),
        *("space, cache", "space, plan", "runtime dir", "brokers", "leftovers"),
    }
    for machine in two:
        assert machine.processes() == [], "something was left there"
    table = plan.ok("doctor").out
    assert max(map(len, table.splitlines())) <= 80


def test_what_is_not_reached_and_a_port_that_is_taken_are_told(
    plan: PlanDirectory, two: tuple[NetnsHost, NetnsHost]
) -> None:
    plan.write("manifest.toml", MANIFEST)
    # The first is told to be where the second one is: somebody answers there, and it is somebody else.
    plan.inventory(f"{APP}hosts: {{t1: {{address: {two[1].address}}}, t2: {{}}}}\n")
    checks = found(plan, status=1)
    assert checks["t1", f"to hosts :{PORT}"]["outcome"] == "ok"
    away = checks["t2", f"to hosts :{PORT}"]
    assert (away["outcome"], away["found"]) == (
        "fail",
        f"does not reach 1 of 1: t1 at {two[1].address}: something else answers there",
    )
    assert "address" in away["next_step"]


def test_a_host_that_is_down_takes_the_time_of_one_and_says_what_to_do(
    plan: PlanDirectory, two: tuple[NetnsHost, NetnsHost], tmp_path: Path
) -> None:
    nobody = f"nobody: {{ssh: {{host: 127.0.0.1, port: {free_port()}}}}}"
    dead = "".join(f"dead{n}: {{ssh: {{host: t2}}, timeouts: {{connect_s: 8}}}}, " for n in range(5))
    plan.inventory(f"{APP}hosts: {{t1: {{}}, {dead}{nobody}}}\n")
    two[1].link_down()
    began_s = time.monotonic()
    ran = plan.fab("doctor")
    assert time.monotonic() - began_s < 5 * 8, "not one after the other"
    assert ran.status == 1
    assert "6 checks of" in ran.words
    rows = {tuple(line.split()[:3]) for line in ran.out.splitlines()}
    assert {("t1", "all", "ok"), ("dead4", "login", "fail"), ("nobody", "login", "fail")} <= rows
    assert "start sshd there" in ran.out
    assert "Traceback" not in ran.words


def test_fix_removes_what_is_gone_and_says_what(plan: PlanDirectory, controller: Controller) -> None:
    plan.inventory(f"{APP}hosts: {{localhost: {{}}}}\n")
    (controller.runtime / "broker").mkdir(parents=True)
    dead = controller.runtime / "broker" / "0123456789abcdef"
    dead.touch()
    before = found(plan)["here", "leftovers"]
    assert "1 of them of brokers" in before["found"]
    assert dead.exists()
    after = found(plan, "--fix")["here", "leftovers"]
    assert after["fixed"]
    assert re.match(r"removed (\d+) of \1 leftovers? of earlier runs, 1 of them of brokers", after["found"]), after
    assert not dead.exists()
    assert "brokers" not in found(plan)["here", "leftovers"]["found"]
