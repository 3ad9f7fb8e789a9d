"""Forwards through masters, each counted by the processes that use it; the last one closes it.

A forward has a record (a file: what the master was asked) and a lock that every user holds shared. Who can take that
lock alone is the only one left, so the forwards of killed processes are closed by the next who asks for one.

How OpenSSH's master behaves here (mux.c 9.2, checked by the tests): a remote forward with port 0, asked again, is
answered with the same port, and it is closed by asking with port 0 again. A fixed far port that is taken is refused.
The far end is `127.0.0.1` and not `localhost`: for the latter sshd binds 127.0.0.1 and ::1 and is content with one of
them, so the other could be anybody's.
"""

from __future__ import annotations

import hashlib
import os
import socket
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    ForwardRefusedError,
    MasterError,
    MasterRefusedError,
    PortHeldError,
    PortTakenError,
)
from remote_runner.host import Endpoint
from remote_runner.mux import Forward, ForwardKind, MuxConnection

FAR_LOOPBACK = "127.0.0.1"
NEAR_LOOPBACK = "127.0.0.1"
_LOCAL_PORT_ATTEMPTS = 8


@dataclass(frozen=True)
class Record:
    """What a master was asked for: its number, and the forward; and its answer, which holds as long as it lives.

    `port` listens, as the master with the process number `pid` answered; 0 where that is not known (any more).
    """

    master: int
    forward: Forward
    port: int = 0
    pid: int = 0

    def to_text(self) -> str:
        forward = self.forward
        return (
            f"{self.master} {forward.kind} {forward.listen_host} {forward.listen_port} "
            f"{forward.connect_host} {forward.connect_port} {self.port} {self.pid}\n"
        )

    @classmethod
    def from_text(cls, text: str) -> Record:
        """Raises ValueError."""
        master, kind, listen_host, listen_port, connect_host, connect_port, port, pid = text.split()
        return cls(
            int(master),
            Forward(ForwardKind(int(kind)), listen_host, int(listen_port), connect_host, int(connect_port)),
            int(port),
            int(pid),
        )


@dataclass(frozen=True)
class Use:
    """This process's share of a forward; `users` is held shared."""

    record: Record
    path: Path
    users: FileLock
    answer: Endpoint


