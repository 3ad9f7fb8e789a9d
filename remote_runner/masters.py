"""`SshHost`: sessions and forwards on another machine, through control masters that all processes share.

A master is an `ssh -M -N` of ours, in a session of its own. Its socket, log and locks lie in the controller's runtime
directory under a hash of what it was started with, so other options, or another user's configuration, are another
master. It ends some minutes after its last user (ControlPersist).
"""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import signal
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from remote_runner.brief import BriefSession
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostLostError,
    HostUnreachableError,
    HostUnresolvedError,
    LoginDeniedError,
    MasterError,
    MasterGoneError,
    MasterRefusedError,
    NoExitStatusError,
    SessionRefusedError,
    SshFailedError,
)
from remote_runner.host import Endpoint, Host, Session
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.master_watch import MasterWatch
from remote_runner.mux import MuxConnection, MuxSession
from remote_runner.ssh import (
    SshSettings,
    explain_failure,
    is_address,
    master_argv,
    master_key,
    peer_address,
    ssh_environment,
)
from remote_runner.ssh_forwards import Forwards
from remote_runner.ssh_places import LONG_PLACES, Place, Places
from remote_runner.ssh_start import MOST_LOG_BYTES, Starting, find_ssh, run_at_terminal, run_until_ready

_R = TypeVar("_R")

_PIPE_BYTES = 1 << 20
_LOG_BYTES = 1 << 16
_ANSWER_S = 10.0  # a master answers from memory; one that does not is stopped or stuck
_LEAVE_S = 2.0  # what a stuck master does not close on our way out is closed by the next who asks for a forward
_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", None)  # Linux only


