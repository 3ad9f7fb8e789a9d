"""What carries a connection: a command whose standard streams reach a POSIX shell on the host."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from remote_runner.connection.ssh import (
    Account,
    SshConfig,
    attach_argv,
    config_argv,
    explain_failure,
    find_ssh,
    is_address,
    peer_address,
    ssh_environment,
)
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ControllerError,
    DeadlineError,
    HandshakeDroppedError,
    HostError,
    HostUnresolvedError,
    LocalProgramError,
    SessionRefusedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.process import run, start

if TYPE_CHECKING:
    from subprocess import Popen  # noqa: TID251 (a type only)

_READ_BYTES = 256 << 10
_WORDS_BYTES = 16 << 10
MOST_SAID_BYTES = 4 << 20  # before the login: a server may send banners for as long as it likes
_PIPE_BYTES = 256 << 10
_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux only
_MOST_BUFFERS = 512  # of one writev; IOV_MAX is 1024 at least
_TURN_BYTES = 1 << 20  # written in one turn of the loop
_ENDING_S = 2.0
_WORDS_S = 0.5  # a proxy may say why when ssh has ended already
_MASTER_S = 10.0  # a master answers from memory; one that does not is stopped or stuck
_CONFIG_S = 5.0
_MOST_LOG_BYTES = 1 << 20

# What a login without a PATH of its own has to find: macOS and Linux keep their own programs there.
_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"


class Pipes:
    """A transport's process in a session of its own, and this side's ends of its streams, none of which blocks.

    What it says on stderr is kept, the first and the last of it. `answer_s` is how long its first answer may take,
    where that is less than the deadline.
    """

    def __init__(
        self, argv: Sequence[str], environ: Mapping[str, str] | None, *, answer_s: float | None = None
    ) -> None:
        """Start it, in the running loop. Raises `LocalProgramError`."""
        self.answer_s = answer_s
        self.said_bytes = 0
        self._loop = asyncio.get_running_loop()
        self._words = bytearray()
        self._out: list[bytes | memoryview] = []
        self._ready: asyncio.Future[None] | None = None
        self._has_said_all = asyncio.Event()
        self._is_writing = False
        self._is_closed = False
        self._ended: Callable[[str], None] = lambda reason: None
        self._pull: Callable[[], list[bytes]] = list
        theirs_in, self._stdin = os.pipe()
        self._stdout, theirs_out = os.pipe()
        self._stderr, theirs_err = os.pipe()
        if _PIPE_SIZE is not None:
            with suppress(OSError):  # the user's share of pipe memory is used up
                fcntl.fcntl(self._stdout, _PIPE_SIZE, _PIPE_BYTES)
        try:
            self._process: Popen[bytes] = start(
                argv, stdin=theirs_in, stdout=theirs_out, stderr=theirs_err, environ=environ, cwd="/"
            )
        except LocalProgramError:
            self._close_ours()
            raise
        finally:
            for fd in (theirs_in, theirs_out, theirs_err):
                os.close(fd)
        for fd in (self._stdin, self._stdout, self._stderr):
            os.set_blocking(fd, False)
        self._loop.add_reader(self._stderr, self._keep_words)

    # One after the other, as long as the host's shell is spoken to

    async def read(self) -> bytes:
        """What has come, b"" at its end, and when it says more than `MOST_SAID_BYTES` on stderr."""
        while True:
            if self.said_bytes > MOST_SAID_BYTES:
                return b""
            try:
                return os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                await self._wait(self._loop.add_reader, self._loop.remove_reader, self._stdout)
            except OSError:
                return b""

    async def write(self, data: bytes, progressed: Callable[[], None] = lambda: None) -> None:
        """Write all of it; `progressed` is called whenever some went. Raises `OSError` (the reader has gone)."""
        rest = memoryview(data)
        while rest:
            try:
                rest = rest[os.write(self._stdin, rest) :]
                progressed()
            except BlockingIOError:
                await self._wait(self._loop.add_writer, self._loop.remove_writer, self._stdin)

    async def _wait(
        self, add: Callable[[int, Callable[[], None]], None], remove: Callable[[int], object], fd: int
    ) -> None:
        self._ready = self._loop.create_future()
        add(fd, self._go_on)
        try:
            await self._ready
        finally:
            remove(fd)

    def _go_on(self) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(None)

    # Both ways at once, once the agent has answered

    def carry(
        self,
        receive: Callable[[bytes], None],
        pull: Callable[[], list[bytes]],
        ended: Callable[[str], None],
    ) -> None:
        """Hand what comes to `receive`, b"" excepted; `flush` writes what `pull` gives. `ended` is called once."""
        self._pull = pull
        self._ended = ended

        def readable() -> None:
            try:
                data = os.read(self._stdout, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                data = b""
                self._end(f"cannot be read: {error.strerror}")
            if data:
                receive(data)
            else:
                self._end("")

        self._loop.add_reader(self._stdout, readable)

    def flush(self) -> None:
        """Write what there is; what the pipe does not take goes when it does."""
        if self._is_closed or self._is_writing:
            return
        self._flush()

    def _flush(self) -> None:
        room = _TURN_BYTES
        while room > 0:
            if not self._out:
                self._out = list(self._pull())
                if not self._out:
                    break
            try:
                written = os.writev(self._stdin, self._out[:_MOST_BUFFERS])
            except BlockingIOError:
                room = 0
                break
            except OSError as error:
                self._end(f"takes nothing more: {error.strerror}")
                return
            room -= written
            self._drop(written)
        wants = room <= 0
        if wants != self._is_writing:
            self._is_writing = wants
            if wants:
                self._loop.add_writer(self._stdin, self._flush)
            else:
                self._loop.remove_writer(self._stdin)

    def _drop(self, written: int) -> None:
        done = 0
        for buffer in self._out:
            if len(buffer) > written:
                break
            written -= len(buffer)
            done += 1
        del self._out[:done]
        if written:
            self._out[0] = memoryview(self._out[0])[written:]

    def _end(self, reason: str) -> None:
        ended, self._ended = self._ended, lambda reason: None
        self._loop.remove_reader(self._stdout)
        self._loop.remove_writer(self._stdin)
        self._is_writing = False
        ended(reason)

    # Its words and its end

    def _keep_words(self) -> None:
        try:
            data = os.read(self._stderr, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._loop.remove_reader(self._stderr)
            self._has_said_all.set()
            return
        self.said_bytes += len(data)
        if self.said_bytes > MOST_SAID_BYTES:
            self._go_on()
        self._words += data
        if len(self._words) > 2 * _WORDS_BYTES:
            del self._words[_WORDS_BYTES : len(self._words) - _WORDS_BYTES]

    def words(self) -> str:
        """What it has said on stderr."""
        if not self._is_closed:
            self._keep_words()
        return self._words.decode(errors="replace")

    async def close(self, *, wait_s: float = 0.0) -> int | None:
        """End it with all that it started, after `wait_s` for its own end; its status, `None` where it was killed."""
        if self._is_closed:
            await _wait_for(self._process, _ENDING_S)
            return self._process.poll()
        if wait_s:
            await _wait_for(self._process, wait_s)
            with suppress(TimeoutError):
                async with asyncio.timeout(min(wait_s, _WORDS_S)):
                    await self._has_said_all.wait()
        status = self._process.poll()
        with suppress(ProcessLookupError, PermissionError):  # its proxies are of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._keep_words()
        self._loop.remove_reader(self._stderr)
        self._end("")
        self._is_closed = True
        self._close_ours()
        await _wait_for(self._process, _ENDING_S)
        return status

    def _close_ours(self) -> None:
        for fd in (self._stdin, self._stdout, self._stderr):
            os.close(fd)


async def _wait_for(process: Popen[bytes], seconds: float) -> None:
    """Return once it has ended, or after that time."""
    if process.poll() is not None:
        return
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            if not hasattr(os, "pidfd_open"):
                while process.poll() is None:
                    await asyncio.sleep(0.01)  # nothing tells, but on Linux
                return
            loop = asyncio.get_running_loop()
            pidfd = os.pidfd_open(process.pid)
            ended = loop.create_future()
            loop.add_reader(pidfd, lambda: None if ended.done() else ended.set_result(None))
            try:
                await ended
                process.wait()
            finally:
                loop.remove_reader(pidfd)
                os.close(pidfd)


class Transport(Protocol):
    """A way to a host. One process at a time runs.

    is_local: nothing but our own end breaks it, so whoever is behind it need not wait long for us to come again.
    """

    name: str
    is_local: bool
    environ: Mapping[str, str]

    async def start(self, *, first: bool, deadline: Deadline) -> Pipes:
        """Start the process; `first` for the attachment of a session, where the user's own master may be used.

        Raises `RemoteRunnerError`.
        """
        ...

    def explain(self, status: int | None, said: str) -> HostError:
        """Why it ended before the host answered; `status` is `None` when it was ended at the deadline."""
        ...

    def is_from_host(self, status: int | None) -> bool:
        """Whether that status is one that a program on the host ended with."""
        ...

    def address(self) -> str:
        """Where this machine reached the host, "" where the way there does not tell."""
        ...

    def tidy(self) -> None:
        """Called now and then while the process runs."""

    def last_words(self) -> str:
        """What the process itself had to say of its end."""
        ...


class CommandTransport:
    """Any command whose standard streams reach a shell on the host (`{host}` is replaced)."""

    is_local = False

    def __init__(self, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> None:
        self.name = name
        self.environ: Mapping[str, str] = dict(environ)
        self._argv = [word.replace("{host}", name) for word in argv]

    async def start(self, *, first: bool, deadline: Deadline) -> Pipes:
        return Pipes(self._argv, self.environ)

    def explain(self, status: int | None, said: str) -> HostError:
        what = "did not answer in time" if status is None else f"ended with status {status}"
        return SessionRefusedError(
            self.name,
            f"the command that reaches it {what} ({self._argv[0]})",
            stderr=said,
            next_step="its standard streams must be those of a POSIX shell on the host; see connect.command "
            "(inventory.yaml)",
        )

    def is_from_host(self, status: int | None) -> bool:
        return True

    def address(self) -> str:
        return ""

    def tidy(self) -> None:
        pass

    def last_words(self) -> str:
        return ""


class LocalTransport(CommandTransport):
    """This machine: a shell that sees what a login would give it, and `environ` on top."""

    is_local = True

    def __init__(self, name: str = "localhost", environ: Mapping[str, str] | None = None) -> None:
        account = Account.here(environ or {})
        login = {"HOME": account.home, "USER": account.name, "LOGNAME": account.name, "SHELL": account.shell}
        super().__init__(name, ("/bin/sh", "-s"), {**login, "PATH": _PATH, **(environ or {})})

    def address(self) -> str:
        return "127.0.0.1"


class SshTransport:
    """The user's own ssh with the user's configuration.

    directory: where ssh's log is written (the controller's runtime directory); it is removed again at once.
    login_socket: where `fab hosts.login` opens a master.
    environ: of the child; whoever holds the transport may exchange it (a younger agent's socket).
    nearest: names that may be meant where this one does not resolve.
    """

    is_local = False

    def __init__(
        self,
        target: SshTarget,
        directory: Path,
        environ: Mapping[str, str],
        *,
        tolerate_s: float = 60.0,
        connect_s: float = 30.0,
        login_socket: Path | None = None,
        nearest: Sequence[str] = (),
    ) -> None:
        self.name = target.name
        self.environ: Mapping[str, str] = dict(environ)
        self._target = target
        self._directory = directory
        self._tolerate_s = tolerate_s
        self._connect_s = connect_s
        self._login_socket = login_socket
        self._nearest = tuple(nearest)
        self._config: SshConfig | None = None
        self._master: Path | None = None  # that the last process was to use
        self._refused: set[tuple[int, int]] = set()  # masters that did not serve
        self._silent_proxies = 0
        self._log = -1
        self._log_path = directory

    async def start(self, *, first: bool, deadline: Deadline) -> Pipes:
        """See `Transport.start`."""
        environ = ssh_environment(self.environ, Account.here(self.environ))
        ssh = find_ssh(environ)
        if self._config is None:
            self._config = await self._ask_config(ssh, environ, deadline)
        self._master = self._find_master(first)
        self._open_log()
        argv = attach_argv(
            ssh,
            self._target,
            self._config,
            log=self._log_path,
            tolerate_s=self._tolerate_s,
            # A SYN that was lost comes again after 1, 3, 7 s …: a late start is no reason to wait for the next.
            connect_s=self._connect_s if first else min(self._connect_s, 20.0),
            control_path="none" if self._master is None else str(self._master),
        )
        if self._silent_proxies:
            argv = ["/bin/sh", "-c", 'trap "" HUP; exec "$@"', "sh", *argv]
        return Pipes(argv, environ, answer_s=None if self._master is None else _MASTER_S)

    async def _ask_config(self, ssh: str, environ: Mapping[str, str], deadline: Deadline) -> SshConfig:
        argv = config_argv(ssh, self._target)
        soon = Deadline.after(min(_CONFIG_S, deadline.remaining_s))
        try:
            finished = await asyncio.to_thread(run, argv, deadline=soon, environ=environ)
        except DeadlineError:  # a `Match exec` that hangs; ssh itself will hang at it as well
            return SshConfig({})
        return SshConfig.parse(finished.stdout.decode(errors="replace") if finished.status == 0 else "")

    def _find_master(self, first: bool) -> Path | None:
        """A master that is there and has not failed: a reattachment takes only one that was opened since."""
        assert self._config is not None
        for path in (self._config.control_path, self._login_socket):
            if path is None:
                continue
            with suppress(OSError):
                found = path.stat()
                mark = (found.st_ino, found.st_ctime_ns)
                is_fresh = mark not in self._refused
                self._refused.add(mark)  # one attempt each
                if is_fresh and (first or path == self._login_socket):
                    return path
        return None

    def _open_log(self) -> None:
        self._close_log()
        self._log_path = self._directory / f"ssh-{os.getpid()}-{os.urandom(4).hex()}.log"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)  # it goes when its user logs out
            self._log = os.open(self._log_path, flags, 0o600)
        except OSError as error:
            raise ControllerError(
                f"{self._log_path}: cannot be written: {error.strerror}",
                next_step="make room there, or name another directory with REMOTE_RUNNER_RUNTIME_DIR",
            ) from error

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)
            self._log = -1
            self._log_path.unlink(missing_ok=True)

    def _read_log(self) -> str:
        if self._log < 0:
            return ""
        size = os.fstat(self._log).st_size
        said = os.pread(self._log, _WORDS_BYTES, 0)
        if size > _WORDS_BYTES:
            said += b"\n" + os.pread(self._log, _WORDS_BYTES, max(_WORDS_BYTES, size - _WORDS_BYTES))
        return said.decode(errors="replace")

    def explain(self, status: int | None, said: str) -> HostError:
        """See `Transport.explain`."""
        log = self._read_log()
        self._close_log()
        if self._master is not None and (status is None or not self.is_from_host(status)):
            return HandshakeDroppedError(
                self.name,
                f"its control master does not serve: {self._master}",
                stderr=log,
                next_step="end that ssh process",
            )
        config = self._config or SshConfig({})
        has_agent = "SSH_AUTH_SOCK" in self.environ
        error = explain_failure(self._target, config, status, log, said, has_agent=has_agent)
        if isinstance(error, SshFailedError) and config.has_proxy and not said.strip() and self._silent_proxies < 2:
            # ssh ends its proxy with SIGHUP as soon as that closes its stdout, which may be before it says why. The
            # next attempt has it ignore that.
            self._silent_proxies += 1
            return HandshakeDroppedError(self.name, "the way there through a proxy failed without a word", stderr=log)
        if isinstance(error, HostUnresolvedError) and self._nearest:
            error.next_step = f"did you mean {' or '.join(self._nearest)}? Else {error.next_step}"
        return error

    def is_from_host(self, status: int | None) -> bool:
        """ssh says 255 for all faults of its own."""
        return status is not None and 0 <= status < 255

    def tidy(self) -> None:
        """A host that makes ssh complain without end fills no disk here."""
        if self._log >= 0 and os.fstat(self._log).st_size > _MOST_LOG_BYTES:
            os.ftruncate(self._log, 0)  # ssh appends

    def address(self) -> str:
        self._log_path.unlink(missing_ok=True)  # ssh has it open by now, and so have we: nothing of it stays behind
        found = peer_address(self._read_log())
        return found if is_address(found) else ""

    def last_words(self) -> str:
        log = self._read_log()
        self._close_log()
        lines = [line for line in log.splitlines() if not line.startswith(("Authenticated", "Transf", "Bytes"))]
        return "".join(c for c in lines[-1][:200] if c.isprintable()) if lines else ""
