"""OpenSSH's multiplexing protocol, version 4: what a control master is asked over its Unix socket.

The upper half is a codec of plain values; `MuxConnection` and `MuxSession` below it are thin. Each session and each
forward request has a connection of its own, and asking is separate from waiting, so many can be in flight at once.

Source: OpenSSH's PROTOCOL.mux; where it is silent, mux.c of 9.2.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError, MasterGoneError, MasterProtocolError, MasterRefusedError

VERSION = 4
_NO_ESCAPE = 0xFFFFFFFF
_LOOK_S = 1.0
_PACKET_LIMIT_BYTES = 256 * 1024  # the answers are a few words; mux.c reads no more than this either


class Kind(IntEnum):
    """Packet types: `C_` asked by us, `S_` answered by the master."""

    HELLO = 0x00000001
    C_NEW_SESSION = 0x10000002
    C_ALIVE_CHECK = 0x10000004
    C_TERMINATE = 0x10000005
    C_OPEN_FORWARD = 0x10000006
    C_CLOSE_FORWARD = 0x10000007
    S_OK = 0x80000001
    S_PERMISSION_DENIED = 0x80000002
    S_FAILURE = 0x80000003
    S_EXIT = 0x80000004
    S_ALIVE = 0x80000005
    S_SESSION_OPENED = 0x80000006
    S_REMOTE_PORT = 0x80000007
    S_TTY_ALLOC_FAIL = 0x80000008


class ForwardKind(IntEnum):
    """Which side listens."""

    LOCAL = 1
    REMOTE = 2


@dataclass(frozen=True)
class Forward:
    """One TCP forward. The master finds it again by all five values, with `listen_port` 0 where 0 was asked."""

    kind: ForwardKind
    listen_host: str
    listen_port: int
    connect_host: str
    connect_port: int


@dataclass(frozen=True)
class Hello:
    """The first packet of both sides; extensions are none of our business."""

    version: int = VERSION


@dataclass(frozen=True)
class NewSession:
    """A command without a terminal; three descriptors follow the packet. `agent` asks for agent forwarding,
    which the master does only where the user's configuration has ForwardAgent."""

    request: int
    command: str
    agent: bool = True


@dataclass(frozen=True)
class AliveCheck:
    request: int


@dataclass(frozen=True)
class Terminate:
    request: int


@dataclass(frozen=True)
class OpenForward:
    request: int
    forward: Forward


@dataclass(frozen=True)
class CloseForward:
    request: int
    forward: Forward


@dataclass(frozen=True)
class Ok:
    request: int


@dataclass(frozen=True)
class Refused:
    """`S_PERMISSION_DENIED` or `S_FAILURE`, with the master's reason."""

    request: int
    reason: str


@dataclass(frozen=True)
class Exit:
    session: int
    status: int


@dataclass(frozen=True)
class Alive:
    request: int
    pid: int


@dataclass(frozen=True)
class SessionOpened:
    request: int
    session: int


@dataclass(frozen=True)
class RemotePort:
    request: int
    port: int


@dataclass(frozen=True)
class TtyAllocFail:
    session: int


Request = Hello | NewSession | AliveCheck | Terminate | OpenForward | CloseForward
Answer = Hello | Ok | Refused | Exit | Alive | SessionOpened | RemotePort | TtyAllocFail


def pack(message: Request) -> bytes:
    """The packet of a request, with its length in front. Raises ValueError for text with a NUL in it."""
    match message:
        case Hello(version):
            body = struct.pack(">II", Kind.HELLO, version)
        case NewSession(request, command, agent):
            # reserved; tty, X11, agent, subsystem; escape character; terminal; command; no environment
            body = struct.pack(">II", Kind.C_NEW_SESSION, request) + _string("")
            body += struct.pack(">IIIII", 0, 0, int(agent), 0, _NO_ESCAPE) + _string("") + _string(command)
        case AliveCheck(request):
            body = struct.pack(">II", Kind.C_ALIVE_CHECK, request)
        case Terminate(request):
            body = struct.pack(">II", Kind.C_TERMINATE, request)
        case OpenForward(request, forward):
            body = struct.pack(">II", Kind.C_OPEN_FORWARD, request) + _forward(forward)
        case CloseForward(request, forward):
            body = struct.pack(">II", Kind.C_CLOSE_FORWARD, request) + _forward(forward)
    return struct.pack(">I", len(body)) + body


def _string(text: str) -> bytes:
    raw = text.encode()
    if b"\0" in raw:
        raise ValueError("a NUL byte cannot be sent to a control master")
    return struct.pack(">I", len(raw)) + raw


