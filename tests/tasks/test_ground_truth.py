"""What hosts were and did during a real run: facts, clock, samples and doubts in the outputs (docs/ground-truth.md)."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

from remote_runner.truth.observation import run_doubts
from remote_runner.truth.values import HOST_KEYS, INSTANCE_KEYS
from tests.influx import Influx
from tests.tasks.fab import PlanDirectory
from tests.tasks.local_runs import run_directory, valid, write_plan

BUSY = """\
printf x >"$TEST_OUTPUTS_PATH/x"
end=$(($(date +%s) + 4))
while [ "$(date +%s)" -lt "$end" ]; do i=0; while [ $i -lt 20000 ]; do i=$((i + 1)); done; done
ok
"""


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def host_file(directory: Path, host: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((directory / f"remote-runner.hosts/{host}.json").read_text(encoding="utf-8"))
    return value


def test_a_run_on_three_hosts_is_observed(hosts_plan: PlanDirectory) -> None:
    write_plan(hosts_plan, BUSY)
    began_at = time.time()
    with Influx(204) as influx:
        ran = hosts_plan.ok("local.single", "--testcase", "greet", "--instances", "4", "--influxdb", influx.url)
        points = list(influx.lines())
    directory = run_directory(hosts_plan)
    assert influx.paths == {"/write?db=testground"}

    for place in sorted((directory / "single").iterdir()):
        record = valid(place / "remote-runner.json", "instance")
        found = lines(place / "remote-runner.samples.jsonl")
        assert 2 <= len(found) <= 7
        for earlier, later in itertools.pairwise(found):
            assert list(earlier) == ["at", *INSTANCE_KEYS]
            assert began_at < earlier["at"] < later["at"] < time.time()
            assert 0 <= earlier["cpu_s"] <= later["cpu_s"]
        assert found[-1]["cpu_s"] <= record["cpu_s"] + 0.05
        assert found[-1]["cpu_s"] > 0
        assert found[0]["rss_bytes"] > 100_000
        assert found[0]["threads"] >= 1
        assert found[0]["descriptors"] >= 3
        assert abs(record["clock"]["offset_s"]) <= 0.05 + record["clock"]["uncertainty_s"]

    for host, instances in (("localhost", 2), ("dex", 1), ("rex", 1)):
        value = host_file(directory, host)
        assert value["instances"] == instances
        assert value["facts"]["cores"] >= 1
        assert value["facts"]["memory_bytes"] > 1 << 20
        assert value["facts"]["kernel"]
        assert value["facts"]["processor"]
        for when in ("before", "after"):
            trips = value[when]["round_trips"]
            assert trips["count"] == 20
            assert 0 < trips["p0_s"] <= trips["p50_s"] <= trips["p100_s"]
            assert value[when]["load"] >= 0
        assert value["before"]["at"] < value["after"]["at"] - 3
        assert value["before"]["cpu_s"] < value["after"]["cpu_s"]
        samples = lines(directory / f"remote-runner.hosts/{host}.samples.jsonl")
        assert 2 <= len(samples) <= 7
        assert set(samples[0]) <= {"at", *HOST_KEYS}
        assert {"cpu_s", "steal_s", "load", "available_bytes", "received_bytes", "errors"} <= set(samples[0])
        assert any(point.startswith("remote-runner.host,case=greet,") and f"host={host}," in point for point in points)
        assert any(point.startswith("remote-runner.instance,") and f"host={host}," in point for point in points)

    run = valid(directory / "run.json", "run")
    assert tuple(run["doubts"]) == run_doubts(directory)
    told = [line.removeprefix("doubt: ") for line in ran.out.splitlines() if line.startswith("doubt: ")]
    assert told[:5] == run["doubts"][:5]


def test_a_crowd_on_one_core_is_doubted_and_ways_between_hosts_are_measured(
    hosts_plan: PlanDirectory, tmp_path: Path
) -> None:
    write_plan(hosts_plan, BUSY)
    said = (hosts_plan.path / "inventory.yaml").read_text(encoding="utf-8")
    said = said[: said.index("  rex:")].replace(
        "  localhost:", "  tiny:\n    connect: {command: taskset -c 0 /bin/sh}\n    address: 127.0.0.1\n    slots: 6"
    )
    hosts_plan.inventory(
        f"{said.replace(str(tmp_path / 'near'), str(tmp_path / 'tiny'))}ground_truth: {{links: true}}\n"
    )

    hosts_plan.ok("local.single", "--testcase", "greet", "--instances", "7")

    directory = run_directory(hosts_plan)
    value = host_file(directory, "tiny")
    assert (value["facts"]["cores"], value["instances"]) == (1, 6)
    assert any(doubt.startswith("6 instances shared one core of tiny; it was busy for ") for doubt in value["doubts"])
    assert not any("shared" in doubt for doubt in host_file(directory, "dex")["doubts"])

    ways = json.loads((directory / "remote-runner.links.json").read_text(encoding="utf-8"))
    assert [(way["from"], way["to"], way["problem"]) for way in ways] == [("dex", "tiny", ""), ("tiny", "dex", "")]
    for way in ways:
        assert way["round_trips"]["count"] == 20
        assert 0 < way["round_trips"]["p0_s"] <= way["round_trips"]["p100_s"]
        assert way["bytes_per_s"] > 1_000_000
        assert way["address"]
