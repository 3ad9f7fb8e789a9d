"""`SshHost` on real ssh servers: sessions, places, forwards, and an error for each way a host can fail."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ForwardRefusedError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostLostError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    LoginDeniedError,
    MasterGoneError,
    NoExitStatusError,
    PortHeldError,
    PortTakenError,
    SessionRefusedError,
    SshFailedError,
)
from remote_runner.host import Endpoint, Session
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.masters import SshHost
from remote_runner.mux import MuxConnection
from remote_runner.ssh import SshSettings, master_key
from remote_runner.ssh_places import Places
from tests.hosts import Keys, TestHost, UserSshd, free_port
from tests.hosts_netns import NetnsHost
from tests.masters_end import end_masters
from tests.needs import need
from tests.remote_runner.crowd import target_to_json

WAIT_S = 30.0
ROOT = Path(__file__).parent.parent.parent


def soon() -> Deadline:
    return Deadline.after(WAIT_S)


@pytest.fixture
def ssh_host(user_sshd: UserSshd, controller: Controller) -> Iterator[SshHost]:
    with SshHost(user_sshd.target, controller, os.environ) as host:
        yield host


def run(host: SshHost, command: str, data: bytes = b"", *, brief: bool = False) -> tuple[int, bytes, bytes]:
    """Status, stdout and stderr of a command (small ones: the pipes are read one after the other)."""
    with host.start_session(command, brief=brief) as session:
        session.wait_opened(soon())
        os.write(session.stdin_fd, data)
        session.close_stdin()
        stdout, stderr = read_all(session.stdout_fd), read_all(session.stderr_fd)
        return session.wait_exit(soon()), stdout, stderr


def read_all(fd: int) -> bytes:
    data = b""
    while chunk := os.read(fd, 1 << 16):
        data += chunk
    return data


def master_pid(controller: Controller, number: int = 0) -> int:
    (path,) = (path for path in controller.runtime.glob(f"*-{number}") if path.is_socket())
    with MuxConnection(path, soon()) as connection:
        return connection.alive_check(soon())


# Sessions


def test_streams_status_and_input_cross_as_they_are(ssh_host: SshHost) -> None:
    data = bytes(range(256)) * 20
    assert run(ssh_host, "cat; echo err >&2; exit 7", data) == (7, data, b"err\n")


def test_a_bulk_of_bytes_crosses_unchanged(ssh_host: SshHost) -> None:
    size = 20_000_000
    with ssh_host.start_session(f"head -c {size} /dev/zero; cat") as session:
        session.wait_opened(soon())
        session.close_stdin()
        assert len(read_all(session.stdout_fd)) == size
        assert session.wait_exit(soon()) == 0


def test_a_killed_command_is_not_a_lost_host(ssh_host: SshHost) -> None:
    with ssh_host.start_session("kill -KILL $$") as session, pytest.raises(NoExitStatusError) as caught:
        session.wait_exit(soon())
    assert caught.value.host == "usershost"
    assert run(ssh_host, "echo well")[1] == b"well\n"


def test_input_may_be_sent_before_the_session_is_opened(ssh_host: SshHost) -> None:
    with ssh_host.start_session("cat") as session:
        os.write(session.stdin_fd, b"early")
        session.close_stdin()
        session.wait_opened(soon())
        assert read_all(session.stdout_fd) == b"early"


def test_letting_go_ends_the_far_commands_input(ssh_host: SshHost, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    os.mkfifo(mark)
    with ssh_host.start_session(f"cat > /dev/null; echo gone > {shlex.quote(str(mark))}") as session:
        session.wait_opened(soon())
    assert mark.read_text() == "gone\n"


def test_one_connection_serves_all_and_outlives_us(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    before = user_sshd.connections()
    assert run(ssh_host, "true")[0] == 0
    assert run(ssh_host, "true", brief=True)[0] == 0
    with SshHost(user_sshd.target, controller, os.environ) as other:
        assert run(other, "true")[0] == 0
    ssh_host.close()
    assert run(ssh_host, "true")[0] == 0
    assert user_sshd.connections() == before + 1


def test_other_options_are_another_connection(user_sshd: UserSshd, controller: Controller, ssh_host: SshHost) -> None:
    before = user_sshd.connections()
    target = replace(user_sshd.target, options=(*user_sshd.target.options, ("Compression", "yes")))
    with SshHost(target, controller, os.environ) as other:
        assert run(ssh_host, "true")[0] == run(other, "true")[0] == 0
    assert user_sshd.connections() == before + 2


def test_a_master_is_no_part_of_our_session_and_ends_when_idle(user_sshd: UserSshd, controller: Controller) -> None:
    with SshHost(user_sshd.target, controller, os.environ, settings=SshSettings(persist_s=1)) as host:
        assert run(host, "true")[0] == 0
        pid = master_pid(controller)
        assert os.getsid(pid) != os.getsid(0)
        (path,) = (path for path in controller.runtime.glob("*-0") if path.is_socket())
        connection = MuxConnection(path, soon())
    connection.alive_check(soon())
    connection.close()
    for _ in range(int(WAIT_S)):
        if not path.exists():
            break
        with socket.socket() as waiting:  # a second at a time: nothing tells of a foreign process's end
            waiting.settimeout(1)
            waiting.bind(("127.0.0.1", 0))
            waiting.listen()
            with pytest.raises(TimeoutError):
                waiting.accept()
    assert not path.exists()


def test_an_empty_environment_and_an_ssh_by_name_are_enough(
    user_sshd: UserSshd, controller: Controller, known_by_name: Callable[[TestHost], str]
) -> None:
    target = SshTarget.from_name(known_by_name(user_sshd))
    with SshHost(target, controller, {"PATH": os.environ["PATH"]}) as host:
        assert run(host, "echo $0 there")[1].endswith(b"there\n")


def test_the_users_forwards_and_remote_command_do_not_disturb(
    user_sshd: UserSshd, controller: Controller, ssh_config: Path
) -> None:
    taken = free_port()
    ssh_config.write_text(
        user_sshd.config_block()
        + f"    RemoteCommand echo theirs\n    RequestTTY force\n    LocalForward {taken} localhost:1\n"
        + "    ExitOnForwardFailure yes\n    PermitLocalCommand yes\n    LocalCommand touch /nowhere/at/all\n"
        + "    ForkAfterAuthentication yes\n    ControlMaster auto\n    ControlPath none\n    LogLevel QUIET\n"
    )
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", taken))
        holder.listen()
        with SshHost(SshTarget.from_name("usershost"), controller, os.environ) as host:
            assert run(host, "echo ours; test -t 0 || echo no tty")[1] == b"ours\nno tty\n"
            assert host.address() == "127.0.0.1"


# Places


@contextmanager
def open_sessions(host: SshHost, count: int) -> Iterator[list[Session]]:
    with ExitStack() as stack:
        sessions = [stack.enter_context(host.start_session("cat")) for _ in range(count)]
        for session in sessions:
            session.wait_opened(soon())
        yield sessions


def test_the_ninth_long_session_opens_the_next_connection_and_brief_ones_keep_their_place(
    user_sshd: UserSshd, ssh_host: SshHost
) -> None:
    before = user_sshd.connections()
    with open_sessions(ssh_host, 8):
        assert run(ssh_host, "echo brief", brief=True)[1] == b"brief\n"
        assert user_sshd.connections() == before + 1
        with open_sessions(ssh_host, 1):
            assert user_sshd.connections() == before + 2


def test_fifty_processes_at_once_on_a_stock_sshd(user_sshd: UserSshd, controller: Controller) -> None:
    before = user_sshd.connections()
    done = subprocess.run(
        [sys.executable, "-m", "tests.remote_runner.crowd", "50"],
        input=target_to_json(user_sshd.target),
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=True,
    )
    report = json.loads(done.stdout)
    assert report["errors"] == []
    assert report["at_once"] == 50
    assert user_sshd.connections() - before == 7  # eight sessions each; a dropped handshake would be one more


def test_a_master_that_comes_up_meanwhile_is_not_passed_over(controller: Controller) -> None:
    """Instances that start together share the first master, also those that look while it comes up."""
    places = Places(controller, "key")
    for _ in range(200):
        appear = threading.Thread(target=places.socket_path(0).touch)
        appear.start()
        claimed = places.claim_long()
        appear.join()
        places.socket_path(0).unlink()
        claimed.release()
        assert claimed.master == 0


def test_a_killed_process_leaves_its_place(user_sshd: UserSshd, controller: Controller, ssh_host: SshHost) -> None:
    places = Places(controller, master_key(user_sshd.target, SshSettings(), os.environ["HOME"]))
    script = (
        "import os, sys\n"
        "from remote_runner.controller import Controller\n"
        "from remote_runner.masters import SshHost\n"
        "from tests.remote_runner.crowd import target_from_json\n"
        "host = SshHost(target_from_json(sys.stdin.readline()), Controller.from_environ(os.environ), os.environ)\n"
        "sessions = [host.start_session('cat') for _ in range(8)]\n"
        "print('held', flush=True)\n"
        "sys.stdin.read()\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    with holder:
        holder.stdin.write(target_to_json(user_sshd.target) + "\n")
        holder.stdin.flush()
        assert holder.stdout.readline() == "held\n"
        beyond = places.claim_long()
        assert beyond.master == 1
        beyond.release()
        holder.kill()
        holder.wait()
        freed = places.claim_long()
        assert freed.master == 0
        freed.release()
    assert run(ssh_host, "true")[0] == 0


@pytest.mark.parametrize("limit", [1, 3])
def test_a_host_with_fewer_sessions_gets_more_connections(
    limit: int, controller: Controller, tmp_path: Path, keys: Keys
) -> None:
    with UserSshd.start(tmp_path / "h", config=[f"MaxSessions {limit}"], keys=keys) as sshd:
        before = sshd.connections()
        with SshHost(sshd.target, controller, os.environ) as host:
            with open_sessions(host, 5) as sessions:
                for number, session in enumerate(sessions):
                    os.write(session.stdin_fd, b"%d" % number)
                    session.close_stdin()
                    assert read_all(session.stdout_fd) == b"%d" % number
                assert run(host, "echo brief", brief=True)[1] == b"brief\n"
        assert sshd.connections() - before <= 6


def test_a_host_without_any_session_is_said_so(controller: Controller, tmp_path: Path, keys: Keys) -> None:
    with UserSshd.start(tmp_path / "h", config=["MaxSessions 0"], keys=keys) as sshd:
        with SshHost(sshd.target, controller, os.environ) as host, host.start_session("true") as session:
            with pytest.raises(SessionRefusedError, match="MaxSessions"):
                session.wait_opened(soon())


# Ends of connections


def test_a_killed_master_is_a_lost_host_and_the_next_use_starts_another(
    controller: Controller, ssh_host: SshHost
) -> None:
    with ssh_host.start_session("cat") as session:
        session.wait_opened(soon())
        os.kill(master_pid(controller), signal.SIGKILL)  # leaves its socket behind
        with pytest.raises(HostLostError, match="usershost"):
            session.wait_exit(soon())
    assert run(ssh_host, "echo again")[1] == b"again\n"


def test_a_thread_that_waits_for_a_killed_master_is_told_though_another_starts_the_next(
    controller: Controller, ssh_host: SshHost
) -> None:
    anchor = ssh_host._master(0, soon())
    os.kill(master_pid(controller), signal.SIGKILL)
    while ssh_host._master(0, soon()) is anchor:
        pass  # the kernel has not closed its end yet
    with pytest.raises(MasterGoneError):
        anchor.wait_alive(soon())


def test_a_power_cut_is_a_lost_host(user_sshd: UserSshd, ssh_host: SshHost) -> None:
    with ssh_host.start_session("cat") as session:
        session.wait_opened(soon())
        user_sshd.kill()
        assert read_all(session.stdout_fd) == b""
        with pytest.raises(HostLostError):
            session.wait_exit(soon())
    with pytest.raises(HostRefusedError):
        ssh_host.start_session("true")
    user_sshd.boot()
    assert run(ssh_host, "echo again")[1] == b"again\n"


def test_a_pulled_cable_is_noticed_and_explained(netns_host: NetnsHost, controller: Controller) -> None:
    settings = SshSettings(alive_interval_s=1, alive_count=2)
    with SshHost(netns_host.target, controller, os.environ, settings=settings) as host:
        with host.start_session("cat") as session:
            session.wait_opened(soon())
            netns_host.link_down()
            with pytest.raises(HostLostError, match="not responding"):
                session.wait_exit(soon())
    with SshHost(netns_host.target, controller, os.environ, connect_s=2) as host:
        with pytest.raises(HostUnreachableError):
            host.start_session("true")


# No connection


def test_a_name_that_does_not_resolve(controller: Controller) -> None:
    need("ssh")
    with SshHost(SshTarget.from_name("no-such-host.invalid"), controller, os.environ) as host:
        with pytest.raises(HostUnresolvedError, match="no-such-host"):
            host.start_session("true")


def test_nothing_listens(user_sshd: UserSshd, controller: Controller) -> None:
    target = replace(user_sshd.target, port=free_port())
    with SshHost(target, controller, os.environ) as host, pytest.raises(HostRefusedError):
        host.start_session("true")


def test_an_unknown_host_key(user_sshd: UserSshd, controller: Controller) -> None:
    user_sshd.known_hosts.write_text("")
    options = tuple(
        (key, "ask" if key == "StrictHostKeyChecking" else value) for key, value in user_sshd.target.options
    )
    with SshHost(replace(user_sshd.target, options=options), controller, os.environ) as host:
        with pytest.raises(HostKeyUnknownError, match=r"hosts\.login --host usershost"):
            host.start_session("true")


def test_a_changed_host_key(user_sshd: UserSshd, controller: Controller, tmp_path: Path) -> None:
    other = Keys.make(tmp_path / "other").server.with_suffix(".pub").read_text()
    name = user_sshd.known_hosts.read_text().split()[0]
    user_sshd.known_hosts.write_text(f"{name} {other}")
    before = user_sshd.connections()
    with SshHost(user_sshd.target, controller, os.environ) as host, pytest.raises(HostKeyChangedError) as caught:
        host.start_session("true")
    assert f"ssh-keygen -R '{name}' -f {user_sshd.known_hosts}" in caught.value.next_step
    assert user_sshd.connections() == before + 1  # not tried again


def test_a_refused_key(user_sshd: UserSshd, controller: Controller, tmp_path: Path) -> None:
    stranger = Keys.make(tmp_path / "stranger").client
    before = user_sshd.connections()
    with SshHost(replace(user_sshd.target, identity_file=str(stranger)), controller, os.environ) as host:
        with pytest.raises(LoginDeniedError) as caught:
            host.start_session("true")
    assert caught.value.methods == ("publickey",)
    assert user_sshd.connections() == before + 1


def test_a_host_that_takes_passwords_only(controller: Controller, tmp_path: Path, keys: Keys) -> None:
    config = ["PubkeyAuthentication no", "PasswordAuthentication yes", "PermitRootLogin yes"]
    with UserSshd.start(tmp_path / "h", config=config, keys=keys) as sshd:
        with SshHost(sshd.target, controller, os.environ) as host, pytest.raises(LoginDeniedError) as caught:
            host.start_session("true")
    assert caught.value.methods == ("password",)
    assert "fab hosts.login --host usershost" in str(caught.value)


def test_a_further_connection_that_would_have_to_ask(user_sshd: UserSshd, ssh_host: SshHost) -> None:
    with open_sessions(ssh_host, 8):
        (user_sshd.directory / "authorized_keys").write_text("")
        with pytest.raises(LoginDeniedError) as caught:
            ssh_host.start_session("true")
    assert "a connection takes 8 instances at once" in caught.value.next_step
    assert "hosts.login" not in caught.value.next_step


@contextmanager
def played_server(play: Callable[[int, socket.socket], None]) -> Iterator[int]:
    """A TCP server on loopback that hands each connection, with its number from 0, to `play`; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            number = 0
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    play(number, connection)
                number += 1

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_dropped_handshakes_are_tried_again(user_sshd: UserSshd, controller: Controller) -> None:
    seen: list[int] = []

    def play(number: int, connection: socket.socket) -> None:
        seen.append(number)
        if number < 3:
            return  # as sshd drops at MaxStartups: closed before a word
        with socket.create_connection((user_sshd.address, user_sshd.port)) as far:
            back = threading.Thread(target=_pump, args=(far, connection))
            back.start()
            _pump(connection, far)
            back.join()

    with played_server(play) as port:
        with SshHost(user_sshd.through(port), controller, os.environ) as host:
            assert run(host, "echo at last")[1] == b"at last\n"
            with MuxConnection(next(path for path in controller.runtime.glob("*-0") if path.is_socket()), soon()) as m:
                m.terminate(soon())
    assert seen == [0, 1, 2, 3]


