"""The places for sessions on a host's masters, shared by all processes of this user through file locks.

A stock sshd allows 10 sessions a connection (MaxSessions): 8 places are for long sessions, 2 are kept for brief ones.
Where a host allows fewer, the first refusal teaches it for a while.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import DeadlineError

LONG_PLACES = 8
BRIEF_PLACES = 2
HANDSHAKES = 8  # of sshd's 10 unauthenticated connections (MaxStartups 10:30:100) two are left to others
_MASTERS_LIMIT = 128  # 1024 long sessions on one host
_LIMIT_IS_BELIEVED_S = 60.0  # sessions that outlived their dead process count too, for a while


@dataclass(frozen=True)
class Place:
    """The right to one session on the master with that number; `lock` is held."""

    master: int
    lock: FileLock

    def release(self) -> None:
        self.lock.release()


@dataclass(frozen=True)
class Capacity:
    """How many long and brief sessions a master takes."""

    long: int
    brief: int

    @classmethod
    def of_limit(cls, sessions: int) -> Capacity:
        """Split the sessions that a connection allows (at least 1)."""
        if sessions >= LONG_PLACES + BRIEF_PLACES:
            return cls(LONG_PLACES, BRIEF_PLACES)
        long = max(1, sessions - BRIEF_PLACES)
        return cls(long, sessions - long)


class Places:
    """The places on all masters of one key (see `ssh.master_key`)."""

    def __init__(self, controller: Controller, key: str) -> None:
        self._controller = controller
        self._key = key

    def socket_path(self, master: int) -> Path:
        return self._controller.runtime / f"{self._key}-{master}"

    def log_path(self, master: int) -> Path:
        return self._controller.runtime / f"{self._key}-{master}.log"

    def start_lock(self, master: int) -> FileLock:
        """Held by the process that starts this master."""
        return self._controller.lock(f"{self._key}-{master}-start")

    def claim_long(self, without: Collection[int] = ()) -> Place:
        """A place for a long session: on a running master if there is one, else on the first with room.

        `without` are masters that refused.
        """
        # One look: a master that came up between two would be passed over by both.
        running = {path.name for path in self._controller.runtime.iterdir()}
        for master in sorted(range(_MASTERS_LIMIT), key=lambda master: f"{self._key}-{master}" not in running):
            if master in without:
                continue
            place = self._try(master, "long", self._capacity(master).long)
            if place is not None:
                return place
        raise DeadlineError(f"finding a place on {_MASTERS_LIMIT} connections", 0.0)

    def claim_brief(self, prefer: int | None, deadline: Deadline, without: Collection[int] = ()) -> Place:
        """A place for a brief session: on the preferred master, on any running one, else on one to be started.

        Waits where all are taken; raises `DeadlineError`.
        """
        while True:
            for master in self._brief_candidates(prefer, without):
                place = self._try(master, "brief", self._capacity(master).brief)
                if place is not None:
                    return place
            if deadline.expired:
                raise DeadlineError("waiting for a place for a brief session", deadline.budget_s)
            # flock(2) waits for one lock, not for the first of several.
            time.sleep(min(deadline.remaining_s, random.uniform(0.01, 0.04)))

    def _brief_candidates(self, prefer: int | None, without: Collection[int]) -> Iterator[int]:
        if prefer is not None and prefer not in without:
            yield prefer
        others = [master for master in range(_MASTERS_LIMIT) if master != prefer and master not in without]
        yield from (master for master in others if self.socket_path(master).exists())
        yield from [master for master in others if not self.socket_path(master).exists()][:1]

    def handshake(self, deadline: Deadline) -> FileLock:
        """One of the few handshakes that may be under way at once with this host; release it."""
        while True:
            for number in range(HANDSHAKES):
                lock = self._controller.lock(f"{self._key}-handshake-{number}")
                if lock.try_acquire():
                    return lock
            if deadline.expired:
                raise DeadlineError("waiting for a turn to connect", deadline.budget_s)
            time.sleep(min(deadline.remaining_s, random.uniform(0.01, 0.04)))

    def refused(self, place: Place) -> int:
        """Note that sshd refused a session at this place, and give the place up.

        Returns how many other sessions this user's processes have on that master.
        """
        capacity = self._capacity(place.master)
        held = 0
        for kind, count in (("long", capacity.long), ("brief", capacity.brief)):
            for number in range(count):
                lock = self._lock(place.master, kind, number)
                if lock.path == place.lock.path:
                    continue
                if lock.try_acquire():
                    lock.release()
                else:
                    held += 1
        place.release()
        if held:
            path = self._limit_path(place.master)
            path.with_suffix(f".{os.getpid()}").write_text(str(held), encoding="ascii")
            path.with_suffix(f".{os.getpid()}").replace(path)
        return held

    def forget_limit(self, master: int) -> None:
        """What was learnt about a master ends with it."""
        self._limit_path(master).unlink(missing_ok=True)

    def _capacity(self, master: int) -> Capacity:
        path = self._limit_path(master)
        with suppress(OSError, ValueError):
            if time.time() - path.stat().st_mtime < _LIMIT_IS_BELIEVED_S:
                return Capacity.of_limit(int(path.read_text(encoding="ascii")))
        return Capacity(LONG_PLACES, BRIEF_PLACES)

    def _limit_path(self, master: int) -> Path:
        return self._controller.runtime / f"{self._key}-{master}.limit"

    def _lock(self, master: int, kind: str, number: int) -> FileLock:
        return self._controller.lock(f"{self._key}-{master}-{kind}-{number}")

    def _try(self, master: int, kind: str, count: int) -> Place | None:
        for number in range(count):
            lock = self._lock(master, kind, number)
            if lock.try_acquire():
                return Place(master, lock)
        return None
