"""A user at work in a test: a machine of their own, plans in directories, `fab` as a program, hosts to run on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote_runner.demo.server import DemoHost
from tests.brokers_end import end_brokers
from tests.hosts import TestHost, which
from tests.hosts_netns import NetnsHost
from tests.manifests import manifest

ROOT = Path(__file__).parent.parent.parent
END_S = 600.0  # a build on an emulated machine, beside other tests, has taken 240 s
# Functions for an application in sh: `event NAME BODY` is a line of Testground's, `ok` the success.
EVENTS = """#!/bin/sh
event() {
    printf '{"ts":1,"msg":"","group_id":"%s","run_id":"%s","event":{"%s":{%s}}}\\n' \\
        "$TEST_GROUP_ID" "$TEST_RUN" "$1" "$2"
}
ok() { event success_event "\\"group\\":\\"$TEST_GROUP_ID\\""; }
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it said."""

    status: int
    stdout: str
    stderr: str

    def __str__(self) -> str:
        return f"exit status {self.status}\n--- stdout\n{self.stdout}\n--- stderr\n{self.stderr}"


@dataclass(frozen=True)
class Instance:
    """One instance of a run that has ended."""

    group: str
    verdict: str
    reason: str
    outputs: Path
    record: Mapping[str, Any]

    @property
    def host(self) -> str:
        return str(self.record["host"])

    def text(self, name: str) -> str:
        """What a file of its outputs says."""
        return (self.outputs / name).read_text(encoding="utf-8")

    def step(self, name: str) -> Mapping[str, Any]:
        """One step of its record."""
        found: Mapping[str, Any] = next(step for step in self.record["steps"] if step["name"] == name)
        return found


@dataclass(frozen=True)
class Outcome:
    """A whole run, as `--json` tells it."""

    ended: Ended
    run: str
    values: Mapping[str, Any]
    instances: tuple[Instance, ...]

    @classmethod
    def of(cls, ended: Ended) -> Outcome:
        """Read what `fab local.…  --json` printed; it must have printed one run."""
        try:
            (values,) = json.loads(ended.stdout)
        except ValueError:
            raise AssertionError(f"no outcome: {ended}") from None
        instances = tuple(
            Instance(item["group"], item["verdict"], item["reason"], Path(item["outputs"]), item["record"] or {})
            for item in values["instances"]
        )
        return cls(ended, str(values["run"]), values, instances)

    def all_ok(self) -> Outcome:
        """Itself, when every instance succeeded and `fab` says so."""
        assert self.values["ok"], str(self.ended)
        assert self.ended.status == 0, str(self.ended)
        assert [instance.verdict for instance in self.instances] == ["ok"] * len(self.instances), str(self.ended)
        assert "Traceback" not in self.ended.stderr, str(self.ended)
        return self

    def group(self, name: str) -> Instance:
        """The one instance of a group."""
        (found,) = [instance for instance in self.instances if instance.group == name]
        return found


@dataclass
class Place:
    """A host to run on: its name and entry in an inventory, and where its files are, seen from here.

    `base` is the far base directory; `host` is the machine where it is a test host.
    """

    name: str
    entry: Mapping[str, Any] | None
    base: Path
    host: TestHost | None = None

    @property
    def is_local(self) -> bool:
        return self.name == "localhost"

    def runs_left(self) -> list[str]:
        """Directories of runs that are there."""
        runs = self.base / "runs"
        return sorted(entry.name for entry in runs.iterdir()) if runs.exists() else []

    def artifacts(self) -> list[str]:
        """The hashes in its cache."""
        cache = self.base / "artifacts"
        return sorted(entry.name for entry in cache.iterdir()) if cache.exists() else []


def localhost(base: Path, **more: object) -> Place:
    """This machine; its files below `base`."""
    return Place("localhost", {"directory": str(base), **more}, base)


def place_on(host: TestHost, base: Path | None = None, **more: object) -> Place:
    """A test host by explicit options, its files below `base` (a whole machine: where they are by themselves)."""
    if base is not None:
        more["directory"] = str(base)
    else:
        assert isinstance(host, NetnsHost)
        base = host.home / ".cache" / "remote-runner"
    target = host.target
    ssh = {
        "host": target.host,
        "user": target.user,
        "port": target.port,
        "identity_file": target.identity_file,
        "options": dict(target.options),
    }
    return Place(host.name, {"ssh": ssh, **more}, base, host)


def demo_place(demo: DemoHost, **more: object) -> Place:
    """The embedded ssh server."""
    base = demo.server.home / ".cache" / "remote-runner"
    return Place("demo", {**demo.inventory_entry(), **more}, base)


@dataclass(frozen=True)
class Machine:
    """The user's machine: an environment in which nothing of the developer's own is reached.

    before: words before a command, where it is another user who starts it, or on another machine.
    """

    environ: Mapping[str, str]
    runtime: Path
    before: tuple[str, ...] = ()

    @classmethod
    @contextmanager
    def made(cls, directory: Path) -> Iterator[Machine]:
        """One with everything below `directory`, and a short directory for sockets; its brokers are ended."""
        bin_ = directory / "bin"
        home = directory / "home"
        for made in (bin_, home):
            made.mkdir(parents=True)
        with suppress(FileNotFoundError):
            ssh = which("ssh")
            (bin_ / "config").touch()
            (bin_ / "ssh").write_text(f'#!/bin/sh\nexec {ssh} -F {bin_}/config "$@"\n', encoding="utf-8")
            (bin_ / "ssh").chmod(0o755)
        runtime = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))
        environ = {
            "PATH": f"{bin_}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(home),
            "TMPDIR": str(_made(directory / "tmp")),
            "REMOTE_RUNNER_RUNTIME_DIR": str(runtime),
            "REMOTE_RUNNER_CACHE_DIR": str(directory / "cache"),
            "GOCACHE": os.environ["GOCACHE"],
            "GOFLAGS": os.environ["GOFLAGS"],
        }
        try:
            yield cls(environ, runtime)
        finally:
            end_brokers(runtime)
            shutil.rmtree(runtime, ignore_errors=True)  # a broker that ends removes its own socket


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


@dataclass
class Plan:
    """A plan's directory, and the user who stands in it."""

    directory: Path
    machine: Machine
    name: str

    @classmethod
    def of_script(cls, directory: Path, machine: Machine, script: str, places: Sequence[Place], **app: object) -> Plan:
        """A plan `script` with one case `case`; its application is a sh script behind the functions of `EVENTS`."""
        directory.mkdir(parents=True)
        plan = cls(directory, machine, "script")
        (directory / "application").write_text(EVENTS + script, encoding="utf-8")
        (directory / "application").chmod(0o755)
        (directory / "fabfile.py").write_text("from tasks import ns  # noqa: F401\n", encoding="utf-8")
        (directory / "manifest.toml").write_text(manifest("script", "case", most=1000), encoding="utf-8")
        plan.write_inventory(
            {"name": "application", "builder": "command", "command": "cp application {out}", **app}, places
        )
        return plan

    @classmethod
    def of_node(cls, directory: Path, machine: Machine, places: Sequence[Place]) -> Plan:
        """The example plan as it is, with an inventory of the test's."""
        directory.mkdir(parents=True)
        for part in ("manifest.toml", "fabfile.py", "fabric.yaml", "node", "testground"):
            (directory / part).symlink_to(ROOT / part)
        plan = cls(directory, machine, "remote-runner")
        app = {"name": "node", "builder": "command", "command": "{python} node/build.py {out}", "program": "bin/node"}
        plan.write_inventory(app, places)
        return plan

    def write_inventory(self, app: Mapping[str, object], places: Sequence[Place]) -> None:
        """JSON is YAML."""
        values = {"app": app, "hosts": {place.name: place.entry for place in places}}
        (self.directory / "inventory.yaml").write_text(json.dumps(values, indent=2), encoding="utf-8")

    def start(self, *words: str, environ: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """`fab` with these words, in a session of its own as in a terminal of its own; ended with the test."""
        fab = Path(sys.executable).parent / "fab"
        return subprocess.Popen(
            [*self.machine.before, str(fab), *words],
            cwd=self.directory,
            env={**self.machine.environ, **(environ or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            bufsize=0,
        )

    def fab(self, *words: str, environ: Mapping[str, str] | None = None) -> Ended:
        """`fab` to its end."""
        return ended(self.start(*words, environ=environ))

    def single(self, instances: int = 1, case: str = "case", **params: str) -> Outcome:
        """`fab local.single`."""
        return Outcome.of(self.fab(*single_words(instances, case, **params)))

    def groups(self, counts: Mapping[str, int], case: str = "case", **params: str) -> Outcome:
        """`fab local.composition` of groups with so many instances each."""
        lines = [
            "[global]",
            f'plan = "{self.name}"',
            f'case = "{case}"',
            'builder = "exec:go"',
            'runner = "local:exec"',
        ]
        lines += [f"total_instances = {sum(counts.values())}", "disable_metrics = true"]
        if params:
            lines += ["[global.run.test_params]", *(f"{name} = {json.dumps(text)}" for name, text in params.items())]
        for name, count in counts.items():
            lines += ["[[groups]]", f'id = "{name}"', f"instances = {{ count = {count} }}"]
        file = self.directory / "groups.toml"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Outcome.of(self.fab("local.composition", "-f", "groups.toml", "--json", "-vv"))


def single_words(instances: int = 1, case: str = "case", **params: str) -> list[str]:
    """The words of `fab local.single`."""
    given = [f"--test-param={name}={value}" for name, value in params.items()]
    return ["local.single", "--testcase", case, "--instances", str(instances), "--json", "-vv", *given]


def read_until(process: subprocess.Popen[bytes], word: str, count: int = 1) -> str:
    """What a started `fab` says on stderr until `count` lines with `word` have come; killed as by `ended`."""
    assert process.stderr is not None
    said = b""
    limit = threading.Timer(END_S, process.kill)
    limit.start()
    try:
        while count:
            line = process.stderr.readline()
            assert line, (
                f"ended, or killed after {END_S:g} s, before it said {word!r}:\n{said.decode(errors='replace')}"
            )
            said += line
            count -= word.encode() in line
    finally:
        limit.cancel()
    return said.decode(errors="replace")


def ended(process: subprocess.Popen[bytes]) -> Ended:
    """Wait for a program's end; it is killed when it takes longer than any run of a test may."""
    try:
        out, err = process.communicate(timeout=END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"not ended within {END_S:g} s:\n{out!r}\n{err!r}") from None
    return Ended(process.returncode, out.decode(errors="replace"), err.decode(errors="replace"))


def processes_of(run: str) -> list[str]:
    """Processes of a run's applications on all hosts of this kernel, by their marker variable."""
    return processes_with(f"REMOTE_RUNNER_INSTANCE={run}-")


def processes_with(text: str) -> list[str]:
    """Processes on all hosts of this kernel that have this in their environment."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if text.encode() in (entry / "environ").read_bytes():
                    found.append(f"{entry.name}: {(entry / 'cmdline').read_bytes()!r}")
    return found


def wait_for(seen: Callable[[], bool], timeout_s: float) -> float:
    """Wait until it is so, and say how long that took; for what no program tells us."""
    began_s = time.monotonic()
    while not seen():
        assert time.monotonic() < began_s + timeout_s, f"not so after {timeout_s:g} s"
        time.sleep(0.02)
    return time.monotonic() - began_s


def listening(host: NetnsHost) -> set[int]:
    """The TCP ports that something listens on there."""
    assert host.server is not None
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.server.pid}/net/{name}").read_text(encoding="ascii").splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports


def nothing_left(run: str, places: Sequence[Place]) -> None:
    """Assert that a run has left neither directories nor processes."""
    assert processes_of(run) == []
    for place in places:
        assert place.runs_left() == [], place.name
        if isinstance(place.host, NetnsHost):
            assert place.host.processes() == [], place.name
