"""`fab demo`: a whole run with a second machine made for it, on any machine with Python and ssh."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import invoke

from remote_runner.errors import DemoServerError
from remote_runner.example import example_plan, testground_package
from tasks.command_line.task import Failed, task
from tasks.command_line.values import positive
from tasks.local import Services, run_all, show_report, show_summary
from tasks.plan import Plan
from tasks.say import note
from tasks.view.display import DISPLAY


@task(
    shows=True,
    help={
        "instances": "how many instances, placed in turn on this machine and on the second one",
        "testcase": "the test case of the example plan",
        "outputs": "directory below which the outputs are put (default: here)",
    },
)
def demo(c: invoke.Context, instances: str = "2", testcase: str = "server-client", outputs: str = "") -> None:
    """Run the example plan on this machine and on an ssh server started for it; needs no host and no Nix."""
    from testground.composition import plan_runs
    from testground.composition import single as single_composition

    here = Plan.here()
    with demo_plan(here) as plan:
        planned = single_composition(
            plan.manifest,
            testcase,
            instances=positive(instances, "instances"),
            test_params={"server_port": "0"} if testcase == "server-client" else {},
            disable_metrics=True,  # there is no InfluxDB without a daemon
        )
        (ran,) = run_all(
            plan,
            plan_runs(planned, plan.manifest),
            task="demo",
            outputs=Path(outputs) if outputs else here.directory,
            services=Services(),
            timeout_s=300.0,
        )
        DISPLAY.end()
        note("")
        show_summary(ran)
        show_report(plan, ran)
    if ran.status:
        raise Failed("the demo failed; the reasons stand above, each instance's record in its outputs", ran.status)


@contextmanager
def demo_plan(here: Plan) -> Iterator[Plan]:
    """The example plan in a directory of its own, with an inventory that lists the demo server as a host."""
    from remote_runner.demo.server import DemoHost

    with ExitStack() as stack:
        with _having_room():
            made = tempfile.TemporaryDirectory(prefix=f"remote-runner-demo-{os.getpid()}-", ignore_cleanup_errors=True)
            directory = Path(stack.enter_context(made))
        note("starting an ssh server on loopback as the second machine, named demo")
        with DemoHost(directory / "demo") as host:
            with _having_room():
                _copy_example(directory, host.inventory_entry())
            yield replace(here, directory=directory, is_plan=True)


def _copy_example(directory: Path, demo: Mapping[str, Any]) -> None:
    import yaml

    example = example_plan()
    shutil.copyfile(example / "manifest.toml", directory / "manifest.toml")
    for package in (example / "node", testground_package()):
        shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    inventory = yaml.safe_load((example / "inventory.yaml").read_text(encoding="utf-8"))
    inventory["app"]["builder"] = "command"  # it needs no Nix
    inventory["hosts"] = {"localhost": None, "demo": demo}
    (directory / "inventory.yaml").write_text(yaml.safe_dump(inventory, sort_keys=False), encoding="utf-8")


@contextmanager
def _having_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        problem = f"the demo's directory cannot be made: {error.strerror or error}"
        raise DemoServerError(problem, next_step="set TMPDIR to a directory with room") from error
