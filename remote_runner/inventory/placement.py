"""Which instance runs where: the list of places, their slots, and the fold over numbers and groups.

Pure: every instance computes the same from the same values, so no instance decides for the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import islice
from typing import Any

from remote_runner.errors import HostNameError, RemoteRunnerError, UnknownSystemError, did_you_mean
from remote_runner.inventory.ssh_target import check_host_name
from remote_runner.inventory.systems import System

PARAM = "remote-runners"


class Spread(Enum):
    """In which order the slots of several hosts are taken."""

    FILL = "fill"
    ROUND = "round"


@dataclass(frozen=True)
class Entry:
    """One place of the list; `None` where it does not say. With `groups`, only their instances land here."""

    name: str
    system: System | None = None
    slots: int | None = None
    address: str | None = None
    labels: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass(frozen=True)
class Placement:
    """Where an instance runs: the host, which of its slots (from 0), and how often the list was full before."""

    host: str
    slot: int
    round: int
    system: System | None
    address: str | None

    @property
    def message(self) -> str:
        """What to tell the user when there are more instances than slots, else ""."""
        if not self.round:
            return ""
        return (
            f"there are more instances than slots: {self.round + 1} share slot {self.slot} of {self.host}; "
            "`slots` in inventory.yaml says how many a host takes"
        )


def parse_entries(text: str) -> tuple[Entry, ...] | None:
    """Read the `remote-runners` param: JSON, `[{"name": "dex", "arch": "x86_64-linux"}, …]`; `None` where it is blank.

    Raises `RemoteRunnerError` naming the param, the entry, what was found and what is expected.
    """
    import json

    if not text.strip():
        return None
    try:
        value = json.loads(text)
    except (RecursionError, ValueError) as error:
        if not isinstance(error, json.JSONDecodeError):
            raise RemoteRunnerError(f"param {PARAM}: not readable as JSON: {error}", next_step=_EXAMPLE) from error
        near = text[max(0, error.pos - 15) : error.pos + 15]
        raise RemoteRunnerError(
            f"param {PARAM}: not JSON: {error.msg} at character {error.pos + 1}, near {near!r}", next_step=_EXAMPLE
        ) from error
    if "\\u" in text or not text.isascii():
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            problem = f"not text: half a character ({error.object[error.start]!r})"
            raise RemoteRunnerError(f"param {PARAM}: {problem}", next_step=_EXAMPLE) from error
    if not isinstance(value, list) or not value:
        raise RemoteRunnerError(f"param {PARAM}: found {_found(value)}, expected a list of hosts", next_step=_EXAMPLE)
    return tuple(_entry(index, item) for index, item in enumerate(value))


_EXAMPLE = f"""give it as --test-param {PARAM}='[{{"name":"localhost"}},{{"name":"dex","arch":"x86_64-linux"}}]'"""
_ENTRY_KEYS = ("name", "arch", "slots", "labels", "groups", "address")


def _entry(index: int, item: Any) -> Entry:
    def fail(key: str, found: Any, expected: str, hint: str = "") -> RemoteRunnerError:
        where = f"param {PARAM}: entry {index + 1}" + (f": {key}" if key else "")
        return RemoteRunnerError(f"{where}: found {_found(found)}, expected {expected}{hint}", next_step=_EXAMPLE)

    def words(key: str) -> tuple[str, ...]:
        value = item.get(key)
        value = [] if value is None else [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(word, str) and word.strip() for word in value):
            raise fail(key, value, "a list of names")
        return tuple(value)

    if not isinstance(item, dict):
        raise fail("", item, 'an object with a "name"')
    for key in item:
        if key not in _ENTRY_KEYS:
            import difflib

            near = difflib.get_close_matches(key, _ENTRY_KEYS, n=1)
            raise fail("", key, f"one of {', '.join(_ENTRY_KEYS)}", did_you_mean(near))
    name, slots, address = item.get("name"), item.get("slots"), item.get("address")
    if not isinstance(name, str):
        raise fail("name", name, "a host's name")
    try:
        check_host_name(name)
    except HostNameError as error:
        raise fail("name", name, "a host's name", f" ({error.reason})") from error
    if slots is not None and (type(slots) is not int or not 1 <= slots <= 1000):
        raise fail("slots", slots, "a whole number from 1 to 1000")
    if address is not None and (not isinstance(address, str) or not address or any(c.isspace() for c in address)):
        raise fail("address", address, "a host name or an address")
    return Entry(name, _system(item.get("arch"), fail), slots, address, words("labels"), words("groups"))


def _system(value: Any, fail: Any) -> System | None:
    if value is None or value == "":
        return None
    expected = "a system such as x86_64-linux"
    if not isinstance(value, str):
        raise fail("arch", value, expected)
    try:
        return System.parse(value)
    except UnknownSystemError as error:
        raise fail("arch", value, expected, did_you_mean(error.nearest)) from error


def _found(value: Any) -> str:
    import json

    if value is None:
        return "nothing"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def needs_groups(entries: Sequence[Entry]) -> bool:
    """Whether a number alone does not decide, so that the groups of all earlier instances must be known."""
    return any(entry.groups for entry in entries)


def is_shared_evenly(entries: Sequence[Entry], instances: int) -> bool:
    """Whether each slot gets as many of so many instances as any other."""
    return not needs_groups(entries) and instances % sum(entry.slots or 1 for entry in entries) == 0


def place(
    entries: Sequence[Entry], number: int, group: str, earlier: Sequence[str] = (), spread: Spread = Spread.FILL
) -> Placement:
    """Where instance `number` (from 1) of `group` runs; `earlier` are the groups of the instances 1 to `number` - 1.

    `earlier` may be left out unless `needs_groups`. Raises `RemoteRunnerError` where no entry takes the group.
    """
    if number < 1:
        raise RemoteRunnerError(f"instance number {number}: numbers start at 1")
    if not needs_groups(entries):
        earlier_rounds, left = divmod(number - 1, sum(entry.slots or 1 for entry in entries) or 1)
        entry, slot = next(islice(_slots(entries, spread), left, None))
        return _placement(entry, slot, earlier_rounds)
    if len(earlier) != number - 1:
        raise RemoteRunnerError(
            f"instance {number}: the groups of {number - 1} instances are needed, not {len(earlier)}"
        )
    return place_all(entries, (*earlier, group), spread)[-1]


def places_after(entries: Sequence[Entry], placement: Placement, group: str) -> Iterator[Placement]:
    """Where an instance of `group` may go when the host of its placement is dead: the other hosts in the list's order,
    the next one first. Nobody else's placement depends on that, so these slots are shared."""
    names = [entry.name for entry in entries]
    start = names.index(placement.host)
    passed = {placement.host}
    for entry in (*entries[start + 1 :], *entries[:start]):
        if entry.name not in passed and (not entry.groups or group in entry.groups):
            passed.add(entry.name)
            yield _placement(entry, 0, 0)


