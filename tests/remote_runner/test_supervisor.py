"""The contract of a supervised run, on every sh that may be a host's, and across ssh."""

from __future__ import annotations

import os
import re
import select
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from remote_runner import supervisor
from remote_runner.artifact.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactMissingError,
    FarShellError,
    InstanceExistsError,
    JobError,
    NoExitStatusError,
    NoFarDirectoryError,
    NoRoomError,
    ProgramUnusableError,
    SupervisorLostError,
)
from remote_runner.host import Session
from remote_runner.job import Job, Seat, compose, instance_id
from remote_runner.local_host import LocalHost, LocalSession
from remote_runner.supervisor import EventKind, start_run
from tests.needs import need
from tests.remote_runner.far import LOCAL_SHELLS, USER_STORES, WAIT_S, Far, is_running, open_far, wait_gone

EVERY_BYTE = bytes(range(256))
PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc (Linux)")


@pytest.fixture(params=[*LOCAL_SHELLS, "ssh", *USER_STORES])
def far(request: pytest.FixtureRequest, tmp_path: Path, controller: Controller) -> Iterator[Far]:
    keys = request.getfixturevalue("keys") if request.param == "ssh" else None
    with open_far(request.param, tmp_path, controller, keys) as opened:
        yield opened


@pytest.fixture(params=[*LOCAL_SHELLS, "ssh"])
def direct(request: pytest.FixtureRequest, tmp_path: Path, controller: Controller) -> Iterator[Far]:
    """Where the program is the host's own, or in another store than the user's."""
    keys = request.getfixturevalue("keys") if request.param == "ssh" else None
    with open_far(request.param, tmp_path, controller, keys) as opened:
        yield opened


@pytest.fixture
def dash(tmp_path: Path, controller: Controller) -> Iterator[Far]:
    """For what does not depend on the shell."""
    with open_far("dash", tmp_path, controller) as opened:
        yield opened


# --- what the application says and how it ends


def test_both_streams_arrive_byte_for_byte(far: Far, tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(EVERY_BYTE * 1000 + b"\x1err-no mark\nno newline at the end")
    (tmp_path / "err").write_bytes(EVERY_BYTE[::-1] * 1000 + b"\x1e")
    running = far.sh('cat "$1"; cat "$2" >&2', str(tmp_path / "out"), str(tmp_path / "err"))
    assert running.stdout == (tmp_path / "out").read_bytes()
    assert running.stderr == (tmp_path / "err").read_bytes()


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("exit 127", 127)])
def test_the_exit_status_is_the_applications_and_nobody_else_says_a_word(far: Far, script: str, status: int) -> None:
    running = far.sh(script)
    assert running.result is not None
    assert (running.result.exit_status, running.result.reason) == (status, "ended")
    assert running.result.signal == (9 if status == 137 else None)
    assert (running.stdout, running.stderr) == (b"", b"")
    assert running.kinds == [EventKind.STARTED, EventKind.EXITED, EventKind.FETCHED, EventKind.CLEANED]
    assert far.runs() == []


def test_points_in_time_are_in_order(dash: Far) -> None:
    before = time.monotonic()
    times = dash.sh("sleep 0.3").finish().timings
    assert before < times.started_s < times.exited_s <= times.fetched_s <= times.cleaned_s < time.monotonic()
    assert times.exited_s - times.started_s >= 0.29


def test_standard_input_is_empty(far: Far) -> None:
    assert far.run("cat").stdout == b""


def test_an_application_that_closes_its_streams_goes_on(far: Far) -> None:
    running = far.sh('exec >&- 2>&-; sleep 0.2; echo done >"$TEST_OUTPUTS_PATH/late"; exit 4')
    assert running.finish().exit_status == 4
    assert (running.outputs / "late").read_text() == "done\n"


def test_arguments_hold_any_bytes(far: Far) -> None:
    words = [b"", b"two words", b"new\nlines\n\n", b"'\"$(id)`|;\\", EVERY_BYTE[1:], b"-n", b"*", b"~"]
    running = far.run("/bin/sh", "-c", 'for word; do printf "%s" "$word"; printf "<end>"; done', "sh", *words)
    assert running.stdout.split(b"<end>")[:-1] == words


def test_a_name_is_looked_for_on_the_hosts_path(far: Far) -> None:
    assert far.run("printf", "%s", "found").stdout == b"found"


