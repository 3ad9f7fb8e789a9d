"""The real Testground: its daemon, sync service and InfluxDB start plans here and on hosts in namespaces.

The command lines are those of the README. Skipped where `testground` and `sync-service` are not on PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.brokers_end import end_brokers
from tests.hosts import Keys, which
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.runs import listening, processes_of, wait_for
from tests.manifests import manifest
from tests.needs import need
from tests.nix_bed import NixHere
from tests.nix_plan import make_plan
from tests.slurm_bed import SlurmBed
from tests.testground.daemon_text import Printed, daemon_printed
from tests.testground_bed import Daemon, Docker, User, daemon, influxdb, services

ROOT = Path(__file__).parent.parent.parent
SEED_ADDRESS = "192.168.195.204"
# The command of the contract, word for word but for the builder, which a test names.
SEED = [
    *("run", "single", "--plan=remote-runner", "--testcase=server-client", "--builder", "BUILDER"),
    *("--runner=local:exec", "--instances=2", "--wait"),
    *("--test-param", 'remote-runners=[{"name":"localhost"},{"arch":"x86_64-linux","name":"dex"}]'),
    *("--test-param", f"server_ip={SEED_ADDRESS}"),
]
RUN_S = 120.0
# As it is before a test's own `ssh` stands first in it: the daemon's user has a configuration of their own. Without
# `fab`, for the imported plan names its Python.
PATH = os.pathsep.join(
    part for part in os.environ["PATH"].split(os.pathsep) if part and not (Path(part) / "fab").exists()
)
# What ends an instance is noticed at once; then come TERM and, after grace_s, KILL.
GRACE_S = 2.0


@dataclass
class Ran:
    """What the client printed until it ended, with its exit status."""

    status: int
    text: str
    home: Path
    printed: list[Printed] = field(init=False)

    def __post_init__(self) -> None:
        self.printed = daemon_printed(re.sub(r"\x1b\[[\d;]*m", "", self.text))

    def __str__(self) -> str:
        return f"exit status {self.status}\n{self.text}"

    @property
    def runs(self) -> list[str]:
        """The ids of the runs that the daemon started."""
        return re.findall(r'starting run.*"run_id": "(\w+)"', self.text)

    @property
    def outputs(self) -> Path:
        return self.home / "data" / "outputs" / "local_exec" / "remote-runner" / self.runs[0]

    def words(self, word: str) -> list[str]:
        """The texts that the daemon printed under a word of its own."""
        return [entry.text for entry in self.printed if entry.word == word]

    def ok(self, instances: int) -> Ran:
        """Itself, when the daemon says that all went well and none of our words was anything but a message."""
        assert self.status == 0, str(self)
        assert len(self.words("OK")) == instances, str(self)
        assert {entry.word for entry in self.printed} <= {"OK", "MESSAGE", "START"}, str(self)
        assert "no warm process" not in self.text
        return self

    def hosts(self) -> list[str]:
        """Where the instances ran, by their own steps' messages."""
        return sorted(re.findall(r"number \d+ runs on (\S+)", "\n".join(self.words("MESSAGE"))))


@dataclass
class Bed:
    """A daemon of a user, whose ssh knows the host `dex`."""

    daemon: Daemon
    docker: Docker
    dex: NetnsHost
    user: User

    @property
    def home(self) -> Path:
        return self.daemon.home

    def run(self, *words: str, cwd: Path | None = None) -> Ran:
        """`testground WORDS` to its end."""
        client = self.daemon.client(*words, cwd=cwd)
        try:
            said, _ = client.communicate(timeout=RUN_S)
        except subprocess.TimeoutExpired:
            client.kill()
            said, _ = client.communicate()
            raise AssertionError(f"testground {words} did not end:\n{said}") from None
        return Ran(client.returncode, said, self.home)

    def left(self) -> list[Path]:
        """Directories of runs, on the host and here."""
        places = [home / ".cache" / "remote-runner" / "runs" for home in (self.dex.home, self.user.home)]
        return [entry for place in places if place.exists() for entry in place.iterdir()]

    def nothing_left(self, run: str) -> None:
        """No process, no forward and no directory of the run."""
        self.no_process(run)
        assert self.left() == []
        wait_for(lambda: listening(self.dex) == {22}, 5)

    def no_process(self, run: str, within_s: float = 0.0) -> None:
        """No process of the run is left after at most so long."""
        wait_for(lambda: not processes_of(run) and not self.dex.processes(), within_s + 5)

    def stopped(self, run: str) -> None:
        """Ended, with all outputs here: a killed launcher, or nobody who reads, leaves an instance the time for it."""
        wait_for(lambda: not self.left(), GRACE_S + 10)
        self.nothing_left(run)
        for number in (0, 1):
            outputs = self.home / "data" / "outputs" / "local_exec" / "waiting" / run / "single" / str(number)
            assert (outputs / "written").read_text() == "kept\n"