def _forward(forward: Forward) -> bytes:
    listen = _string(forward.listen_host) + struct.pack(">I", forward.listen_port)
    connect = _string(forward.connect_host) + struct.pack(">I", forward.connect_port)
    return struct.pack(">I", forward.kind) + listen + connect


def unpack(body: bytes) -> Answer:
    """The answer in one packet (without its length). Raises `MasterProtocolError`."""
    try:
        kind, first = struct.unpack_from(">II", body)
        if kind == Kind.HELLO:
            return Hello(first)
        if kind == Kind.S_OK:
            return Ok(first)
        if kind in (Kind.S_PERMISSION_DENIED, Kind.S_FAILURE):
            (length,) = struct.unpack_from(">I", body, 8)
            return Refused(first, body[12 : 12 + length].decode(errors="replace"))
        if kind == Kind.S_TTY_ALLOC_FAIL:
            return TtyAllocFail(first)
        (second,) = struct.unpack_from(">I", body, 8)
    except struct.error as error:
        raise MasterProtocolError(f"a packet of {len(body)} bytes is too short: {body[:16].hex()}") from error
    if kind == Kind.S_EXIT:
        return Exit(first, second)
    if kind == Kind.S_ALIVE:
        return Alive(first, second)
    if kind == Kind.S_SESSION_OPENED:
        return SessionOpened(first, second)
    if kind == Kind.S_REMOTE_PORT:
        return RemotePort(first, second)
    raise MasterProtocolError(f"unknown packet type {kind:#010x}")


def take_packet(buffer: bytearray) -> bytes | None:
    """Remove the first whole packet from the buffer and return its body; `None` while it is incomplete."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack_from(">I", buffer)
    if length > _PACKET_LIMIT_BYTES:
        raise MasterProtocolError(f"a packet of {length} bytes")
    if len(buffer) < 4 + length:
        return None
    body = bytes(buffer[4 : 4 + length])
    del buffer[: 4 + length]
    return body


class MuxConnection:
    """A connection to one master; while it is open, the master does not end for want of users."""

    def __init__(self, path: Path, deadline: Deadline) -> None:
        """Connect and say hello; the master's hello is read with its first answer.

        Raises `MasterGoneError` when nobody listens at `path`, `DeadlineError`.
        """
        self.path = path
        self.master_pid = 0
        """The master's process, once it has answered an alive check."""
        self._buffer = bytearray()
        self._requests = 0
        self.while_waiting: Callable[[], None] = lambda: None
        """Called every second while an answer is waited for; what it raises ends that."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if not math.isinf(remaining_s := deadline.remaining_s):
                # A connect waits in the kernel while the master's backlog (64) is full; settimeout would make it fail.
                seconds, fraction = divmod(max(remaining_s, 0.001), 1.0)
                limit = struct.pack("ll", int(seconds), int(fraction * 1e6))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            self._socket.connect(str(path))
            self._send(pack(Hello()))
        except (FileNotFoundError, ConnectionRefusedError) as error:
            self._socket.close()
            raise MasterGoneError(f"no control master listens at {path}") from error
        except BlockingIOError as error:
            self._socket.close()
            raise DeadlineError(f"connecting to the control master at {path}", deadline.budget_s) from error
        except OSError as error:
            self._socket.close()
            if error.errno is not None:
                raise
            # Python's own: the path is too long for a socket. Whoever goes on to start a master says so (master_argv).
            raise MasterGoneError(f"no control master can listen at {path}: {error}") from error
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """The socket, for a selector: readable when an answer came or the master is gone."""
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def alive_check(self, deadline: Deadline) -> int:
        """The master's pid. Raises `MasterGoneError`, `DeadlineError`, `MasterProtocolError`."""
        self.ask_alive()
        return self.wait_alive(deadline)

    def ask_alive(self) -> None:
        """Ask whether it is alive; `wait_alive` has the answer."""
        self._send(pack(AliveCheck(self._next())))

    def wait_alive(self, deadline: Deadline) -> int:
        """See `alive_check`; after a `DeadlineError` it may be called again."""
        answer = self._answer(deadline)
        if isinstance(answer, Alive):
            self.master_pid = answer.pid
            return answer.pid
        raise MasterProtocolError(f"an alive check was answered with {answer}")

    def is_open(self) -> bool:
        """Whether the master still holds its end; an answer that another thread waits for is left to it."""
        if self._socket.fileno() < 0:
            return False
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False

    def ask_forward(self, forward: Forward) -> None:
        """Ask for a forward; `wait_forward` has the answer."""
        self._send(pack(OpenForward(self._next(), forward)))

    def wait_forward(self, forward: Forward, deadline: Deadline) -> int:
        """The port that listens. Raises `MasterRefusedError`, `MasterGoneError`, `DeadlineError`.

        Another process's request for the same port 0, still on its way, makes the master answer port 0 (mux.c
        9.2); callers ask under a lock.
        """
        match self._answer(deadline):
            case RemotePort(_, port):
                return port
            case Ok():
                return forward.listen_port
            case Refused(_, reason):
                raise MasterRefusedError(reason)
            case answer:
                raise MasterProtocolError(f"a forward was answered with {answer}")

    def open_forward(self, forward: Forward, deadline: Deadline) -> int:
        """Ask and wait."""
        self.ask_forward(forward)
        return self.wait_forward(forward, deadline)

    def close_forward(self, forward: Forward, deadline: Deadline) -> None:
        """Close a forward by the values it was asked with. Raises `MasterRefusedError` where there is none such.

        A forward asked with port 0 is closed with port 0 too, not with the port it got (checked with 9.2).
        """
        answer = self._ask(CloseForward(self._next(), forward), deadline)
        if isinstance(answer, Refused):
            raise MasterRefusedError(answer.reason)

    def terminate(self, deadline: Deadline) -> None:
        """End the master; returns when it has closed this connection, its way of saying so."""
        try:
            self._ask(Terminate(self._next()), deadline)
            while True:
                self._answer(deadline)
        except MasterGoneError:
            pass

    def _next(self) -> int:
        self._requests += 1
        return self._requests

    def _ask(self, request: Request, deadline: Deadline) -> Answer:
        self._send(pack(request))
        return self._answer(deadline)

    def _send(self, data: bytes) -> None:
        # A master that has ended may have said why before: the answer tells, or its end.
        with suppress(BrokenPipeError, ConnectionResetError):
            self._socket.sendall(data)

    def _answer(self, deadline: Deadline) -> Answer:
        """The next answer that is not a hello."""
        while True:
            body = take_packet(self._buffer)
            if body is None:
                self._receive(deadline)
                continue
            answer = unpack(body)
            if not isinstance(answer, Hello):
                return answer
            if answer.version != VERSION:
                raise MasterProtocolError(f"it speaks version {answer.version} of the protocol, not {VERSION}")

    def _receive(self, deadline: Deadline) -> None:
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        while not poller.poll(math.ceil(min(_LOOK_S, deadline.remaining_s) * 1000)):
            if deadline.expired:
                raise DeadlineError(f"an answer of the control master at {self.path}", deadline.budget_s)
            self.while_waiting()
        try:
            received = self._socket.recv(4096)
        except ConnectionResetError:
            received = b""
        if not received:
            raise MasterGoneError(f"the control master at {self.path} closed the connection")
        self._buffer += received


