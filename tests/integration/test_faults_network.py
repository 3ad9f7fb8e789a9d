"""Connections that break, under a push, a run and a fetch at once, each on its host."""

from __future__ import annotations

import copy
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.brokers_end import connections
from tests.delay import DelayProxy
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import APPLICATION, Ended, FailingPlan
from tests.integration.holding import SLOW_S, Held
from tests.integration.runs import wait_for

STEPS = ("push", "run", "fetch")
LARGE_BYTES = 8 << 20
AGENT_BYTES = 5 << 20  # at most: it goes there before all else
MEGABITS = 12
SLOW_MEGABITS, SLOW_RTT_S = 4, 0.4
# Asks the sync service again and again on one connection, until it is told to end, and says so each time.
ASKS = """#!/usr/bin/env python3
import json, os, socket, time
with open(os.path.join(os.environ["TEST_OUTPUTS_PATH"], "partial"), "w") as file:
    file.write("partial\\n")
where = (os.environ["SYNC_SERVICE_HOST"], int(os.environ["SYNC_SERVICE_PORT"]))
with socket.create_connection(where) as dialled:
    dialled.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\nUpgrade: websocket\\r\\nConnection: Upgrade\\r\\n"
                    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\\r\\nSec-WebSocket-Version: 13\\r\\n\\r\\n")
    assert b"101" in dialled.recv(4096)
    asked = 0
    while True:
        request = json.dumps({"id": str(asked), "signal_entry": {"state": "asked"}}).encode()
        dialled.sendall(bytes([0x81, 0x80 | len(request)]) + bytes(4) + request)
        assert b"signal_entry" in dialled.recv(4096)
        asked += 1
        print("ready" if asked == 1 else f"asked {asked}", flush=True)
        if os.path.exists("/root/go"):
            break
        time.sleep(0.2)
print('{"ts":1,"msg":"","event":{"success_event":{"group":"single"}}}')
"""
WRITES_MUCH = f"""#!/bin/sh
head -c {LARGE_BYTES} /dev/urandom >"$TEST_OUTPUTS_PATH/large"
printf '{{"ts":1,"msg":"","event":{{"success_event":{{"group":"single"}}}}}}\\n'
"""


@dataclass
class Crossing:
    """Three instances, one in the middle of its push, one of its run, one of its fetch."""

    hosts: dict[str, NetnsHost]
    proxies: dict[str, DelayProxy]
    plans: dict[str, FailingPlan]
    held: dict[str, Held]
    service: SyncService

    @property
    def all_hosts(self) -> list[NetnsHost]:
        return list(self.hosts.values())

    def start_later(self, stack: ExitStack) -> None:
        """A second instance on the host of the run."""
        plan = self.plans["run"]
        later = copy.copy(plan)
        later.outputs = plan.directory / "later outputs"
        later.outputs.mkdir()
        environ = later.environ(self.service.port, TEST_RUN="cut-later")
        self.plans["later"] = later
        self.hosts["later"] = self.hosts["run"]
        self.held["later"] = stack.enter_context(Held.started("later", later, environ))

    def ends(self) -> dict[str, Ended]:
        return {step: held.end() for step, held in self.held.items()}

    def base(self, step: str) -> Path:
        return self.hosts[step].home / ".cache" / "remote-runner"