class SshHost(Host):
    """A machine that ssh reaches. Safe to use from several threads."""

    def __init__(
        self,
        target: SshTarget,
        controller: Controller,
        environ: Mapping[str, str],
        *,
        connect_s: float = 30.0,
        settings: SshSettings | None = None,
        nearest: Sequence[str] = (),
    ) -> None:
        """Nothing is opened yet. `environ` is this process's environment: PATH finds ssh, SSH_AUTH_SOCK its agent.

        `connect_s` is the time for a new connection with all its attempts, and for what needs an answer of the host.
        `nearest` are names that may be meant where this one does not resolve.
        """
        user = pwd.getpwuid(os.getuid())
        self.name = target.name
        self.target = target
        self._connect_s = connect_s
        self._settings = settings or SshSettings()
        self._nearest = tuple(nearest)
        self._environ = ssh_environment(environ, home=user.pw_dir, user=user.pw_name)
        key = master_key(target, self._settings, self._environ["HOME"])
        self._places = Places(controller, key)
        self._forwards = Forwards(controller, key, self.name, self._master)
        self._lock = threading.RLock()
        self._forwarding = threading.RLock()  # taken first: sessions are opened while a forward is waited for
        self._anchors: dict[int, MuxConnection] = {}
        self._ended: list[MuxConnection] = []  # another thread may still wait for the end of one
        self._home: Place | None = None
        self._home_is_free = True
        self._starting = Starting()

    # Sessions

    def start_session(self, command: str, *, brief: bool = False) -> Session:
        """See `Host.start_session`. Waits only where a connection must be opened first.

        Raises the `HostError` that says why there is no connection.
        """
        deadline = self._deadline()
        place = self._claim(brief, deadline, ())
        try:
            return SshSession(self, command, place, brief=brief, deadline=deadline)
        except BaseException:
            self._release(place)
            raise

    def _deadline(self) -> Deadline:
        return Deadline.after(self._connect_s)

    def _claim(self, brief: bool, deadline: Deadline, without: tuple[int, ...]) -> Place:
        with self._lock:
            if brief:
                return self._places.claim_brief(self._home.master if self._home else None, deadline, without)
            if self._home is None or self._home.master in without:
                self._home = self._places.claim_long(without)
            elif not self._home_is_free:
                return self._places.claim_long(without)
            self._home_is_free = False
            return self._home

    def _release(self, place: Place) -> None:
        with self._lock:
            if place is self._home:
                self._home_is_free = True  # stays this process's: its forwards are there
            else:
                place.release()

    def _home_master(self) -> int:
        with self._lock:
            if self._home is None:
                self._home = self._places.claim_long()
            return self._home.master

    def _refused(self, place: Place) -> int:
        with self._lock:
            if place is self._home:
                self._home = None
            return self._places.refused(place)

    # Masters

    def _master(self, number: int, deadline: Deadline) -> MuxConnection:
        """An idle connection to the master, kept so that it stays; the master is started where none runs."""
        with self._lock:
            anchor = self._anchors.get(number)
            if anchor is not None and anchor.is_open():
                return anchor
            if anchor is not None:
                self._ended.append(self._anchors.pop(number))
            anchor = self._connect(number, deadline)
            if anchor is None:
                anchor = self._start(number, deadline)
            self._anchors[number] = anchor
            return anchor

    def _connect(self, number: int, deadline: Deadline) -> MuxConnection | None:
        """A connection to a running master that answers; `None` where none runs."""
        soon = Deadline.after(min(_ANSWER_S, deadline.remaining_s))
        try:
            connection = MuxConnection(self._places.socket_path(number), soon)
        except MasterGoneError:
            return None
        try:
            connection.alive_check(soon)
        except MasterGoneError:
            connection.close()
            return None
        except DeadlineError as error:
            connection.close()
            raise self.stuck(number) from error
        except BaseException:
            connection.close()
            raise
        return connection

    def _start(self, number: int, deadline: Deadline) -> MuxConnection:
        with self._places.start_lock(number).acquire(deadline):
            connection = self._connect(number, deadline)  # somebody else may have been first
            return self._begin(number, deadline) if connection is None else connection

    def _begin(self, number: int, deadline: Deadline) -> MuxConnection:
        """Start that master; its start lock is held, and none runs."""
        socket_path, log = self._places.socket_path(number), self._places.log_path(number)
        argv = self._argv(number, log)
        socket_path.unlink(missing_ok=True)  # left by a crash: nobody answered there, and nobody else starts
        attempt = 0
        while True:
            turn = self._places.handshake(deadline)
            try:
                log.write_bytes(b"")
                status = run_until_ready(argv, self._environ, log, socket_path, deadline, self._starting)
            finally:
                turn.release()
            if status is None and log.stat().st_size > MOST_LOG_BYTES:
                log.write_bytes(b"")
                raise HostUnreachableError(
                    self.name,
                    "it sends banners without end, and no login comes of it",
                    next_step=f"find out what answers there; try: ssh {self.target.host} true",
                )
            said = _read_log(log)
            error = explain_failure(self.target, status, said, has_agent="SSH_AUTH_SOCK" in self._environ)
            if status == 0 and (connection := self._connect(number, deadline)) is not None:
                if isinstance(error, HostKeyChangedError):
                    # With StrictHostKeyChecking no, ssh warns and goes on. Nothing of ours goes to that machine.
                    connection.terminate(deadline)
                    raise error
                self._places.forget_limit(number)
                self._forwards.forget(number)
                return connection
            if isinstance(error, HostUnresolvedError) and self._nearest:
                error.next_step = f"did you mean {' or '.join(self._nearest)}? Else {error.next_step}"
            if isinstance(error, LoginDeniedError) and number > 0:
                error.next_step = (
                    f"a connection takes {LONG_PLACES} instances at once; for more the host is logged in to again, and "
                    "nobody is asked for that: give it your public key, or start fewer instances there"
                )
            attempt += 1
            pause_s = random.uniform(0.5, 1.0) * min(2.0, 0.1 * 2.0**attempt)
            if not isinstance(error, HandshakeDroppedError) or deadline.remaining_s < pause_s:
                raise error
            self.retries += 1
            time.sleep(pause_s)  # sshd drops at random while it is busy (MaxStartups); it says no when it is not

    def _argv(self, number: int, log: Path | None) -> list[str]:
        ssh, socket_path = find_ssh(self._environ), self._places.socket_path(number)
        return master_argv(ssh, self.target, self._settings, socket_path, connect_s=self._connect_s, log=log)

    def lost(self, master: int) -> HostLostError:
        """The error for a connection that ended, with its master's last words."""
        log = _read_log(self._places.log_path(master))
        lines = [line for line in log.replace("\r", "").splitlines() if not line.startswith("Authenticated to")]
        return HostLostError(
            self.name,
            "the connection to the host was lost",
            stderr="\n".join(lines[-3:]),
            next_step="the next use opens a new one; see also: fab clean",
        )

    def stuck(self, master: int, pid: int = 0) -> HostLostError:
        """The error for a master that does not answer; `pid` is its process where that is known."""
        socket_path = self._places.socket_path(master)
        end = f"end that ssh process (kill -KILL {pid})" if pid else f"end that ssh process (ssh -S {socket_path})"
        return HostLostError(
            self.name,
            f"its control master does not answer at {socket_path}",
            next_step=f"it is stopped or stuck: {end}; the next use starts a new one",
        )

    def is_running(self, master: int) -> bool:
        """Whether that master still answers."""
        with suppress(HostError, DeadlineError, MasterError):
            connection = self._connect(master, Deadline.after(_ANSWER_S))
            if connection is not None:
                connection.close()
                return True
        return False

    def login(self) -> bool:
        """Open the first master at the user's terminal, where ssh may ask; False where it is open already.

        Raises the `HostError` that says why it did not open.
        """
        with self._places.start_lock(0).acquire(self._deadline()):
            connection = self._connect(0, self._deadline())
            if connection is not None:
                connection.close()
                return False
            socket_path = self._places.socket_path(0)
            socket_path.unlink(missing_ok=True)
            self._places.log_path(0).write_bytes(b"")
            argv = self._argv(0, None)
            status = run_at_terminal(argv, self._environ)
            if status in (-signal.SIGINT, 128 + signal.SIGINT):
                raise SshFailedError(self.name, "the login was interrupted", next_step="start it again")
            if status != 0:
                self._begin_after_terminal()
            self._places.forget_limit(0)
            self._forwards.forget(0)
            return True

    def _begin_after_terminal(self) -> None:
        """Start the first master without asking. ssh told the terminal why it failed, and not us; now it tells us."""
        try:
            self._begin(0, Deadline.after(min(_ANSWER_S, self._connect_s))).close()
        except LoginDeniedError as error:
            error.next_step = f"check what was typed, and the user's name; try: ssh {self.target.host} true"
            raise

    # Forwards and the rest

    def forward_remote(self, near: Endpoint, far_port: int = 0) -> Endpoint:
        """See `Host.forward_remote`. Raises `ForwardRefusedError`, `PortTakenError`, `PortHeldError`."""
        if not far_port:
            return self.forward_all([near])[0]
        return self._with_master(lambda home, until: self._forwards.open_fixed(near, far_port, home, until))

    def forward_all(self, nears: Sequence[Endpoint]) -> list[Endpoint]:
        """See `Host.forward_all`: one round trip. Raises `ForwardRefusedError`."""
        return self._with_master(lambda home, until: self._forwards.open_remote(nears, home, until))

    def forward_local(self, far: Endpoint, near_port: int = 0) -> Endpoint:
        """See `Host.forward_local`. Raises `PortTakenError`."""
        return self._with_master(lambda home, until: self._forwards.open_local(far, near_port, home, until))

    def unchecked_ports(self, far_ports: Collection[int]) -> tuple[int, ...]:
        """See `Host.unchecked_ports`."""
        with self._forwarding:
            return self._forwards.unchecked(far_ports)

    def note_private(self) -> None:
        """See `Host.note_private`."""
        with self._forwarding:
            self._forwards.note_private()

    def _with_master(self, work: Callable[[int, Deadline], _R]) -> _R:
        deadline = self._deadline()
        with self._forwarding:
            home = self._home_master()
            try:
                return work(home, deadline)
            except MasterGoneError as error:  # it was killed, or its connection ended, while it was asked
                raise self.lost(home) from error

    def address(self) -> str:
        """The address at the far end of the master's TCP connection, from its log: nothing is asked.

        Behind a proxy or a jump host, where no such connection exists here, it is the host's own view of its address
        (`$SSH_CONNECTION`), at the cost of one brief session for the first who asks.
        """
        deadline = self._deadline()
        number = self._home_master()
        self._master(number, deadline)
        log = self._places.log_path(number)
        found = peer_address(_read_log(log))
        if found is not None:
            return found
        script = 'printf \'\\n%s address %s\\n\' "$nonce" "$SSH_CONNECTION"'
        with BriefSession(self, script, {}, deadline, f"asking {self.name} for its address") as session:
            fields = session.answer()[1].split()
            session.finish()
        if len(fields) != 4 or not is_address(fields[2]):
            raise HostError(self.name, "it does not tell its address ($SSH_CONNECTION there is no such)")
        address = fields[2]
        with log.open("a", encoding="utf-8") as file:
            file.write(f"Authenticated to {self.target.host} ([{address}]:0)\n")  # for the next who asks
        return address

    def abandon(self) -> None:
        """See `Host.abandon`."""
        self._starting.abandon()

    def close(self) -> None:
        """See `Host.close`."""
        with self._forwarding, self._lock:
            self._forwards.close(self._anchor_if_alive, Deadline.after(_LEAVE_S))
            for anchor in (*self._anchors.values(), *self._ended):
                anchor.close()
            self._anchors.clear()
            self._ended.clear()
            if self._home is not None:
                self._home.release()
                self._home = None
                self._home_is_free = True

    def _anchor_if_alive(self, master: int) -> MuxConnection | None:
        anchor = self._anchors.get(master)
        return anchor if anchor is not None and anchor.is_open() else None


