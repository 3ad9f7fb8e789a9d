"""A plan whose instances stand still, one at each step, so that a fault can meet all steps at once."""

from __future__ import annotations

import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.delay import DelayProxy
from tests.hosts_netns import NetnsHost
from tests.integration.failing import Ended, FailingPlan, event_bodies
from tests.integration.runs import wait_for
from tests.integration.ways import ALONE, DIRECT, instance_argv

TOLERATE_S = 60
SLOW_S = 60.0
LARGE_BYTES = 4 << 20
# Has written something, and children that left its process group and that nobody waits for.
APPLICATION = f"""#!/bin/sh
cd "$TEST_OUTPUTS_PATH"
echo partial >partial
setsid sh -c 'setsid sleep 1000 & sleep 1000' &
case $TEST_RUN in
    *run) echo ready; sleep 1000 & wait ;;
    *fetch) head -c {LARGE_BYTES} /dev/urandom >zz-large ;;
esac
printf '{{"ts":1,"msg":"","event":{{"success_event":{{"group":"single"}}}}}}\\n'
"""


@dataclass
class Held:
    """An instance that runs, in a process group of its own, and what it has said so far."""

    step: str
    plan: FailingPlan
    process: subprocess.Popen[bytes]
    said: bytearray
    reader: threading.Thread
    wake: tuple[int, int]

    @classmethod
    @contextmanager
    def started(cls, step: str, plan: FailingPlan, environ: Mapping[str, str]) -> Iterator[Held]:
        """One that is ended with the block."""
        held = cls.start(step, plan, environ)
        try:
            yield held
        finally:
            held.close()

    @classmethod
    def start(cls, step: str, plan: FailingPlan, environ: Mapping[str, str]) -> Held:
        process = subprocess.Popen(
            plan.argv,
            cwd=plan.directory,
            env=dict(environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            bufsize=0,
        )
        said = bytearray()
        read_wake, write_wake = os.pipe()
        assert process.stdout is not None
        reader = threading.Thread(target=_collect, args=(process.stdout.fileno(), read_wake, said))
        reader.start()
        return cls(step, plan, process, said, reader, (read_wake, write_wake))

    def wait_for(self, words: bytes) -> None:
        """Until it has said so."""
        wait_for(lambda: words in self.said or self.process.poll() is not None, SLOW_S)
        assert words in self.said, self.said.decode(errors="replace")

    def end(self) -> Ended:
        """How it ended; it has to end by itself."""
        self.process.wait(SLOW_S)
        self.reader.join(SLOW_S)
        text = bytes(self.said).decode(errors="replace")
        return Ended(self.process.returncode, text, "", self.plan.outputs, event_bodies(text))

    def stop_reading(self) -> None:
        """Close this end of its output."""
        os.write(self.wake[1], b"x")
        self.reader.join(SLOW_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def close(self) -> None:
        """End it, however the test went."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.stop_reading()
        for fd in self.wake:
            os.close(fd)


def _collect(fd: int, wake: int, said: bytearray) -> None:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    poller.register(wake, select.POLLIN)
    while wake not in dict(poller.poll()):
        data = os.read(fd, 1 << 16)
        if not data:
            return
        said += data


@dataclass
class HeldPlans:
    """Makes the instances; `host` holds them, `cut` is a host that is already known and whose cable is pulled.

    `way` is how each is started (tests/integration/ways.py).
    """

    directory: Path
    controller: Controller
    host: NetnsHost
    cut: NetnsHost
    service: SyncService
    stack: ExitStack
    way: str
    known: FailingPlan = field(init=False)
    _cache_lock: IO[bytes] = field(init=False)

    @classmethod
    @contextmanager
    def made(
        cls, directory: Path, controller: Controller, host: NetnsHost, cut: NetnsHost, way: str = DIRECT
    ) -> Iterator[HeldPlans]:
        with ExitStack() as stack, SyncService() as service:
            yield cls(directory, controller, host, cut, service, stack, way)
            stack.close()

    def plan(self, name: str, host: NetnsHost) -> FailingPlan:
        plan = FailingPlan(self.directory / name, self.controller)
        plan.on(host.name)
        plan.hosts = f"  {host.name}: {{system: x86_64-linux, grace_s: 10, tolerate_s: {TOLERATE_S}}}\n"
        plan.own_directory = False
        plan.timeouts |= {"build_s": 100}
        plan.write_application(APPLICATION + f"# {name}\n")
        plan.argv = instance_argv(plan.directory, self.way)
        return plan

    def start(self, step: str, plan: FailingPlan, *, port: int | None = None) -> Held:
        plan.write_inventory()
        held = Held.start(step, plan, plan.environ(port or self.service.port, TEST_RUN=f"held-{step}"))
        self.stack.callback(held.close)
        return held

    def hold_all(self) -> list[Held]:
        """One instance at each step, in the order of the steps."""
        for host in (self.host, self.cut):
            self.known = self.plan(f"known-{host.name}", host)
            known = self.start("known", self.known)
            assert known.end().status == 0, known.said
        silent = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        choose = self.start("choose", self.plan("choose", self.host), port=silent.getsockname()[1])
        self.stack.enter_context(silent.accept()[0])
        plan = self.plan("build", self.host)
        plan.command = f"sh -c 'echo $$ >{self.directory}/new; mv {self.directory}/new {self.builder}; sleep 1000'"
        build = self.start("build", plan)
        run = self.start("run", self.plan("run", self.host))
        run.wait_for(b"ready\n")
        wait_for(self.builder.exists, SLOW_S)
        self.host.slow_down(2)
        fetch = self.start("fetch", self.plan("fetch", self.host))
        fetch.wait_for(b'"run: ended')
        push = self.hold_push()
        return [choose, build, push, self.hold_forward(), run, fetch]

    def hold_push(self) -> Held:
        """An instance whose push waits for the cache's lock, which somebody else has."""
        cache = self.host.home / ".cache/remote-runner/artifacts"
        self._cache_lock = self.stack.enter_context((cache / ".lock").open("wb"))
        fcntl.flock(self._cache_lock, fcntl.LOCK_EX)
        push = self.start("push", self.plan("push", self.host))
        push.wait_for(b'"build: ')
        wait_for(lambda: bool(list(cache.glob(".tmp-*"))), SLOW_S)
        return push

    def hold_forward(self) -> Held:
        """An instance that waits for a forward (for its connection, where it has one of its own)."""
        self.cut.link_down()
        other = self.stack.enter_context(DelayProxy("127.0.0.1", self.service.port, 0.0))  # which has no forward yet
        forward = self.start("forward", self.known, port=other.port)
        forward.wait_for(b'"build: ' if self.way == ALONE else b'"push: ')
        return forward

    @property
    def builder(self) -> Path:
        """The file with the process id of the build command, once it runs."""
        return self.directory / "builder"

    def release(self) -> None:
        """Nothing is held any more."""
        self._cache_lock.close()
        self.host.speed_up()


def fetched_later(plan: FailingPlan, host: NetnsHost, name: str = "partial") -> None:
    """`fab fetch` brings what stayed there, and `fab clean` removes it."""
    program = str(Path(sys.executable).parent / "remote-runner")
    for task in ("fetch", "clean"):
        words = [program, task, "--run", "failing"]
        done = subprocess.run(words, cwd=plan.directory, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    assert list((plan.directory / "outputs" / "run").rglob(name))
    base = host.home / ".cache" / "remote-runner"
    assert [*base.glob("runs/*"), *base.glob("artifacts/.tmp-*")] == []
    assert host.processes() == []
