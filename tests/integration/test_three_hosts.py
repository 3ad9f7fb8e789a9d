"""Twenty instances on three machines: the example plan over a bridge, and groups that have hosts of their own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.runs import Machine, Outcome, Place, Plan, listening, nothing_left, place_on, wait_for
from tests.integration.ways import WAYS, let_fab_start_by

SLOTS = {"t1": 4, "t2": 7, "t3": 5}


@pytest.fixture(scope="module")
def hosts(lan: Lan, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, NetnsHost]]:
    """Three machines on one bridge."""
    directory = tmp_path_factory.mktemp("three")
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(NetnsHost.start(lan, directory / name, name=name, keys=keys)) for name in SLOTS
        }


def from_inside(outcome: Outcome) -> dict[str, list[int]]:
    """Host name to process ids, as the instances wrote them into their outputs from inside."""
    found: dict[str, list[int]] = {}
    for instance in outcome.instances:
        told = json.loads(instance.text("instance.json"))
        assert told["host"] == told["name"] == instance.host
        assert told["number"] == instance.record["number"]
        # The Recorder's own file: the application spoke there, not only its runner here.
        assert f"host {told['host']}, process {told['pid']}" in instance.text("run.out")
        found.setdefault(told["host"], []).append(told["pid"])
    return found


def chosen(plan: Plan, *words: str) -> Counter[str]:
    """How many instances `fab choose` gives each host."""
    return Counter(item["host"] for item in json.loads(plan.fab("choose", "--json", *words).stdout))


def only_sshd_listens(host: NetnsHost) -> bool:
    """Whether no forward does; one stays for a moment, for the next who wants it."""
    return listening(host) == {22}


def left_there(outcome: Outcome, places: list[Place], hosts: dict[str, NetnsHost]) -> None:
    """Nothing is left on the hosts but one artifact in each cache; no forward listens."""
    nothing_left(outcome.run, places)
    for place in places:
        assert len(place.artifacts()) == 1
        wait_for(partial(only_sshd_listens, hosts[place.name]), 10)
        remains = {path.name for path in place.base.iterdir()} - {".probe"}
        assert remains == {"agents", "artifacts", "runs"}
        for directory in ("/tmp", "/var/tmp", "/dev/shm"):
            assert list(hosts[place.name].here(directory).iterdir()) == []


@pytest.mark.parametrize("way", WAYS)
def test_twenty_instances_on_three_hosts(
    way: str, hosts: dict[str, NetnsHost], tmp_path: Path, machine: Machine
) -> None:
    places = [place_on(hosts[name], slots=slots) for name, slots in SLOTS.items()]
    plan = Plan.of_node(tmp_path / "plan", machine, places)
    placed = chosen(plan, "--instances", "20")
    let_fab_start_by(plan.directory, way)

    outcome = plan.single(20, "server-client").all_ok()

    assert outcome.values["groups"] == [{"id": "single", "ok": 20, "total": 20}]
    inside = from_inside(outcome)
    assert {name: len(pids) for name, pids in inside.items()} == placed
    # The sixteen slots are filled in the order of the list, and the rest goes round again.
    assert placed == {"t1": 8, "t2": 7, "t3": 5}
    assert sum(len(set(pids)) for pids in inside.values()) == 20
    assert {path.name for path in (outcome.instances[0].outputs.parent).iterdir()} == {str(i) for i in range(20)}
    for instance in outcome.instances:
        assert {"instance.json", "run.out", "remote-runner.json"} <= {path.name for path in instance.outputs.iterdir()}
        assert instance.step("clean")["detail"] == "nothing left there"
    (server,) = [instance for instance in outcome.instances if instance.record["number"] == 1]
    assert server.host == "t1"
    assert f"announced at {hosts['t1'].address}" in server.text("run.out")
    for client in (instance for instance in outcome.instances if instance is not server):
        assert f"got pong from http://{hosts['t1'].address}:8188/" in client.text("run.out")
    left_there(outcome, places, hosts)


def test_groups_with_hosts_of_their_own(hosts: dict[str, NetnsHost], tmp_path: Path, machine: Machine) -> None:
    places = [
        place_on(hosts["t1"], slots=2),
        place_on(hosts["t2"], groups=["others"]),
        place_on(hosts["t3"], slots=2, groups=["first"]),
    ]
    plan = Plan.of_node(tmp_path / "plan", machine, places)

    outcome = plan.groups({"first": 4, "others": 5}, "outputs").all_ok()

    inside = from_inside(outcome)
    in_order = sorted(outcome.instances, key=lambda instance: int(instance.record["number"]))
    words = [f"--group={instance.group}=1" for instance in in_order]
    placed = json.loads(plan.fab("choose", "--json", *words).stdout)
    assert [(item["group"], item["host"]) for item in placed] == [(found.group, found.host) for found in in_order]
    assert {found.host for found in in_order if found.group == "first"} <= {"t1", "t3"}
    assert {found.host for found in in_order if found.group == "others"} <= {"t1", "t2"}
    assert sum(map(len, inside.values())) == 9
    left_there(outcome, places, hosts)
