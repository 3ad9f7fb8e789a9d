from __future__ import annotations

import json
import random
from collections import Counter

import pytest

from remote_runner.errors import RemoteRunnerError
from remote_runner.inventory.placement import (
    Entry,
    Placement,
    Spread,
    is_shared_evenly,
    needs_groups,
    parse_entries,
    place,
    place_all,
)
from remote_runner.inventory.systems import System

X86 = System("x86_64", "linux")


def hosts_of(placements: list[Placement]) -> str:
    return " ".join(placement.host for placement in placements)


def test_slots_are_filled_in_list_order() -> None:
    entries = [Entry("a", slots=2), Entry("b"), Entry("c", slots=3)]
    placements = [place(entries, number, "g") for number in range(1, 10)]
    assert hosts_of(placements) == "a a b c c c a a b"
    assert [p.slot for p in placements] == [0, 1, 0, 0, 1, 2, 0, 1, 0]
    assert [p.round for p in placements] == [0] * 6 + [1] * 3


def test_round_takes_one_slot_of_each_host_then_the_next_of_each() -> None:
    entries = [Entry("a", slots=2), Entry("b"), Entry("c", slots=3)]
    placements = [place(entries, number, "g", spread=Spread.ROUND) for number in range(1, 8)]
    assert hosts_of(placements) == "a b c a c c a"
    assert [p.round for p in placements] == [0] * 6 + [1]


def test_more_instances_than_slots_are_told() -> None:
    entries = [Entry("a"), Entry("b")]
    assert place(entries, 2, "g").message == ""
    assert ": 2 share slot 0 of a" in place(entries, 3, "g").message
    assert ": 3 share slot 0 of b" in place(entries, 6, "g").message


def test_slots_that_all_get_as_many_are_shared_evenly() -> None:
    entries = [Entry("a", slots=2), Entry("b")]
    assert [number for number in range(1, 10) if is_shared_evenly(entries, number)] == [3, 6, 9]
    assert not is_shared_evenly([Entry("a", groups=("g",))], 1)


def test_a_place_carries_what_its_entry_says() -> None:
    entries = [Entry("a", X86, address="10.0.0.1"), Entry("b")]
    assert place(entries, 1, "g") == Placement("a", 0, 0, X86, "10.0.0.1")
    assert place(entries, 2, "g") == Placement("b", 0, 0, None, None)


def test_an_entry_with_groups_takes_only_those() -> None:
    entries = [Entry("open", slots=2), Entry("kept", groups=("server",))]
    groups = ["client", "server", "client", "server", "client"]
    assert hosts_of(place_all(entries, groups)) == "open kept open kept open"
    assert [p.round for p in place_all(entries, groups)] == [0, 0, 0, 1, 1]


def test_a_group_without_a_place_is_an_error_that_names_it() -> None:
    entries = [Entry("a", groups=("server", "relay")), Entry("b", groups=("relay",))]
    with pytest.raises(RemoteRunnerError, match=r"'client'.*server, relay") as caught:
        place(entries, 2, "client", ["server"])
    assert "client" in caught.value.next_step


def test_groups_of_all_earlier_instances_are_needed() -> None:
    with pytest.raises(RemoteRunnerError, match="groups of 3 instances"):
        place([Entry("a", groups=("g",))], 4, "g", ["g", "g"])


def test_an_empty_list_and_number_zero_are_errors() -> None:
    with pytest.raises(RemoteRunnerError, match="no host"):
        place([], 1, "g")
    with pytest.raises(RemoteRunnerError, match="start at 1"):
        place([Entry("a")], 0, "g")


def random_entries(rng: random.Random, groups: list[str]) -> list[Entry]:
    entries = []
    for index in range(rng.randint(1, 7)):
        kept = tuple(rng.sample(groups, rng.randint(1, len(groups)))) if groups and rng.random() < 0.4 else ()
        entries.append(Entry(f"h{index % 5}", slots=rng.choice([None, 1, 2, 5]), groups=kept))
    return entries


