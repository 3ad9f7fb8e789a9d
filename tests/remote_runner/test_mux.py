"""The codec by exact bytes, and the client against a master that the test plays itself."""

from __future__ import annotations

import array
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import DeadlineError, MasterGoneError, MasterProtocolError, MasterRefusedError
from remote_runner.mux import (
    Alive,
    AliveCheck,
    Answer,
    CloseForward,
    Exit,
    Forward,
    ForwardKind,
    Hello,
    MuxConnection,
    MuxSession,
    NewSession,
    Ok,
    OpenForward,
    Refused,
    RemotePort,
    Request,
    SessionOpened,
    Terminate,
    TtyAllocFail,
    pack,
    take_packet,
    unpack,
)

REMOTE = Forward(ForwardKind.REMOTE, "127.0.0.1", 0, "localhost", 5050)

PACKED: list[tuple[Request, str]] = [
    (Hello(), "00000008 00000001 00000004"),
    (AliveCheck(7), "00000008 10000004 00000007"),
    (Terminate(1), "00000008 10000005 00000001"),
    (
        NewSession(2, "ls é"),
        "0000002d 10000002 00000002 00000000 00000000 00000000 00000001 00000000 ffffffff 00000000 00000005 6c7320c3a9",
    ),
    (
        OpenForward(3, REMOTE),
        "0000002e 10000006 00000003 00000002 00000009 3132372e302e302e31 00000000 00000009 6c6f63616c686f7374 000013ba",
    ),
    (
        CloseForward(4, Forward(ForwardKind.LOCAL, "", 80, "x", 65535)),
        "0000001d 10000007 00000004 00000001 00000000 00000050 00000001 78 0000ffff",
    ),
]

ANSWERS: list[tuple[str, Answer]] = [
    ("00000001 00000004", Hello(4)),
    ("00000001 00000004 00000004 696e666f 00000001 30", Hello(4)),  # the extension that 9.9 announces
    ("80000001 00000003", Ok(3)),
    ("80000002 00000003 00000002 6e6f", Refused(3, "no")),
    ("80000003 00000003 00000000", Refused(3, "")),
    ("80000004 00000001 000000ff", Exit(1, 255)),
    ("80000005 00000001 00001234", Alive(1, 0x1234)),
    ("80000006 00000001 00000002", SessionOpened(1, 2)),
    ("80000007 00000001 0000ffff", RemotePort(1, 65535)),
    ("80000008 00000005", TtyAllocFail(5)),
]


@pytest.mark.parametrize(("message", "expected"), PACKED)
def test_requests_are_packed(message: Request, expected: str) -> None:
    assert pack(message).hex() == expected.replace(" ", "")


@pytest.mark.parametrize(("packet", "expected"), ANSWERS)
def test_answers_are_unpacked(packet: str, expected: Answer) -> None:
    assert unpack(bytes.fromhex(packet)) == expected


@pytest.mark.parametrize(
    "packet", ["", "800000", "80000001", "80000006 00000001", "80000002 00000001", "80000009 00000001 00000000"]
)
def test_other_packets_are_named(packet: str) -> None:
    with pytest.raises(MasterProtocolError):
        unpack(bytes.fromhex(packet))


def test_a_nul_byte_is_not_sent() -> None:
    with pytest.raises(ValueError, match="NUL"):
        pack(NewSession(1, "echo \0"))


def test_packets_are_taken_whole_from_any_cut_of_the_stream() -> None:
    stream = pack(AliveCheck(1)) + pack(Hello())
    buffer = bytearray()
    found = []
    for byte in stream:
        buffer.append(byte)
        while (body := take_packet(buffer)) is not None:
            found.append(body)
    assert found == [pack(AliveCheck(1))[4:], pack(Hello())[4:]]
    assert buffer == b""


def test_a_length_beyond_reason_is_no_packet() -> None:
    with pytest.raises(MasterProtocolError, match="4294967295"):
        take_packet(bytearray(b"\xff\xff\xff\xff\0"))


@contextmanager
def played_master(directory: Path, play: Callable[[socket.socket], None]) -> Iterator[Path]:
    """A listener at the yielded path that hands its first connection to `play`."""
    path = directory / "m"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                play(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            thread.join(10)
            assert not thread.is_alive()


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := connection.recv(count - len(data))):
        data += chunk
    return data


