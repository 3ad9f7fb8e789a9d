"""Cables that are pulled and packets that are dropped, under a push, a run and a fetch at once, each on its host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from remote_runner.controller import Controller
from testground.sync.service import SyncService
from tests.delay import DelayProxy
from tests.faults import FaultClock, fault
from tests.hosts import Keys, TestHost
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import APPLICATION, Ended, FailingPlan
from tests.integration.holding import SLOW_S, Held
from tests.integration.runs import wait_for
from tests.masters_end import masters_in

STEPS = ("push", "run", "fetch")
LARGE_BYTES = 5 << 20
MEGABITS = 8
SLOW_MEGABITS, SLOW_RTT_S = 2, 0.4
# Asks the sync service again and again on one connection, until it is told to end.
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
        if os.path.exists("/root/go"):
            break
        if asked == 1:
            print("ready", flush=True)
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
    plans: dict[str, FailingPlan]
    held: dict[str, Held]

    @property
    def all_hosts(self) -> list[NetnsHost]:
        return list(self.hosts.values())

    def ends(self) -> dict[str, Ended]:
        return {step: held.end() for step, held in self.held.items()}

    def base(self, step: str) -> Path:
        return self.hosts[step].home / ".cache" / "remote-runner"


class MakeCrossing(Protocol):
    def __call__(self, tolerate_s: float, *, megabits: int = MEGABITS, rtt_s: float = 0.0) -> Crossing:
        """Instances of that patience in the middle of their steps, over cables like that."""


@pytest.fixture
def make_crossing(
    lan: Lan, tmp_path: Path, keys: Keys, controller: Controller, known_by_name: Callable[[TestHost], str]
) -> Iterator[MakeCrossing]:
    """Makes the hosts and starts the instances."""
    with ExitStack() as stack:
        service = stack.enter_context(SyncService())

        def make(tolerate_s: float, *, megabits: int = MEGABITS, rtt_s: float = 0.0) -> Crossing:
            hosts, plans, held = {}, {}, {}
            for step in STEPS:
                host = hosts[step] = stack.enter_context(
                    NetnsHost.start(lan, tmp_path / step, name=f"t-{step}", keys=keys)
                )
                reached = host
                if rtt_s:
                    proxy = stack.enter_context(DelayProxy(host.address, host.port, rtt_s))
                    reached = host.reached_at("127.0.0.1", proxy.port)
                known_by_name(reached)
                host.slow_down(megabits)
                plan = plans[step] = FailingPlan(tmp_path / f"plan-{step}", controller)
                plan.on(host.name)
                plan.hosts = f"  {host.name}: {{system: x86_64-linux, tolerate_s: {tolerate_s}}}\n"
                plan.own_directory = False
                plan.timeouts |= {"push_s": 120, "fetch_s": 120}
            plans["push"].write_application(APPLICATION.encode() + b"exit 0\n" + os.urandom(LARGE_BYTES))
            plans["run"].write_application(ASKS)
            plans["fetch"].write_application(WRITES_MUCH)
            before = {step: host.carried_bytes() for step, host in hosts.items()}
            for step, plan in plans.items():
                plan.write_inventory()
                environ = plan.environ(service.port, TEST_RUN=f"cut-{step}")
                held[step] = stack.enter_context(Held.started(step, plan, environ))
            held["run"].wait_for(b"ready\n")
            for step in ("push", "fetch"):
                wait_for(lambda step=step: hosts[step].carried_bytes() - before[step] > 1 << 20, SLOW_S)  # type: ignore[misc]
                assert hosts[step].carried_bytes() - before[step] < LARGE_BYTES
            return Crossing(hosts, plans, held)

        yield make


def goes_on_to_a_good_end(crossing: Crossing, clock: FaultClock, within_s: float) -> None:
    clock.start()
    crossing.hosts["run"].here("/root/go").touch()
    ends = crossing.ends()
    clock.stop(within_s)
    assert [failure for ended in ends.values() for failure in ended.failures] == []
    assert [ended.status for ended in ends.values()] == [0, 0, 0], ends
    assert (ends["run"].outputs / "partial").exists()
    assert (ends["fetch"].outputs / "large").stat().st_size == LARGE_BYTES
    for step, host in crossing.hosts.items():
        assert host.processes() == []
        assert list((crossing.base(step) / "runs").iterdir()) == []


@pytest.mark.parametrize("seconds", [5.0, 25.0])
@fault(
    "the cable is pulled for 5 s or 25 s (any time up to half of `tolerate_s`), during push, run and fetch",
    "nothing: every step goes on, the application's connections to the sync service as well",
    "after the cut as long again, by TCP's own back-off",
)
def test_a_short_cut(make_crossing: MakeCrossing, clock: FaultClock, seconds: float) -> None:
    crossing = make_crossing(60)
    for host in crossing.all_hosts:
        host.link_down()
    time.sleep(seconds)  # the length of the cut is what is tested
    for host in crossing.all_hosts:
        host.link_up()
    goes_on_to_a_good_end(crossing, clock, seconds + 10)


@fault(
    f"the link is slow ({SLOW_MEGABITS} Mbit/s and {SLOW_RTT_S:g} s there and back), during push, run and fetch",
    "nothing: slow is not silent, even where `tolerate_s` is shorter than the step",
    "the time that the bytes take",
)
def test_a_slow_link(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    crossing = make_crossing(6, megabits=SLOW_MEGABITS, rtt_s=SLOW_RTT_S)
    goes_on_to_a_good_end(crossing, clock, round(3 * LARGE_BYTES * 8 / (SLOW_MEGABITS * 1e6)))


def fails_after_a_long_cut(
    crossing: Crossing,
    clock: FaultClock,
    tolerate_s: float,
    cut: Callable[[NetnsHost], None],
    mend: Callable[[NetnsHost], None],
    reason: str = "the connection to the host was lost",
) -> None:
    clock.start()
    for host in crossing.all_hosts:
        cut(host)
    ends = crossing.ends()
    # The far side hears as little as we do: what it runs, and what it receives, ends by itself.
    wait_for(lambda: all(host.processes() == [] for host in crossing.all_hosts), tolerate_s + 15)
    clock.stop(tolerate_s + 15)
    for step, ended in ends.items():
        ended.failure(f"t-{step}: ", reason)
    assert "fab fetch" in ends["run"].failures[0]
    assert "fab fetch" in ends["fetch"].failures[0]
    assert list((crossing.base("push") / "artifacts").iterdir()) == []
    for host in crossing.all_hosts:
        mend(host)
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


@fault(
    "the cable is pulled for good, during push, run and fetch",
    "the instance fails with the reason; the host ends the application and what it receives by itself; outputs stay "
    "there: `fab fetch --run ID`, `fab clean --run ID`",
    "`tolerate_s` + 15 s",
)
def test_a_cable_pulled_for_good(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    fails_after_a_long_cut(make_crossing(6), clock, 6, NetnsHost.link_down, NetnsHost.link_up)


@fault(
    "packets are dropped without a reset, during push, run and fetch",
    "the same",
    "`tolerate_s` + 15 s",
)
def test_packets_that_are_dropped(make_crossing: MakeCrossing, clock: FaultClock) -> None:
    fails_after_a_long_cut(make_crossing(6), clock, 6, NetnsHost.dropping, NetnsHost.passing)


@fault(
    "a master stands still (SIGSTOP) under its instances, during push, run and fetch",
    "the same; the reason names the process to end, after which the next use starts a new one",
    "`tolerate_s` + 15 s",
)
def test_a_master_that_stands_still(make_crossing: MakeCrossing, controller: Controller, clock: FaultClock) -> None:
    crossing = make_crossing(6)
    pids = masters_in(controller.runtime)
    assert len(pids) == len(STEPS)

    def signalled(number: signal.Signals) -> Callable[[NetnsHost], None]:
        def send(_: NetnsHost) -> None:
            for pid in masters_in(controller.runtime):
                os.kill(pid, number)

        return send

    stop, end = signalled(signal.SIGSTOP), signalled(signal.SIGKILL)
    fails_after_a_long_cut(crossing, clock, 6, stop, end, "its control master does not answer")
