"""`fab hosts --probe`: every kind of host at once, what each says of itself, and those that say nothing."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from remote_runner.controller import Controller
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.known import known_of
from remote_runner.inventory.systems import System
from tests import hosts_nix
from tests.hosts import Keys, TestHost, UserSshd, free_port, which
from tests.hosts_netns import Lan, NetnsHost
from tests.needs import need
from tests.tasks.conftest import APP
from tests.tasks.fab import PlanDirectory

Known = Callable[[TestHost], str]
NOISE = "echo 'Welcome here!'; echo noise >&2; printf '\\0\\001 no line end'; alias uname=false date=false df=false\n"


def inventory(*hosts: str) -> str:
    return APP + "hosts:\n" + "".join(f"  {host}\n" for host in hosts)


def probed(plan: PlanDirectory, *words: str, status: int = 0) -> dict[str, dict[str, Any]]:
    """What `--json` tells, by host."""
    ran = plan.fab("hosts", "--probe", "--json", *words)
    assert ran.status == status, ran.words
    return {one["host"]: one for one in ran.data}


def test_every_login_shell(plan: PlanDirectory, lan: Lan, keys: Keys, known_by_name: Known, tmp_path: Path) -> None:
    shells = ("bash", "dash", "busybox", "fish", "tcsh")
    need(*shells)
    with ExitStack() as stack:
        for number, shell in enumerate(shells):
            host = NetnsHost.start(
                lan,
                tmp_path / shell,
                name=f"t-{shell}",
                keys=keys,
                ordinary_user=number % 2 == 1,
                login_shell=shell if shell == "busybox" else which(shell),
            )
            known_by_name(stack.enter_context(host))
            for name in (".bashrc", ".cshrc", ".config/fish/config.fish"):
                file = host.home / name
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(NOISE if name == ".bashrc" else "echo hello\n", encoding="utf-8")
        plan.inventory(inventory(*(f"t-{shell}: {{slots: 2}}" for shell in shells), "localhost: {}"))
        found = probed(plan)
    assert list(found) == [*(f"t-{shell}" for shell in shells), "localhost"]
    for number, shell in enumerate(shells):
        one = found[f"t-{shell}"]
        user = "tester" if number % 2 else "root"
        home = "/home/tester" if number % 2 else "/root"
        assert one["error"] is None
        assert (one["system"], one["user"], one["slots"]) == (str(System.local()), user, 2)
        assert one["kernel"] == os.uname().release
        assert one["shell"] == ("/mnt/ash" if shell == "busybox" else which(shell))
        assert one["directory"] == f"{home}/.cache/remote-runner"
        assert one["free_bytes"] > 0
        assert one["python"].startswith("3.")
        assert abs(one["clock"]["offset_s"]) <= one["clock"]["uncertainty_s"] < 1
        assert one["cores"] >= 1
        assert 0 < one["available_bytes"] <= one["memory_bytes"]
        assert one["load"] >= 0
    assert found["localhost"]["system"] == str(System.local())


def test_what_a_host_said_is_remembered(hosts_plan: PlanDirectory, controller: Controller, user_sshd: UserSshd) -> None:
    before = user_sshd.connections()
    assert probed(hosts_plan, "--host", "rex").keys() == {"rex"}
    assert user_sshd.connections() == before + 1
    entry = Inventory.load(hosts_plan.path).host("rex")
    assert known_of(controller, entry).system == System.local()


def test_dead_hosts_are_rows(
    plan: PlanDirectory,
    netns_host: NetnsHost,
    user_sshd: UserSshd,
    lan: Lan,
    keys: Keys,
    known_by_name: Known,
    tmp_path: Path,
) -> None:
    known_by_name(netns_host)
    known_by_name(user_sshd)
    netns_host.link_down()
    with NetnsHost.start(lan, tmp_path / "t2", name="t2", keys=keys, config=("ForceCommand sleep 60",)) as hung:
        known_by_name(hung)
        plan.inventory(
            inventory(
                f"{user_sshd.name}: {{directory: {tmp_path}/far}}",
                "t1: {timeouts: {connect_s: 4}}",
                "t2: {timeouts: {connect_s: 3}}",
                f"nobody: {{ssh: {{host: 127.0.0.1, port: {free_port()}}}}}",
            )
        )
        began_s = time.monotonic()
        ran = plan.fab("hosts", "--probe")
    assert time.monotonic() - began_s < 20
    assert ran.status == 1
    assert "3 of 4 hosts failed: t1, t2, nobody" in ran.words
    header, alive, down, hung_row, refused = ran.out.splitlines()
    assert header.split()[:2] == ["host", "system"]
    assert re.match(rf"{user_sshd.name} +{System.local()} ", alive)
    assert all(len(line) <= 80 for line in (header, alive, down, hung_row, refused))
    for name, row in (("t1", down), ("t2", hung_row), ("nobody", refused)):
        assert re.match(rf"{name} +failed ", row), row
    assert re.search(r"^t1: .*\bno ", ran.words, re.MULTILINE), ran.words
    assert re.search(r"^t2: it took the login, but its shell did not answer in time", ran.words, re.MULTILINE)
    assert re.search(r"^nobody: .*nothing listens at its ssh port", ran.words, re.MULTILINE)
    assert "ForceCommand" in ran.words
    assert "next: start sshd there" in ran.words


def test_a_hundred_and_fifty_dead_hosts_cost_the_time_of_one(
    plan: PlanDirectory, tmp_path: Path, keys: Keys, known_by_name: Known
) -> None:
    connect_s = 10
    with ExitStack() as stack:
        alive = stack.enter_context(UserSshd.start(tmp_path / "alive", keys=keys, config=("MaxStartups 100",)))
        known_by_name(alive)
        silent = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = silent.getsockname()
        for _ in range(3):  # its queue is full: nobody answers who comes now
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(address)
        dead = [f"dead{number}: {{ssh: {{host: 127.0.0.1, port: {address[1]}}}}}" for number in range(150)]
        there = [
            f"alive{number}: {{ssh: {{host: {alive.name}}}, directory: {tmp_path}/far{number}}}" for number in range(5)
        ]
        # Those that answer come last.
        plan.inventory(f"defaults: {{timeouts: {{connect_s: {connect_s}}}}}\n{inventory(*dead, *there)}")
        began_s = time.monotonic()
        found = probed(plan, status=1)
        took_s = time.monotonic() - began_s
    assert [name for name, one in found.items() if one["error"] is None] == [f"alive{number}" for number in range(5)]
    # 10.6 s on a quiet machine; in rounds of as many as shake hands at once it would be three times connect_s.
    assert took_s < 2 * connect_s


def test_a_system_that_the_inventory_has_wrong(hosts_plan: PlanDirectory) -> None:
    text = (hosts_plan.path / "inventory.yaml").read_text().replace("  dex:\n", "  dex:\n    system: riscv64-linux\n")
    hosts_plan.inventory(text)
    found = probed(hosts_plan, "--host", "@lab")
    assert found["dex"]["system"] == str(System.local())
    assert "inventory.yaml says riscv64-linux" in found["dex"]["remarks"]
    assert found["rex"]["remarks"] == []


def test_every_way_of_a_nix_closure(
    plan: PlanDirectory,
    nix_host: NetnsHost,
    nix_daemon_host: NetnsHost,
    foreign_nix_host: NetnsHost,
    no_nix_host: NetnsHost,
    lan: Lan,
    keys: Keys,
    known_by_name: Known,
    tmp_path: Path,
) -> None:
    with ExitStack() as stack:
        trusted = hosts_nix.with_daemon(
            lan, tmp_path / "nix4", name="nix4", keys=keys, conf=("trusted-users = root tester",)
        )
        stranger = hosts_nix.with_daemon(lan, tmp_path / "nix5", name="nix5", keys=keys, conf=("allowed-users = root",))
        hosts = [nix_host, nix_daemon_host, foreign_nix_host, no_nix_host]
        hosts += [stack.enter_context(trusted), stack.enter_context(stranger)]
        names = [known_by_name(host) for host in hosts]
        plan.inventory(inventory(*(f"{name}: {{}}" for name in names)))
        found = probed(plan)
        table = replace(plan, environ={"COLUMNS": "250"}).ok("hosts", "--probe").out
    ways = {name: (one["nix"]["access"], one["closures"]) for name, one in found.items()}
    assert ways == {
        "nix1": ("root", "nix"),
        "nix2": ("untrusted", "build"),
        "nix3": ("foreign", "user"),
        "bare": ("none", "user"),
        "nix4": ("trusted", "nix"),
        "nix5": ("refused", "user"),
    }
    assert found["nix2"]["nix"]["version"].startswith("2.")
    assert found["nix2"]["nix"]["nix_store"] == which("nix-store")
    assert found["nix5"]["nix"]["why"].startswith("error: ")
    assert [one["user_namespaces"] for one in found.values()] == [True] * 6
    assert "built there (untrusted)" in table
    assert "user store" in table


def test_a_store_of_ones_own(plan: PlanDirectory, lan: Lan, keys: Keys, known_by_name: Known, tmp_path: Path) -> None:
    need("nix")
    binds = {"/nix": tmp_path / "t1/nix"}
    binds["/nix"].mkdir(parents=True)
    as_user = "setpriv --reuid tester --regid 4242 --clear-groups env HOME=/home/tester"
    given = f"chown tester /nix && {as_user} nix-store --add /etc/hostname"
    with NetnsHost.start(
        lan, tmp_path / "t1", name="t1", keys=keys, ordinary_user=True, binds=binds, before_sshd=(given,)
    ) as host:
        known_by_name(host)
        plan.inventory(inventory("t1: {}"))
        found = probed(plan)["t1"]
    assert (found["nix"]["access"], found["closures"]) == ("owner", "nix")


def test_a_daemon_that_hangs_does_not_take_the_rest_along(
    plan: PlanDirectory, nix_daemon_host: NetnsHost, known_by_name: Known
) -> None:
    known_by_name(nix_daemon_host)
    plan.inventory(inventory("nix2: {timeouts: {connect_s: 4}}"))
    (daemon,) = (process.pid for process in nix_daemon_host.processes() if "nix-daemon" in process.command)
    os.kill(daemon, signal.SIGSTOP)
    found = probed(plan)["nix2"]
    assert found["system"] == str(System.local())
    assert found["cores"] >= 1
    assert found["nix"]["access"] == "refused"
    assert found["nix"]["why"]


def test_a_host_of_another_system(plan: PlanDirectory, arm_host: NetnsHost, known_by_name: Known) -> None:
    name = known_by_name(arm_host)
    plan.inventory(inventory(f"{name}: {{system: x86_64-linux}}"))
    found = probed(plan)[name]
    assert found["system"] == "aarch64-linux"
    assert found["remarks"] == ["inventory.yaml says x86_64-linux"]
    assert (found["nix"]["access"], found["closures"]) == ("root", "nix")
    refused = plan.fab("push", "--host", name)
    assert refused.status == 1
    assert "inventory.yaml says that it is x86_64-linux, and the host says that it is aarch64-linux" in refused.words