def _hello(connection: socket.socket) -> None:
    connection.sendall(bytes.fromhex("00000008 00000001 00000004"))
    assert _read(connection, 12) == pack(Hello())


def test_three_descriptors_travel_and_the_status_comes_back(controller: Controller) -> None:
    received: list[int] = []

    def play(connection: socket.socket) -> None:
        _hello(connection)
        request = pack(NewSession(1, "true"))
        assert _read(connection, len(request)) == request
        for _ in range(3):
            # as mm_receive_fd of OpenSSH reads: one byte, one descriptor
            data, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(4))
            assert data == b"\0"
            received.append(array.array("i", ancillary[0][2])[0])
        connection.sendall(bytes.fromhex("0000000c 80000006 00000001 00000000"))
        os.write(received[1], os.read(received[0], 10).upper())
        connection.sendall(bytes.fromhex("00000008 80000008 00000000 0000000c 80000004 00000000 00000003"))
        connection.recv(1)

    with played_master(controller.runtime, play) as path:
        stdin_read, stdin_write = os.pipe()
        stdout_read, stdout_write = os.pipe()
        with MuxSession(path, "true", (stdin_read, stdout_write, stdout_write), Deadline.after(5)) as session:
            os.write(stdin_write, b"words")
            session.wait_opened(Deadline.after(5))
            assert session.wait_exit(Deadline.after(5)) == 3
            assert session.wait_exit(Deadline.after(5)) == 3
            assert os.read(stdout_read, 10) == b"WORDS"
    for fd in (*received, stdin_read, stdin_write, stdout_read, stdout_write):
        os.close(fd)


def test_refusals_carry_the_masters_reason(controller: Controller) -> None:
    def play(connection: socket.socket) -> None:
        _hello(connection)
        _read(connection, len(pack(OpenForward(1, REMOTE))))
        connection.sendall(bytes.fromhex("0000000e 80000003 00000001 00000002 6e6f"))
        connection.recv(1)

    with played_master(controller.runtime, play) as path, MuxConnection(path, Deadline.after(5)) as connection:
        with pytest.raises(MasterRefusedError) as caught:
            connection.open_forward(REMOTE, Deadline.after(5))
        assert caught.value.reason == "no"


def test_another_version_is_not_spoken_to(controller: Controller) -> None:
    def play(connection: socket.socket) -> None:
        connection.sendall(bytes.fromhex("00000008 00000001 00000005"))
        _read(connection, len(pack(Hello()) + pack(AliveCheck(1))))

    with played_master(controller.runtime, play) as path, MuxConnection(path, Deadline.after(5)) as connection:
        with pytest.raises(MasterProtocolError, match="version 5"):
            connection.alive_check(Deadline.after(5))


def test_what_it_said_before_it_ended_is_heard(controller: Controller) -> None:
    has_ended = threading.Event()

    def play(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(bytes.fromhex("00000008 00000001 00000005"))
        connection.shutdown(socket.SHUT_RDWR)
        has_ended.set()

    with played_master(controller.runtime, play) as path, MuxConnection(path, Deadline.after(5)) as connection:
        assert has_ended.wait(10)
        with pytest.raises(MasterProtocolError, match="version 5"):
            connection.alive_check(Deadline.after(5))


def test_silence_ends_at_the_deadline_and_an_end_is_told(controller: Controller) -> None:
    may_end = threading.Event()

    def play(connection: socket.socket) -> None:
        assert may_end.wait(10)

    with played_master(controller.runtime, play) as path, MuxConnection(path, Deadline.after(5)) as connection:
        with pytest.raises(DeadlineError):
            connection.alive_check(Deadline.after(0.05))
        assert connection.is_open()
        may_end.set()
        with pytest.raises(MasterGoneError):
            connection.alive_check(Deadline.after(5))


def test_nobody_there_is_told_apart(controller: Controller) -> None:
    path = controller.runtime / "m"
    with pytest.raises(MasterGoneError):
        MuxConnection(path, NEVER)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))  # a socket file without a listener, as a crash leaves it
    with pytest.raises(MasterGoneError):
        MuxConnection(path, NEVER)
