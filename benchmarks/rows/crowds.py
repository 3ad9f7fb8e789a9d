"""Many instances at once, on sshds with stock limits."""

from __future__ import annotations

import time
from functools import partial

from benchmarks import ours, peers
from benchmarks.ground import LIVE_S
from benchmarks.ours import PYTHON, Plan
from benchmarks.rows.settings import fifty, five, one, slurm_fifty, two
from benchmarks.stage import Stage
from benchmarks.work import OURS, Bound, Contestant, Trial, Work

HUNDRED = 100
THOUSAND = 1_000
THREE_THOUSAND = 3_000
_NONE_FAILS = Bound("none fails", "failed")
_FLAT_AFTER_S = 30.0
_CROWD_S = 60.0
_two = partial(ours.run, count=2)
_hundred = partial(ours.run, count=HUNDRED)


def _local_single(count: int, name: str = "`fab local.single`") -> Contestant:
    """A whole run of so many instances, without a daemon, that has nothing warm."""

    def ready(stage: Stage) -> None:
        if "plan" not in stage.kept:
            stage.kept["plan"] = Plan.make(stage, PYTHON, slots=count // len(stage.ways))
        stage.kept["plan"].cold()

    def go(stage: Stage) -> Trial:
        plan: Plan = stage.kept["plan"]
        job = plan.fab("local.single", "--testcase=nothing", f"--instances={count}")
        return stage.measure([job], starts=count)[0]

    return Contestant(name, go, ready)


def _living(stage: Stage, count: int) -> dict[str, float]:
    """Waits until all of them have started, and measures memory then and later; times by the wall clock."""
    found: dict[str, float] = {}
    began_s = time.time()
    while len(stage.started()) < count:
        if time.time() > began_s + LIVE_S - 5:
            return found  # the first ones end soon; `failed` tells how many are missing
        time.sleep(0.2)  # each look counts files; without a pause that takes a core from the crowd
    if stage.stand.cgroup is not None:
        first = stage.stand.cgroup.pss_bytes() - stage.stand.own_bytes
        time.sleep(max(0.0, min(_FLAT_AFTER_S, began_s + LIVE_S - 10 - time.time())))  # memory that grows needs time to
        later = stage.stand.cgroup.pss_bytes() - stage.stand.own_bytes
        found["pss_each_bytes"] = max(first, later) / count
        found["pss_growth_bytes"] = (later - first) / count
    return found


def _crowd(plan: Plan, count: int) -> Trial:
    found: dict[str, float] = {}
    trial = ours.run(plan, "live", count, during=lambda: found.update(_living(plan.stage, count)))
    return {**trial, **found}


WORKS = (
    Work(
        "two",
        "two instances at once on 2 hosts, nothing warm",
        two,
        (
            *(ours.cold(how, go=_two) for how in (OURS, PYTHON)),
            _local_single(2),
            *peers.contestants([peers.SSH, "script"], count=2),
        ),
        (Bound("less than the script", times=1.0, of="script"), _NONE_FAILS),
    ),
    Work(
        "hundred-warm",
        "100 instances at once on 5 stock sshds, all warm",
        five,
        (
            *(ours.warm(how, go=_hundred, warm_up=_hundred, slots=20) for how in (OURS, PYTHON)),
            *peers.contestants(peers.ALL, count=HUNDRED, warm=True),
        ),
        (Bound("1.0 × `ssh`", times=1.0, of=peers.SSH), _NONE_FAILS),
        others_limit_s=_CROWD_S,
    ),
    Work(
        "hundred-cold",
        "100 instances at once on 5 stock sshds, nothing warm",
        five,
        (
            *(ours.cold(how, go=_hundred, slots=20) for how in (OURS, PYTHON)),
            _local_single(HUNDRED),
            *peers.contestants(peers.ALL, count=HUNDRED),
        ),
        (Bound("the warm hundred + 0.7 s", plus=0.7, also=[f"hundred-warm/{OURS}"]), _NONE_FAILS),
        others_limit_s=_CROWD_S,
    ),
    Work(
        "hundred-on-one",
        "100 instances at once on one stock sshd, nothing warm",
        one,
        (ours.cold(go=_hundred, slots=HUNDRED), *peers.contestants(peers.ALL, count=HUNDRED)),
        (Bound("1.5 × the time on five", times=1.5, of=f"hundred-cold/{OURS}"), _NONE_FAILS),
        others_limit_s=_CROWD_S,
    ),
    Work(
        "hundred-local",
        "`fab local.single`: 100 instances on 5 stock sshds, nothing warm",
        five,
        (_local_single(HUNDRED, OURS),),
        (Bound("that by launchers + 0.4 s", plus=0.4, also=[f"hundred-cold/{OURS}"]), _NONE_FAILS),
    ),
    Work(
        "thousand",
        "1,000 instances at once on 5 stock sshds, each living 60 s, nothing warm before",
        five,
        (
            ours.cold(go=partial(_crowd, count=THOUSAND), slots=200),
            *peers.contestants([peers.SSH], case="live", count=THOUSAND, warm=True),
        ),
        (
            Bound("all started within 6 s", "started_s", plus=6.0),
            _NONE_FAILS,
            Bound("1.5 MB each here (PSS)", "pss_each_bytes", plus=1.5e6),
            Bound("flat while they run", "pss_growth_bytes", plus=0.1e6),
        ),
        repeats=1,
        limit_s=400.0,
        others_limit_s=400.0,
    ),
    Work(
        "three-thousand",
        "3,000 instances at once on 50 stock sshds, each living 60 s, nothing warm before",
        fifty,
        (ours.cold(go=partial(_crowd, count=THREE_THOUSAND), slots=60),),
        (Bound("all started within 25 s", "started_s", plus=25.0), _NONE_FAILS),
        repeats=1,
        limit_s=400.0,
    ),
    *(
        Work(
            f"slurm-{count}",
            f"{count:,} instances at once on 50 nodes of a Slurm, each living 60 s, nothing warm before",
            slurm_fifty,
            (ours.cold(go=partial(_crowd, count=count), slots=count // 50),),
            (
                Bound(f"all started within {started_s:g} s", "started_s", plus=started_s),
                _NONE_FAILS,
                Bound("1.5 MB each here (PSS)", "pss_each_bytes", plus=1.5e6),
            ),
            repeats=1,
            limit_s=400.0,
        )
        for count, started_s in ((THOUSAND, 12.0), (THREE_THOUSAND, 40.0))
    ),
)
