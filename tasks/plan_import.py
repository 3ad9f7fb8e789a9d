"""`fab plan.import`: copies the plan into Testground's home, where its daemon builds and starts it."""

from __future__ import annotations

from pathlib import Path

import invoke

from remote_runner.sizes import size
from tasks.command_line.task import task
from tasks.plan import Plan
from tasks.say import say, show


@task(
    name="import",
    help={"home": "Testground's home (default: as testground has it: $TESTGROUND_HOME, ~/testground, ~/.config/…)"},
)
def import_(c: invoke.Context, home: str = "") -> None:
    """Put the plan's own files into Testground's home, with the Python that its instances start by."""
    from remote_runner.plan_import import check_builders, home_of_testground, import_plan

    plan = Plan.here()
    manifest = plan.manifest
    check_builders(manifest)
    done = import_plan(
        plan.directory,
        manifest.name,
        Path(home) if home else home_of_testground(plan.environ),
        environ=plan.environ,
    )
    say(f"plan {manifest.name}: {done.files} files, {size(done.size_bytes)} ({done.choice})")
    say("import it again after a change")
    show(str(done.path))