def test_without_groups_every_slot_is_taken_once_a_round() -> None:
    rng = random.Random(1)
    for _ in range(300):
        entries, spread = random_entries(rng, []), rng.choice(list(Spread))
        total = sum(entry.slots or 1 for entry in entries)
        count = rng.randint(1, 3 * total)
        placements = [place(entries, number, "g", spread=spread) for number in range(1, count + 1)]
        assert placements == place_all(entries, ["g"] * count, spread)
        assert [p.round for p in placements] == [index // total for index in range(count)]
        for start in range(0, count - total + 1, total):
            taken = Counter(p.host for p in placements[start : start + total])
            slots: Counter[str] = Counter()
            for entry in entries:
                slots[entry.name] += entry.slots or 1
            assert taken == slots


def test_with_groups_nobody_lands_where_it_may_not_and_no_free_slot_is_passed_by() -> None:
    rng = random.Random(2)
    groups = ["s", "c", "r"]
    refused = placed = 0
    for _ in range(400):
        entries, spread = random_entries(rng, groups), rng.choice(list(Spread))
        sequence = [rng.choice(groups) for _ in range(rng.randint(1, 30))]
        possible = all(any(not e.groups or g in e.groups for e in entries) for g in sequence)
        if not possible:
            refused += 1
            with pytest.raises(RemoteRunnerError, match="no host takes it"):
                place_all(entries, sequence, spread)
            continue
        placed += 1
        placements = place_all(entries, sequence, spread)
        # The whole fold, the fold up to each number, and a plain search say the same.
        number = rng.randint(1, len(sequence))
        assert place(entries, number, sequence[number - 1], sequence[: number - 1], spread) == placements[number - 1]
        assert placements == plainly(entries, sequence, spread)
        if not needs_groups(entries):
            assert placements == [place(entries, n + 1, g, spread=spread) for n, g in enumerate(sequence)]
    assert refused > 10
    assert placed > 200


def plainly(entries: list[Entry], sequence: list[str], spread: Spread) -> list[Placement]:
    slots = [(entry, slot) for entry in entries for slot in range(entry.slots or 1)]
    if spread is Spread.ROUND:
        slots.sort(key=lambda pair: pair[1])
    used = [0] * len(slots)
    placements = []
    for group in sequence:
        open_to = [i for i, (entry, _) in enumerate(slots) if not entry.groups or group in entry.groups]
        best = min(open_to, key=lambda i: (used[i], not slots[i][0].groups, i))
        entry, slot = slots[best]
        placements.append(Placement(entry.name, slot, used[best], entry.system, entry.address))
        used[best] += 1
    return placements


def test_the_param_of_the_seed_is_read() -> None:
    text = '[{"name":"localhost"},{"arch":"x86_64-linux","name":"dex"}]'
    assert parse_entries(text) == (Entry("localhost"), Entry("dex", X86))


def test_all_keys_of_an_entry_are_read() -> None:
    entry = {"name": "d", "arch": "", "slots": 3, "labels": "lab", "groups": ["a", "b"], "address": "10.0.0.1"}
    assert parse_entries(json.dumps([entry])) == (Entry("d", None, 3, "10.0.0.1", ("lab",), ("a", "b")),)


@pytest.mark.parametrize("text", ["", "  \n"])
def test_a_blank_param_is_none(text: str) -> None:
    assert parse_entries(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"name":"a"}', ["not JSON", "character 14"]),
        ("[{name:dex}]", ["not JSON", "{name:dex}"]),
        (r'[{"name":"\ud800"}]', ["not text", "half a character"]),
        (r'[{"name":"a","labels":["\udcff"]}]', ["not text", "half a character"]),
        ('[{"name":"b\udcfcro"}]', ["not text", "half a character"]),
        ('[{"name":"a","slots":' + "9" * 5000 + "}]", ["not readable as JSON"]),
        ('[{"name":"a","slots":' + "9" * 4000 + "}]", ["slots", "99…", "1 to 1000"]),
        ("[]", ["found []", "a list of hosts"]),
        ("null", ["found nothing", "a list of hosts"]),
        ('{"name":"dex"}', ['{"name": "dex"}', "a list of hosts"]),
        ('"dex"', ["a list of hosts"]),
        ('["dex"]', ["entry 1", '"dex"', "an object"]),
        ('[{"name":"a"},{}]', ["entry 2", "name", "nothing", "a host's name"]),
        ('[{"name":7}]', ["entry 1", "name", "7"]),
        ('[{"name":"-oProxyCommand=x"}]', ["entry 1", "name", "does not start with '-'"]),
        ('[{"name":"a b"}]', ["no spaces"]),
        ('[{"name":"a\\nb"}]', ["newlines"]),
        ('[{"name":""}]', ["not empty"]),
        ('[{"name":"a","arch":"arm64-linux"}]', ["arch", "arm64-linux", "did you mean aarch64-linux"]),
        ('[{"name":"a","arch":7}]', ["arch", "7", "x86_64-linux"]),
        ('[{"name":"a","slots":0}]', ["slots", "found 0", "whole number"]),
        ('[{"name":"a","slots":true}]', ["slots", "true"]),
        ('[{"name":"a","slots":"2"}]', ["slots", '"2"']),
        ('[{"name":"a","slot":2}]', ['"slot"', "did you mean slots"]),
        ('[{"name":"a","groups":[1]}]', ["groups", "[1]", "list of names"]),
        ('[{"name":"a","address":"x y"}]', ["address", "x y"]),
    ],
)
def test_an_odd_param_is_named(text: str, words: list[str]) -> None:
    with pytest.raises(RemoteRunnerError) as caught:
        parse_entries(text)
    for word in ["param remote-runners", *words]:
        assert word in str(caught.value)
    assert "--test-param remote-runners=" in caught.value.next_step
