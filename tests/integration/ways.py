"""The ways in which an instance comes to run: started as it is, by `fab instance`, or by the launcher."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.launcher import launcher_of
from tests.needs import need

DIRECT, FAB, LAUNCHER = "direct", "fab", "launcher"
WAYS = (DIRECT, FAB, LAUNCHER)
ALONE = "alone"
"""Each instance in a process of its own, without the broker."""
# `fab local.*` starts its instances directly; with this fabfile, by these words.
FABFILE = """from contextlib import nullcontext

import tasks.local
from tasks import ns  # noqa: F401
from testground.local_exec import InstanceCommand

tasks.local.instance_starter = lambda plan: nullcontext(InstanceCommand({argv!r}, plan.directory))
"""


def instance_argv(plan: Path, way: str) -> tuple[str, ...]:
    """What starts an instance of the plan; the launcher is built in its directory."""
    if way == LAUNCHER:
        need("go")
        return (str(launcher_of(plan)),)
    if way == FAB:
        return (str(Path(sys.executable).with_name("fab")), "instance")
    alone = ("env", "REMOTE_RUNNER_BROKER=off") if way == ALONE else ()
    return (*alone, sys.executable, "-m", "remote_runner")


def let_fab_start_by(plan: Path, way: str) -> None:
    """Let `fab local.*` in that plan start its instances in this way."""
    fabfile = plan / "fabfile.py"
    fabfile.unlink()  # it may be a link
    fabfile.write_text(FABFILE.format(argv=instance_argv(plan, way)), encoding="utf-8")
