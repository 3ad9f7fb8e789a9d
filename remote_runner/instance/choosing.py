"""The step that gives an instance its number and host; the code of the others is loaded during the first login."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remote_runner.errors import PlacementError
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.placement import PARAM, Entry, Placement, needs_groups, parse_entries, place, places_after
from testground.runenv import RunEnv
from testground.sync.client import service_address

if TYPE_CHECKING:
    from remote_runner.instance.shared import Shared

CHOOSE_STATE = "choose_server"
CHOOSE_TOPIC = "choose_server_groups"
_GROUPS_S = 60.0


@dataclass(frozen=True)
class Chosen:
    """An instance's number and its place; `others` are the places that follow it in the list, `entries` the list."""

    number: int
    placement: Placement
    others: Iterator[Placement]
    entries: tuple[Entry, ...]


async def choose(shared: Shared, inventory: Inventory, runenv: RunEnv, environ: Mapping[str, str]) -> Chosen:
    """Take the instance's number from the sync service, and find its place in the list of hosts.

    Raises `PlacementError`, `SyncError` and its kinds, `UnknownHostError`.
    """
    listed = parse_entries(runenv.params.get(PARAM, ""))
    entries = inventory.entries if listed is None else inventory.complete(listed)
    group = runenv.group_id
    earlier: list[str] = []
    sync = await shared.sync_service(*service_address(environ))
    number = await sync.signal_entry(runenv, CHOOSE_STATE)
    if needs_groups(entries):
        await sync.publish(runenv, CHOOSE_TOPIC, {"number": number, "group": group})
        groups: dict[int, str] = {}
        published = sync.subscribe(runenv, CHOOSE_TOPIC, timeout_s=_GROUPS_S)
        async for message in published:
            other, name = _published_group(message)
            if 0 < other <= number:  # an application may publish there as well, whatever and without end
                groups[other] = name
            if all(earlier_number in groups for earlier_number in range(1, number + 1)):
                break
        await published.aclose()
        earlier = [groups[other] for other in range(1, number)]
    placement = place(entries, number, group, earlier, inventory.spread)
    return Chosen(number, placement, places_after(entries, placement, group), entries)


def _published_group(published: object) -> tuple[int, str]:
    """An instance's number and group, as it published them."""
    match published:
        case {"number": int(number), "group": str(group)}:
            return number, group
    raise PlacementError(
        f"topic {CHOOSE_TOPIC}: found {repr(published)[:200]}, expected an instance's number and group",
        next_step="run the same remote-runner for all instances, and let the application publish on other topics",
    )
