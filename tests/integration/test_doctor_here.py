"""What `fab doctor` says of Testground's daemon, its containers and ports, and of brokers: with real ones of each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testground.sync.service import SyncService
from tests.hosts import which
from tests.influx import influxd_argv
from tests.integration.failing import FailingPlan
from tests.integration.runs import Machine, Plan, localhost
from tests.needs import need
from tests.testground_bed import docker_alone, image_of

LIMIT_S = 60.0
HEAL = "testground healthcheck --runner local:exec --fix"
Check = Mapping[str, Any]


class Alone:
    """A network of the test's own, so that no port of it is taken; the programs that the test starts in it."""

    def __init__(self, plan: Plan, enter: list[str], stack: ExitStack) -> None:
        self._plan = plan
        self._enter = enter
        self._stack = stack
        self.environ = dict(plan.machine.environ)

    def doctor(self, status: int = 0) -> dict[str, Check]:
        """What is found here, by check."""
        fab = str(Path(sys.executable).with_name("fab"))
        done = subprocess.run(
            [*self._enter, fab, "doctor", "--json"],
            cwd=self._plan.directory,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == status, f"{done.stdout}\n{done.stderr}"
        return {one["check"]: one for one in json.loads(done.stdout) if one["where"] == "here"}

    def start(self, port: int, *argv: str) -> None:
        """Start a program, and wait until it listens there."""
        log = self._plan.directory / f"log-{port}"
        with log.open("wb") as output:
            process = subprocess.Popen([*self._enter, *argv], stdout=output, stderr=output, stdin=subprocess.DEVNULL)
        self._stack.callback(process.wait)
        self._stack.callback(process.terminate)
        listening = f":{port:04X} "
        until_s = time.monotonic() + LIMIT_S
        while not any(listening in line and " 0A " in line for line in self._sockets()):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < until_s
            time.sleep(0.05)  # nothing tells when a foreign process listens

    def _sockets(self) -> list[str]:
        argv = [*self._enter, "cat", "/proc/net/tcp", "/proc/net/tcp6"]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Alone]:
    need("netns")
    with ExitStack() as stack:
        machine = stack.enter_context(Machine.made(tmp_path / "machine"))
        plan = Plan.of_script(tmp_path / "plan", machine, "ok\n", [localhost(tmp_path / "near")])
        script = "ip link set lo up && echo up && exec sleep 600"
        holder = subprocess.Popen([which("unshare"), "--net", "sh", "-c", script], stdout=subprocess.PIPE)
        stack.callback(holder.wait)
        stack.callback(holder.kill)
        assert holder.stdout is not None
        with holder.stdout:
            assert holder.stdout.readline() == b"up\n"
        yield Alone(plan, [which("nsenter"), f"--net=/proc/{holder.pid}/ns/net"], stack)


def with_testground(alone: Alone, directory: Path) -> None:
    """Put a program of that name on PATH; it is looked for, and not started."""
    directory.mkdir()
    (directory / "testground").write_text("#!/bin/sh\nexit 1\n")
    (directory / "testground").chmod(0o755)
    alone.environ["PATH"] = f"{directory}{os.pathsep}{alone.environ['PATH']}"


def listen(alone: Alone, port: int) -> None:
    """Something that listens there, and is none of Testground's."""
    alone.start(port, sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port))


def test_without_the_daemon_its_ports_are_free_or_taken_by_somebody(alone: Alone, tmp_path: Path) -> None:
    with_testground(alone, tmp_path / "bin")
    listen(alone, 6379)
    found = alone.doctor()
    assert "does not run" in found["daemon"]["found"]
    assert "containers" not in found
    assert found["port 5050"]["found"] == "free; under the daemon its sync service is there"
    assert (found["port 6379"]["outcome"], found["port 6379"]["next_step"]) == (
        "warn", "see who listens there: ss -ltnp 'sport = :6379'",
    )  # fmt: skip