@PROC
def test_nothing_of_ours_is_open_and_no_signal_is_ignored(far: Far) -> None:
    running = far.sh("ls /proc/$$/fd; grep SigIgn /proc/$$/status; pwd; cat /proc/$$/stat")
    lines = running.stdout.decode().splitlines()
    assert lines[:3] == ["0", "1", "2"]
    # A shell of its own may open one more for the directory it lists; nothing inherited is above 2.
    ignored = next(line for line in lines if line.startswith("SigIgn"))
    assert int(ignored.split()[1], 16) & ((1 << 16) - 1) == 0
    stat = lines[-1].rpartition(")")[2].split()
    assert stat[2] == lines[-1].split()[0], "it leads a process group of its own"
    assert running.result is not None
    assert lines[-2] == f"{running.result.far_directory}/tmp"


# --- the environment


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_the_logins_own_settings_change_nothing(tmp_path: Path, shell: str) -> None:
    (tmp_path / "start").write_text("echo more noise; tar() { false; }\n")
    settings = {
        "TAR_OPTIONS": "--exclude=* --verbose",
        "GREP_OPTIONS": "-v",
        "CDPATH": "/usr:/tmp",
        "ENV": str(tmp_path / "start"),
        "POSIXLY_CORRECT": "1",
    }
    host = LocalHost("localhost", settings)
    far = Far(host, shell, tmp_path / "far", tmp_path / "outputs")
    (tmp_path / "outputs").mkdir()
    running = far.sh('echo kept >"$TEST_OUTPUTS_PATH/file"; env', grace_s=1)
    assert (running.outputs / "file").read_text() == "kept\n"
    assert running.finish().outputs.files == 1
    assert not [line for line in running.stdout.decode().splitlines() if line.partition("=")[0] in settings]


@PROC
def test_the_environment_is_exactly_the_given_one(far: Far) -> None:
    given: dict[str, str | bytes] = {
        "EMPTY": "",
        "SPACES": "  two  words ",
        "NEWLINES": "\na\n\nb\n",
        "SHELL_WORDS": "'\"$(touch /nowhere)`id`|;&\\ $HOME ${x} !! # ~ * \\n",
        "BYTES": EVERY_BYTE[1:],
        "LARGE": "x'\n" * 34000,
        "LC_ALL": "no_SUCH.locale",
        "LANG": "ja_JP.SJIS",
        "IFS": ":",
        "ENV": "/nowhere",
        "PS1": "$(id)",
        "OPTIND": "x",
        "UID": "77",
        "SHLVL": "7",
        "PWD": "/somewhere",
        "_": "under",
        "BASH_ENV": "/nowhere",
        "RANDOM": "4",
        "PPID": "1",
        "rr_run": "not ours",
        "run": "r",
        "base": "b",
        "TEST_INSTANCE_PARAMS": "a=b|c=d e",
    }
    running = far.run("cat", "/proc/self/environ", environment=given)
    found = dict(entry.split(b"=", 1) for entry in running.stdout.split(b"\0") if entry)
    assert running.result is not None
    place = running.result.far_directory.encode()
    marker = found.pop(b"REMOTE_RUNNER_INSTANCE")
    assert marker.startswith(b"run-1:")
    assert found.pop(b"HOSTNAME") == os.uname().nodename.encode()
    assert found.pop(b"TEST_OUTPUTS_PATH") == place + b"/outputs"
    assert found.pop(b"TEST_TEMP_PATH") == found.pop(b"TMPDIR") == place + b"/tmp"
    assert found.pop(b"HOME")
    assert b"/bin" in found.pop(b"PATH")
    assert found == {name.encode(): os.fsencode(value) for name, value in given.items()}


@PROC
def test_what_the_job_gives_wins_over_what_the_host_has(far: Far) -> None:
    given = {"PATH": "/usr/bin:/bin", "HOME": "/mine", "TMPDIR": "/my tmp", "HOSTNAME": "me"}
    running = far.run("/bin/cat", "/proc/self/environ", environment=given, pass_through=("PATH", "HOME", "USER"))
    found = dict(entry.split(b"=", 1) for entry in running.stdout.split(b"\0") if entry)
    assert {name: found[name.encode()].decode() for name in given} == given
    assert b"USER" in found


def test_a_variable_that_no_sh_can_set_is_left_out_and_told_of(far: Far) -> None:
    running = far.run("true", environment={"a.b": "1", "BASH_FUNC_x%%": "() { :; }", "fine": "2"})
    (event,) = (event for event in running.events if event.kind is EventKind.VARIABLES_LEFT_OUT)
    assert event.text == "BASH_FUNC_x%%, a.b"