class MuxSession(MuxConnection):
    """One command through the master."""

    def __init__(self, path: Path, command: str, descriptors: tuple[int, int, int], deadline: Deadline) -> None:
        """Ask for a session with these three descriptors (its stdin, stdout, stderr) and do not wait.

        The master gets duplicates and makes them non-blocking, so they are pipe ends that nobody else uses.
        Raises as `MuxConnection`, and ValueError for a NUL in the command.
        """
        packet = pack(NewSession(1, command))
        super().__init__(path, deadline)
        self._requests = 1
        self._exit_status: int | None = None
        try:
            self._send(packet)
            for descriptor in descriptors:
                # One byte and one descriptor each, as the master reads them.
                socket.send_fds(self._socket, [b"\0"], [descriptor])
        except (BrokenPipeError, ConnectionResetError) as error:
            self.close()
            raise MasterGoneError(f"the control master at {path} has ended") from error
        except BaseException:
            self.close()
            raise

    def wait_opened(self, deadline: Deadline) -> None:
        """Return once the far side has the command.

        Raises `MasterRefusedError` (at `MaxSessions`, among others), `MasterGoneError`, `DeadlineError`.
        """
        match self._answer(deadline):
            case SessionOpened():
                return
            case Refused(_, reason):
                raise MasterRefusedError(reason)
            case answer:
                raise MasterProtocolError(f"a session was answered with {answer}")

    def wait_exit(self, deadline: Deadline) -> int | None:
        """The command's exit status; `None` when the session ended without one.

        That is the end of the connection, or a command killed by a signal: the master passes no signals on.
        The connection stays open: closing it before the pipes are read to their end can lose output.
        """
        while self._exit_status is None:
            try:
                answer = self._answer(deadline)
            except MasterGoneError:
                return None
            if isinstance(answer, Exit):
                self._exit_status = answer.status
        return self._exit_status
