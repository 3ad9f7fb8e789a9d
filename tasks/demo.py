"""`fab demo`: a whole run with a second machine made for it, on any machine with Python and ssh."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import invoke

from remote_runner.example import example_plan, testground_package
from tasks.choose import positive
from tasks.command_line.task import Failed, task
from tasks.local import Services, run_all, show_report, show_summary
from tasks.plan import Plan
from tasks.say import note
from tasks.view.display import DISPLAY
from testground.composition import plan_runs
from testground.composition import single as single_composition


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
    import yaml

    from remote_runner.demo.server import DemoHost

    example = example_plan()
    with tempfile.TemporaryDirectory(prefix="remote-runner-demo-") as name:
        directory = Path(name)
        note("starting an ssh server on loopback as the second machine, named demo")
        with DemoHost(directory / "demo") as host:
            shutil.copyfile(example / "manifest.toml", directory / "manifest.toml")
            for package in (example / "node", testground_package()):
                shutil.copytree(package, directory / package.name, ignore=shutil.ignore_patterns("__pycache__"))
            inventory = yaml.safe_load((example / "inventory.yaml").read_text(encoding="utf-8"))
            inventory["app"]["builder"] = "command"  # it needs no Nix
            inventory["hosts"] = {"localhost": None, "demo": host.inventory_entry()}
            (directory / "inventory.yaml").write_text(yaml.safe_dump(inventory, sort_keys=False), encoding="utf-8")
            yield replace(here, directory=directory, is_plan=True)
        shutil.rmtree(directory / "demo", ignore_errors=True)
