"""A run's directory as docs/outputs.md describes it, of any size and with everything in it, made from a seed."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path
from typing import Any

START_AT = 1_795_900_000.25
STEPS = {"choose": 0.03, "build": 0.7, "push": 0.2, "forward": 0.01, "run": 4.0, "fetch": 0.06, "clean": 0.04}


def make_run(
    directory: Path,
    instances: int,
    hosts: int,
    *,
    seed: int = 1,
    factor: float = 1.0,
    failing: int = 0,
    offset_s: float = 0.0,
    seconds: int = 5,
    bare: bool = False,
) -> Path:
    """Make it; every duration and metric is multiplied by `factor`, the clocks of hosts are ahead by `offset_s`.

    The last `failing` instances failed. A bare run has no samples, no metrics, and no record of the sync service.
    """
    chance = random.Random(seed)
    names = [f"host-{number}" for number in range(hosts)]
    listed: list[dict[str, Any]] = []
    sync: list[dict[str, Any]] = []
    for number in range(instances):
        group = "server" if number == 0 else "clients"
        index = max(0, number - 1)
        host = names[number % hosts]
        failed = number >= instances - failing
        outputs = directory / group / str(index)
        outputs.mkdir(parents=True)
        at = START_AT + chance.uniform(0, 0.2)
        steps: list[dict[str, Any]] = []
        for name, usual_s in STEPS.items():
            took_s = usual_s * factor * chance.lognormvariate(0, 0.25)
            steps.append({"name": name, "started_at": round(at, 4), "duration_s": round(took_s, 4)})
            at += took_s
        run_at = next(step["started_at"] for step in steps if step["name"] == "run")
        one = {
            "group": group, "index": index, "number": number + 1, "host": host, "system": "x86_64-linux",
            "outcome": "failed" if failed else "ok",
            "reason": f"{host}: the application ended with exit status 3 and told no reason" if failed else "",
            "exit_status": 3 if failed else 0, "started_at": steps[0]["started_at"],
            "duration_s": round(at - steps[0]["started_at"], 4),
        }  # fmt: skip
        listed.append(
            {
                **one, "outputs": f"{group}/{index}", "outputs_bytes": 4096,
                "steps": [{**step, "ok": not (failed and step["name"] == "run")} for step in steps],
            }
        )  # fmt: skip
        record = {**one, "steps": [{**step, "detail": f"{step['name']} of {host}", "error": ""} for step in steps]}
        (outputs / "remote-runner.json").write_text(json.dumps(record))
        if bare:
            continue
        _write_application(outputs, chance, run_at + offset_s, group, factor)
        _write_samples(outputs / "remote-runner.samples.jsonl", chance, run_at, seconds)
        name = f"{group}[{index:03d}]"
        came_at = run_at + chance.uniform(0.2, 1.0)
        sync.append({"at": came_at, "client": name, "state": "ready", "seq": 0})
    _write_sync(directory, sync)
    if not bare:
        _write_links(directory / "remote-runner.links.json", names, chance)
        for host in names:
            _write_host(directory / "remote-runner.hosts", host, chance, offset_s, seconds)
    ended_at = max(one["started_at"] + one["duration_s"] for one in listed)
    (directory / "run.json").write_text(
        json.dumps(
            {
                "format": 1, "run": directory.name, "plan": "ping", "case": "latency", "name": "",
                "task": "local.single",
                "started_at": START_AT, "ended_at": ended_at, "duration_s": ended_at - START_AT,
                "outcome": "failed" if failing else "ok", "cancelled": "",
                "doubts": [] if bare else ["host-0 was busy before the run: load 3.9 on 2 cores."],
                "inputs": {"directory": "/plans/ping", "disable_metrics": bare},
                "groups": [
                    {"id": "server", "instances": 1, "ok": 1, "params": {"size": "64"}, "profiles": {}},
                    {"id": "clients", "instances": instances - 1, "ok": instances - 1 - failing,
                     "params": {"size": "64", "factor": str(factor)}, "profiles": {}},
                ],
                "hosts": [{"name": host, "system": "x86_64-linux", "address": "192.0.2.1", "instances": 1}
                          for host in names],
                "artifacts": [{"system": "x86_64-linux", "hash": "e" * 32, "derivation": None}],
                "provenance": {"plan": {"revision": "0" * 40, "clean": True, "changes": []},
                               "versions": {"remote-runner": "0.1.0", "python": "3.11.7"},
                               "inventory": {"spread": "round", "hosts": {name: {
                                   "slots": 2, "job": None, "outputs_limit_bytes": 10**9} for name in names}}},
                "instances": listed,
            }
        )
    )  # fmt: skip
    return directory


def _write_application(outputs: Path, chance: random.Random, at: float, group: str, factor: float) -> None:
    """What an application writes: events with stages, points, and the summaries of a timer and a counter."""

    def event(seconds: float, **what: object) -> str:
        words = {"ts": int((at + seconds) * 1e9), "msg": "", "group_id": group, "run_id": "r", "event": what}
        return json.dumps(words) + "\n"

    (outputs / "run.out").write_text(
        event(0.1, start_event={"runenv": {}})
        + event(0.2, stage_start_event={"name": "connect", "group": group})
        + event(1.2, stage_end_event={"name": "connect", "group": group})
        + event(1.3, stage_start_event={"name": "measure", "group": group})
        + event(3.2, stage_end_event={"name": "measure", "group": group})
    )
    lines = []
    for number in range(60):
        line = {"ts": int((at + 1.3 + number / 30) * 1e9), "type": "point", "name": "rtt_ms",
                "measures": {"value": factor * chance.lognormvariate(1, 0.4)}}  # fmt: skip
        lines.append(json.dumps(line))
    for second in range(1, 4):
        middle = factor * chance.lognormvariate(13, 0.2)
        measures = {"count": 100 * second, "max": 3 * middle, "mean": 1.1 * middle, "min": 0.2 * middle, "p50": middle,
                    "p75": 1.2 * middle, "p95": 1.8 * middle, "p99": 2.5 * middle, "meanrate": 33.0}  # fmt: skip
        lines.append(
            json.dumps({"ts": int((at + second) * 1e9), "type": "timer", "name": "latency", "measures": measures})
        )
        counter = {
            "ts": int((at + second) * 1e9),
            "type": "counter",
            "name": "sent",
            "measures": {"count": 50 * second},
        }
        lines.append(json.dumps(counter))
    (outputs / "results.out").write_text("\n".join(lines) + "\n")
    gauge = {
        "ts": int((at + 2) * 1e9),
        "type": "gauge",
        "name": "heap",
        "measures": {"value": chance.uniform(1e6, 2e6)},
    }
    (outputs / "diagnostics.out").write_text(json.dumps(gauge) + "\n")


def _write_samples(path: Path, chance: random.Random, at: float, seconds: int) -> None:
    cpu_s = 0.0
    with path.open("w") as file:
        for second in range(seconds):
            cpu_s += chance.uniform(0.1, 0.9)
            sample = {"at": at + second, "cpu_s": cpu_s, "rss_bytes": int(2e7 + 1e6 * second), "threads": 7,
                      "descriptors": 12, "read_bytes": 1000 * second, "written_bytes": 5000 * second}  # fmt: skip
            file.write(json.dumps(sample) + "\n")


def _write_sync(directory: Path, signals: list[dict[str, Any]]) -> None:
    if not signals:
        return
    signals.sort(key=lambda one: one["at"])
    with (directory / "remote-runner.sync.jsonl").open("w") as file:
        for seq, signal in enumerate(signals, 1):
            file.write(json.dumps({**signal, "seq": seq}) + "\n")
        for signal in signals[:-1]:
            wait = {"at": signal["at"], "client": signal["client"], "state": "ready", "target": len(signals),
                    "met_at": signals[-1]["at"]}  # fmt: skip
            file.write(json.dumps(wait) + "\n")


def _write_links(path: Path, hosts: list[str], chance: random.Random) -> None:
    """From each to each; the last way led nowhere."""
    links: list[dict[str, Any]] = []
    for source, target in itertools.permutations(hosts, 2):
        trip_s = chance.uniform(0.0002, 0.004)
        trips = {"count": 20, "p0_s": trip_s / 2, "p50_s": trip_s, "p90_s": 2 * trip_s, "p100_s": 4 * trip_s}
        links.append({"from": source, "to": target, "address": "192.0.2.1", "problem": "", "round_trips": trips,
                      "bytes_per_s": int(chance.uniform(5e7, 9e8))})  # fmt: skip
    if links:
        links[-1] = {**links[-1], "problem": "no route to host", "round_trips": None, "bytes_per_s": None}
    path.write_text(json.dumps(links))


def _write_host(directory: Path, host: str, chance: random.Random, offset_s: float, seconds: int) -> None:
    directory.mkdir(exist_ok=True)
    facts = {"kernel": "6.1.0", "cores": 2, "memory_bytes": int(4e9), "governor": None}
    clock = {"offset_s": offset_s, "uncertainty_s": 0.0004}
    trips = {"count": 20, "p0_s": 0.0007, "p50_s": 0.0009, "p100_s": 0.004}
    before = {"at": START_AT, "load": chance.uniform(0, 2), "cpu_s": 100.0, "round_trips": trips}
    truth = {"host": host, "facts": facts, "clock": clock, "before": before,
             "after": {**before, "cpu_s": 107.5}, "doubts": []}  # fmt: skip
    (directory / f"{host}.json").write_text(json.dumps(truth))
    with (directory / f"{host}.samples.jsonl").open("w") as file:
        for second in range(seconds):
            file.write(
                json.dumps({"at": START_AT + second, "cpu_s": second * chance.uniform(0.9, 1), "load": 0.4}) + "\n"
            )