@PROC
def test_the_environment_is_on_no_command_line(far: Far) -> None:
    secret = "s3cret-of-this-test"
    with far.start("/bin/sh", "-c", "echo ready; sleep 60", environment={"PASSWORD": secret}) as running:
        seen = set[bytes]()
        while b"ready" not in running.stdout:  # looked at all the time while everything there starts
            assert running.error is None, running.error
            seen |= _command_lines()
        seen |= _command_lines()
    assert any(b"echo ready" in line for line in seen)
    assert not [line for line in seen if secret.encode() in line]


def _command_lines() -> set[bytes]:
    found = set()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.add(path.read_bytes())
        except OSError:
            continue
    return found


# --- ending


@PROC
def test_children_that_hold_stdout_or_left_the_group_are_ended_and_counted(far: Far) -> None:
    running = far.sh(
        "sleep 600 & echo $!; setsid sleep 600 & echo $!; (trap '' TERM; exec sleep 600) & echo $!", grace_s=1
    )
    result = running.finish()
    # setsid(1) may fork; the pid is then another's, so what counts is the number.
    assert result.leftover_processes == 3
    assert not [pid for pid in map(int, running.stdout.split()) if is_running(pid)]
    assert not _sleepers(600)


def _sleepers(seconds: int) -> list[bytes]:
    wanted = re.compile(rb"sleep\0%d\0" % seconds)
    return [line for line in _command_lines() if wanted.search(line)]


def test_stop_gives_the_application_time_to_end(far: Far) -> None:
    script = "trap 'echo bye >\"$TEST_OUTPUTS_PATH/last\"; exit 7' TERM; echo ready; while :; do sleep 0.1; done"
    with far.start("/bin/sh", "-c", script) as running:
        running.wait_for(b"ready")
        running.stop.set()
        result = running.finish()
    assert (result.exit_status, result.reason) == (7, "stop")
    assert (running.outputs / "last").read_text() == "bye\n"
    assert EventKind.STOPPING in running.kinds
    assert far.runs() == []


def test_stop_kills_what_does_not_end(far: Far) -> None:
    with far.start("/bin/sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done", grace_s=1) as running:
        running.wait_for(b"ready")
        running.stop.set()
        result = running.finish()
    assert (result.exit_status, result.reason, result.signal) == (137, "stop", 9)


def test_a_run_has_its_time(far: Far) -> None:
    result = far.sh("sleep 60", run_s=0.5).finish()
    assert (result.exit_status, result.reason) == (143, "timeout")


@PROC
def test_when_the_controller_is_gone_the_application_ends_and_its_outputs_stay(far: Far) -> None:
    script = 'echo kept >"$TEST_OUTPUTS_PATH/f"; echo $$ $PPID; sleep 600 & wait'
    with far.start("/bin/sh", "-c", script) as running:
        running.wait_for(b"\n")
        pids = [int(word) for word in running.stdout.split()]
        running.session.close_stdin()
        result = running.finish()
    wait_gone(*pids)
    assert isinstance(result.outputs_error, SupervisorLostError)
    assert result.outputs_error.place.endswith("/runs/run-1")
    assert (far.directory / "runs/run-1/outputs/f").read_text() == "kept\n"


@PROC
def test_when_nothing_is_heard_the_application_ends(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor._Run, "_say", lambda self, line: None)
    with far.start("/bin/sh", "-c", "echo $$; sleep 600", tolerate_s=1) as running:
        running.wait_for(b"\n")
        result = running.finish()
    assert result.kept
    assert isinstance(result.outputs_error, SupervisorLostError)
    assert not is_running(int(running.stdout))
    assert far.runs() == ["run-1"]


