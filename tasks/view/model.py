"""The state of a running task, computed from its events. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from remote_runner.progress import Began, Building, Built, Ended, Moved, Progress

# A rate is that of the last seconds: what was quick a minute ago says little of what is left.
_RATE_S = 5.0
_LOOK_S = 0.25
# The steps in their order; what stands before `run` waits for it.
_ORDER = ("", "choose", "build", "connect", "push", "forward", "run", "fetch", "clean")
_RUNNING = ("run", "fetch", "clean")
_LEAST_RATE = 1.0


@dataclass(frozen=True)
class Transfer:
    """A running push or fetch; `total_bytes` is `None` if it is unknown."""

    what: str
    done_bytes: int
    total_bytes: int | None
    bytes_per_s: float

    @property
    def left_s(self) -> float | None:
        """How long it still takes at this rate; None where that cannot be said."""
        if self.total_bytes is None or self.bytes_per_s < _LEAST_RATE:
            return None
        return (self.total_bytes - self.done_bytes) / self.bytes_per_s


@dataclass(frozen=True)
class Counts:
    """How many are where."""

    waiting: int = 0
    running: int = 0
    ok: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.waiting + self.running + self.ok + self.failed


@dataclass(frozen=True)
class Row:
    """A host, or a group; `step` is the one that most are at, "" where all have ended. Seconds are whole ones."""

    name: str
    step: str
    counts: Counts
    transfer: Transfer | None
    elapsed_s: int


@dataclass(frozen=True)
class View:
    """All that is to be seen at one moment; `hidden` rows had no room. `by`: what a row is, "host" or "group".

    Two that are equal look the same.
    """

    title: str
    by: str
    rows: tuple[Row, ...]
    hidden: int
    counts: Counts
    builds: tuple[tuple[str, int], ...]
    elapsed_s: int
    single: bool
    """Whether each row is one thing, which has a step and an end and nothing to count."""


@dataclass
class _Item:
    who: str
    group: str
    host: str = ""
    step: str = ""
    outcome: str = ""
    kept: str = ""
    began_s: float | None = None
    ended_s: float | None = None


@dataclass
class _Flow:
    """One transfer, with where it was during the last seconds."""

    total_bytes: int | None
    looks: deque[tuple[float, int]] = field(default_factory=deque)
    done_bytes: int = 0

    def take(self, event: Moved, at_s: float) -> None:
        self.done_bytes, self.total_bytes = event.done_bytes, event.total_bytes
        if not self.looks or at_s - self.looks[-1][0] >= _LOOK_S:
            self.looks.append((at_s, event.done_bytes))
            while at_s - self.looks[0][0] > _RATE_S:
                self.looks.popleft()

    def rate(self, at_s: float) -> float:
        began_s, first_bytes = self.looks[0]
        return (self.done_bytes - first_bytes) / (at_s - began_s) if at_s > began_s else 0.0


class Model:
    """Takes events with the time, by any monotonic clock in seconds, at which each came."""

    def __init__(self) -> None:
        self.title = ""
        self._items: dict[str, _Item] = {}
        self._flows: dict[tuple[str, str, str], _Flow] = {}
        self._builds: dict[tuple[str, str], float] = {}
        self._began_s: float | None = None

    def expect(self, title: str, who: Iterable[tuple[str, str]], at_s: float) -> None:
        """From here on these (name, group; for a host twice its name) are looked at, in this order."""
        self.title = title
        self._items = {name: _Item(name, group, host=name if name == group else "") for name, group in who}
        self._flows.clear()
        self._began_s = at_s if self._began_s is None else self._began_s

    def take(self, event: Progress, at_s: float) -> None:
        """Apply an event; unexpected ones are ignored."""
        match event:
            case Began(who, step, host):
                item = self._items.get(who)
                if item is not None:
                    item.step, item.host, item.ended_s, item.outcome = step, host or item.host, None, ""
                    item.began_s = at_s if item.began_s is None else item.began_s
            case Ended(who, outcome, kept):
                item = self._items.get(who)
                if item is not None:
                    item.outcome, item.kept, item.ended_s = outcome, kept, at_s
            case Moved():
                key = (event.host, event.what, event.who)
                if event.is_over:
                    self._flows.pop(key, None)
                else:
                    self._flows.setdefault(key, _Flow(event.total_bytes)).take(event, at_s)
            case Building(app, system):
                self._builds[app, system] = at_s
            case Built(app, system):
                self._builds.pop((app, system), None)

    @property
    def has_rows(self) -> bool:
        return bool(self._items or self._builds)

    def view(self, at_s: float, most: int) -> View:
        """What is to be seen now, in at most so many rows."""
        items = list(self._items.values())
        hosts = {item.host for item in items}
        groups = {item.group for item in items}
        by = "host" if len(hosts) <= most or groups == hosts else "group"
        sorted_by: dict[str, list[_Item]] = {}
        for item in items:
            sorted_by.setdefault(item.host if by == "host" else item.group, []).append(item)
        rows = [self._row(name, members, by, at_s) for name, members in sorted_by.items()]
        shown = _most_telling(rows, most)
        counts = _counts(items)
        return View(
            title=self.title,
            by=by,
            rows=tuple(shown),
            hidden=len(rows) - len(shown),
            counts=counts,
            builds=tuple((f"{app} for {system}", int(at_s - at)) for (app, system), at in self._builds.items()),
            elapsed_s=0 if self._began_s is None else int(at_s - self._began_s),
            single=all(item.group == item.who for item in items),
        )

    def host_of(self, who: str) -> str:
        """Where it is, as far as is known."""
        item = self._items.get(who)
        return "" if item is None else item.host

    def left_there(self) -> dict[str, list[str]]:
        """Whose directories are still on which host: of those that say so, and of those that came to no end."""
        found: dict[str, list[str]] = {}
        for item in self._items.values():
            if item.host and (item.kept if item.outcome else item.step in _RUNNING):
                found.setdefault(item.host, []).append(item.who)
        return found

    def _row(self, name: str, members: Sequence[_Item], by: str, at_s: float) -> Row:
        going = [item.step for item in members if not item.outcome]
        # Where as many are at one step as at another, the one that is behind tells more.
        step = max(_ORDER, key=lambda one: (going.count(one), -_ORDER.index(one))) if going else ""
        began = [item.began_s for item in members if item.began_s is not None]
        ended = [item.ended_s for item in members if item.ended_s is not None]
        until_s = at_s if going else max(ended, default=at_s)
        return Row(
            name=name,
            step=step,
            counts=_counts(members),
            transfer=self._transfer({item.host for item in members} if by == "group" else {name}, at_s),
            elapsed_s=max(0, int(until_s - min(began))) if began else 0,
        )

    def _transfer(self, hosts: set[str], at_s: float) -> Transfer | None:
        """The sum of these hosts' running pushes, or else of their fetches."""
        for what in ("push", "fetch"):
            flows = [flow for (host, one, _), flow in self._flows.items() if one == what and host in hosts]
            if flows:
                totals = [flow.total_bytes for flow in flows if flow.total_bytes is not None]
                done_bytes = sum(flow.done_bytes for flow in flows)
                # What surrounds the files in a stream is sent as well, and not in the total.
                total_bytes = max(sum(totals), done_bytes) if len(totals) == len(flows) else None
                return Transfer(what, done_bytes, total_bytes, sum(flow.rate(at_s) for flow in flows))
        return None


def _counts(items: Sequence[_Item]) -> Counts:
    ok = failed = running = 0
    for item in items:
        if item.outcome:
            ok += item.outcome == "ok"
            failed += item.outcome != "ok"
        else:
            running += item.step in _RUNNING or (item.who == item.group and item.began_s is not None)
    return Counts(len(items) - ok - failed - running, running, ok, failed)


def _most_telling(rows: Sequence[Row], most: int) -> list[Row]:
    """As many as there is room for: first those that go on, then the failed ones; in the order in which they stood."""
    if len(rows) <= most:
        return list(rows)

    def rank(number: int) -> tuple[int, int]:
        counts = rows[number].counts
        return (0 if counts.running else 1 if counts.failed else 2 if counts.waiting else 3, number)

    return [rows[number] for number in sorted(sorted(range(len(rows)), key=rank)[:most])]
