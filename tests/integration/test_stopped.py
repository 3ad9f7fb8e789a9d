"""An instance that is ended, or that nobody reads any more, at any step: it ends soon, says so, and leaves nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from testground.sync.service import SyncService
from tests.integration.failing import Ended, FailingPlan
from tests.integration.test_failures_application import WRITES

SOON_S = 8.0  # far below what each of these would take by itself


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A port that takes connections and says nothing on them."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def end_now(plan: FailingPlan, process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGTERM) -> Ended:
    began_s = time.monotonic()
    process.send_signal(number)
    ended = plan.end(process)
    assert time.monotonic() - began_s < SOON_S
    return ended


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_while_it_builds(launched_plan: FailingPlan, tmp_path: Path, number: signal.Signals) -> None:
    os.mkfifo(tmp_path / "pid")
    launched_plan.command = f"sh -c 'echo $$ >{tmp_path}/pid; exec sleep 100'"
    launched_plan.timeouts["build_s"] = 100
    launched_plan.write_inventory()
    with SyncService() as service:
        process = launched_plan.start(launched_plan.environ(service.port))
        builder = int((tmp_path / "pid").read_text())
        ended = end_now(launched_plan, process, number)
    ended.failure("stopped", "at the step build", number.name)
    assert launched_plan.record()["outcome"] == "failed"
    with pytest.raises(ProcessLookupError):
        os.kill(builder, 0)


def test_others_build_what_a_stopped_one_was_building(launched_plan: FailingPlan, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pid")
    once = f"mkdir {tmp_path}/once || exit 0; echo $$ >{tmp_path}/pid; exec sleep 100"
    launched_plan.command = f"sh -c 'cp application \"$0\"; {once}' {{out}}"
    launched_plan.timeouts["build_s"] = 100
    launched_plan.write_inventory()
    with SyncService() as service:
        environ = launched_plan.environ(service.port)
        first = launched_plan.start(environ)
        (tmp_path / "pid").read_text()
        second = launched_plan.start({**environ, "TEST_OUTPUTS_PATH": str(tmp_path)})
        end_now(launched_plan, first).failure("stopped")
        ended = launched_plan.end(second)
    assert (ended.status, ended.failures) == (0, [])


def test_while_it_waits_for_the_sync_service(launched_plan: FailingPlan, silent: socket.socket) -> None:
    launched_plan.write_inventory()
    process = launched_plan.start(launched_plan.environ(silent.getsockname()[1]))
    with closing(silent.accept()[0]):
        ended = end_now(launched_plan, process)
    ended.failure("stopped", "at the step choose")


def test_while_it_connects(launched_plan: FailingPlan, silent: socket.socket) -> None:
    launched_plan.hosts = (
        f"  stuck: {{system: x86_64-linux, ssh: {{host: 127.0.0.1, port: {silent.getsockname()[1]}}}}}\n"
    )
    launched_plan.timeouts["connect_s"] = 60
    launched_plan.write_inventory()
    with SyncService() as service:
        process = launched_plan.start(launched_plan.environ(service.port))
        with closing(silent.accept()[0]) as connection:
            ended = end_now(launched_plan, process)
            # Its ssh has ended: the other end of this connection is closed.
            connection.settimeout(SOON_S)
            with suppress(ConnectionResetError):
                while connection.recv(4096):
                    pass
    ended.failure("stopped", "stuck")


def test_while_nobody_reads_its_stdout(launched_plan: FailingPlan) -> None:
    launched_plan.write_application(f"{WRITES}while echo more; do :; done\nexec sleep 100\n")
    launched_plan.write_inventory()
    with SyncService() as service, launched_plan.start(launched_plan.environ(service.port)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        while process.stdout.readline() != b"more\n":
            pass
        process.stdout.close()
        said = process.stderr.read().decode()
        status = process.wait(SOON_S)
    assert (status, said) == (1, "")
    assert "stdout" in str(launched_plan.record()["error"])
    assert (launched_plan.outputs / "written").exists()
    assert not launched_plan.far_runs()


def test_while_a_silent_application_runs_and_nobody_reads_its_stdout_any_more(launched_plan: FailingPlan) -> None:
    launched_plan.write_application(f"{WRITES}echo more\nexec sleep 100\n")
    launched_plan.write_inventory()
    with SyncService() as service, launched_plan.start(launched_plan.environ(service.port)) as process:
        assert process.stdout is not None
        while process.stdout.readline() != b"more\n":
            pass
        process.stdout.close()
        status = process.wait(SOON_S)
    assert status == 1
    assert "nobody here reads" in str(launched_plan.record()["error"])
    assert (launched_plan.outputs / "written").exists()
    assert not launched_plan.far_runs()


def test_when_nobody_reads_its_stdout_from_the_start(launched_plan: FailingPlan) -> None:
    launched_plan.write_inventory()
    with SyncService() as service, launched_plan.start(launched_plan.environ(service.port)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
        status = process.wait(SOON_S)
    assert (status, said) == (1, "")
    assert "before the application's start" in str(launched_plan.record()["error"])


def test_when_nobody_reads_its_stderr(launched_plan: FailingPlan) -> None:
    said = '{"ts":1,"msg":"","group_id":"single","run_id":"failing","event":{"success_event":{"group":"single"}}}'
    launched_plan.write_application(
        f"{WRITES}echo lost >&2\nread go <{launched_plan.directory}/go\necho lost >&2\necho '{said}'\n"
    )
    os.mkfifo(launched_plan.directory / "go")
    launched_plan.write_inventory()
    with SyncService() as service, launched_plan.start(launched_plan.environ(service.port)) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == b"lost\n"
        process.stderr.close()
        (launched_plan.directory / "go").write_text("go\n")
        assert process.stdout is not None
        out = process.stdout.read()
        assert process.wait(SOON_S) == 0
    assert b"nobody reads stderr" in out
