"""Handing an instance over to the broker, as exec-go/ does, for `python -m remote_runner` and `fab instance`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess  # noqa: TID251 (the broker outlives the process that starts it)
import sys
from collections.abc import Mapping
from contextlib import suppress
from types import FrameType

from remote_runner.broker.place import DIRECTORY, VARIABLE, BrokerPlace, interpreter_variables
from remote_runner.broker.protocol import ANSWER_BYTES, MAGIC, STALE, TAKES, Request
from remote_runner.controller import Controller, own_directory
from remote_runner.deadline import Deadline
from remote_runner.typed import typed_program

_PATIENCE_S = 30.0
_ATTEMPTS = 3
_BACKLOG = 4096
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class NoBrokerError(Exception):
    """No broker takes the instance; nothing of it has begun."""


def hand_over(request: Request) -> int:
    """Let the broker run the instance on this process's descriptors, and pass signals on; its exit status.

    Raises `NoBrokerError`, `ControllerError`. A broker that ends on the way is -1.
    """
    controller = Controller.from_environ(request.environ)
    own_directory(controller.runtime / DIRECTORY)
    words = [sys.executable, "-m", "remote_runner", *typed_program()]
    place = BrokerPlace.of(controller, words, "", request.environ)
    for _ in range(_ATTEMPTS):
        connection = _reach(controller, place, words, request.environ)
        with connection:
            answer = _exactly(connection, ANSWER_BYTES)
            if answer == TAKES:
                return _follow(connection, request)
            if answer not in (STALE, b""):
                raise NoBrokerError(f"it answers {answer!r}, and this remote-runner speaks {MAGIC.decode()}")
    raise NoBrokerError(f"{_ATTEMPTS} of them ended before one took it{_last_words(place)}")


def _reach(controller: Controller, place: BrokerPlace, words: list[str], environ: Mapping[str, str]) -> socket.socket:
    """A connection to the broker; where none listens, one process of all starts it."""
    with suppress(OSError):
        return _connect(place)
    with controller.lock(place.lock_name).acquire(Deadline.after(_PATIENCE_S)):
        with suppress(OSError):
            return _connect(place)  # another was first
        try:
            _start(place, words, environ)
            return _connect(place)
        except OSError as error:
            raise NoBrokerError(f"{place.socket}: {error.strerror or error}") from error


def _connect(place: BrokerPlace) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(_PATIENCE_S)
    try:
        connection.connect(str(place.socket))
    except BaseException:
        connection.close()
        raise
    return connection


def _start(place: BrokerPlace, words: list[str], environ: Mapping[str, str]) -> None:
    """Make the socket before there is a process behind it, so that everybody else connects and waits from then on."""
    fresh = place.socket.with_name(f"{place.socket.name}.new")
    fresh.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener, place.log.open("wb") as log:
        listener.bind(str(fresh))
        fresh.chmod(0o600)
        listener.listen(_BACKLOG)
        fresh.replace(place.socket)
        given = dict(pair.split("=", 1) for pair in interpreter_variables(environ))
        given[VARIABLE] = f"{place.socket.stat().st_ino} {place.socket}"
        # As descriptor 3 there, which no other process has.
        moved = os.dup(listener.fileno())
        os.set_inheritable(moved, True)
        try:
            subprocess.Popen(
                ["/bin/sh", "-c", f'exec 3<&{moved} {moved}<&-; exec "$@"', "sh", *words],
                cwd="/",
                env=given,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(moved,),
                start_new_session=True,
            )
        finally:
            os.close(moved)


def _follow(connection: socket.socket, request: Request) -> int:
    data = request.encode()
    socket.send_fds(connection, [data[:8]], [0, 1, 2])
    connection.sendall(data[8:])
    connection.settimeout(None)

    def pass_on(number: int, frame: FrameType | None) -> None:
        with suppress(OSError):
            connection.send(bytes([number]))

    for number in _SIGNALS:
        signal.signal(number, pass_on)
    answer = _exactly(connection, 1)
    return answer[0] if answer else -1


def _exactly(connection: socket.socket, count: int) -> bytes:
    """Read that many bytes; fewer where the other end has closed, or is silent for too long."""
    data = b""
    with suppress(OSError):
        while len(data) < count and (more := connection.recv(count - len(data))):
            data += more
    return data


def _last_words(place: BrokerPlace) -> str:
    try:
        lines = place.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""
