"""Each doubt from the values that make it, and a quiet run that has none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from remote_runner.connection.verbs.facts import Clock
from remote_runner.truth.doubts import Observed, doubts
from remote_runner.truth.values import HostState

BEFORE = {
    **{"load": 0.4, "pressure": 0.0, "cpu_s": 1000.0, "steal_s": 3.0, "available_bytes": 1e9, "swap_used_bytes": 5e8},
    **{"swapped_bytes": 9e9, "received_packets": 1e6, "sent_packets": 1e6, "received_drops": 900, "sent_drops": 7},
    **{"errors": 3, "segments": 1e6, "retransmits": 4000, "udp_drops": 8, "throttled_s": 5, "thermal_throttles": 40},
}
GROWN = {"cpu_s": 10.0, "received_packets": 5000.0, "sent_packets": 5000.0, "received_drops": 9.0, "segments": 4000.0}
AFTER = {key: value + GROWN.get(key, 0) for key, value in BEFORE.items()}
# A minute of four instances on four cores, which needed 10 s of them.
QUIET = Observed(
    host="dex",
    cores=4,
    before=HostState(1000.0, BEFORE),
    after=HostState(1060.0, AFTER),
    clock=Clock(0.2, 0.0001),
    instances=4,
    cpu_s=10.0,
    shortest_s=55.0,
)


def before(**changed: float) -> Observed:
    return replace(QUIET, before=HostState(1000.0, BEFORE | changed))


def after(**more: float) -> Observed:
    return replace(QUIET, after=HostState(1060.0, {key: value + more.get(key, 0) for key, value in AFTER.items()}))


def test_a_quiet_run_has_no_doubt() -> None:
    assert doubts(QUIET) == ()


@pytest.mark.parametrize(
    ("seen", "sentence"),
    [
        (before(load=3.2, pressure=0.4), "dex was busy before the run: its load was 3.2 on 4 cores"),
        (after(swapped_bytes=64 << 20), "dex swapped during the run: 64 MiB went between its memory and its disk"),
        (
            after(throttled_s=2.5),
            "dex was throttled: a limit on its control group held programs back for 2.5 s",
        ),
        (after(thermal_throttles=12), "dex was throttled: its cores slowed down for their heat, 12 times"),
        (after(steal_s=24), "dex was throttled: its hypervisor gave 10% of its processors' time to others"),
        (after(errors=20), "dex lost packets: 20 of 10000 were dropped or broken"),
        (after(received_drops=500), "dex lost packets: 509 of 10000 were dropped or broken"),
        (after(retransmits=40), "dex lost packets: TCP sent 40 of 4000 segments again"),
        (
            replace(QUIET, clock=Clock(0.0, 0.12), shortest_s=0.05),
            "the clock of dex is known to ±0.120 s only, and an application there ran for 0.050 s",
        ),
        (
            replace(QUIET, cores=1, instances=20, cpu_s=59.0),
            "20 instances shared one core of dex; it was busy for 98% of the time",
        ),
        (
            replace(after(cpu_s=470), cores=1, cores_online=8, instances=6, cpu_s=20.0),
            "6 instances shared one core of dex; it was busy for 100% of the time",
        ),
        (
            replace(QUIET, instances=20, cpu_s=230.0),
            "20 instances shared 4 cores of dex, 5 to a core; they were busy for 96% of the time",
        ),
    ],
)
def test_a_doubt(seen: Observed, sentence: str) -> None:
    assert doubts(seen) == (sentence,)


@pytest.mark.parametrize(
    "seen",
    [
        before(load=3.2),  # the kernel says that nobody waited
        after(swapped_bytes=1 << 20),
        after(received_drops=40),  # packets that nobody wants, as on any large network
        after(errors=9),
        after(retransmits=3),
        replace(QUIET, cores=1, instances=20, cpu_s=30.0),  # many, but there was room
        replace(QUIET, cores=1, instances=2, cpu_s=60.0),  # one busy core, but no crowd
        replace(QUIET, clock=Clock(3600.0, 0.01)),  # far off, and well known
        after(cpu_s=-900, swapped_bytes=-8e9, errors=-3, throttled_s=-5),  # it began anew
        Observed("dex"),
        Observed("dex", cores=4, before=HostState(1000.0), after=HostState(1060.0)),
        replace(QUIET, before=None, after=None),
        replace(QUIET, after=QUIET.before),
    ],
)
def test_no_doubt(seen: Observed) -> None:
    assert doubts(seen) == ()


def test_doubts_stand_beside_each_other() -> None:
    assert len(doubts(replace(after(errors=100, swapped_bytes=1 << 30), clock=Clock(0, 99.0)))) == 3