class Forwards:
    """The forwards of one host that this process uses.

    `master` gives a live connection to the master with that number (starting it where it must).
    """

    def __init__(
        self, controller: Controller, key: str, host: str, master: Callable[[int, Deadline], MuxConnection]
    ) -> None:
        self._controller = controller
        self._key = key
        self._host = host
        self._master = master
        self._uses: dict[str, Use] = {}

    def open_remote(self, nears: Sequence[Endpoint], home: int, deadline: Deadline) -> list[Endpoint]:
        """See `Host.forward_all`; `home` is the master to ask where there is a choice."""
        wanted = {
            self._name(home, "remote", str(near)): Forward(ForwardKind.REMOTE, FAR_LOOPBACK, 0, near.host, near.port)
            for near in nears
        }

        def are_open() -> bool:
            connection = self._master(home, deadline)
            return all(self._take_known(name, connection) for name in wanted)

        lock = self._controller.lock(f"{self._key}-{home}-forwarding")
        if not are_open() and lock.acquire_unless(are_open, deadline):
            with lock:
                if not are_open():
                    self._ask_remote(wanted, home, deadline)
        return [self._uses[name].answer for name in wanted]

    def _ask_remote(self, wanted: Mapping[str, Forward], home: int, deadline: Deadline) -> None:
        """Ask the master for all of them; the lock on its forwards is held."""
        connection = self._master(home, deadline)
        self._close_unused(home, connection, deadline, but=wanted)
        users: dict[str, FileLock] = {}
        asked: dict[str, MuxConnection] = {}
        ports: dict[str, int] = {}
        refused: ForwardRefusedError | None = None
        try:
            with ExitStack() as connections:
                # All are asked for before the first answer is waited for: one round trip instead of one each.
                # A master reads no further from a connection that waits for a forward, so each has its own.
                for name, forward in wanted.items():
                    users[name] = self._share(name, deadline)
                    other = MuxConnection(connection.path, deadline) if asked else connection
                    if asked:
                        connections.callback(other.close)
                    asked[name] = other
                    other.ask_forward(forward)
                for name, forward in wanted.items():
                    try:
                        ports[name] = asked[name].wait_forward(forward, deadline)
                    except MasterRefusedError as error:
                        near = Endpoint(forward.connect_host, forward.connect_port)
                        refused = refused or self._refused(near, error)
        except BaseException:
            for name, lock in users.items():
                self._unshare(name, lock)
            raise
        for name, lock in users.items():
            if name in ports:
                port = ports[name]
                record = Record(home, wanted[name], port, connection.master_pid)
                self._keep(name, Use(record, self._path(name), lock, Endpoint(FAR_LOOPBACK, port)))
            else:
                self._unshare(name, lock)
        if refused is not None:
            raise refused

    def _take_known(self, name: str, connection: MuxConnection) -> bool:
        """Share a forward that is open, without asking the master: no round trip, and no turn to wait for."""
        use = self._uses.get(name)
        if use is not None:
            return use.record.pid == connection.master_pid
        users = self._controller.lock(f"{name}-users", shared=True)
        if not users.try_acquire():
            return False  # it is just being closed
        record = self._read(self._path(name))  # read under the lock: nobody closes it now
        if record is None or not record.port or record.pid != connection.master_pid:
            users.release()
            return False
        self._uses[name] = Use(record, self._path(name), users, Endpoint(FAR_LOOPBACK, record.port))
        return True

    def unchecked(self, far_ports: Collection[int]) -> tuple[int, ...]:
        """These ports there; none where a run has seen before what this master's sshd makes of a loopback address.

        That is a matter of sshd's configuration (GatewayPorts), which stays the same as long as the connection lives.
        """
        masters = {(use.record.master, use.record.pid) for use in self._uses.values()}
        return () if all(self._is_private(master, pid) for master, pid in masters) else tuple(far_ports)

    def note_private(self) -> None:
        """Let all who use these masters know that a host has found their forwards closed to the network."""
        for use in self._uses.values():
            if use.record.pid:
                self._private_path(use.record.master).write_text(str(use.record.pid), encoding="ascii")

    def _is_private(self, master: int, pid: int) -> bool:
        with suppress(OSError, ValueError):
            return int(self._private_path(master).read_text(encoding="ascii")) == pid
        return False

    def _private_path(self, master: int) -> Path:
        return self._controller.runtime / f"{self._key}-{master}.private"

    def open_local(self, far: Endpoint, near_port: int, home: int, deadline: Deadline) -> Endpoint:
        """See `Host.forward_local`."""
        name = self._name(home, "local", f"{far} {near_port}")
        with self._controller.lock(f"{self._key}-{home}-forwarding").acquire(deadline):
            connection = self._master(home, deadline)
            self._close_unused(home, connection, deadline, but=(name,))
            users = self._share(name, deadline)
            try:
                forward = self._listen_here(name, far, near_port, connection, deadline)
            except BaseException:
                self._unshare(name, users)
                raise
            answer = Endpoint(NEAR_LOOPBACK, forward.listen_port)
            record = Record(home, forward, pid=connection.master_pid)
            self._keep(name, Use(record, self._path(name), users, answer))
        return answer

    def close(self, master_if_alive: Callable[[int], MuxConnection | None], deadline: Deadline) -> None:
        """Give up all shares; a forward that nobody else uses is closed."""
        for name, use in self._uses.items():
            use.users.release()
            alone = self._controller.lock(f"{name}-users")
            if not alone.try_acquire():
                continue
            try:
                connection = master_if_alive(use.record.master)
                try:
                    if connection is not None:
                        self._cancel(use.record.forward, connection, deadline)
                    use.path.unlink(missing_ok=True)
                except DeadlineError:  # a master that is stuck, which may close it yet: the next one asks again
                    self._write(use.path, replace(use.record, port=0))
            finally:
                alone.release()
        self._uses.clear()

    def forget(self, master: int) -> None:
        """The records of a master that has just been started are of its predecessor."""
        self._private_path(master).unlink(missing_ok=True)
        for path in self._paths():
            record = self._read(path)
            if record is None or record.master == master:
                path.unlink(missing_ok=True)

    def open_fixed(self, near: Endpoint, far_port: int, home: int, deadline: Deadline) -> Endpoint:
        """See `Host.forward_remote`, with a port."""
        name = f"{self._key}-fixed-{far_port}"
        path = self._path(name)
        with self._controller.lock(f"{name}-opening").acquire(deadline):
            record = self._read(path)
            alone = self._controller.lock(f"{name}-users")
            if alone.try_acquire():
                try:
                    if record is not None:
                        with suppress(MasterError):  # its user was killed, and the master may be gone too
                            self._cancel(record.forward, self._master(record.master, deadline), deadline)
                    record = Record(home, Forward(ForwardKind.REMOTE, FAR_LOOPBACK, far_port, near.host, near.port))
                    pid = self._ask_fixed(record, deadline)
                    self._write(path, record)
                finally:
                    alone.release()
            elif record is None or (record.forward.connect_host, record.forward.connect_port) != (near.host, near.port):
                other = "" if record is None else f"{record.forward.connect_host}:{record.forward.connect_port}"
                raise PortHeldError(
                    self._host,
                    f"port {far_port} there is forwarded to {other or 'another service'} by another run, "
                    f"this one needs it for {near}",
                    next_step="wait for that run, or take the fixed port out of inventory.yaml",
                )
            else:
                pid = self._ask_fixed(record, deadline)  # again, in case the master is a new one
            users = self._share(name, deadline)
        answer = Endpoint(FAR_LOOPBACK, far_port)
        self._uses[name] = Use(replace(record, pid=pid), path, users, answer)
        return answer

    def _ask_fixed(self, record: Record, deadline: Deadline) -> int:
        """Ask; the master's process number."""
        connection = self._master(record.master, deadline)
        forward = record.forward
        try:
            connection.open_forward(forward, deadline)
            return connection.master_pid
        except MasterRefusedError as error:
            near = Endpoint(forward.connect_host, forward.connect_port)
            probe = Forward(ForwardKind.REMOTE, FAR_LOOPBACK, 0, near.host, near.port)
            try:
                connection.open_forward(probe, deadline)
            except MasterRefusedError:
                raise self._refused(near, error) from error
            # The probe may be the forward of a user of a free port: only its records decide on closing it.
            self._close_unrecorded(record.master, near, probe, connection, deadline)
            raise PortTakenError(
                self._host,
                f"port {forward.listen_port} on its loopback is taken by another program",
                next_step=f"find it there with: ss -ltnp 'sport = :{forward.listen_port}'",
            ) from error

    def _close_unrecorded(
        self, master: int, near: Endpoint, probe: Forward, connection: MuxConnection, deadline: Deadline
    ) -> None:
        if not self._path(self._name(master, "remote", str(near))).exists():
            self._cancel(probe, connection, deadline)

    def _listen_here(
        self, name: str, far: Endpoint, near_port: int, connection: MuxConnection, deadline: Deadline
    ) -> Forward:
        record = self._read(self._path(name))
        wishes = [record.forward.listen_port] if record is not None else []
        wishes += [near_port] if near_port else [0] * _LOCAL_PORT_ATTEMPTS
        reason = ""
        for wish in wishes:
            forward = Forward(ForwardKind.LOCAL, NEAR_LOOPBACK, wish or _free_port(), far.host, far.port)
            try:
                connection.open_forward(forward, deadline)
            except MasterRefusedError as error:
                reason = error.reason
                continue
            return forward
        raise PortTakenError(
            self._host,
            f"port {near_port or 'any'} of this machine's loopback cannot be listened on: {reason}",
            next_step="name another port" if near_port else "",
        )

    def _close_unused(
        self, master: int, connection: MuxConnection, deadline: Deadline, *, but: Collection[str]
    ) -> None:
        for path in self._paths():
            name = path.name.removesuffix(".forward")
            record = self._read(path)
            if record is None or record.master != master or name in but or name in self._uses:
                continue
            # A fixed port's users change under its own lock (see open_fixed).
            opening = self._controller.lock(f"{name}-opening")
            alone = self._controller.lock(f"{name}-users")
            try:
                if opening.try_acquire() and alone.try_acquire():
                    self._cancel(record.forward, connection, deadline)
                    path.unlink(missing_ok=True)
            finally:
                alone.release()
                opening.release()

    def _cancel(self, forward: Forward, connection: MuxConnection, deadline: Deadline) -> None:
        with suppress(MasterError):  # not forwarded any more, or the master ended: closed either way
            connection.close_forward(forward, deadline)

    def _refused(self, near: Endpoint, error: MasterRefusedError) -> ForwardRefusedError:
        return ForwardRefusedError(
            self._host,
            f"it does not forward a port to {near}: {error.reason}",
            next_step="set AllowTcpForwarding yes (or remote) in its sshd_config; PermitListen, DisableForwarding "
            "and `restrict` in authorized_keys forbid it too",
        )

    def _share(self, name: str, deadline: Deadline) -> FileLock:
        # A share that this process has is kept: without it another process could close the forward in between.
        use = self._uses.get(name)
        return use.users if use else self._controller.lock(f"{name}-users", shared=True).acquire(deadline)

    def _unshare(self, name: str, users: FileLock) -> None:
        self._uses.pop(name, None)
        users.release()

    def _keep(self, name: str, use: Use) -> None:
        self._write(use.path, use.record)
        self._uses[name] = use

    @staticmethod
    def _write(path: Path, record: Record) -> None:
        # Whole or not at all: others read it under a lock that is shared.
        aside = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        aside.write_text(record.to_text(), encoding="utf-8")
        aside.replace(path)

    def _name(self, master: int, kind: str, text: str) -> str:
        return f"{self._key}-{master}-{kind}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def _paths(self) -> list[Path]:
        """The records of all forwards to this host."""
        # A pattern would be compiled to a regular expression first, by each process: 0.3 ms.
        begin = f"{self._key}-"
        runtime = self._controller.runtime
        return [path for path in runtime.iterdir() if path.name.startswith(begin) and path.name.endswith(".forward")]

    def _path(self, name: str) -> Path:
        return self._controller.runtime / f"{name}.forward"

    def _read(self, path: Path) -> Record | None:
        with suppress(OSError, ValueError):
            return Record.from_text(path.read_text(encoding="utf-8"))
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((NEAR_LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port