def _pump(source: socket.socket, target: socket.socket) -> None:
    try:
        while chunk := source.recv(1 << 16):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def test_a_server_that_only_drops_is_given_up_at_the_deadline(user_sshd: UserSshd, controller: Controller) -> None:
    seen: list[int] = []
    with played_server(lambda number, connection: seen.append(number)) as port:
        with SshHost(user_sshd.through(port), controller, os.environ, connect_s=1.5) as host:
            with pytest.raises(HandshakeDroppedError, match="MaxStartups"):
                host.start_session("true")
    assert len(seen) > 1


def test_a_server_that_says_nothing_ends_at_the_deadline(user_sshd: UserSshd, controller: Controller) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        target = user_sshd.through(silent.getsockname()[1])
        with SshHost(target, controller, os.environ, connect_s=1.5) as host:
            with pytest.raises((HostUnreachableError, HandshakeDroppedError)):
                host.start_session("true")
        silent.setblocking(False)
        connection, _ = silent.accept()
        with connection:
            connection.settimeout(WAIT_S)
            while connection.recv(4096):
                pass  # the end: no ssh of ours is left on it


def test_a_stopped_master_is_said_so(
    controller: Controller, ssh_host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(ssh_host, "true")[0] == 0
    ssh_host.close()
    monkeypatch.setattr("remote_runner.masters._ANSWER_S", 0.3)
    pid = master_pid(controller)
    os.kill(pid, signal.SIGSTOP)
    try:
        with pytest.raises(HostLostError, match="stopped or stuck"):
            ssh_host.start_session("true")
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("waits", ["wait_opened", "wait_exit"])
def test_who_waits_on_a_master_that_stands_still_is_told(
    user_sshd: UserSshd, controller: Controller, waits: str
) -> None:
    settings = SshSettings(alive_interval_s=1, alive_count=1)
    with SshHost(user_sshd.target, controller, os.environ, settings=settings) as host:
        with host.start_session("cat") as session:
            session.wait_opened(Deadline.after(WAIT_S))
            session.check_carrier()
            pid = master_pid(controller)
            os.kill(pid, signal.SIGSTOP)
            try:
                with host.start_session("true") if waits == "wait_opened" else nullcontext(session) as waiting:
                    with pytest.raises(HostLostError, match="does not answer") as raised:
                        getattr(waiting, waits)(Deadline.after(WAIT_S))
            finally:
                os.kill(pid, signal.SIGCONT)
        assert "stopped or stuck" in str(raised.value.next_step)


def test_login_asks_at_the_terminal_and_later_steps_use_it(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    known = user_sshd.known_hosts.read_text()
    user_sshd.known_hosts.write_text("")
    options = tuple(
        (key, "ask" if key == "StrictHostKeyChecking" else value) for key, value in user_sshd.target.options
    )
    target = replace(user_sshd.target, options=options)
    script = (
        "import os, sys\n"
        "from remote_runner.controller import Controller\n"
        "from remote_runner.masters import SshHost\n"
        "from tests.remote_runner.crowd import target_from_json\n"
        "host = SshHost(target_from_json(sys.argv[1]), Controller.from_environ(os.environ), os.environ)\n"
        "print('opened', host.login(), host.login())\n"
    )
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-c", script, target_to_json(target)])
    shown = b""
    while b"fingerprint])?" not in shown:
        shown += os.read(terminal, 4096)
    os.write(terminal, b"yes\n")
    while b"opened True False" not in shown:
        shown += os.read(terminal, 4096)
    os.waitpid(pid, 0)
    os.close(terminal)
    assert user_sshd.known_hosts.read_text().split()[1:3] == known.split()[1:3]
    before = user_sshd.connections()
    with SshHost(target, controller, os.environ) as host:
        assert run(host, "echo in")[1] == b"in\n"
        assert host.address() == "127.0.0.1"
    assert user_sshd.connections() == before


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"port": 1}, HostRefusedError, "start sshd there"),
        ({"identity_file": "/dev/null"}, LoginDeniedError, "check what was typed"),
        ({"host": "nowhere.invalid"}, HostUnresolvedError, "does not resolve"),
    ],
)
def test_a_login_that_fails_at_the_terminal_says_why(
    change: dict[str, Any], kind: type[HostError], words: str, user_sshd: UserSshd, controller: Controller
) -> None:
    with SshHost(replace(user_sshd.target, **change), controller, os.environ) as host:
        with pytest.raises(kind) as caught:
            host.login()
        assert words in str(caught.value)
        # Nothing of it is left in the way.
        with pytest.raises(kind):
            host.login()


