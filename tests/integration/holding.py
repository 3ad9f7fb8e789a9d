"""A plan whose instances stand still, one at each step, so that a fault can meet all steps at once."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.hosts_netns import NetnsHost
from tests.integration.failing import Ended, FailingPlan, event_bodies
from tests.integration.runs import wait_for
from tests.integration.ways import DIRECT, instance_argv
from tests.masters_end import end_masters

SLOW_S = 60.0
# Programs on the far PATH that stand still while /root/hold is there, and then do what they always do.
_HOLD = "while [ -e /root/hold ]; do sleep 0.1; done"
HELD_TAR = f"""#!/bin/sh
case "$*" in
    *-xf*) [ -e /root/hold-push ] && : >/root/held-push && {_HOLD} ;;
    *-cf*) [ -e hold-fetch ] && : >/root/held-fetch && {_HOLD} ;;
esac
exec /usr/bin/tar "$@"
"""
HELD_RM = f"""#!/bin/sh
for last; do :; done
[ -e "$last/outputs/hold-clean" ] && : >/root/held-clean && {_HOLD}
exec /bin/rm "$@"
"""
# Has written something, and children that left its process group and that nobody waits for.
APPLICATION = """#!/bin/sh
cd "$TEST_OUTPUTS_PATH"
echo partial >partial
setsid sh -c 'setsid sleep 1000 & sleep 1000' &
case $TEST_RUN in
    *run) echo ready; sleep 1000 & wait ;;
    *fetch) : >hold-fetch ;;
    *clean) : >hold-clean ;;
esac
printf '{"ts":1,"msg":"","event":{"success_event":{"group":"single"}}}\\n'
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
    forward_plan: FailingPlan = field(init=False)

    @classmethod
    @contextmanager
    def made(
        cls, directory: Path, controller: Controller, host: NetnsHost, cut: NetnsHost, way: str = DIRECT
    ) -> Iterator[HeldPlans]:
        programs = host.here("/root/bin")
        programs.mkdir()
        for name, text in (("tar", HELD_TAR), ("rm", HELD_RM)):
            (programs / name).write_text(text, encoding="utf-8")
            (programs / name).chmod(0o755)
        host.here("/root/.bashrc").write_text("export PATH=/root/bin:$PATH\n", encoding="utf-8")
        with ExitStack() as stack, SyncService() as service:
            yield cls(directory, controller, host, cut, service, stack, way)
            stack.close()

    def plan(self, name: str, host: NetnsHost) -> FailingPlan:
        plan = FailingPlan(self.directory / name, self.controller)
        plan.on(host.name)
        plan.hosts = f"  {host.name}: {{system: x86_64-linux, grace_s: 10, tolerate_s: 10}}\n"
        plan.own_directory = False
        plan.timeouts |= {"connect_s": 10, "build_s": 100}
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
        self.known()
        self.host.here("/root/hold").touch()
        silent = self.stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        choose = self.start("choose", self.plan("choose", self.host), port=silent.getsockname()[1])
        self.stack.enter_context(silent.accept()[0])
        plan = self.plan("build", self.host)
        plan.command = f"sh -c 'echo $$ >{self.directory}/new; mv {self.directory}/new {self.builder}; sleep 1000'"
        build = self.start("build", plan)
        running = [self.start(step, self.plan(step, self.host)) for step in ("run", "fetch", "clean")]
        running[0].wait_for(b"ready\n")
        for step in ("fetch", "clean"):
            wait_for(self.host.here(f"/root/held-{step}").exists, SLOW_S)
        wait_for(self.builder.exists, SLOW_S)
        self.host.here("/root/hold-push").touch()
        push = self.start("push", self.plan("push", self.host))
        wait_for(self.host.here("/root/held-push").exists, SLOW_S)
        forward = self.start("forward", self.forward_plan)
        forward.wait_for(b"push: ")
        return [choose, build, push, forward, *running]

    def known(self) -> None:
        """The host that is cut off has the artifact already, so an instance there comes as far as the forwards."""
        self.forward_plan = self.plan("forward", self.cut)
        known = self.start("known", self.forward_plan)
        assert known.end().status == 0, known.said
        end_masters(self.controller.runtime)
        self.cut.link_down()

    @property
    def builder(self) -> Path:
        """The file with the process id of the build command, once it runs."""
        return self.directory / "builder"

    def release(self) -> None:
        """Nothing is held any more."""
        self.host.here("/root/hold").unlink()
        self.host.here("/root/hold-push").unlink()
