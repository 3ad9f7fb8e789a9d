"""One instance, from its start to its end: nothing warm, all warm, and far away."""

from __future__ import annotations

import sys

from benchmarks import ours, peers
from benchmarks.ground import ROOT
from benchmarks.rows.settings import far_away, one
from benchmarks.stage import Stage
from benchmarks.stand import Job
from benchmarks.work import OURS, Bound, Contestant, Trial, Work

APPLICATION = "the application here, by itself"
IMPORT_FABRIC = "`import fabric`"


def _application(stage: Stage) -> Trial:
    (way,) = stage.ways
    environ = {"TEST_CASE": "nothing", "TEST_OUTPUTS_PATH": str(stage.directory)}
    return stage.measure([stage.job([str(way.near / "application")], environ)])[0]


def _imports(code: str) -> Contestant:
    def go(stage: Stage) -> Trial:
        return stage.measure([Job([sys.executable, "-c", code], stage.ground.environ, ROOT, stage.log)])[0]

    return Contestant(f"`{code}`", go, lacks="runs nothing")


_ALONE = Contestant(APPLICATION, _application, lacks="no host")
_COMMANDS = (OURS, ours.PYTHON, ours.FAB)

WORKS = (
    Work(
        "one-cold",
        "one instance, nothing warm",
        one,
        (
            *(ours.cold(how) for how in _COMMANDS),
            *peers.contestants(peers.ALL),
            *(_imports(code) for code in ("import fabric", "import remote_runner.instance.instance")),
        ),
        (Bound("1.2 × `ssh` + `import fabric`", times=1.2, of=peers.SSH, also=[IMPORT_FABRIC]),),
    ),
    Work(
        "one-new",
        "one instance on a host that has never seen us: nothing warm, and no agent's program there",
        one,
        (ours.cold(new=True),),
        (Bound("that with the program + 0.3 s", plus=0.3, also=[f"one-cold/{OURS}"]),),
    ),
    Work(
        "one-warm",
        "one instance, all warm",
        one,
        (*(ours.warm(how) for how in _COMMANDS), *peers.contestants(peers.ALL, warm=True), _ALONE),
        (
            Bound("the application + 15 ms", plus=0.015, also=[APPLICATION]),
            Bound("no TCP connection", "connections"),
            Bound("6 ms of CPU here", "cpu_here_s", plus=0.006),
            Bound("5 ms of CPU there", "cpu_there_s", plus=0.005),
        ),
    ),
    Work(
        "one-here",
        "one instance on this machine, all warm",
        one,
        (ours.warm(here=True), _ALONE),
    ),
    Work(
        "far-first",
        "100 ms round trip, first instance",
        far_away,
        (*(ours.cold(how) for how in _COMMANDS), *peers.contestants(peers.ALL), _ALONE),
        (Bound("`ssh` + 0.25 s", plus=0.25, also=[peers.SSH]),),
    ),
    Work(
        "far-second",
        "100 ms round trip, second instance",
        far_away,
        (*(ours.warm(how) for how in _COMMANDS), *peers.contestants(peers.ALL, warm=True), _ALONE),
        (Bound("the application + 0.25 s", plus=0.25, also=[APPLICATION]),),
    ),
)