def seed(builder: str = "exec:go", **changes: str) -> list[str]:
    """The seed's words; `changes` replace what follows `--NAME=`."""
    words = [builder if word == "BUILDER" else word for word in SEED]
    return [
        f"--{word[2:].partition('=')[0]}={changes[word[2:].partition('=')[0]]}"
        if word[2:].partition("=")[0] in changes
        else word
        for word in words
    ]


def write_inventory(plan: Path, app: Mapping[str, object], **hosts: object) -> None:
    (plan / "inventory.yaml").write_text(json.dumps({"app": app, "hosts": hosts}), encoding="utf-8")


NODE = {"name": "node", "builder": "command", "command": "{python} node/build.py {out}", "program": "bin/node"}


def import_plan(home: Path) -> None:
    fab = Path(sys.executable).with_name("fab")
    subprocess.run([fab, "plan.import", "--home", home], cwd=ROOT, check=True, capture_output=True)
    write_inventory(home / "plans" / "remote-runner", NODE, localhost={})  # a build that needs no Nix


GO = {"name": "application", "command": "cp application {out}"}


def import_go_plan(plan: Path, home: Path, **hosts: object) -> None:
    """A plan on the published SDK for Go."""
    shutil.copytree(ROOT / "tests" / "plans" / "go", plan)
    environ = {**os.environ, "CGO_ENABLED": "0"}
    subprocess.run([which("go"), "build", "-o", "application", "."], cwd=plan, env=environ, check=True)
    write_inventory(plan, GO, **hosts)
    fab = Path(sys.executable).with_name("fab")
    subprocess.run([fab, "plan.import", "--home", home], cwd=plan, check=True, capture_output=True)


@pytest.fixture(scope="module")
def services_there() -> Iterator[Docker]:
    need("testground", "ssh", "netns")
    with services() as docker:
        yield docker


@pytest.fixture(scope="module")
def dex(lan: Lan, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsHost]:
    """The machine `dex`, from which this one is reached at the seed's address."""
    with NetnsHost.start(lan, tmp_path_factory.mktemp("dex"), name="dex", keys=keys) as host:
        ip = which("ip")
        subprocess.run([ip, "addr", "add", f"{SEED_ADDRESS}/32", "dev", lan.bridge], check=True)
        route = ["route", "add", f"{SEED_ADDRESS}/32", "via", lan.controller_address]
        subprocess.run([ip, "-n", host.namespace, *route], check=True)
        yield host


