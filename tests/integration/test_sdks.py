"""Applications on the published SDKs, as they are, on machines of two processors: `tests/plans`."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import rust_std
from tests.hosts import Keys
from tests.hosts_netns import Lan, NetnsHost
from tests.influx import Influx
from tests.integration.runs import ROOT, Machine, Outcome, Place, Plan, localhost, nothing_left, place_on
from tests.needs import need

PLANS = ROOT / "tests" / "plans"
HOSTS_LINE = "127.0.0.1 localhost testground-sync-service\n"
PROCESSORS = ("x86_64", "aarch64")


@dataclass(frozen=True)
class Sdk:
    """An SDK, and what is its own about the applications on it."""

    name: str
    processors: tuple[str, str]  # as a program names them that runs on x86_64 and on aarch64
    crashed: tuple[str, str]  # a crash's verdict, and the reason it is told with
    result: str  # how a line of its metrics begins; "" where it has none

    def place_on(self, host: NetnsHost, **more: object) -> Place:
        """A host with the settings that the SDK needs."""
        if self.name == "rust":
            more["service_ports"] = {"sync": 5050}
        return place_on(host, None, **more)


SDKS = {
    "javascript": Sdk("javascript", ("x64", "arm64"), ("failed", "exit status 1"), ""),
    "go": Sdk("go", ("amd64", "arm64"), ("crashed", "this case always crashes"), "results.go-sync.number.point,"),
    "rust": Sdk("rust", PROCESSORS, ("failed", "exit status 101"), "number "),
}


@pytest.fixture(scope="module")
def hosts(lan: Lan, keys: Keys, arm_tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[NetnsHost]]:
    """A machine of either processor, whose hosts files have the line that the Rust crate needs."""
    hosts_file = tmp_path_factory.mktemp("etc") / "hosts"
    hosts_file.write_text(HOSTS_LINE, encoding="utf-8")
    with ExitStack() as stack:
        yield [
            stack.enter_context(
                NetnsHost.start(
                    lan,
                    tmp_path_factory.mktemp(processor),
                    name=processor,
                    keys=keys,
                    root=root,
                    binds={"/etc/hosts": hosts_file},
                )
            )
            for processor, root in zip(PROCESSORS, (None, arm_tree), strict=True)
        ]


@pytest.fixture(scope="module")
def environ(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the toolchains are started with."""
    rr = {f"REMOTE_RUNNER_{name}_DIR": str(tmp_path_factory.mktemp(name.lower())) for name in ("RUNTIME", "CACHE")}
    return {**os.environ, **rr}


def build(name: str, directory: Path, environ: dict[str, str]) -> Path:
    """The plan, with what its own inventory builds for each processor in `built/`: once, and not in every run."""
    plan = directory / name
    shutil.copytree(PLANS / name, plan, ignore=shutil.ignore_patterns("node_modules", "target", "Cargo.lock"))
    fab = Path(sys.executable).with_name("fab")
    (plan / "built").mkdir()
    for processor in PROCESSORS:
        argv = [str(fab), "build", "--arch", f"{processor}-linux", "--json"]
        done = subprocess.run(argv, cwd=plan, env=environ, stdout=subprocess.PIPE, check=True)
        (made,) = json.loads(done.stdout)
        subprocess.run(["cp", "-R", made["path"], plan / "built" / processor], check=True)
    return plan


