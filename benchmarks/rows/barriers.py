"""Barriers of instances whose connections to the sync service are relayed."""

from __future__ import annotations

import json
import os
import shutil
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from benchmarks import ours, peers
from benchmarks.ground import Ground, Way
from benchmarks.ours import Plan
from benchmarks.rows.settings import five
from benchmarks.stage import Stage
from benchmarks.work import OURS, Bound, Contestant, Trial, Work
from tests.hosts_netns import NetnsHost

HUNDRED = 100
_MEGABITS = 2
_PUSH_BYTES = 8_000_000  # 32 s at that rate: longer than the barriers
_ALONE = "without a push"
_NONE_FAILS = Bound("none fails", "failed")


def _times(stage: Stage, count: int) -> list[float]:
    """Of each barrier the seconds from the last that came to the last that was let go. Raises RuntimeError."""
    files = [file for way in stage.ways for file in (way.near / "barriers").glob("*")]
    met = [json.loads(file.read_text(encoding="ascii")) for file in files]
    if len(met) != count:
        raise RuntimeError(f"{len(met)} of {count} instances met")
    return [max(gone for _, gone in each) - max(came for came, _ in each) for each in zip(*met, strict=True)]


def _clear(stage: Stage) -> None:
    for way in stage.ways:
        shutil.rmtree(way.near / "barriers", ignore_errors=True)


def _hundred(plan: Plan) -> Trial:
    _clear(plan.stage)
    plan.new_run()
    trial = ours.run(plan, "barrier", HUNDRED)
    return {**trial, "wall_s": statistics.median(_times(plan.stage, HUNDRED))}


def _by_ssh(stage: Stage) -> Trial:
    """A session for each host, which has a forward and starts that host's instances."""
    _clear(stage)
    peers.write_ssh_config(stage, stage.ways)
    run = stage.fresh("run").name
    environ = f"SYNC_SERVICE_HOST=127.0.0.1 SYNC_SERVICE_PORT=5050 TEST_RUN={run} TEST_INSTANCE_COUNT={HUNDRED}"
    jobs = []
    for number, way in enumerate(stage.ways):
        one = f"{environ} {way.application('barrier', '/tmp')}"
        each = HUNDRED // len(stage.ways)
        script = f"n=0; while [ $n -lt {each} ]; do {one} & n=$((n+1)); done; wait"
        forward = ["-o", "ExitOnForwardFailure=yes", "-R", f"5050:127.0.0.1:{stage.ground.sync.port}"]
        jobs.append(stage.job([*peers.ssh(stage), *forward, f"n{number:03}", script]))
    trial, _ = stage.measure(jobs)
    return {**trial, "wall_s": statistics.median(_times(stage, HUNDRED))}


@contextmanager
def _slow(ground: Ground) -> Iterator[Sequence[Way]]:
    """One host behind a slow line."""
    (way,) = ground.ways()
    assert isinstance(way.host, NetnsHost), "only root can make a line slow"
    way.host.slow_down(_MEGABITS)
    try:
        yield [way]
    finally:
        way.host.speed_up()


def _two(plan: Plan, *, push: bool) -> Trial:
    """The slowest barrier of two; `push`: while an instance of another run waits for its artifact on that line."""
    _clear(plan.stage)
    plan.new_run()
    jobs = plan.instances("barriers", 2)
    application = plan.directory / "application"
    before = application.read_bytes()
    if push:
        plan.new_run()
        (job,) = plan.instances("nothing")
        large = plan.stage.fresh("large")
        large.write_bytes(before + b"exit\n" + os.urandom(_PUSH_BYTES))
        large.chmod(0o755)
        # The others have built theirs by then.
        script = 'sleep 2; cp -p "$1" application; shift; exec "$@"'
        jobs.append(replace(job, argv=["sh", "-c", script, "sh", str(large), *job.argv]))
    try:
        trial, _ = plan.stage.measure(jobs)
    finally:
        application.write_bytes(before)
    return {**trial, "wall_s": max(_times(plan.stage, 2)), "took_s": trial["wall_s"]}


def _two_ways(name: str, *, push: bool) -> Contestant:
    lacks = "" if push else "pushes nothing"
    return replace(ours.warm(go=partial(_two, push=push), slots=HUNDRED), name=name, lacks=lacks)


WORKS = (
    Work(
        "barrier",
        f"a barrier of {HUNDRED} instances on 5 hosts, from the last that comes to the last that is let go",
        five,
        (
            ours.warm(go=_hundred, warm_up=partial(ours.run, count=HUNDRED), slots=HUNDRED // 5),
            Contestant("`ssh -R`", _by_ssh, lacks="a session and a forward for each host, and nothing else"),
        ),
        (Bound("2 × `ssh -R`", times=2.0, of="`ssh -R`"), _NONE_FAILS),
    ),
    Work(
        "barrier-beside-push",
        f"the slowest barrier of two instances at {_MEGABITS} Mbit/s, beside a push on the same line",
        _slow,
        (_two_ways(OURS, push=True), _two_ways(_ALONE, push=False)),
        (Bound("that without a push + 0.5 s", times=1.0, of=_ALONE, plus=0.5),),
        repeats=2,
    ),
)