def place_all(entries: Sequence[Entry], groups: Iterable[str], spread: Spread = Spread.FILL) -> list[Placement]:
    """Where each instance runs, given the instances' groups in the order of their numbers.

    An instance takes the first of the least used slots that are open to its group; among those, one kept
    for the group goes before one that is open to all.
    """
    import heapq

    slots = list(_slots(entries, spread))
    used = [0] * len(slots)
    # One heap for each group; a slot's key is out of date when another group has used it since, and is then renewed.
    heaps: dict[str, list[tuple[int, bool, int]]] = {}
    placements = []
    for group in groups:
        if group not in heaps:
            open_to = ((i, e) for i, (e, _) in enumerate(slots) if not e.groups or group in e.groups)
            heaps[group] = [(used[i], not e.groups, i) for i, e in open_to]
            heapq.heapify(heaps[group])
        heap = heaps[group]
        if not heap:
            named = ", ".join(dict.fromkeys(name for entry in entries for name in entry.groups))
            raise RemoteRunnerError(
                f"group {group!r}: no host takes it (the hosts are kept for {named})",
                next_step=f"name {group!r} in the groups of a host, or add a host without groups",
            )
        while heap[0][0] != used[heap[0][2]]:
            _, shared, i = heap[0]
            heapq.heapreplace(heap, (used[i], shared, i))
        _, shared, i = heap[0]
        placements.append(_placement(*slots[i], used[i]))
        used[i] += 1
        heapq.heapreplace(heap, (used[i], shared, i))
    return placements


def _slots(entries: Sequence[Entry], spread: Spread) -> Iterator[tuple[Entry, int]]:
    if not entries:
        raise RemoteRunnerError("there is no host to run on", next_step="list hosts in inventory.yaml")
    if spread is Spread.FILL:
        return ((entry, slot) for entry in entries for slot in range(entry.slots or 1))
    most = max(entry.slots or 1 for entry in entries)
    return ((entry, slot) for slot in range(most) for entry in entries if slot < (entry.slots or 1))


def _placement(entry: Entry, slot: int, earlier_rounds: int) -> Placement:
    return Placement(entry.name, slot, earlier_rounds, entry.system, entry.address)
