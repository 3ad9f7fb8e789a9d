"""Reasons to doubt a run's numbers, one sentence each. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from remote_runner.connection.verbs.facts import Clock
from remote_runner.sizes import size
from remote_runner.truth.values import HostState

# Half of the cores were wanted before the run, and (where the kernel tells) programs waited for one.
BUSY_LOAD_PER_CORE = 0.5
BUSY_PRESSURE = 0.05
# Less is what any system moves to and fro.
SWAPPED_BYTES = 4 << 20
HELD_BACK_SHARE = 0.01
# A switch's own packets count as dropped where their protocol is unknown: a few a minute, with little other traffic.
LOST_LEAST = 10
LOST_SHARE = 0.001
RECEIVED_DROPS_SHARE = 0.01
SENT_AGAIN_SHARE = 0.01  # two in a thousand have been seen on a loopback whose machine was busy
CROWD_PER_CORE = 2
CROWD_BUSY = 0.9


@dataclass(frozen=True)
class Observed:
    """What is known of one host and run.

    cores: those that an application there may use, of `cores_online`. before, after: the host ahead of the first
    application and behind the last, or as it was seen last. instances: the most at once; cpu_s: what all of them used.
    shortest_s: how long the application ran that ended first.
    """

    host: str
    cores: int | None = None
    cores_online: int | None = None
    before: HostState | None = None
    after: HostState | None = None
    clock: Clock | None = None
    instances: int = 0
    cpu_s: float = 0.0
    shortest_s: float | None = None


def doubts(seen: Observed) -> tuple[str, ...]:
    """The sentences; none for a quiet run."""
    return (*_busy(seen), *_during(seen), *_clock(seen))


def _busy(seen: Observed) -> Iterator[str]:
    if seen.before is None or not seen.cores:
        return
    load, pressure = seen.before.told.get("load"), seen.before.told.get("pressure")
    if load is None or load < BUSY_LOAD_PER_CORE * seen.cores or (pressure is not None and pressure < BUSY_PRESSURE):
        return
    yield f"{seen.host} was busy before the run: its load was {load:.1f} on {_cores(seen.cores)}"


def _during(seen: Observed) -> Iterator[str]:
    before, after = seen.before, seen.after
    if before is None or after is None or after.at <= before.at:
        return
    took_s = after.at - before.at
    if (swapped := after.since(before, "swapped_bytes") or 0) >= SWAPPED_BYTES:
        yield f"{seen.host} swapped during the run: {size(int(swapped))} went between its memory and its disk"
    if (held_s := after.since(before, "throttled_s") or 0) >= HELD_BACK_SHARE * took_s:
        yield f"{seen.host} was throttled: a limit on its control group held programs back for {held_s:.1f} s"
    if times := after.since(before, "thermal_throttles") or 0:
        yield f"{seen.host} was throttled: its cores slowed down for their heat, {times:.0f} times"
    stolen_s = after.since(before, "steal_s") or 0
    if seen.cores and (share := stolen_s / (took_s * seen.cores)) >= HELD_BACK_SHARE:
        yield f"{seen.host} was throttled: its hypervisor gave {share:.0%} of its processors' time to others"
    yield from _lost(seen.host, before, after)
    yield from _crowd(seen, before, after)


def _lost(host: str, before: HostState, after: HostState) -> Iterator[str]:
    def grown(*keys: str) -> float:
        return sum(after.since(before, key) or 0 for key in keys)

    received, sent = grown("received_packets"), grown("sent_packets")
    lost = grown("errors", "sent_drops", "udp_drops")
    if (drops := grown("received_drops")) >= RECEIVED_DROPS_SHARE * received:
        lost += drops
    if lost >= LOST_LEAST and lost >= LOST_SHARE * (received + sent):
        yield f"{host} lost packets: {lost:.0f} of {received + sent:.0f} were dropped or broken"
    again, segments = grown("retransmits"), grown("segments")
    if again >= LOST_LEAST and again >= SENT_AGAIN_SHARE * segments:
        yield f"{host} lost packets: TCP sent {again:.0f} of {segments:.0f} segments again"


def _crowd(seen: Observed, before: HostState, after: HostState) -> Iterator[str]:
    if not seen.cores or seen.instances <= CROWD_PER_CORE * seen.cores:
        return
    took_s = after.at - before.at
    # The instances may have had less than a core because others were on it as well.
    all_of_them = took_s * (seen.cores_online or seen.cores)
    busy = max(seen.cpu_s / (took_s * seen.cores), (after.since(before, "cpu_s") or 0) / all_of_them)
    if busy < CROWD_BUSY:
        return
    crowd = "" if seen.cores == 1 else f", {seen.instances / seen.cores:.0f} to a core"
    verb = "was" if seen.cores == 1 else "were"
    yield (
        f"{seen.instances} instances shared {_cores(seen.cores)} of {seen.host}{crowd}; "
        f"{'it' if seen.cores == 1 else 'they'} {verb} busy for {min(busy, 1):.0%} of the time"
    )


def _clock(seen: Observed) -> Iterator[str]:
    if seen.clock is None or seen.shortest_s is None or seen.clock.uncertainty_s <= seen.shortest_s:
        return
    yield (
        f"the clock of {seen.host} is known to ±{seen.clock.uncertainty_s:.3f} s only, and an application there ran "
        f"for {seen.shortest_s:.3f} s"
    )


def _cores(count: int) -> str:
    return "one core" if count == 1 else f"{count} cores"
