"""The embedded ssh server itself, on asyncssh; `remote_runner.demo.server` starts it as a process of its own.

It behaves as sshd does where this project can tell the difference: commands run by /bin/sh through pipes with
back-pressure, exit statuses and signals reported, no forwards, no pseudo-terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pwd
import signal
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import asyncssh

# What a command that ignores its closed stdin gets between the polite end and TERM, and then before KILL.
_POLITE_S = 2.0
_TERM_S = 1.0
_READ_BYTES = 64 * 1024


@dataclass
class _Machine:
    """What all connections share: the home and environment of commands, and the processes still running."""

    home: Path
    environment: Mapping[str, str]
    running: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def reap_orphans(self) -> None:
        """Collect processes that lost their parent and came to us (see `_adopt_orphans`)."""
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in self.running:
                    return  # asyncio collects this one itself
                os.waitpid(found.si_pid, 0)


class _CommandSession(asyncssh.SSHServerSession[bytes]):
    """One command: three pipes on one side, one channel on the other."""

    def __init__(self, machine: _Machine) -> None:
        self._machine = machine
        self._argv: tuple[str, ...] = ("/bin/sh",)
        self._stdin_fd = -1
        self._outputs: dict[int, int | None] = {}  # descriptor -> ssh data type (None is stdout)
        self._unwritten = bytearray()
        self._at_eof = False
        self._paused = False
        self._gone = False
        self._status: int | None = None

    def connection_made(self, chan: asyncssh.SSHServerChannel[bytes]) -> None:
        self._channel = chan

    def pty_requested(self, term_type: str, term_size: object, term_modes: object) -> bool:
        return False

    def shell_requested(self) -> bool:
        return True

    def exec_requested(self, command: str) -> bool:
        self._argv = ("/bin/sh", "-c", command)
        return True

    def session_started(self) -> None:
        task = asyncio.get_running_loop().create_task(self._run())
        self._machine.tasks.add(task)
        task.add_done_callback(self._machine.tasks.discard)

    async def _run(self) -> None:
        near_in, self._stdin_fd = os.pipe()
        out_fd, near_out = os.pipe()
        err_fd, near_err = os.pipe()
        self._outputs = {out_fd: None, err_fd: asyncssh.EXTENDED_DATA_STDERR}
        for fd in (self._stdin_fd, out_fd, err_fd):
            os.set_blocking(fd, False)
        try:
            process = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=near_in,
                stdout=near_out,
                stderr=near_err,
                cwd=self._machine.home,
                env=self._machine.environment,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            self._close_pipes()
            if not self._gone:
                self._channel.write(f"demo: {error}\n".encode(), asyncssh.EXTENDED_DATA_STDERR)
                self._channel.exit(126)
            return
        finally:
            for fd in (near_in, near_out, near_err):
                os.close(fd)
        self._process = process
        self._machine.running[process.pid] = process
        if self._gone:
            self._close_pipes()
        else:
            self._write_stdin()
            if not self._paused:
                self.resume_writing()
        self._status = await process.wait()
        del self._machine.running[process.pid]
        self._machine.reap_orphans()
        self._finish()

    # From the command to the client.

    def pause_writing(self) -> None:
        self._paused = True
        for fd in self._outputs:
            asyncio.get_running_loop().remove_reader(fd)

    def resume_writing(self) -> None:
        self._paused = False
        for fd, datatype in self._outputs.items():
            asyncio.get_running_loop().add_reader(fd, self._read_output, fd, datatype)

    def _read_output(self, fd: int, datatype: int | None) -> None:
        if data := os.read(fd, _READ_BYTES):
            self._channel.write(data, datatype)
            return
        asyncio.get_running_loop().remove_reader(fd)
        del self._outputs[fd]
        os.close(fd)
        self._finish()

    def _finish(self) -> None:
        # As with sshd, a process left behind that holds a stream keeps the session open.
        if self._status is None or self._outputs or self._gone:
            return
        self._close_pipes()
        if self._status >= 0:
            self._channel.exit(self._status)
        else:
            self._channel.exit_with_signal(signal.Signals(-self._status).name.removeprefix("SIG"))

    # From the client to the command.

    def data_received(self, data: bytes, datatype: int | None) -> None:
        self._unwritten += data
        self._write_stdin()

    def eof_received(self) -> bool:
        self._at_eof = True
        self._write_stdin()
        return True  # the other way stays open

    def _write_stdin(self) -> None:
        if self._stdin_fd < 0:  # not started yet, or nobody reads any more
            return
        loop = asyncio.get_running_loop()
        loop.remove_writer(self._stdin_fd)
        try:
            while self._unwritten:
                del self._unwritten[: os.write(self._stdin_fd, self._unwritten)]
        except BlockingIOError:
            self._channel.pause_reading()
            loop.add_writer(self._stdin_fd, self._write_stdin)
            return
        except BrokenPipeError:
            self._unwritten.clear()
            self._close_stdin()
            self._channel.resume_reading()
            return
        self._channel.resume_reading()  # may deliver more, and the end, before it returns
        if self._at_eof and not self._unwritten:
            self._close_stdin()

    def signal_received(self, signal_name: str) -> None:
        number = getattr(signal, f"SIG{signal_name}", None)
        if number is not None and self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._gone = True
        self._close_pipes()

    def _close_stdin(self) -> None:
        if self._stdin_fd >= 0:
            asyncio.get_running_loop().remove_writer(self._stdin_fd)
            os.close(self._stdin_fd)
            self._stdin_fd = -1

    def _close_pipes(self) -> None:
        self._close_stdin()
        for fd in self._outputs:
            asyncio.get_running_loop().remove_reader(fd)
            os.close(fd)
        self._outputs.clear()


class _DemoServer(asyncssh.SSHServer):
    """One connection: any user name with the one client key, sessions, and forwards on loopback."""

    def __init__(
        self, machine: _Machine, client_key: asyncssh.SSHKey, connections: set[asyncssh.SSHServerConnection]
    ) -> None:
        self._machine = machine
        self._client_key = client_key
        self._connections = connections

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._connections.add(conn)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self._connection)

    def begin_auth(self, username: str) -> bool:
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        return key.public_data == self._client_key.public_data

    def session_requested(self) -> asyncssh.SSHServerSession[bytes]:
        return _CommandSession(self._machine)


def _adopt_orphans() -> None:
    """Make processes that lose their parent ours (Linux: prctl(2) PR_SET_CHILD_SUBREAPER), so that all end with us."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(36, 1, 0, 0, 0)