def test_a_daemon_without_its_services_fails(alone: Alone) -> None:
    listen(alone, 8042)
    listen(alone, 8086)
    alone.environ["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    found = alone.doctor(status=1)
    assert found["daemon"]["found"] == "something answers at its port 8042"
    # Whether there is no Docker at all, or none that answers.
    assert (found["containers"]["outcome"], bool(found["containers"]["next_step"])) == ("warn", True)
    for port, name in ((5050, "sync service"), (6379, "Redis")):
        check = found[f"port {port}"]
        assert (check["outcome"], check["next_step"]) == ("fail", HEAL)
        assert check["found"].startswith(f"no {name} answers")
    assert found["port 8086"]["outcome"] == "fail"
    assert "something other than InfluxDB" in found["port 8086"]["found"]


def _sync_service(alone: Alone) -> None:
    alone.start(5050, str(Path(sys.executable).with_name("remote-runner")), "local.sync-service", "--port", "5050")


def _redis(alone: Alone) -> None:
    need("redis")
    alone.start(6379, which("redis-server"), "--save", "", "--dir", "/tmp", "--daemonize", "no")


def _influxdb(alone: Alone) -> None:
    need("influxdb")
    alone.start(8086, *influxd_argv(Path(alone.environ["TMPDIR"]) / "influxdb", 8086))


@pytest.mark.parametrize(
    ("port", "name", "start"),
    [(5050, "sync service", _sync_service), (6379, "Redis", _redis), (8086, "InfluxDB", _influxdb)],
)
def test_a_service_is_known_by_its_answer(alone: Alone, port: int, name: str, start: Callable[[Alone], None]) -> None:
    listen(alone, 8042)
    alone.environ["DOCKER_HOST"] = "unix:///nonexistent/docker.sock"
    start(alone)
    check = alone.doctor(status=1)[f"port {port}"]
    assert (check["outcome"], check["found"]) == ("ok", f"{name} answers")


def test_containers_are_counted(alone: Alone) -> None:
    need("docker", "busybox")
    listen(alone, 8042)
    with docker_alone() as docker:
        docker("import", "-", "test/busybox", stdin=image_of(which("busybox")))

        def run(name: str) -> None:
            sleep = ("test/busybox", which("busybox"), "sleep", "600")
            docker("run", "--detach", "--network", "none", "--name", f"testground-{name}", *sleep)

        alone.environ["DOCKER_HOST"] = docker.host
        run("redis")
        some = alone.doctor(status=1)["containers"]
        run("influxdb")
        run("sync-service")
        every = alone.doctor(status=1)["containers"]
    missing = "not running: testground-influxdb, testground-sync-service"
    assert (some["outcome"], some["found"], some["next_step"]) == ("warn", missing, HEAL)
    assert (every["outcome"], every["found"]) == ("ok", "sync service, InfluxDB and Redis run")


def test_brokers_are_counted(failing_plan: FailingPlan) -> None:
    plan = failing_plan
    plan.write_application("#!/bin/sh\n")

    def brokers() -> Check:
        program = str(Path(sys.executable).with_name("remote-runner"))
        done = subprocess.run(
            [program, "doctor", "--json"], cwd=plan.directory, capture_output=True, timeout=LIMIT_S, check=False
        )
        checks: list[Check] = json.loads(done.stdout)
        return next(one for one in checks if one["check"] == "brokers")

    plan.write_inventory()
    assert brokers()["found"] == "none runs"
    with SyncService() as service:
        plan.run_with(plan.environ(service.port))
        assert brokers()["found"] == "one runs"
        plan.outputs = plan.outputs.with_name("1")
        plan.outputs.mkdir()
        plan.run_with(plan.environ(service.port, LANG="C.UTF-8"))
        two = brokers()
    assert (two["outcome"], two["found"]) == ("warn", "2 run, of several versions or environments")
    assert "nothing need be done" in two["next_step"]
