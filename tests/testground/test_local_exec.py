"""`local:exec` without a daemon: the recorded instances once more, as processes; and its ends."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import testground.local_exec as local_exec
from testground.composition import GroupPlan, Resources, RunPlan
from testground.errors import TestgroundError
from testground.local_exec import DaemonLines, InstanceCommand, RunOutcome, StopRequest, new_run_id
from testground.runenv import ServiceAddress
from testground.verdict import Verdict
from tests.recordings import RECORDINGS
from tests.testground.daemon_text import as_recorded, daemon_printed, is_cut, own_printed, recorded_failures

_OK = """echo '{"ts":1,"event":{"success_event":{"group":"g"}}}'"""
_READY = """echo '{"ts":1,"event":{"message_event":{"message":"ready"}}}'"""


def _plan(params: dict[str, str] | None = None, **groups: int) -> RunPlan:
    return RunPlan(
        name="default",
        plan="remote-runner",
        case="probe",
        runner="local:exec",
        run_config={},
        disable_metrics=False,
        groups=tuple(
            GroupPlan(name, name, instances, params or {}, {}, Resources(), "", "", {})
            for name, instances in (groups or {"single": 1}).items()
        ),
    )


def _run(
    tmp_path: Path,
    command: str | tuple[str, ...] | Callable[[GroupPlan, int], InstanceCommand],
    *,
    plan: RunPlan | None = None,
    out: io.StringIO | None = None,
    stop: StopRequest | None = None,
    **options: float,
) -> RunOutcome:
    if isinstance(command, str):
        command = ("/bin/sh", "-c", command)
    return local_exec.run(
        plan or _plan(),
        command=InstanceCommand(command, tmp_path) if isinstance(command, tuple) else command,
        outputs=tmp_path / "data",
        environ={"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/nowhere", "REMOTE_RUNNER_CACHE_DIR": "/cache"},
        sync_service=ServiceAddress("localhost", 5050),
        listener=DaemonLines(out or io.StringIO()),
        stop=stop,
        temp=tmp_path,
        grace_s=options.get("grace_s", 60.0),
        timeout_s=options.get("timeout_s"),
    )


class _StopsAtReady(io.StringIO):
    """Asks for the end as soon as instances have said that they are ready, as often as told."""

    def __init__(self, stop: StopRequest, *, times: int = 1, instances: int = 1) -> None:
        super().__init__()
        self._stop, self._times, self._wanted = stop, times, instances

    def write(self, text: str) -> int:
        self._wanted -= text.count("ready\n")
        if self._wanted == 0:
            self._wanted = -1
            for _ in range(self._times):
                self._stop.request()
        return super().write(text)


_VERDICTS = (
    *(
        "binary-then-success",
        "child-keeps-stdout-5s",
        "closes-stdout-then-works-5s",
        "crash",
        "crlf",
        "event-on-stderr",
    ),
    *("failure-then-success", "group-mismatch", "line-65000-then-success", "long-line-then-success"),
    *("long-message-then-success", "newline-in-message", "no-newline-at-end", "nothing", "only-text"),
    *("stages-and-start", "success-then-exit-1", "success-then-failure", "success-twice"),
    "unknown-event-then-success",
)


def test_the_recordings_have_no_verdict_that_is_not_compared() -> None:
    assert {path.stem for path in (RECORDINGS / "verdict").glob("*.sh")} == set(_VERDICTS)


@pytest.mark.parametrize("name", _VERDICTS)
def test_a_recorded_instance_is_printed_and_judged_as_by_the_daemon(name: str, tmp_path: Path) -> None:
    script = (RECORDINGS / "verdict" / f"{name}.sh").read_text()
    recording = (RECORDINGS / "verdict" / f"{name}.txt").read_text(errors="replace")
    if name.endswith("-5s"):
        assert "sleep 5" in script
        script = script.replace("sleep 5", "sleep 0.5")
    (tmp_path / "instance").write_text(script)
    (tmp_path / "instance").chmod(0o755)
    out = io.StringIO()
    outcome = _run(tmp_path, (str(tmp_path / "instance"),), out=out)
    ours, theirs = own_printed(as_recorded(out.getvalue())), daemon_printed(recording)
    assert len(ours) == len(theirs)
    assert all(our.said_by(their) for our, their in zip(ours, theirs, strict=True)), (ours, theirs)
    assert {(entry.group, entry.number) for entry in theirs} <= {("single", 0)}
    for our, their in zip(ours, theirs, strict=True):
        assert (our.group, our.number) == (their.group, their.number)
        assert their.elapsed_s > 0 or our.elapsed_s == 0
    assert outcome.failed == recorded_failures(recording)
    assert outcome.ok == recording.endswith("client exit status 0\n")
    if name.endswith("-5s"):
        assert (outcome.instances[0].outputs / "done").exists(), "the run was over before its streams were closed"


@pytest.mark.parametrize("case", ["failure", "metrics", "output", "panic", "sync"])
def test_recorded_outputs_of_the_go_sdk_are_printed_as_by_the_daemon(case: str, tmp_path: Path) -> None:
    directory = RECORDINGS / "local-exec" / case
    recording = (directory / "daemon.txt").read_text()
    theirs = daemon_printed(recording)
    instances = len(list((directory / "single").iterdir()))

    def command(group: GroupPlan, number: int) -> InstanceCommand:
        return InstanceCommand(("/bin/cat", str(directory / group.id / str(number) / "stdout")), tmp_path)

    out = io.StringIO()
    outcome = _run(tmp_path, command, plan=_plan(single=instances), out=out)
    ours = own_printed(out.getvalue())
    for number in range(instances):
        by_daemon = [entry.said for entry in theirs if entry.number == number]
        by_us = [entry.said for entry in ours if entry.number == number]
        assert (by_us[: len(by_daemon)] if is_cut(recording) else by_us) == by_daemon
    assert is_cut(recording) or outcome.failed == recorded_failures(recording)
    assert (outcome.groups[0].ok, outcome.groups[0].total) == (instances - outcome.failed, instances)


def test_an_instance_gets_the_recorded_variables_and_what_is_passed_through_and_nothing_else(tmp_path: Path) -> None:
    recorded = dict(line.split("=", 1) for line in (RECORDINGS / "environment.txt").read_text().splitlines())
    params = {
        "remote-runners": '[{"name":"localhost"},{"arch":"x86_64-linux","name":"dex"}]',
        "server_ip": "10.0.0.1",
    }
    out = io.StringIO()
    outcome = _run(tmp_path, ("/usr/bin/env",), plan=_plan(params, single=2), out=out)
    for instance in outcome.instances:
        told = dict(
            e.text.split("=", 1)
            for e in own_printed(out.getvalue())
            if e.word == "OTHER" and e.number == instance.number
        )
        assert told.pop("REMOTE_RUNNER_CACHE_DIR") == "/cache"
        assert told.keys() == recorded.keys()
        own = {"TEST_RUN", "TEST_OUTPUTS_PATH", "TEST_START_TIME", "TEST_TEMP_PATH"}
        assert {name: told[name] for name in told.keys() - own} == {
            name: recorded[name] for name in recorded.keys() - own
        }
        assert told["TEST_RUN"] == outcome.run
        assert told["TEST_OUTPUTS_PATH"] == str(instance.outputs)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", told["TEST_START_TIME"])
        assert (
            instance.outputs
            == tmp_path / f"data/outputs/local_exec/remote-runner/{outcome.run}/single/{instance.number}"
        )
        assert instance.outputs.is_dir()
        assert Path(told["TEST_TEMP_PATH"]).name.startswith("testground")
        assert not Path(told["TEST_TEMP_PATH"]).exists(), "a temporary directory was left behind"


def test_all_instances_run_at_the_same_time(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a")
    os.mkfifo(tmp_path / "b")
    meet = f"case $TEST_GROUP_ID in one) echo hi >a; read x <b;; two) read x <a; echo hi >b;; esac; {_OK}"
    outcome = _run(tmp_path, meet, plan=_plan(one=1, two=1), timeout_s=30)
    assert outcome.ok
    assert [(group.id, group.ok, group.total) for group in outcome.groups] == [("one", 1, 1), ("two", 1, 1)]


def test_much_on_both_streams_at_once_is_read_whole(tmp_path: Path) -> None:
    out = io.StringIO()
    much = "i=0; while [ $i -lt 3000 ]; do echo out$i; echo err$i >&2; i=$((i+1)); done; "
    assert _run(tmp_path, much + _OK, out=out).ok
    printed = own_printed(out.getvalue())
    assert [e.text for e in printed if e.word == "OTHER"] == [f"out{i}" for i in range(3000)]
    assert [e.text for e in printed if e.word == "ERROR"] == [f"err{i}" for i in range(3000)]


def test_after_an_unknown_event_the_instance_finds_its_stdout_closed(tmp_path: Path) -> None:
    script = """trap '' PIPE; echo '{"ts":1,"event":{"new":{}}}'; while echo x; do :; done 2>/dev/null; touch done"""
    outcome = _run(tmp_path, script, timeout_s=30)
    assert outcome.cancelled == ""
    assert (tmp_path / "done").exists()


def test_what_cannot_be_started_fails_alone(tmp_path: Path) -> None:
    def command(group: GroupPlan, number: int) -> InstanceCommand:
        return InstanceCommand((str(tmp_path / "missing"),) if number == 0 else ("/bin/sh", "-c", _OK), tmp_path)

    out = io.StringIO()
    outcome = _run(tmp_path, command, plan=_plan(single=2), out=out)
    assert [instance.verdict for instance in outcome.instances] == [Verdict.INCOMPLETE, Verdict.OK]
    assert outcome.instances[0].exit_status is None
    assert "failed to start: " in outcome.instances[0].reason
    assert "missing" in outcome.instances[0].reason
    assert re.search(r"INCOMPLETE << single\[000\] >> failed to start:", out.getvalue())


def test_the_exit_status_is_told_and_not_judged(tmp_path: Path) -> None:
    outcome = _run(tmp_path, f"{_OK}; kill -9 $$")
    assert outcome.ok
    assert outcome.instances[0].exit_status == 128 + signal.SIGKILL


def test_whoever_closed_both_streams_is_not_waited_for(tmp_path: Path) -> None:
    outcome = _run(tmp_path, f"{_OK}; exec >&- 2>&-; exec sleep 600", timeout_s=60)
    assert outcome.ok
    assert outcome.instances[0].exit_status == 128 + signal.SIGKILL


def test_a_stopped_instance_is_asked_first_and_may_tidy_up(tmp_path: Path) -> None:
    stop = StopRequest()
    # Python, because a shell's child can lose a signal between fork and exec.
    tidies = (
        "import os, signal, sys\n"
        "def tidy(number, frame):\n"
        "    open(os.environ['TEST_OUTPUTS_PATH'] + '/tidied', 'w').close()\n"
        "    sys.exit(7)\n"
        "signal.signal(signal.SIGTERM, tidy)\n"
        """print('{"ts":1,"event":{"message_event":{"message":"ready"}}}', flush=True)\n"""
        "while True: signal.pause()\n"
    )
    outcome = _run(
        tmp_path, (sys.executable, "-c", tidies), stop=stop, out=_StopsAtReady(stop, instances=3), plan=_plan(single=3)
    )
    stop.close()
    assert outcome.cancelled == "stopped"
    assert not outcome.ok
    for instance in outcome.instances:
        assert (instance.outputs / "tidied").exists()
        assert instance.exit_status == 7


def test_an_instance_that_does_not_stop_is_killed_with_its_group_after_the_grace_time(tmp_path: Path) -> None:
    stop = StopRequest()
    script = f"trap '' TERM; {_OK}; {_READY}; sleep 600; sleep 600"
    outcome = _run(tmp_path, script, stop=stop, out=_StopsAtReady(stop), grace_s=0.2)
    stop.close()
    assert outcome.instances[0].exit_status == 128 + signal.SIGKILL
    assert outcome.instances[0].verdict is Verdict.OK
    assert not outcome.ok
    assert 0.2 <= outcome.duration_s < 60


def test_a_second_request_does_not_wait_for_the_grace_time(tmp_path: Path) -> None:
    stop = StopRequest()
    script = f"trap '' TERM; {_READY}; sleep 600"
    outcome = _run(tmp_path, script, stop=stop, out=_StopsAtReady(stop, times=2), grace_s=600)
    stop.close()
    assert outcome.instances[0].exit_status == 128 + signal.SIGKILL


def test_a_stopped_run_does_not_wait_for_what_left_the_instances_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_exec, "_CLOSE_S", 0.1)
    stop = StopRequest()
    away = (
        "import os, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "open('child', 'w').write(str(child.pid))\n"
        f"os.system({_READY!r}); child.wait()"
    )
    try:
        outcome = _run(tmp_path, (sys.executable, "-c", away), stop=stop, out=_StopsAtReady(stop), grace_s=0.1)
    finally:
        stop.close()
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)
    assert outcome.cancelled == "stopped"


def test_a_run_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    outcome = _run(tmp_path, "exec sleep 600", timeout_s=0.2)
    assert outcome.cancelled == "timed out after 0.2 s"
    assert outcome.instances[0].exit_status == 128 + signal.SIGTERM
    assert outcome.instances[0].verdict is Verdict.INCOMPLETE


def test_an_error_while_printing_leaves_no_process_behind(tmp_path: Path) -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        _run(tmp_path, f"echo $$ >pid; {_READY}; exec sleep 600", out=Broken())
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
    assert not list(tmp_path.glob("testground*"))


def test_signals_become_requests_within_the_block_only() -> None:
    before = signal.getsignal(signal.SIGINT)
    stop = StopRequest()
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.count == 2
    stop.close()
    assert signal.getsignal(signal.SIGINT) is before


def test_params_that_cannot_be_handed_over_start_nothing(tmp_path: Path) -> None:
    with pytest.raises(TestgroundError, match="would not reach an instance under this name"):
        _run(tmp_path, "touch started", plan=_plan({"a|b": "x"}))
    assert not (tmp_path / "started").exists()


def test_an_outputs_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with pytest.raises(TestgroundError, match=re.escape(f"{tmp_path / 'data'}") + ".*: cannot be made"):
        _run(tmp_path, _OK)


def test_text_that_the_terminal_cannot_show_does_not_end_the_run(tmp_path: Path) -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii")
    local_exec.run(
        _plan(),
        command=InstanceCommand(("/bin/sh", "-c", f"echo grüße; {_OK}"), tmp_path),
        outputs=tmp_path / "data",
        environ={},
        sync_service=ServiceAddress("localhost", 5050),
        listener=DaemonLines(out),
        temp=tmp_path,
    )
    assert rb"gr\xfc\xdfe" in raw.getvalue()


def test_run_ids_look_like_testgrounds_and_sort_by_time() -> None:
    recorded = "dc2evk5qmd2ua7ks4aug"
    ids = [new_run_id() for _ in range(3)]
    assert all(re.fullmatch(r"[0-9a-v]{20}", one) for one in [*ids, recorded])
    assert len(set(ids)) == 3
    assert recorded[0] <= max(ids)[0]
