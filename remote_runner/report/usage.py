"""What processes and hosts used, from their samples: counters as rates, the rest as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from remote_runner.report.values import Series


@dataclass(frozen=True)
class Measure:
    """A key of the samples: its words, its unit as the axis shows it, and whether it counts up."""

    words: str
    unit: str
    counts: bool = False


INSTANCE: Mapping[str, Measure] = {
    "cpu_s": Measure("CPU", "cores", counts=True),
    "rss_bytes": Measure("resident memory", "B"),
    "threads": Measure("threads", ""),
    "descriptors": Measure("descriptors", ""),
    "read_bytes": Measure("read from disk", "B/s", counts=True),
    "written_bytes": Measure("written to disk", "B/s", counts=True),
}
HOST: Mapping[str, Measure] = {
    "cpu_s": Measure("CPU", "cores", counts=True),
    "load": Measure("load", ""),
    "available_bytes": Measure("memory that is available", "B"),
    "received_bytes": Measure("network, received", "B/s", counts=True),
    "sent_bytes": Measure("network, sent", "B/s", counts=True),
    "steal_s": Measure("CPU given to other machines (steal)", "cores", counts=True),
    "received_packets": Measure("packets received", "/s", counts=True),
    "sent_packets": Measure("packets sent", "/s", counts=True),
    "received_drops": Measure("packets dropped, received", "/s", counts=True),
    "sent_drops": Measure("packets dropped, sent", "/s", counts=True),
    "errors": Measure("network errors", "/s", counts=True),
    "segments": Measure("TCP segments sent", "/s", counts=True),
    "retransmits": Measure("TCP segments sent again", "/s", counts=True),
    "udp_drops": Measure("datagrams without room", "/s", counts=True),
    "swap_used_bytes": Measure("swap in use", "B"),
    "swapped_bytes": Measure("swapped in and out", "B/s", counts=True),
    "throttled_s": Measure("held back by a limit", "s/s", counts=True),
    "thermal_throttles": Measure("slowed down for heat", "/s", counts=True),
    "pressure": Measure("share of time a program waited for a processor", ""),
}


def told(usage: Mapping[str, Series], measures: Mapping[str, Measure]) -> dict[str, Series]:
    """The series of an instance or a host by the words of their measures, the known ones first."""
    found = {}
    for key in [*measures, *(key for key in usage if key not in measures)]:
        if key in usage:
            measure = measures.get(key, Measure(key, ""))
            found[measure.words] = rate(usage[key]) if measure.counts else usage[key]
    return found


def rate(series: Series) -> Series:
    """What a counter grew by, per second, between each two of its values; where it fell it began anew."""
    times, values = [], []
    for (before_s, before), (after_s, after) in pairwise(zip(series.times_s, series.values, strict=True)):
        if after_s > before_s and after >= before:
            times.append(after_s)
            values.append((after - before) / (after_s - before_s))
    return Series(tuple(times), tuple(values))