@pytest.fixture(scope="module")
def user(dex: NetnsHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """A user whose only key is in an agent that the ssh configuration names."""
    home = tmp_path_factory.mktemp("home")
    runtime = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))
    agent_socket = runtime / "agent"
    agent = subprocess.Popen([which("ssh-agent"), "-D", "-a", str(agent_socket)], stdout=subprocess.DEVNULL)
    try:
        wait_for(agent_socket.exists, 10)
        environ = {**os.environ, "SSH_AUTH_SOCK": str(agent_socket)}
        subprocess.run([which("ssh-add"), "-q", dex.keys.client], env=environ, check=True)
        (home / ".ssh").mkdir(mode=0o700)
        lines = [line for line in dex.config_block().splitlines() if "Identit" not in line]
        lines.append(f"    IdentityAgent {agent_socket}")
        (home / ".ssh" / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
        yield User(home, runtime)
    finally:
        agent.terminate()
        agent.wait()
        end_brokers(runtime)
        shutil.rmtree(runtime, ignore_errors=True)


@pytest.fixture(scope="module")
def bed(services_there: Docker, dex: NetnsHost, user: User, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """The daemon as it is released, with the plan imported."""
    home = tmp_path_factory.mktemp("testground")
    import_plan(home)
    with daemon(services_there, home, user=user, path=PATH) as running:
        yield Bed(running, services_there, dex, user)


def test_the_seeds_command(bed: Bed) -> None:
    ran = bed.run(*seed()).ok(2)
    assert ran.hosts() == ["dex", "localhost"]
    assert re.search(r"result default\[\w+\]: success", ran.text)
    said = "\n".join(ran.words("MESSAGE"))
    assert f"got pong from http://{SEED_ADDRESS}:8188/; host dex" in said
    for step in ("choose", "build", "push", "forward", "run", "fetch", "clean"):
        assert said.count(f"{step}: ") >= 2, step
    for number in ("0", "1"):
        outputs = ran.outputs / "single" / number
        assert (outputs / "run.out").stat().st_size > 0
        assert (outputs / "run.err").stat().st_size == 0
        assert {"remote-runner.json", "instance.json"} <= {path.name for path in outputs.iterdir()}
    bed.nothing_left(ran.runs[0])


def test_fifty_instances_on_the_hosts_of_the_inventory(bed: Bed) -> None:
    write_inventory(bed.home / "plans" / "remote-runner", NODE, dex={"slots": 30}, localhost={"slots": 20})
    words = ["run", "single", "--plan=remote-runner", "--testcase=server-client", "--builder=exec:go"]
    ran = bed.run(*words, "--runner=local:exec", "--instances=50", "--wait").ok(50)
    assert {name: ran.hosts().count(name) for name in ran.hosts()} == {"dex": 30, "localhost": 20}
    bed.nothing_left(ran.runs[0])


def test_a_composition_with_groups_and_runs_is_collected(bed: Bed, tmp_path: Path) -> None:
    write_inventory(
        bed.home / "plans" / "remote-runner",
        NODE,
        dex={"slots": 2, "groups": ["others"]},
        localhost={"groups": ["first"]},
    )
    shutil.copy(ROOT / "composition.toml", tmp_path)
    (tmp_path / "collected").mkdir()
    words = ["run", "composition", "-f", str(tmp_path / "composition.toml"), "--collect", "--wait"]
    ran = bed.run(*words, cwd=tmp_path / "collected")
    assert ran.status == 0, str(ran)
    # The composition of the repository has two runs.
    assert len(ran.runs) == 2
    assert len(ran.words("OK")) == 3 + 5
    assert ran.hosts() == ["dex"] * 6 + ["localhost"] * 2
    archives = list((tmp_path / "collected").glob("*.tgz"))
    names: list[str] = []
    for archive in archives:
        with tarfile.open(archive) as opened:
            names += opened.getnames()
    for run in ran.runs:
        assert any(name.endswith(f"{run}/first/0/run.out") for name in names), names
        assert any(name.endswith(f"{run}/others/1/remote-runner.json") for name in names), names
        bed.nothing_left(run)


def test_metrics_of_a_remote_instance_reach_influxdb_with_its_host(bed: Bed) -> None:
    write_inventory(bed.home / "plans" / "remote-runner", NODE, dex={})
    words = ["run", "single", "--plan=remote-runner", "--testcase=outputs", "--builder=exec:go"]
    ran = bed.run(*words, "--runner=local:exec", "--instances=1", "--wait", "--test-param", "samples=7").ok(1)
    found = influxdb(
        f"SELECT value FROM \"results.remote-runner-outputs.progress.point\" WHERE run='{ran.runs[0]}' GROUP BY *"
    )
    (series,) = found
    assert series["tags"] == {
        "group_id": "single",
        "run": ran.runs[0],
        "host": "dex",
        "system": f"{os.uname().machine}-linux",
    }
    values = series["values"]
    assert isinstance(values, list)
    assert [value for _, value in values] == [1, 2, 3, 4, 5, 6, 7]
    assert (ran.outputs / "single" / "0" / "results.out").read_text().count('"progress"') == 7
    assert (ran.outputs / "single" / "0" / "diagnostics.out").stat().st_size > 0


def test_an_application_on_sdk_go_sends_its_metrics_from_there(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    import_go_plan(tmp_path / "plan", home, dex={}, localhost={})
    with daemon(services_there, home, user=user, path=PATH) as running:
        bed = Bed(running, services_there, dex, user)
        words = ["run", "single", "--plan=go", "--testcase=sync", "--builder=exec:go", "--runner=local:exec"]
        ran = bed.run(*words, "--instances=2", "--wait").ok(2)
    assert ran.hosts() == ["dex", "localhost"]
    (series,) = influxdb(f"SELECT value FROM \"results.go-sync.number.point\" WHERE run='{ran.runs[0]}'")
    values = series["values"]
    assert isinstance(values, list)
    assert sorted(value for _, value in values) == [1, 2]
    bed.nothing_left(ran.runs[0])


@pytest.fixture(scope="module")
def twenty_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmBed]:
    need("testground", "slurm")
    with SlurmBed.started(tmp_path_factory.mktemp("slurm"), 20) as started:
        yield started


@pytest.mark.parametrize("within", [False, True])
def test_twenty_nodes_of_a_slurm_are_the_hosts_of_the_example_plan_and_of_one_in_go(
    twenty_nodes: SlurmBed, services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path, within: bool
) -> None:
    """A run allocates nodes, or has those of the allocation that the daemon was started in."""
    slurm, home = twenty_nodes, tmp_path / "home"
    import_plan(home)
    import_go_plan(tmp_path / "plan", home)
    apps = {"remote-runner": NODE, "go": GO}
    for plan, app in apps.items():
        inventory = {
            "app": app,
            "defaults": {"directory": str(slurm.local)},
            "hosts_from": [{"slurm": {"nodes": 20, "slots": 1}}],
        }
        (home / "plans" / plan / "inventory.yaml").write_text(json.dumps(inventory), encoding="utf-8")
    variables, nodes = {**slurm.environ}, range(1, 21)
    if within:
        nodes = range(2, 21)
        slurm.slurm("salloc", "--no-shell", "--nodelist=n[2-20]")
        (variables["SLURM_JOB_ID"],) = slurm.jobs()
    path = f"{slurm.programs}{os.pathsep}{PATH}"
    with daemon(services_there, home, user=user, path=path, variables=variables) as running:
        bed = Bed(running, services_there, dex, user)
        for plan, case in (("remote-runner", "server-client"), ("go", "sync")):
            words = ["run", "single", f"--plan={plan}", f"--testcase={case}", "--builder=exec:go"]
            count = 2 * len(nodes)
            ran = bed.run(*words, "--runner=local:exec", f"--instances={count}", "--wait").ok(count)
            assert ran.hosts() == sorted(2 * [f"n{number}" for number in nodes])
            wait_for(lambda: len(slurm.jobs()) == within, 15)
            bed.nothing_left(ran.runs[0])
    for job in slurm.jobs():
        slurm.slurm("scancel", job)


def test_a_failure_before_the_application_starts_shows_its_reason(bed: Bed) -> None:
    ran = bed.run(*seed(), "--test-param", 'remote-runners=[{"name":"nowhere.invalid"}]')
    assert ran.status == 1
    assert {entry.word for entry in ran.printed} <= {"FAIL", "MESSAGE"}, str(ran)
    assert len(ran.words("FAIL")) == 2
    for said in ran.words("FAIL"):
        assert "nowhere.invalid" in said
        assert "next: " in said


def test_a_linked_plan_starts_the_fab_on_the_daemons_path_and_says_when_there_is_none(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    git = [which("git"), "-c", "safe.directory=*"]
    subprocess.run([*git, "clone", "-q", ROOT, checkout], check=True)
    write_inventory(checkout, NODE, localhost={})
    fab = Path(sys.executable).parent
    for path, there in ((f"{fab}{os.pathsep}{PATH}", True), (PATH, False)):
        home = tmp_path / f"home-{there}"
        with daemon(services_there, home, user=user, path=path) as running:
            bed = Bed(running, services_there, dex, user)
            imported = bed.run("plan", "import", "--from", ".", "--name", "remote-runner", cwd=checkout)
            assert imported.status == 0
            assert (home / "plans" / "remote-runner").is_symlink()
            ran = bed.run(*seed())
        if there:
            assert ran.ok(2).hosts() == ["dex", "localhost"]
        else:
            assert ran.status == 1
            assert len(ran.words("FAIL")) == 2
            assert all("no `fab` on the PATH of Testground's daemon" in said for said in ran.words("FAIL"))


WAITING = """#!/bin/sh
trap '' TERM
echo '{"ts":1,"event":{"message_event":{"message":"it waits"}}}'
echo kept >"$TEST_OUTPUTS_PATH/written"
sleep 600 & wait; wait
"""


@contextmanager
def waiting_run(
    docker: Docker, dex: NetnsHost, user: User, directory: Path, settings: str = ""
) -> Iterator[tuple[Bed, subprocess.Popen[str], str]]:
    """A plan of a user's own whose instances, on dex and here, have begun to wait and take no TERM."""
    plan, home = directory / "plan", directory / "home"
    plan.mkdir()
    (plan / "application").write_text(WAITING, encoding="utf-8")
    (plan / "application").chmod(0o755)
    text = manifest("waiting", "wait", default=2, exec_pkg=True)
    (plan / "manifest.toml").write_text(text, encoding="utf-8")
    (plan / "fabfile.py").write_text("from tasks import ns  # noqa: F401\n", encoding="utf-8")
    quick = {"grace_s": GRACE_S}
    write_inventory(plan, {"name": "application", "command": "cp application {out}"}, dex=quick, localhost=quick)
    fab = Path(sys.executable).with_name("fab")
    subprocess.run([fab, "plan.import", "--home", home], cwd=plan, check=True, capture_output=True)
    with ExitStack() as stack:
        running = stack.enter_context(daemon(docker, home, user=user, path=PATH, settings=settings))
        bed = Bed(running, docker, dex, user)
        words = ["run", "single", "--plan=waiting", "--testcase=wait", "--builder=exec:go", "--runner=local:exec"]
        client = stack.enter_context(running.client(*words, "--instances=2", "--wait"))
        stack.callback(client.kill)
        too_late = threading.Timer(RUN_S, client.kill)
        stack.callback(too_late.cancel)
        too_late.start()
        said = ""
        assert client.stdout is not None
        while said.count("it waits") < 2:
            line = client.stdout.readline()
            assert line, said
            assert "FAIL" not in line, said + line
            said += line
        (run,) = re.findall(r'starting run.*"run_id": "(\w+)"', said)
        assert len(processes_of(run)) >= 4
        yield bed, client, run


def test_a_killed_task_leaves_nothing_running(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    with waiting_run(services_there, dex, user, tmp_path) as (bed, client, run):
        endpoint = re.search(r'endpoint = "(.*)"', (bed.home / ".env.toml").read_text())
        assert endpoint is not None
        urllib.request.urlopen(f"{endpoint[1]}/kill?task_id={run}", timeout=30).read()
        bed.stopped(run)
        client.communicate(timeout=60)
        assert client.returncode == 1


def test_a_killed_daemon_leaves_nothing_running(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    with waiting_run(services_there, dex, user, tmp_path) as (bed, _, run):
        os.kill(bed.daemon.process.pid, signal.SIGKILL)
        bed.stopped(run)


def test_a_stopped_daemon_leaves_nothing_running(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    with waiting_run(services_there, dex, user, tmp_path) as (bed, _, run):
        bed.daemon.process.terminate()
        bed.stopped(run)


def test_a_task_that_takes_too_long_leaves_nothing_running(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    settings = "[daemon.scheduler]\ntask_timeout_min = 1\n"  # the shortest that can be said
    with waiting_run(services_there, dex, user, tmp_path, settings) as (bed, client, run):
        client.communicate(timeout=90)
        bed.stopped(run)


def test_terminate_ends_the_services_and_a_kill_the_run(
    services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    """v0.6.0 removes containers and lets the run go on, as its own source says."""
    try:
        with waiting_run(services_there, dex, user, tmp_path) as (bed, _, run):
            assert bed.run("terminate", "--runner", "local:exec").status == 0
            there = services_there("ps", "--format", "{{.Names}}").split()
            assert "testground-redis" not in there
            os.kill(bed.daemon.process.pid, signal.SIGKILL)
            bed.stopped(run)
    finally:
        services_there.restart()


def test_the_seeds_command_word_for_word_with_nix(
    nix_here: NixHere, nixpkgs_stub: Path, services_there: Docker, dex: NetnsHost, user: User, tmp_path: Path
) -> None:
    """The branch of PR #1425 builds `bin/remote-runner` from the flake; the application is built by Nix, too."""
    if shutil.which("testground-nix") is None:
        pytest.skip("needs testground-nix: testground with the nix:generic builder (PR #1425) under that name on PATH")
    home = tmp_path / "home"
    plan = make_plan(home / "plans" / "remote-runner", nix_here, nixpkgs_stub)
    assert (plan / "manifest.toml").exists()
    with daemon(services_there, home, program="testground-nix", user=user, path=PATH) as running:
        bed = Bed(running, services_there, dex, user)
        ran = bed.run(*seed("nix:generic")).ok(2)
    assert ran.hosts() == ["dex", "localhost"]
    assert f"got pong from http://{SEED_ADDRESS}:8188/; host dex" in "\n".join(ran.words("MESSAGE"))
    bed.nothing_left(ran.runs[0])
