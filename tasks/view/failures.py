"""Grouping equal failures into one message. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from remote_runner.sizes import listed

_MOST_HOSTS = 12
_MOST_RANGES = 12


@dataclass(frozen=True)
class Failure:
    """Whose it is (`single[003]`), on which host ("": none yet), what kind (`failed`, `incomplete`), and the reason."""

    who: str
    host: str
    verdict: str
    reason: str


def sameness(failure: Failure) -> tuple[str, str]:
    """What two failures have in common when they are the same: all but the names of host and instance."""
    reason = failure.reason
    group, _, index = failure.who.partition("[")
    number = index.rstrip("]").lstrip("0") or "0"
    for name in (failure.host, failure.who, f"{group}-{number}"):
        if name:
            reason = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "…", reason)
    return failure.verdict, reason


def sameness_of_warning(text: str, host: str) -> str:
    """The same of a warning of ours, in which numbers say no more than names do."""
    return re.sub(r"\d+", "…", text.replace(host, "…") if host else text)


def told_once(failures: Iterable[Failure]) -> list[str]:
    """A text for each kind of failure, in the order of their first: with one's name, or the number and the list."""
    kinds: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        kinds.setdefault(sameness(failure), []).append(failure)
    return [_told(members) for members in kinds.values()]


def _told(members: Sequence[Failure]) -> str:
    first = members[0]
    if len(members) == 1:
        return f"{first.who} {first.verdict}: {first.reason}"
    hosts = sorted({member.host for member in members if member.host})
    where = "" if not hosts else f" on {hosts[0]}" if len(hosts) == 1 else f" on {len(hosts)} hosts"
    reason = first.reason
    if len(hosts) > 1:  # of one of them it would be wrong
        reason = reason.replace(f"{first.host}: ", "", 1)
        reason = "\n".join(_of_each(line, first.host, hosts) for line in reason.split("\n"))
    whose = ", ".join(ranges([member.who for member in members]))
    if len(hosts) > 1:
        whose += f" on {listed(hosts, _MOST_HOSTS)}"
    return f"{len(members)} instances{where} {first.verdict}: {reason}\n  {whose}"


def _of_each(line: str, host: str, hosts: Sequence[str]) -> str:
    """A line that names one of the hosts, for all of them; what can be typed can be typed still."""
    if "ssh -" in line:
        return line
    if len(hosts) <= _MOST_HOSTS:
        options = " ".join(f"--host {name}" for name in hosts)
        line = re.sub(rf"--host {re.escape(host)}(?![^\s`])", lambda _: options, line)
        if options in line:
            return line
    return re.sub(rf"(?<!\w){re.escape(host)}(?!\w)", "each host", line)


def ranges(who: Sequence[str]) -> list[str]:
    """Instances as ranges of their groups: `single[000-011,014]`; a dozen ranges of each group at most."""
    numbers: dict[str, list[int]] = {}
    for name in who:
        group, _, index = name.rstrip("]").rpartition("[")
        numbers.setdefault(group, []).append(int(index))
    found = []
    for group, members in numbers.items():
        shown = []
        for _, run in groupby(enumerate(sorted(set(members))), key=lambda pair: pair[1] - pair[0]):
            ends = [number for _, number in run]
            shown.append(f"{ends[0]:03d}" if len(ends) == 1 else f"{ends[0]:03d}-{ends[-1]:03d}")
        if len(shown) > _MOST_RANGES:
            shown[_MOST_RANGES:] = ["…"]
        found.append(f"{group}[{','.join(shown)}]")
    return found