def _descendants() -> set[int]:
    """Every process below this one (Linux; elsewhere nothing is known beyond the process groups)."""
    parent_of: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            text = stat.read_text(errors="replace")
            parent_of[int(stat.parent.name)] = int(text.rpartition(")")[2].split()[1])
    found: set[int] = set()
    fresh = {os.getpid()}
    while fresh:
        fresh = {pid for pid, parent in parent_of.items() if parent in fresh} - found
        found |= fresh
    return found


async def _end_processes(machine: _Machine) -> None:
    """End what still runs: closed pipes first, then TERM, then KILL."""
    for wait_s, number in ((_POLITE_S, signal.SIGTERM), (_TERM_S, signal.SIGKILL)):
        if machine.tasks:
            await asyncio.wait(machine.tasks, timeout=wait_s)
        for pid in list(machine.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)
        for pid in _descendants():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
    if machine.tasks:
        await asyncio.wait(machine.tasks)


def _write_private(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as file:
        file.write(data)


def _environment(home: Path) -> dict[str, str]:
    """What a command finds: its own home, and the way to programs that this process has."""
    try:
        account = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container's user
        account = str(os.getuid())
    return {
        "HOME": str(home),
        "USER": account,
        "LOGNAME": account,
        "SHELL": "/bin/sh",
        "PATH": os.environ.get("PATH", "/usr/local/bin:/usr/bin:/bin"),  # noqa: TID251 (a process of its own)
    }


def _when_stdin_ends(loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    # A thread, since stdin may be what the loop cannot watch (a file, /dev/null).
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    with contextlib.suppress(RuntimeError):  # the loop ended first, by a signal
        loop.call_soon_threadsafe(ended.set)


async def serve(directory: Path) -> None:
    """Serve ssh on a free loopback port until stdin ends (or TERM, INT, HUP), keeping keys and home in `directory`.

    Prints one JSON object once it listens: `host`, `port`, `user`, `pid`, and the files `host_key`,
    `identity_file`, `known_hosts`, `home`.
    """
    _adopt_orphans()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    home = directory / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    host_key = asyncssh.generate_private_key("ssh-ed25519")
    client_key = asyncssh.generate_private_key("ssh-ed25519")
    _write_private(directory / "host_key", host_key.export_private_key())
    _write_private(directory / "client_key", client_key.export_private_key())
    (directory / "client_key.pub").write_bytes(client_key.export_public_key())

    machine = _Machine(home, _environment(home))
    connections: set[asyncssh.SSHServerConnection] = set()
    acceptor = await asyncssh.create_server(
        lambda: _DemoServer(machine, client_key, connections),
        "127.0.0.1",
        0,
        server_host_keys=[host_key],
        encoding=None,
        # One call into OpenSSL a packet; OpenSSH's first choices, chacha20-poly1305 and AES-CTR with a MAC, take more.
        encryption_algs=["aes128-gcm@openssh.com", "aes256-gcm@openssh.com"],
        kex_algs=["curve25519-sha256", "curve25519-sha256@libssh.org", "ecdh-sha2-nistp256"],
        compression_algs=["none"],
        agent_forwarding=False,
        x11_forwarding=False,
        allow_scp=False,
    )
    port = acceptor.get_port()
    public = host_key.export_public_key().decode().split()
    (directory / "known_hosts").write_text(f"[127.0.0.1]:{port} {public[0]} {public[1]}\n")

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, ended.set)
    threading.Thread(target=_when_stdin_ends, args=(loop, ended), daemon=True).start()
    ready = {
        "host": "127.0.0.1",
        "port": port,
        "user": machine.environment["USER"],
        "pid": os.getpid(),
        "host_key": str(directory / "host_key"),
        "identity_file": str(directory / "client_key"),
        "known_hosts": str(directory / "known_hosts"),
        "home": str(home),
    }
    print(json.dumps(ready), flush=True)
    await ended.wait()
    acceptor.close()
    for connection in list(connections):
        connection.abort()
    await _end_processes(machine)
