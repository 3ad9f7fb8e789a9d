"""Hosts that cannot be reached or will not do what is asked: the instance says which host, why, and what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from remote_runner.inventory.systems import System
from tests.hosts import Keys, TestHost, UserSshd, free_port
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import FailingPlan

Known = Callable[[TestHost], str]
# Makes an sshd with these lines in front of its configuration.
StartSshd = Callable[[Sequence[str]], UserSshd]


@pytest.fixture
def start_sshd(tmp_path: Path, keys: Keys) -> Iterator[StartSshd]:
    """Start one with a configuration; all are stopped at the end."""
    started: list[UserSshd] = []

    def start(config: Sequence[str]) -> UserSshd:
        host = UserSshd.start(tmp_path / f"sshd{len(started)}", name="dex", config=config, keys=keys)
        started.append(host)
        return host

    yield start
    for host in started:
        host.stop()


def config_with(ssh_config: Path | None, host: TestHost, **changes: str) -> None:
    """Make `ssh dex` reach the host with these options of ssh_config(5) in place of its own."""
    assert ssh_config is not None
    lines = [f"    {key} {value}" for key, value in changes.items()]
    # Left out and not only put behind: ssh tries every IdentityFile that it is told of.
    lines += [line for line in host.config_block().splitlines()[1:] if line.split()[0] not in changes]
    ssh_config.write_text("\n".join(["Host dex", *lines, ""]), encoding="utf-8")


@pytest.fixture
def plan(failing_plan: FailingPlan) -> FailingPlan:
    """The plan with the one host `dex`."""
    failing_plan.on("dex")
    return failing_plan


def test_a_name_that_does_not_resolve(plan: FailingPlan) -> None:
    plan.hosts = "  dex: {ssh: {host: nowhere.invalid}}\n"
    plan.run().failure("dex", "'nowhere.invalid' does not resolve", "inventory.yaml")
    assert plan.record()["error"]


def test_an_unreachable_address(plan: FailingPlan, lan: Lan) -> None:
    address = f"10.77.{lan.subnet}.250"
    plan.hosts = f"  dex: {{ssh: {{host: {address}}}, timeouts: {{connect_s: 2}}}}\n"
    plan.run().failure("dex: no ", address, "check that it is on and connected")


def test_a_cable_that_is_pulled(
    plan: FailingPlan, netns_host: NetnsHost, known_by_name: Known, ssh_config: Path | None
) -> None:
    config_with(ssh_config, netns_host)
    netns_host.link_down()
    plan.hosts = "  dex: {timeouts: {connect_s: 2}}\n"
    plan.run().failure("dex: no ", "check that it is on and connected")


def test_a_refused_connection(plan: FailingPlan) -> None:
    plan.hosts = f"  dex: {{ssh: {{host: 127.0.0.1, port: {free_port()}}}}}\n"
    plan.run().failure("dex", "nothing listens at its ssh port", "start sshd there, or correct the port")


def test_an_unknown_host_key(plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None, tmp_path: Path) -> None:
    empty = tmp_path / "no known hosts"
    empty.touch()
    config_with(ssh_config, start_sshd([]), UserKnownHostsFile=f'"{empty}"')
    plan.run().failure("dex: its host key is not known", "fab hosts.login --host dex", "fingerprint")
    assert not empty.read_bytes()


def test_a_changed_host_key(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None, tmp_path: Path, keys: Keys
) -> None:
    host = start_sshd([])
    others = tmp_path / "others"
    public = keys.client.with_suffix(".pub").read_text(encoding="ascii")
    others.write_text(f"[127.0.0.1]:{host.port} {public}", encoding="ascii")
    config_with(ssh_config, host, UserKnownHostsFile=str(others))
    plan.run().failure("dex: its host key is not the one that is known", "ssh-keygen -R", str(others))


def test_a_key_that_the_host_does_not_know(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None, tmp_path: Path
) -> None:
    wrong = Keys.make(tmp_path / "wrong keys")
    config_with(ssh_config, start_sshd([]), IdentityFile=f'"{wrong.client}"')
    plan.run().failure("dex: the host refused the login", "publickey", "public key")


def test_a_host_that_takes_passwords_only(plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None) -> None:
    config_with(ssh_config, start_sshd(["PasswordAuthentication yes", "PubkeyAuthentication no"]))
    plan.run().failure("dex: the host refused the login", "password", "fab hosts.login --host dex")


def test_a_host_whose_sshd_forwards_nothing_serves_as_well(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None
) -> None:
    config_with(ssh_config, start_sshd(["AllowTcpForwarding no"]))
    ended = plan.run()
    assert ended.status == 0, ended
    assert any("forward: sync 127.0.0.1:" in message for message in ended.messages)
    assert not plan.far_runs()


@pytest.mark.parametrize("said_by", ["inventory", "param"])
def test_a_host_that_is_another_system(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None, said_by: str
) -> None:
    if said_by == "inventory":
        plan.hosts, words = "  dex: {system: riscv64-linux}\n", ("inventory.yaml says", "`system` of dex")
    else:
        plan.params["remote-runners"] = '[{"name": "dex", "arch": "riscv64-linux"}]'
        words = ("the artifact is for riscv64-linux", "remote-runners param")
    config_with(ssh_config, start_sshd([]))
    plan.run().failure("dex: ", "riscv64-linux", f"the host says that it is {System.local()}", *words)
    assert plan.record()["system"] == "riscv64-linux"
    assert [path.name for path in plan.far.iterdir()] == ["agents"], "something was copied there"


@pytest.mark.parametrize("command", ["echo This account is for backups.", "/bin/false", "exec cat", "exit 255"])
def test_a_host_that_runs_another_command(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None, command: str
) -> None:
    plan.hosts = "  dex: {timeouts: {connect_s: 2}}\n"
    config_with(ssh_config, start_sshd([f"ForceCommand {command}"]))
    plan.run().failure("dex", "ForceCommand")
    assert not plan.far_runs()


def test_the_words_of_a_forced_command_are_told(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None
) -> None:
    config_with(ssh_config, start_sshd(["ForceCommand echo This account is for backups. >&2; exit 7"]))
    plan.run().failure("This account is for backups.", "status 7")


def test_a_forced_command_is_told_where_the_system_is_known(
    plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None
) -> None:
    plan.hosts = "  dex: {system: x86_64-linux}\n"
    config_with(ssh_config, start_sshd(["ForceCommand /bin/false"]))
    plan.run().failure("dex", "ForceCommand")


def test_an_ssh_that_is_missing(plan: FailingPlan, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    plan.run(PATH=str(empty)).failure("ssh", "install OpenSSH's client", str(empty))


def test_a_fixed_port_that_somebody_else_has(plan: FailingPlan, start_sshd: StartSshd, ssh_config: Path | None) -> None:
    host = start_sshd([])
    config_with(ssh_config, host)
    # The host is this machine, so its own sshd's port is one that is taken there.
    plan.hosts = f"  dex: {{service_ports: {{sync: {host.port}}}}}\n"
    plan.run().failure("dex", f"port {host.port} on its loopback is taken", "ss -ltnp")