@PROC
def test_silence_while_a_session_waits_for_its_job_does_not_count_against_the_run(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(job: Job) -> bytes:
        time.sleep(6)  # longer than `tolerate_s`, and not as long as a host waits for a job
        return compose(job)

    monkeypatch.setattr(supervisor, "compose", late)
    assert far.sh("sleep 2", tolerate_s=4).finish().reason == "ended"


def test_a_session_that_waited_in_vain_leaves_the_run_of_the_next_one_alone(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_runner.job.RECOVERY_S", 0.0)
    with start_run(far.host, Seat("run-1", str(far.directory), 1, 1), far.shell) as silent:
        with far.start("/bin/sh", "-c", "exec sleep 30", instance_id="run-1") as running:
            running.wait_started()
            with suppress(NoExitStatusError):  # ssh does not tell of a signal
                silent.session.wait_exit(Deadline.after(30))
            time.sleep(2)  # when the other one's application would be ended, of which nobody could tell
            assert EventKind.EXITED not in running.kinds


def test_a_supervisor_that_is_killed_is_told_of_and_the_application_ends(far: Far) -> None:
    with far.start("/bin/sh", "-c", "echo $$; sleep 600", tolerate_s=4) as running:
        running.wait_for(b"\n")
        record = (far.directory / "runs/run-1/record").read_text()
        os.kill(int(dict(line.split("=", 1) for line in record.splitlines())["supervisor"]), 9)
        with pytest.raises(SupervisorLostError, match="run-1"):
            running.finish()
    wait_gone(int(running.stdout))


@PROC
@pytest.mark.parametrize("how", ["end of input", "silence"])
def test_a_host_that_gets_no_job_waits_no_longer_than_somebody_is_there(
    far: Far, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("remote_runner.job.RECOVERY_S", 1.0)
    seat = Job(f"waits-{how[:3]}", ("true",), {}, directory=str(far.directory), tolerate_s=1).seat
    with start_run(far.host, seat, far.shell) as started:
        before = time.monotonic()
        while time.monotonic() < before + 3:
            started.beat()  # longer than it would wait alone
            time.sleep(0.2)
        assert not select.select([started.session.stdout_fd], [], [], 0)[0]
        if how == "end of input":
            started.session.close_stdin()
        started.session.wait_opened(Deadline.after(WAIT_S))
        assert os.read(started.session.stdout_fd, 1) == b""
    assert far.runs() == []


def test_while_our_own_stdout_is_slow_nothing_is_lost_and_we_count_as_alive(far: Far) -> None:
    pieces: list[bytes] = []

    def slow(data: bytes) -> None:
        if not pieces:
            time.sleep(2.5)  # longer than the host tolerates silence
        pieces.append(bytes(data))

    result = far.run("head", "-c", "3000000", "/dev/zero", tolerate_s=1, stdout_sink=slow).finish()
    assert (result.exit_status, result.reason) == (0, "ended")
    assert sum(map(len, pieces)) == 3_000_000


def test_what_a_sink_raises_ends_the_application_and_is_in_the_result(dash: Far) -> None:
    def broken(data: bytes) -> None:
        raise BrokenPipeError("our stdout is closed")

    result = dash.sh("echo hello; sleep 60", stdout_sink=broken).finish()
    assert isinstance(result.sink_error, BrokenPipeError)
    assert result.reason == "stop"
    assert dash.runs() == []


def test_many_at_once_keep_apart(far: Far) -> None:
    with ExitStack() as stack:
        runs = [
            stack.enter_context(
                far.start("/bin/sh", "-c", 'echo "$1"; echo "$1" >"$TEST_OUTPUTS_PATH/f"', "sh", str(number))
            )
            for number in range(6)
        ]
        for number, running in enumerate(runs):
            assert running.finish().exit_status == 0
            assert running.stdout == (running.outputs / "f").read_bytes() == f"{number}\n".encode()


# --- outputs


def test_outputs_come_back_with_any_name(far: Far) -> None:
    running = far.sh(
        """cd "$TEST_OUTPUTS_PATH"
        mkdir -p 'a b/c
d' .hidden
        echo 1 >'a b/c
d/-f'
        printf 'x' >"$(printf 'caf\\351')"
        echo 2 >.hidden/..dots
        ln 'a b/c
d/-f' hard
        ln -s 'a b' soft
        ln -s "$TEST_OUTPUTS_PATH/hard" .hidden/absolute
        ln -s /etc/passwd outside
        mkfifo pipe
        mkdir read-only; echo 3 >read-only/f; chmod 500 read-only
        long=$(printf '%0150d' 0); mkdir $long; echo 4 >$long/$long"""
    )
    outputs, result = running.outputs, running.finish()
    assert result.outputs_error is None
    assert (outputs / "a b/c\nd/-f").read_text() == "1\n"
    assert (Path(os.fsdecode(os.fsencode(outputs) + b"/caf\xe9"))).read_text() == "x"
    assert (outputs / ".hidden/..dots").read_text() == "2\n"
    assert (outputs / "hard").samefile(outputs / "a b/c\nd/-f")
    assert (outputs / "soft").readlink() == Path("a b")
    assert (outputs / ".hidden/absolute").read_text() == "1\n"
    assert (outputs / "read-only/f").read_text() == "3\n"
    assert (outputs / f"{0:0150d}/{0:0150d}").read_text() == "4\n"
    assert sorted(left.name for left in result.outputs.left_out) == ["outside", "pipe"]
    assert not (outputs / "outside").is_symlink()
    assert far.runs() == []


def test_outputs_stay_where_they_are_wanted(far: Far) -> None:
    result = far.sh('echo here >"$TEST_OUTPUTS_PATH/f"', keep=True).finish()
    assert result.kept
    assert Path(result.far_directory, "outputs/f").read_text() == "here\n"
    with pytest.raises(InstanceExistsError, match="run-1"):
        far.run("true", instance_id="run-1")


def test_a_process_that_got_away_and_writes_among_the_outputs_costs_only_a_second_try(dash: Far) -> None:
    script = """head -c 4000000 /dev/urandom >"$TEST_OUTPUTS_PATH/f"
        env -i setsid sh -c 'while :; do echo garbage; done' &
        sleep 0.1"""
    running = dash.sh(script)
    result = running.finish()
    assert EventKind.FETCHED_AGAIN in running.kinds, running.events
    assert result.outputs_error is None
    assert (running.outputs / "f").stat().st_size == 4_000_000
    assert dash.runs() == []


# --- what keeps an application from starting


def elf(machine: int, interpreter: bytes = b"") -> bytes:
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HHI", 2, machine, 1)
    return header + bytes(100) + interpreter + b"\0" + bytes(200)


def foreign_machine() -> int:
    return 0xF3 if os.uname().machine != "riscv64" else 0x3E


@pytest.mark.parametrize(
    ("content", "mode", "kind", "words"),
    [
        (None, 0, "nothing", "is not there"),
        (b"#!/bin/sh\n", 0o600, "not-executable", "not executable"),
        (elf(foreign_machine()), 0o700, "format", "which .* cannot run"),
        (b"\xcf\xfa\xed\xfe" + bytes(60), 0o700, "format", "mach-o"),
        (b"#!/no/such/interpreter -x\n", 0o700, "interpreter", "needs /no/such/interpreter"),
    ],
)
@PROC
def test_a_program_that_cannot_start_is_told_of(
    direct: Far, tmp_path: Path, content: bytes | None, mode: int, kind: str, words: str
) -> None:
    program = tmp_path / "a program"
    if content is not None:
        program.write_bytes(content)
        program.chmod(mode)
    with pytest.raises(ProgramUnusableError, match=words) as caught:
        direct.run(str(program))
    assert (caught.value.kind, caught.value.host) == (kind, direct.host.name)
    assert caught.value.next_step
    assert direct.runs() == []


@PROC
def test_a_binary_whose_loader_is_missing_is_told_of(direct: Far, tmp_path: Path) -> None:
    content = Path("/bin/sh").resolve().read_bytes()
    loader = re.search(rb"/lib[^\0]*/ld[^\0]*\0", content)
    if loader is None:
        pytest.skip("needs a dynamically linked /bin/sh")
    missing = loader[0].replace(b"/lib", b"/nib", 1)
    program = tmp_path / "program"
    program.write_bytes(content.replace(loader[0], missing, 1))
    program.chmod(0o700)
    with pytest.raises(ProgramUnusableError, match=f"needs {missing[:-1].decode()}"):
        direct.run(str(program))


def test_a_directory_is_no_program(direct: Far, tmp_path: Path) -> None:
    with pytest.raises(ProgramUnusableError, match="is a directory"):
        direct.run(str(tmp_path))


def test_an_artifact_runs_from_the_cache_or_is_missed(direct: Far) -> None:
    with pytest.raises(ArtifactMissingError, match="abc123"):
        direct.run("bin/app", artifact=FarArtifact(Store.CACHE, "abc123"))
    assert direct.runs() == []
    content = direct.directory / "artifacts/abc123/c/bin"
    content.mkdir(parents=True)
    (content / "app").write_text("#!/bin/sh\necho from the artifact: $0\n")
    (content / "app").chmod(0o755)
    assert (
        direct.run("bin/app", artifact=FarArtifact(Store.CACHE, "abc123")).stdout
        == f"from the artifact: {content}/app\n".encode()
    )


def test_no_place_for_runs(far: Far, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NoFarDirectoryError, match="file/runs"):
        far.run("true", directory=str(tmp_path / "file/runs"))


@PROC
def test_a_full_disk_is_told_of(direct: Far, tmp_path: Path) -> None:
    need("netns")  # root, who may mount
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=700", "none", place], check=True)
    try:
        assert direct.run("true", directory=str(place)).finish().exit_status == 0
        (place / "fill").write_bytes(bytes(4096 * (os.statvfs(place).f_bavail)))
        with pytest.raises(NoRoomError, match="No space left"):
            direct.run("true", directory=str(place))
        assert not list((place / "runs").iterdir())
        (place / "fill").unlink()
        # A disk that is full while the application runs costs what it could not write, nothing else.
        running = direct.sh('dd if=/dev/zero of="$TEST_OUTPUTS_PATH/f" 2>/dev/null; exit 5', directory=str(place))
        assert running.finish().exit_status == 5
        assert running.finish().outputs.size_bytes > 0
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_no_host_takes_is_refused_before(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no name for a run"):
        Job("../x", ("true",), {})
    with pytest.raises(JobError, match="NUL"):
        Job("x", ("a\0b",), {})
    with pytest.raises(JobError, match="no program"):
        Job("x", (), {})


def test_names_of_instances_are_names_of_files() -> None:
    assert instance_id("run", "single", 3) == "run-single-3"
    assert instance_id("../a b", "gr/oup", 1).startswith("_a_b-gr_oup-1-")
    # Different instances have different names, also where characters were replaced or the end was cut.
    named = [instance_id("r", "a b", 1), instance_id("r", "a_b", 1), instance_id("x" * 300, "ü", 0)]
    named += [instance_id("x" * 300, "ü", 1), instance_id("é", "", "")]
    assert len(set(named)) == len(named)
    assert all(Job(name, ("true",), {}).instance_id == name for name in named)


# --- login shells


class _LoginHost(LocalHost):
    """The command line goes through a login shell first, as sshd hands it over."""

    def __init__(self, login: str, environ: dict[str, str]) -> None:
        super().__init__(environ=environ)
        self._login = login

    def start_session(self, command: str, *, brief: bool = False) -> Session:
        return LocalSession(self.name, f"exec {shlex.join([self._login, '-c', command])}", self._environ or {})


@pytest.mark.parametrize("login", ["bash", "dash", "fish", "tcsh", "zsh"])
def test_a_noisy_login_shell_does_not_matter(login: str, tmp_path: Path, controller: Controller) -> None:
    need(login)
    noise = "echo 'noise: ünd \\ $x'; echo 'more noise' >&2\n"
    for name in (".bashrc", ".zshenv", ".tcshrc", ".config/fish/config.fish"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(noise if name != ".tcshrc" else "echo noise\n")
    with open_far("dash", tmp_path, controller) as far:
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], "BASH_ENV": str(tmp_path / ".bashrc")}
        seen = subprocess.run([login, "-c", "true"], env=environ, capture_output=True, check=True)
        assert (b"noise" in seen.stdout) == (login != "dash")
        far.host = _LoginHost(login, environ)
        running = far.sh("echo out; echo err >&2")
        assert (running.stdout, running.stderr) == (b"out\n", b"err\n")


def test_a_host_that_runs_something_else_is_told_of(tmp_path: Path, controller: Controller) -> None:
    with open_far("dash", tmp_path, controller) as far:
        far.host = _LoginHost("echo", {"PATH": os.environ["PATH"]})
        with pytest.raises(FarShellError, match="before the supervisor began") as caught:
            far.run("true")
        assert "ForceCommand" in caught.value.next_step


def test_a_host_that_says_nothing_is_given_up(tmp_path: Path, controller: Controller) -> None:
    login = tmp_path / "login"
    login.write_text("#!/bin/sh\nwhile read -r line; do :; done\n")  # as a ForceCommand that takes all input
    login.chmod(0o755)
    with open_far("dash", tmp_path, controller) as far:
        far.host = _LoginHost(str(login), {"PATH": os.environ["PATH"]})
        with pytest.raises(FarShellError, match=r"did not begin within 0\.5 s") as caught:
            far.run("true", start_s=0.5)
        assert "ForceCommand" in caught.value.next_step