def test_a_login_that_is_interrupted_says_so(user_sshd: UserSshd, controller: Controller, tmp_path: Path) -> None:
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nkill -INT $$\n")  # as Ctrl-C at the terminal does
    ssh.chmod(0o755)
    with SshHost(user_sshd.target, controller, {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}) as host:
        with pytest.raises(SshFailedError, match="interrupted"):
            host.login()


# Forwards


@contextmanager
def greeter(words: bytes) -> Iterator[Endpoint]:
    """A service here that says its words to each caller."""

    def play(number: int, connection: socket.socket) -> None:
        connection.sendall(words)

    with played_server(play) as port:
        yield Endpoint("127.0.0.1", port)


def dial(endpoint: Endpoint) -> bytes:
    """What is heard there; b"" where nothing answers. (The user's sshd is on this machine, so "there" is here.)"""
    try:
        with socket.create_connection((endpoint.host, endpoint.port), timeout=WAIT_S) as caller:
            return caller.recv(100)
    except ConnectionError:
        return b""


def test_a_service_here_is_reached_there_and_gone_with_its_last_user(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    with greeter(b"one") as first, greeter(b"two") as second:
        far_first = ssh_host.forward_remote(first)
        far_second = ssh_host.forward_remote(second)
        assert (dial(far_first), dial(far_second)) == (b"one", b"two")
        assert ssh_host.forward_remote(first) == far_first
        with SshHost(user_sshd.target, controller, os.environ) as other:
            assert other.forward_remote(first) == far_first
            ssh_host.close()
            assert dial(far_first) == b"one"
            wait_until_closed(far_second)
        wait_until_closed(far_first)


def test_a_forward_that_is_open_is_shared_without_asking_the_master(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    with greeter(b"one") as near, SshHost(user_sshd.target, controller, os.environ) as other:
        far = ssh_host.forward_remote(near)
        with monkeypatch.context() as patched:
            patched.setattr(MuxConnection, "ask_forward", lambda self, forward: pytest.fail(f"asked for {forward}"))
            assert other.forward_remote(near) == far
        ssh_host.close()
        assert dial(far) == b"one"


def test_the_port_of_an_earlier_masters_forward_is_not_believed(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    with greeter(b"one") as near, SshHost(user_sshd.target, controller, os.environ) as other:
        ssh_host.forward_remote(near)
        (record,) = controller.runtime.glob("*.forward")
        *words, _, _ = record.read_text().split()
        record.write_text(" ".join([*words, "1", "1"]))
        assert dial(other.forward_remote(near)) == b"one"


def test_one_look_at_the_network_is_enough_for_a_connection(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    def unchecked(host: SshHost, near: Endpoint) -> bool:
        port = host.forward_remote(near).port
        found = host.unchecked_ports([port])
        assert found in ((), (port,))
        return bool(found)

    with greeter(b"one") as one, greeter(b"two") as two:
        with SshHost(user_sshd.target, controller, os.environ) as other:
            assert unchecked(ssh_host, one)
            assert unchecked(other, two)
            ssh_host.note_private()
            assert not unchecked(ssh_host, one)
            assert not unchecked(other, two)
        ssh_host.close()
        end_masters(controller.runtime)
        with SshHost(user_sshd.target, controller, os.environ) as later:
            assert unchecked(later, one)


def wait_until_closed(endpoint: Endpoint) -> None:
    """sshd is told without an answer, so its listener goes a moment later."""
    deadline = soon()
    while dial(endpoint):
        assert not deadline.expired
    assert dial(endpoint) == b""


def test_a_killed_users_forward_goes_when_the_next_asks(
    user_sshd: UserSshd, controller: Controller, ssh_host: SshHost
) -> None:
    with greeter(b"old") as old, greeter(b"new") as new:
        far_old, far_fixed = killed_user(user_sshd.target, old, free_port())
        assert dial(far_old) == dial(far_fixed) == b"old"
        far_new = ssh_host.forward_remote(new)
        assert dial(far_new) == b"new"
        wait_until_closed(far_old)
        wait_until_closed(far_fixed)


def killed_user(target: SshTarget, near: Endpoint, far_port: int) -> tuple[Endpoint, Endpoint]:
    """A process that forwards `near` at a free and at a fixed port, and is killed."""
    script = (
        "import os, sys\n"
        "from remote_runner.controller import Controller\n"
        "from remote_runner.host import Endpoint\n"
        "from remote_runner.masters import SshHost\n"
        "from tests.remote_runner.crowd import target_from_json\n"
        "host = SshHost(target_from_json(sys.argv[1]), Controller.from_environ(os.environ), os.environ)\n"
        "near = Endpoint(sys.argv[2], int(sys.argv[3]))\n"
        "print(host.forward_remote(near).port, host.forward_remote(near, int(sys.argv[4])).port, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    argv = [sys.executable, "-c", script, target_to_json(target), near.host, str(near.port), str(far_port)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    free, fixed = map(int, done.stdout.split())
    return Endpoint("127.0.0.1", free), Endpoint("127.0.0.1", fixed)


def test_a_fixed_far_port_has_one_holder(user_sshd: UserSshd, controller: Controller, ssh_host: SshHost) -> None:
    port = free_port()
    with greeter(b"mine") as mine, greeter(b"theirs") as theirs:
        with SshHost(user_sshd.target, controller, os.environ) as other:
            far = other.forward_remote(theirs, port)
            assert far == Endpoint("127.0.0.1", port)
            assert dial(far) == b"theirs"
            with pytest.raises(PortHeldError, match=f"port {port} there is forwarded to {theirs}"):
                ssh_host.forward_remote(mine, port)
            assert ssh_host.forward_remote(theirs, port) == far
        assert dial(far) == b"theirs"
        ssh_host.close()
        assert dial(ssh_host.forward_remote(mine, port)) == b"mine"


def test_a_fixed_far_port_of_a_killed_run_is_taken_over(user_sshd: UserSshd, ssh_host: SshHost) -> None:
    port = free_port()
    with greeter(b"old") as old, greeter(b"new") as new:
        killed_user(user_sshd.target, old, port)
        assert dial(ssh_host.forward_remote(new, port)) == b"new"


def test_a_taken_far_port_is_not_mistaken_for_ours(ssh_host: SshHost) -> None:
    with greeter(b"stranger") as stranger, greeter(b"ours") as near:
        with pytest.raises(PortTakenError, match=str(stranger.port)):
            ssh_host.forward_remote(near, stranger.port)
        assert dial(ssh_host.forward_remote(near)) == b"ours"


def test_a_host_that_does_not_forward(controller: Controller, tmp_path: Path, keys: Keys) -> None:
    with UserSshd.start(tmp_path / "h", config=["AllowTcpForwarding no"], keys=keys) as sshd:
        with SshHost(sshd.target, controller, os.environ) as host:
            for far_port in (0, free_port()):
                with pytest.raises(ForwardRefusedError, match="AllowTcpForwarding"):
                    host.forward_remote(Endpoint("localhost", 5050), far_port)


def test_a_service_there_is_reached_here(netns_host: NetnsHost, controller: Controller) -> None:
    with SshHost(netns_host.target, controller, os.environ) as host:
        near = host.forward_local(Endpoint("127.0.0.1", 22))
        assert near.host == "127.0.0.1"
        assert dial(near).startswith(b"SSH-2.0-")
        assert host.forward_local(Endpoint("127.0.0.1", 22)) == near
        with greeter(b"") as taken, pytest.raises(PortTakenError, match=str(taken.port)):
            host.forward_local(Endpoint("127.0.0.1", 22), taken.port)
    assert dial(near) == b""


def test_forwards_work_on_a_machine_of_its_own(netns_host: NetnsHost, controller: Controller) -> None:
    if shutil.which("bash") is None:
        need("bash")
    with SshHost(netns_host.target, controller, os.environ) as host, greeter(b"hello\n") as near:
        far = host.forward_remote(near)
        assert run(host, f"bash -c 'cat < /dev/tcp/{far.host}/{far.port}'")[1] == b"hello\n"


# Addresses


def test_the_address_is_the_one_that_was_reached(netns_host: NetnsHost, controller: Controller) -> None:
    with SshHost(netns_host.target, controller, os.environ) as host:
        assert host.address() == netns_host.address


def test_behind_a_jump_host_the_address_is_the_far_hosts_own_view(
    netns_host: NetnsHost, user_sshd: UserSshd, controller: Controller, known_by_name: Callable[[TestHost], str]
) -> None:
    jump = ("ProxyJump", known_by_name(user_sshd))
    target = replace(netns_host.target, options=(*netns_host.target.options, jump))
    with SshHost(target, controller, os.environ) as host:
        assert host.address() == netns_host.address
        before = netns_host.log.read_text()
        assert host.address() == netns_host.address
        assert netns_host.log.read_text() == before  # known now: no session for it