class MakeCrossing(Protocol):
    def __call__(
        self, tolerate_s: float, *, megabits: int = MEGABITS, rtt_s: float | None = None, name: str = "t"
    ) -> Crossing:
        """Instances of that patience in the middle of their steps, over cables like that (and through a proxy)."""


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Closed at the end of the test."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_crossing(
    lan: Lan,
    tmp_path: Path,
    keys: Keys,
    controller: Controller,
    known_by_name: Callable[[TestHost], str],
    stack: ExitStack,
) -> MakeCrossing:
    """Makes the hosts and starts the instances."""
    service = stack.enter_context(SyncService())

    def make(tolerate_s: float, *, megabits: int = MEGABITS, rtt_s: float | None = None, name: str = "t") -> Crossing:
        crossing = Crossing({}, {}, {}, {}, service)
        hosts, plans = crossing.hosts, crossing.plans
        for step in STEPS:
            host = hosts[step] = stack.enter_context(
                NetnsHost.start(lan, tmp_path / f"{name}-{step}", name=f"{name}-{step}", keys=keys)
            )
            reached = host
            if rtt_s is not None:
                proxy = crossing.proxies[step] = stack.enter_context(DelayProxy(host.address, host.port, rtt_s))
                reached = host.reached_at("127.0.0.1", proxy.port)
            known_by_name(reached)
            host.slow_down(megabits)
            plan = plans[step] = FailingPlan(tmp_path / f"plan-{name}-{step}", controller)
            plan.on(host.name)
            plan.hosts = f"  {host.name}: {{system: x86_64-linux, tolerate_s: {tolerate_s}}}\n"
            plan.own_directory = False
            plan.timeouts |= {"push_s": 150, "fetch_s": 150, "connect_s": 60}
        plans["push"].write_application(APPLICATION.encode() + b"exit 0\n" + os.urandom(LARGE_BYTES))
        plans["run"].write_application(ASKS)
        plans["fetch"].write_application(WRITES_MUCH)
        before = {step: host.carried_bytes() for step, host in hosts.items()}
        for step, plan in plans.items():
            plan.write_inventory()
            environ = plan.environ(service.port, TEST_RUN=f"cut-{step}")
            crossing.held[step] = stack.enter_context(Held.started(step, plan, environ))
        crossing.held["run"].wait_for(b"ready\n")
        for step in ("push", "fetch"):
            wait_for(lambda step=step: hosts[step].carried_bytes() - before[step] > AGENT_BYTES + (1 << 20), SLOW_S)  # type: ignore[misc]
            assert hosts[step].carried_bytes() - before[step] < AGENT_BYTES + LARGE_BYTES
        return crossing

    return make


def goes_on_to_a_good_end(crossings: Sequence[Crossing], clock: FaultClock, within_s: float) -> None:
    clock.start()
    for crossing in crossings:
        crossing.hosts["run"].here("/root/go").touch()
    ends = [crossing.ends() for crossing in crossings]
    clock.stop(within_s)
    for crossing, ended in zip(crossings, ends, strict=True):
        assert [failure for each in ended.values() for failure in each.failures] == []
        assert {each.status for each in ended.values()} == {0}, ended
        assert (ended["fetch"].outputs / "large").stat().st_size == LARGE_BYTES
        for step in set(ended) & {"run", "later"}:
            assert (ended[step].outputs / "partial").exists()
            said = [line for line in ended[step].stdout.splitlines() if line.startswith(("ready", "asked "))]
            assert said == ["ready", *(f"asked {number}" for number in range(2, len(said) + 1))]
        for step, host in crossing.hosts.items():
            assert host.processes() == []
            assert list((crossing.base(step) / "runs").iterdir()) == []


def pull(crossing: Crossing) -> None:
    for host in crossing.all_hosts:
        host.link_down()


def plug(crossing: Crossing) -> None:
    for host in crossing.all_hosts:
        host.link_up()


def drop(crossing: Crossing) -> None:
    for host in crossing.all_hosts:
        host.dropping()


def let_pass(crossing: Crossing) -> None:
    for host in crossing.all_hosts:
        host.passing()


def answers(host: NetnsHost) -> bool:
    """Whether its sshd takes connections."""
    try:
        socket.create_connection((host.address, host.port), 1).close()
    except OSError:
        return False
    return True


def reset(crossing: Crossing) -> None:
    for proxy in crossing.proxies.values():
        proxy.reset()


@pytest.mark.parametrize(
    ("cut", "mend", "seconds"),
    [(pull, plug, 5.0), (drop, let_pass, 5.0), (reset, None, 0.0)],
    ids=["pulled", "silent", "reset"],
)
@fault(
    "the cable is pulled for 5 s, packets are dropped for 5 s, or connections are reset, during push, forward, run and "
    "fetch",
    "nothing: every step goes on, what the application says comes byte for byte, its connection to the sync service "
    "stays up",
    "after the cut as long again, by TCP's own back-off",
)
def test_a_short_cut(
    make_crossing: MakeCrossing,
    clock: FaultClock,
    stack: ExitStack,
    cut: Callable[[Crossing], None],
    mend: Callable[[Crossing], None] | None,
    seconds: float,
) -> None:
    crossing = make_crossing(60, rtt_s=None if mend else 0.0)
    cut(crossing)
    crossing.start_later(stack)
    time.sleep(seconds)  # the length of the cut is what is tested
    if mend:
        mend(crossing)
    goes_on_to_a_good_end([crossing], clock, seconds + 15)


