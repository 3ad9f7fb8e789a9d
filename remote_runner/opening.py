"""The way to a host, opened while the artifact is built: its connection, the session of the run, the forwards."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress

from remote_runner.ahead import Later
from remote_runner.host import Host
from remote_runner.instance.forwarding import Forwarded, open_forwards
from remote_runner.inventory.inventory import HostEntry
from remote_runner.job import Seat
from remote_runner.supervisor import Started, start_run


class Opening:
    """Begins at once, in one thread, which then speaks for the session until `end`: a thread costs 0.4 ms of CPU.

    The session of the run goes along with the connection: nothing runs there before `supervise` sends the job. Who
    finds no connection here tries no second time.
    """

    def __init__(self, host: Host, entry: HostEntry, environ: Mapping[str, str], seat: Seat) -> None:
        self.session: Later[Started] = Later()
        self.forwards: Later[Forwarded] = Later()
        self._ending = threading.Event()
        self._ended = threading.Event()
        threading.Thread(target=self._run, args=(host, entry, environ, seat), daemon=True).start()

    def _run(self, host: Host, entry: HostEntry, environ: Mapping[str, str], seat: Seat) -> None:
        try:
            self.session.settle(lambda: start_run(host, seat))

            def forwards() -> Forwarded:
                self.session.result()
                return open_forwards(host, entry, environ)

            self.forwards.settle(forwards)
            with suppress(Exception):  # why there is none is told by who uses it
                started = self.session.result()
                while not self._ending.wait(started.beat_s):
                    started.beat()
        finally:
            self._ended.set()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Return once all has been tried; with a timeout at the latest then: whether it has."""
        return self.forwards.wait(timeout_s)

    def end(self) -> Started:
        """The session, in which from now on who has it speaks; raises why there is none."""
        self._ending.set()
        self._ended.wait()
        return self.session.result()

    def close(self) -> None:
        """Close the session, if there is one."""
        with suppress(Exception):
            self.end().session.close()