@pytest.fixture(scope="module")
def javascript(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("npm")
    return build("javascript", tmp_path_factory.mktemp("plans"), environ)


@pytest.fixture(scope="module")
def go(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("go")
    return build("go", tmp_path_factory.mktemp("plans"), environ)


@pytest.fixture(scope="module")
def rust(environ: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("rust")
    sysroot = rust_std.aarch64_sysroot(tmp_path_factory.mktemp("rust") / "std")
    more = {
        "PATH": f"{rust_std.BIN}{os.pathsep}{environ['PATH']}",
        "CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS": f"--sysroot={sysroot}",
    }
    return build("rust", tmp_path_factory.mktemp("plans"), {**environ, **more})


@pytest.fixture(params=SDKS)
def sdk(request: pytest.FixtureRequest) -> Sdk:
    return SDKS[request.param]


@pytest.fixture
def plan(sdk: Sdk, machine: Machine, request: pytest.FixtureRequest) -> Plan:
    return Plan(request.getfixturevalue(sdk.name), machine, sdk.name)


def write_inventory(plan: Plan, places: list[Place], **app: object) -> None:
    program = {"program": "start"} if plan.name == "javascript" else {}
    command = "cp -R built/{arch} {out}"
    plan.write_inventory({"name": plan.name, "command": command, **program, **app}, places)


def test_the_lock_file_of_npm_pins_every_package_and_names_no_registry() -> None:
    packages = json.loads((PLANS / "javascript" / "package-lock.json").read_text())["packages"]
    assert packages["node_modules/@testground/sdk"]["version"] == "0.1.2"
    assert all("integrity" in package and "resolved" not in package for name, package in packages.items() if name)


def met(outcome: Outcome) -> list[str]:
    """Assert that all have met and heard what the first one published; the processors that they ran on."""
    told = [json.loads(instance.text("heard.json")) for instance in outcome.instances]
    assert sorted(one["number"] for one in told) == list(range(1, len(told) + 1))
    assert {one["heard"]["greeting"] for one in told} == {"grüß dich"}
    assert len({one["heard"]["from"] for one in told}) == 1
    return [one["arch"] for one in told]


@pytest.fixture
def influx() -> Iterator[Influx]:
    with Influx(204) as server:
        yield server


@pytest.fixture
def places(sdk: Sdk, plan: Plan, hosts: list[NetnsHost], influx: Influx) -> list[Place]:
    """Both machines, in the plan's inventory; the metrics go to `influx` through a forward."""
    forwards = [{"name": "metrics", "to_host": influx.port}]
    made = [sdk.place_on(host, forwards=forwards) for host in hosts]
    write_inventory(plan, made, env={"INFLUXDB_URL": f"http://localhost:{influx.port}"})
    return made


def test_it_meets_publishes_and_hears_on_two_processors(
    sdk: Sdk, plan: Plan, places: list[Place], influx: Influx
) -> None:
    outcome = plan.single(2, "sync", greeting="grüß dich").all_ok()
    ran_on = {instance.host: processor for instance, processor in zip(outcome.instances, met(outcome), strict=True)}
    assert ran_on == dict(zip(PROCESSORS, sdk.processors, strict=True))
    metrics = [line for line in influx.lines() if sdk.result and line.startswith(sdk.result)]
    assert len(metrics) == (2 if sdk.result else 0)
    nothing_left(outcome.run, places)


@pytest.mark.parametrize("case", ["fail", "crash"])
def test_it_fails_or_crashes_on_two_processors(case: str, sdk: Sdk, plan: Plan, places: list[Place]) -> None:
    outcome = plan.single(2, case)
    verdict, reason = ("failed", "this case always fails") if case == "fail" else sdk.crashed
    for instance in outcome.instances:
        assert instance.verdict == verdict, str(outcome.ended)
        assert reason in instance.reason
    assert ("this case always crashes" in outcome.ended.stderr) == (case == "crash")
    nothing_left(outcome.run, places)


@pytest.mark.parametrize("sdk", [SDKS["javascript"], SDKS["go"]], ids=lambda sdk: sdk.name)
def test_it_meets_publishes_and_hears_here_and_there(
    sdk: Sdk, plan: Plan, hosts: list[NetnsHost], tmp_path: Path
) -> None:
    write_inventory(plan, [localhost(tmp_path / "far"), sdk.place_on(hosts[0], slots=2)])
    outcome = plan.single(3, "sync", greeting="grüß dich").all_ok()
    assert set(met(outcome)) == {sdk.processors[0]}
    assert all("success_event" in instance.text("run.out") for instance in outcome.instances)


def test_rust_on_a_host_that_does_not_know_the_services_name_is_told_what_helps(
    rust: Path, netns_host: NetnsHost, machine: Machine
) -> None:
    plan = Plan(rust, machine, "rust")
    write_inventory(plan, [place_on(netns_host)])
    (instance,) = plan.single(1, "sync").instances
    assert instance.verdict == "failed"
    for words in ("exit status 1", "`127.0.0.1 testground-sync-service`", "`service_ports: {sync: 5050}`"):
        assert words in instance.reason


def test_the_go_program_of_the_documentation_meets_here_and_there(
    environ: dict[str, str], machine: Machine, netns_host: NetnsHost, tmp_path: Path
) -> None:
    """As docs/own-plan.md has it: what `init go` made, with the page's case and program."""
    need("go")
    page = (ROOT / "docs" / "own-plan.md").read_text(encoding="utf-8")
    (case,), (program,) = (re.findall(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("toml", "go"))
    made = tmp_path / "meeting"
    remote_runner = Path(sys.executable).with_name("remote-runner")
    subprocess.run([remote_runner, "init", "go", "meeting"], cwd=tmp_path, env=environ, check=True)
    with (made / "manifest.toml").open("a", encoding="utf-8") as manifest:
        manifest.write(case)
    (made / "main.go").write_text(program, encoding="utf-8")
    for name in ("go.mod", "go.sum", "fabfile.py"):
        shutil.copy(PLANS / "go" / name, made)
    command = "env CGO_ENABLED=0 GOOS={goos} GOARCH={goarch} go build -o {out} ."
    plan = Plan(made, machine, "meeting")
    plan.write_inventory({"name": "meeting", "command": command}, [localhost(tmp_path / "far"), place_on(netns_host)])
    for instance in plan.single(2, "meet", rounds="2").all_ok().instances:
        points = [json.loads(line) for line in instance.text("results.out").splitlines()]
        assert [point["name"] for point in points] == ["barrier_seconds"] * 2
        assert len(set(instance.text("peers.txt").split())) == 2
