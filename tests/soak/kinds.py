"""The kinds of the soak's hosts: how an instance starts and how its application gets there differ, and so does what may
be left.
"""

from __future__ import annotations

import copy
import enum
from pathlib import Path

from tests import hosts_nix
from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.failing import GROUP, FailingPlan
from tests.integration.ways import LAUNCHER, instance_argv
from tests.needs import NEEDS
from tests.nix_bed import simple_flake

FILES = 20
# Steps that take no time would be missed: these go over a slow cable, by half a second and more each.
MEGABITS = 16
LARGE_BYTES = 1 << 20
# Writes, says that it has written, leaves a process that gets away from its group, and succeeds.
APPLICATION = f"""#!/bin/sh
cd "$TEST_OUTPUTS_PATH"
head -c {LARGE_BYTES} /dev/urandom >large
n=0; while [ $n -lt {FILES} ]; do n=$((n + 1)); echo $n >file$n; done
echo "$TEST_RUN" >result
run=${{TEST_OUTPUTS_PATH%/outputs}}
: >"/root/at/wrote-${{run##*/}}"
setsid sleep 300 &
sleep 1
printf '{{"ts":1,"msg":"","event":{{"success_event":{{"group":"{GROUP}"}}}}}}\\n'
"""


class Kind(enum.Enum):
    """PLAIN: an instance is started by `python -m remote_runner`, its application goes into our cache there. LAUNCHER:
    it is started as by Testground. NIX: Nix builds the application, and it goes into the host's store.
    """

    PLAIN = "plain"
    LAUNCHER = "by the launcher"
    NIX = "with Nix"


_KINDS = (Kind.PLAIN, Kind.LAUNCHER, Kind.NIX, Kind.LAUNCHER, Kind.PLAIN)
_NEEDS = {Kind.LAUNCHER: "go", Kind.NIX: "nix"}


def kinds_of(hosts: int) -> list[Kind]:
    """The kinds of so many hosts; plain where this machine lacks what another needs."""
    lacking = [kind for kind, need in _NEEDS.items() if not NEEDS[need][0]()]
    wanted = [_KINDS[number % len(_KINDS)] for number in range(hosts)]
    return [Kind.PLAIN if kind in lacking else kind for kind in wanted]


def start_host(kind: Kind, lan: Lan, directory: Path, *, name: str, keys: Keys) -> NetnsHost:
    """A host of that kind."""
    start = hosts_nix.single_user if kind is Kind.NIX else NetnsHost.start
    host = start(lan, directory, name=name, keys=keys)
    host.here("/root/at").mkdir()
    host.slow_down(MEGABITS)
    return host


def prepare(kind: Kind, base: FailingPlan) -> None:
    """Make the plan of a host what its instances have in common."""
    base.timeouts |= {"connect_s": 40, "build_s": 60, "push_s": 60, "fetch_s": 60}
    # Another content for each run, so it has to be pushed.
    base.command = 'sh -c \'sleep 1; { cat application; echo "exit 0 # $TEST_RUN"; '
    base.command += f'head -c {LARGE_BYTES} /dev/urandom; }} >"$0"; chmod 755 "$0"\' {{out}}'
    if kind is Kind.NIX:
        base.command = None
    base.write_application(APPLICATION)
    base.write_inventory()
    if kind is Kind.LAUNCHER:
        base.argv = instance_argv(base.directory, LAUNCHER)


def plan_of(kind: Kind, run: str, directory: Path, base: FailingPlan) -> FailingPlan:
    """The plan of one run: a host's own one with outputs in `directory`; with Nix, where content is a file, its own."""
    plan = copy.copy(base)
    if kind is Kind.NIX:
        plan.directory = directory / "plan"
        simple_flake(plan.directory, name="failing", script=f"{APPLICATION}# {run}", build="sleep 1\n")
        plan.write_inventory()
    plan.outputs = directory / "outputs"
    plan.outputs.mkdir(parents=True)
    return plan
