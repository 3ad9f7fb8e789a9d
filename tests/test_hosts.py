"""The hosts under test are what they claim to be."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.delay import DelayProxy
from tests.hosts import Keys, TestHost, UserSshd
from tests.hosts_netns import Lan, NetnsHost
from tests.needs import need


def test_a_user_sshd_answers_and_leaves_nothing(user_sshd: UserSshd) -> None:
    assert user_sshd.ssh("echo here") == b"here\n"
    assert user_sshd.connections() >= 1
    server = user_sshd.server
    assert server is not None
    user_sshd.kill()
    assert server.returncode is not None
    with pytest.raises(subprocess.CalledProcessError):
        user_sshd.ssh("true")
    user_sshd.boot()
    assert user_sshd.ssh("echo again") == b"again\n"


def test_ssh_by_name_reads_only_the_tests_configuration(
    user_sshd: UserSshd, known_by_name: Callable[[TestHost], str]
) -> None:
    name = known_by_name(user_sshd)
    done = subprocess.run(["ssh", name, "echo by name"], check=True, capture_output=True)
    assert done.stdout == b"by name\n"


def test_a_namespace_is_a_machine_of_its_own(netns_host: NetnsHost) -> None:
    said = netns_host.ssh("hostname; echo $HOME; touch ~/mark /tmp/mark; set -- $SSH_CONNECTION; echo $3 $4")
    assert said.decode().split() == ["t1", "/root", netns_host.address, "22"]
    assert (netns_host.home / "mark").exists()
    assert netns_host.here("/tmp/mark").exists()
    assert not Path("/tmp/mark").exists()


def test_processes_outlive_their_session_until_the_power_cut(netns_host: NetnsHost) -> None:
    netns_host.ssh("setsid sleep 4711 </dev/null >/dev/null 2>&1 &")
    deadline = time.monotonic() + 10
    while "sleep 4711" not in (process.command for process in netns_host.processes()):
        assert time.monotonic() < deadline
        time.sleep(0.01)  # until then it is the shell that becomes it
    assert [process.command for process in netns_host.processes()] == ["sleep 4711"]
    netns_host.kill()
    assert netns_host.processes() == []
    netns_host.boot()
    assert netns_host.ssh("echo back") == b"back\n"


def test_a_pulled_cable_stops_the_bytes(netns_host: NetnsHost) -> None:
    netns_host.link_down()
    argv = netns_host.ssh_argv("true")
    done = subprocess.run([*argv[:1], "-o", "ConnectTimeout=1", *argv[1:]], capture_output=True, check=False)
    assert done.returncode == 255
    netns_host.link_up()
    assert netns_host.ssh("echo back") == b"back\n"


@pytest.mark.parametrize("shell", ["bash", "dash", "fish", "tcsh", "zsh", "busybox"])
def test_the_login_shell_and_the_user_can_be_chosen(shell: str, lan: Lan, keys: Keys, tmp_path: Path) -> None:
    need(shell)
    path = shell if shell == "busybox" else f"/usr/bin/{shell}"
    with NetnsHost.start(lan, tmp_path / "t", name="t2", ordinary_user=True, login_shell=path, keys=keys) as host:
        assert host.ssh("id -un; echo $HOME").decode().split() == ["tester", "/home/tester"]
        words = host.ssh("cat /proc/self/stat | cut -d' ' -f4 | xargs -I @ cat /proc/@/cmdline").replace(b"\0", b" ")
        assert (b"ash" if shell == "busybox" else shell.encode()) in words.split()[0]


def test_a_delayed_wire_takes_its_round_trips(user_sshd: UserSshd) -> None:
    with DelayProxy(user_sshd.address, user_sshd.port, rtt_s=0.1) as proxy:
        import socket

        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", proxy.port)) as client:
            assert client.recv(4) == b"SSH-"
            banner_s = time.monotonic() - began
        assert 0.2 <= banner_s < 0.4
        assert proxy.connections == 1