def _read_log(log: Path) -> str:
    """A master's messages: the first and the last ones where a host had it write too many; "" where there are none."""
    try:
        with log.open("rb") as file:
            said = file.read(_LOG_BYTES)
            if file.seek(0, os.SEEK_END) > _LOG_BYTES:
                file.seek(max(_LOG_BYTES, file.tell() - _LOG_BYTES))
                said += b"\n...\n" + file.read(_LOG_BYTES)
    except OSError:
        return ""
    return said.decode(errors="replace")


class SshSession(Session):
    """A session through a master. Until it is opened, this side keeps the far ends of the pipes as well: a master that
    refuses is replaced by the next without loss. So `wait_opened` comes before reading to an end of file."""

    def __init__(self, owner: SshHost, command: str, place: Place, *, brief: bool, deadline: Deadline) -> None:
        self.host = owner.name
        self._owner = owner
        self._command = command
        self._brief = brief
        self._place: Place | None = place
        self._anchor: MuxConnection | None = None
        self._watch: MasterWatch | None = None
        self._refusing: tuple[int, ...] = ()
        self._mux: MuxSession | None = None
        self._opened = False
        far_stdin, self.stdin_fd = os.pipe()
        self.stdout_fd, far_stdout = os.pipe()
        self.stderr_fd, far_stderr = os.pipe()
        self._far_fds: tuple[int, int, int] | None = (far_stdin, far_stdout, far_stderr)
        for fd in (self.stdin_fd, self.stdout_fd):
            if _PIPE_SIZE is not None:
                with suppress(OSError):  # the user's share of pipe memory is used up
                    fcntl.fcntl(fd, _PIPE_SIZE, _PIPE_BYTES)
        try:
            self._ask(place, deadline)
        except BaseException:
            self._place = None  # the caller's again
            self.close()
            raise

    def _ask(self, place: Place, deadline: Deadline) -> None:
        assert self._far_fds is not None
        for attempt in (1, 2):
            self._anchor = self._owner._master(place.master, deadline)
            path = self._owner._places.socket_path(place.master)
            self._watch_master(path)
            try:
                self._mux = MuxSession(path, self._command, self._far_fds, deadline)
                self._mux.while_waiting = self.check_carrier
                return
            except MasterGoneError:
                if attempt == 2:  # it was alive a moment ago, twice
                    raise self._owner.lost(place.master) from None

    def wait_opened(self, deadline: Deadline) -> None:
        """See `Session.wait_opened`. A master without room is left for the next, one that ended is replaced once."""
        replaced = False
        while not self._opened:
            if self._mux is None or self._place is None:
                raise HostLostError(self.host, "the session is closed")
            place = self._place
            try:
                self._mux.wait_opened(deadline)
            except MasterRefusedError as error:
                self._mux.close()
                self._place = None
                self._try_elsewhere(place, error, deadline)
            except MasterGoneError as error:
                self._mux.close()
                if replaced:
                    raise self._owner.lost(place.master) from error
                replaced = True  # nothing of the command can have run: the master tells first
                self._ask(place, deadline)
            else:
                self._opened = True
        self._close_far_ends()

    def _try_elsewhere(self, place: Place, error: MasterRefusedError, deadline: Deadline) -> None:
        others = self._owner._refused(place)
        if others == 0 and self._refusing:
            raise SessionRefusedError(
                self.host,
                f"its sshd refused a session even on a connection without any: {error.reason}",
                next_step="look at MaxSessions in its sshd_config and at its log",
            ) from error
        self._refusing = (*self._refusing, place.master)
        self._place = self._owner._claim(self._brief, deadline, self._refusing)
        self._ask(self._place, deadline)

    def wait_exit(self, deadline: Deadline) -> int:
        """See `Session.wait_exit`; raises `NoExitStatusError` where the host is well and the command had no status."""
        self.wait_opened(deadline)
        if self._mux is None or self._place is None:
            raise HostLostError(self.host, "the session is closed")
        status = self._mux.wait_exit(deadline)
        if status is not None:
            return status
        # The same one: another process may have started the next by now.
        if self._owner.is_running(self._place.master) and self._anchor is not None and self._anchor.is_open():
            raise NoExitStatusError(self.host)
        raise self._owner.lost(self._place.master)

    def check_carrier(self) -> None:
        watch, place = self._watch, self._place
        if watch is not None and place is not None and watch.silent_s() > self._owner._settings.silent_s:
            raise self._owner.stuck(place.master, watch.pid)

    def _watch_master(self, path: Path | None) -> None:
        if self._watch is not None:
            self._watch.close()
        self._watch = None if path is None else MasterWatch(path)

    def close(self) -> None:
        super().close()
        self._watch_master(None)
        self._close_far_ends()
        if self._mux is not None:
            self._mux.close()
            self._mux = None
        if self._place is not None:
            self._owner._release(self._place)
            self._place = None

    def _close_far_ends(self) -> None:
        for fd in self._far_fds or ():
            os.close(fd)
        self._far_fds = None
