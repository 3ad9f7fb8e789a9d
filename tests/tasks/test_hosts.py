"""`fab hosts` without asking the hosts, and `fab hosts.login`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.hosts import UserSshd
from tests.tasks.fab import PlanDirectory


def test_an_identity_file_that_is_missing_is_warned_of(plan: PlanDirectory) -> None:
    plan.inventory("hosts: {dex: {ssh: {identity_file: kye}}}\n")
    ran = plan.ok("hosts")
    assert f"warning: dex: ssh.identity_file {plan.path}/kye is not there; ssh goes on without it" in ran.words


def test_a_host_that_is_not_listed_is_told_with_the_nearest_that_is(plan: PlanDirectory) -> None:
    plan.inventory("hosts: {dexter: }\n")
    ran = plan.ok("hosts", "--host", "dextre")
    assert ran.words == "dextre is not in inventory.yaml; did you mean dexter?\n"
    assert plan.ok("hosts", "--host", "unlike").words == ""


def test_hosts_shows_what_is_known_without_asking(hosts_plan: PlanDirectory) -> None:
    before = {one["host"]: one for one in hosts_plan.ok("hosts", "--json").data}
    assert [before["dex"][key] for key in ("system", "connected", "last_contact_s")] == [None, False, None]
    hosts_plan.ok("-H", "dex", "push")
    after = {one["host"]: one for one in hosts_plan.ok("hosts", "--json").data}
    assert after["dex"]["system"] == after["localhost"]["system"]
    assert after["dex"]["connected"] is False, "a task's connection ends with it"
    assert after["dex"]["last_contact_s"] < 60
    assert after["localhost"]["connected"] is None
    header, *rows = hosts_plan.ok("hosts", "--host", "dex").out.splitlines()
    assert "last contact" in header
    assert len(rows) == 1
    assert all(word in rows[0] for word in ("dex", "ssh usershost", "no", "ago", "lab"))


def test_login_is_for_ssh_hosts_only(hosts_plan: PlanDirectory) -> None:
    ran = hosts_plan.fab("-H", "localhost", "hosts.login")
    assert (ran.status, ran.out) == (1, "")
    assert ran.words == "hosts.login: localhost is this machine; there is nothing to log in to\n"


@pytest.fixture
def login(controller: Controller) -> Iterator[Callable[[], Path]]:
    """The one file of a login that is open; it is ended after the test."""

    def only() -> Path:
        (found,) = controller.runtime.glob("login-*")
        return found

    yield only
    subprocess.run(["ssh", "-S", str(only()), "-O", "exit", "dex"], check=True, capture_output=True)


def test_later_steps_go_through_a_login(
    hosts_plan: PlanDirectory, user_sshd: UserSshd, login: Callable[[], Path]
) -> None:
    words = "connected; later steps log in through this"
    assert words in hosts_plan.ok("hosts.login", "--host", "dex").words
    assert login().is_socket()
    # The other name is for the same host, by the same options.
    assert "was connected already" in hosts_plan.ok("hosts.login", "--host", "rex").words
    before = user_sshd.connections()
    assert hosts_plan.ok("-H", "dex", "run", "--", "echo", "hi").out == "hi\n"
    assert user_sshd.connections() == before
    known = {one["host"]: one["connected"] for one in hosts_plan.ok("hosts", "--json").data}
    assert known == {"localhost": None, "dex": True, "rex": True}


def test_a_login_is_the_users_own_master_where_there_is_one(
    hosts_plan: PlanDirectory, user_sshd: UserSshd, ssh_config: Path, login: Callable[[], Path], controller: Controller
) -> None:
    with ssh_config.open("a", encoding="utf-8") as file:
        file.write(f"Host *\n    ControlPath {controller.runtime}/own-%C\n")
    hosts_plan.ok("hosts.login", "--host", "dex")
    assert login().readlink().name.startswith("own-")
    subprocess.run(["ssh", "-O", "check", "usershost"], check=True, capture_output=True)
    before = user_sshd.connections()
    hosts_plan.ok("-H", "dex", "run", "--", "true")
    assert user_sshd.connections() == before


def test_a_login_that_fails_says_why(hosts_plan: PlanDirectory) -> None:
    inventory = (hosts_plan.path / "inventory.yaml").read_text()
    hosts_plan.inventory(f"{inventory}  gone:\n    ssh: {{host: 127.0.0.1, port: 1}}\n")
    ran = hosts_plan.fab("-H", "gone", "hosts.login")
    assert ran.status == 1
    assert "gone: the machine answers, but nothing listens" in ran.words