@fault(
    "the cable is pulled, or packets are dropped, for 60 s (any time up to `tolerate_s`), during push, run and fetch",
    "the same, by a new connection",
    "30 s after the cut",
)
def test_a_long_cut(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    pulled, silent = make_crossing(100), make_crossing(100, name="s")
    pull(pulled)
    drop(silent)
    time.sleep(60)  # as above
    plug(pulled)
    let_pass(silent)
    goes_on_to_a_good_end([pulled, silent], clock, 30)


@pytest.mark.long
@fault(
    "the cable is pulled for 3 minutes during the run, with `tolerate_s: 300`",
    "the same",
    "30 s after the cut",
)
def test_a_cut_of_minutes(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    crossing = make_crossing(300)
    crossing.hosts["run"].link_down()
    time.sleep(180)  # as above
    crossing.hosts["run"].link_up()
    goes_on_to_a_good_end([crossing], clock, 30)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("program", ["ssh", "sshd"])
@fault(
    "the connection's ssh here, or its sshd there, is killed or stopped, during push, run and fetch",
    "the same; what a stopped one still delivers later is ignored",
    "half of `tolerate_s` + 15 s",
)
def test_a_killed_or_stopped_ssh(
    make_crossing: MakeCrossing, controller: Controller, clock: FaultClock, program: str, number: signal.Signals
) -> None:
    crossing = make_crossing(12)
    before = [host.connections() for host in crossing.all_hosts]
    pids = [
        pid
        for host in crossing.all_hosts
        for pid in (connections(controller.runtime, host.name) if program == "ssh" else host.sessions())
    ]
    assert len(pids) >= len(STEPS)
    clock.start()
    for pid in pids:
        with suppress(ProcessLookupError):  # sshd has several processes for a connection, which go together
            os.kill(pid, number)
    wait_for(lambda: all(host.connections() > was for host, was in zip(crossing.all_hosts, before, strict=True)), 20)
    for pid in pids if number is signal.SIGSTOP else ():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    goes_on_to_a_good_end([crossing], clock, 6 + 15)


@fault(
    f"the link is slow ({SLOW_MEGABITS} Mbit/s and {SLOW_RTT_S:g} s there and back), during push, run and fetch",
    "nothing: slow is not silent, even where `tolerate_s` is shorter than the step",
    "the time that the bytes take",
)
def test_a_slow_link(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    crossing = make_crossing(6, megabits=SLOW_MEGABITS, rtt_s=SLOW_RTT_S)
    goes_on_to_a_good_end([crossing], clock, round(3 * LARGE_BYTES * 8 / (SLOW_MEGABITS * 1e6)))


@fault(
    "the cable is pulled, or packets are dropped, for good, during push, run and fetch",
    "the instance fails with the reason; the host ends the application and what it receives by itself; outputs stay "
    "there: `fab fetch --run ID`, `fab clean --run ID`",
    "`tolerate_s` + 15 s",
)
def test_a_cut_for_good(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    tolerate_s = 6
    crossing = make_crossing(tolerate_s)
    clock.start()
    for step, host in crossing.hosts.items():
        (host.dropping if step == "run" else host.link_down)()
    ends = crossing.ends()
    # The far side hears as little as we do: what it runs, and what it receives, ends by itself.
    wait_for(lambda: all(host.processes() == [] for host in crossing.all_hosts), tolerate_s + 15)
    clock.stop(tolerate_s + 15)
    for step, ended in ends.items():
        ended.failure(f"t-{step}: ", "the connection to the host was lost")
    assert "fab fetch" in ends["run"].failures[0]
    assert "fab fetch" in ends["fetch"].failures[0]
    wait_for(lambda: list((crossing.base("push") / "artifacts").iterdir()) == [], tolerate_s + 15)
    for step, host in crossing.hosts.items():
        (host.passing if step == "run" else host.link_up)()
        wait_for(partial(answers, host), 10)  # the kernel takes a neighbour that did not answer for gone for a while
    program = str(Path(sys.executable).parent / "remote-runner")
    for step, name in (("run", "partial"), ("fetch", "large")):
        plan = crossing.plans[step]
        (far,) = (crossing.base(step) / "runs").glob(f"*/outputs/{name}")
        there = far.read_bytes()
        for task in (["fetch"], ["fetch"], ["clean"]):  # fetched twice is the same
            words = [program, *task, "--run", f"cut-{step}"]
            done = subprocess.run(words, cwd=plan.directory, capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stderr
            (here,) = (plan.directory / "outputs" / "run").rglob(name)
            assert here.read_bytes() == there
        assert list((crossing.base(step) / "runs").iterdir()) == []
