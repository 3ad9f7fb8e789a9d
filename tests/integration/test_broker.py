"""Launchers and the broker between them, with coroutines of the tests' own in the place of instances."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from remote_runner.broker.place import BrokerPlace
from remote_runner.controller import Controller
from tests.brokers_end import brokers, is_gone
from tests.hosts import which
from tests.integration.runs import ROOT, wait_for
from tests.launcher import launcher_of
from tests.needs import need

LIMIT_S = 100.0
# A broker of instances that do what `CODE` says, and an end with status 42 for the plain command.
PROGRAM = """
import asyncio, json, os, sys, time
with open({starts!r}, "a") as starts:
    starts.write("broker" if os.environ.get("REMOTE_RUNNER_BROKER", "off") != "off" else "plain")
    starts.write("\\n")
place = os.environ.get("REMOTE_RUNNER_BROKER", "off")
if place == "off":
    sys.exit(42)
{before}
sys.path.insert(0, {root!r})
from remote_runner.broker import service
async def run(environ, directory, *, stdout, stderr, **more):
    try:
        return await instance(environ, directory, stdout=stdout, stderr=stderr, **more)
    finally:
        await stdout.flush()
        await stderr.flush()
async def instance(environ, directory, *, umask, shared, stop, stdout, stderr):
    def say(*values):
        stdout.feed((json.dumps(values) + "\\n").encode())
    async def stopped():
        loop, event = asyncio.get_running_loop(), asyncio.Event()
        stop.then(lambda: loop.call_soon_threadsafe(event.set))
        await event.wait()
    async def opened(path):
        await asyncio.to_thread(lambda: open(path).close())
{code}
sys.exit(service.main(place, dict(os.environ), run=run, idle_s={idle_s}))
"""


@dataclass
class Ground:
    """A plan whose launcher starts such a program, and the directory in which its launchers meet."""

    directory: Path
    runtime: Path
    launcher: Path = field(init=False)
    launchers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.directory.mkdir()
        self.starts = self.directory / "starts"
        self.program = self.directory / "program.py"
        self.launcher = launcher_of(self.directory)
        (self.directory / "exec-go" / "command").write_text(f"{sys.executable}\n{self.program}\n", encoding="utf-8")

    def write(self, code: str, *, before: str = "", idle_s: float = 60.0) -> None:
        """The program: what an instance does (the body of a function), and what comes before it serves any."""
        code = "".join(f"    {line}\n" for line in code.splitlines())
        text = PROGRAM.format(starts=str(self.starts), before=before, root=str(ROOT), code=code, idle_s=idle_s)
        fresh = self.program.with_suffix(".new")
        fresh.write_text(text, encoding="utf-8")
        fresh.rename(self.program)

    def start(self, environ: Mapping[str, str] | None = None, **more: Any) -> subprocess.Popen[bytes]:
        """A launcher as Testground starts one."""
        given = {"PATH": os.environ["PATH"], "REMOTE_RUNNER_RUNTIME_DIR": str(self.runtime)}
        given |= {"REMOTE_RUNNER_CACHE_DIR": str(self.directory / "cache"), **(environ or {})}
        more = {"cwd": "/", "stdin": subprocess.DEVNULL, **more}
        launcher = subprocess.Popen(
            [self.launcher], env=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **more
        )
        self.launchers.append(launcher)
        return launcher

    def run(self, environ: Mapping[str, str] | None = None, **more: Any) -> tuple[int, list[Any], str]:
        """One to its end: its status, the JSON lines of its stdout, its stderr."""
        return said(self.start(environ, **more))

    def end(self) -> None:
        """End what a test that has failed has left."""
        for entry in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.fsencode(self.program) in (entry / "cmdline").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
        for launcher in self.launchers:
            if launcher.poll() is None:
                launcher.kill()
                launcher.communicate()

    def started(self) -> list[str]:
        """What the program was started as, each time."""
        return self.starts.read_text(encoding="utf-8").split()


def said(launcher: subprocess.Popen[bytes]) -> tuple[int, list[Any], str]:
    out, err = launcher.communicate(timeout=LIMIT_S)
    return launcher.returncode, [json.loads(line) for line in out.splitlines()], err.decode()


def reason_of(lines: list[Any]) -> str:
    """The message of a launcher that became the plain command."""
    (line,) = lines
    message = str(line["event"]["message_event"]["message"])
    before = "start: no broker takes this instance, so it runs by itself: "
    assert message.startswith(before)
    return message.removeprefix(before)


@pytest.fixture
def ground(tmp_path: Path, controller: Controller) -> Iterator[Ground]:
    need("go")
    made = Ground(tmp_path / "plan", controller.runtime)
    yield made
    made.end()


# What an instance gets


def test_an_instance_gets_all_that_its_launcher_has(ground: Ground, tmp_path: Path) -> None:
    ground.write(
        "given = sorted([os.fsencode(name).hex(), os.fsencode(value).hex()] for name, value in environ.items())\n"
        "say(str(directory), umask, given)\n"
        "stderr.feed(b'on stderr')\n"
        "return 7"
    )
    assert ground.run()[0] == 7  # so the broker is another launcher's
    odd = {b"TEST_ODD": b"\xff\n=|\x01", b"EMPTY": b"", b"LONG": b"x" * 100_000}
    given = {b"PATH": os.environb[b"PATH"], b"REMOTE_RUNNER_RUNTIME_DIR": bytes(ground.runtime), **odd}
    launcher = subprocess.Popen([ground.launcher], cwd="/", env=given, stdin=-3, stdout=-1, stderr=-1, umask=0o027)
    status, ((directory, mask, environ),), stderr = said(launcher)
    assert (status, stderr) == (7, "on stderr")
    assert (directory, mask) == (str(ground.directory), 0o027)
    assert {bytes.fromhex(name): bytes.fromhex(value) for name, value in environ} == given
    assert ground.started() == ["broker"]


def test_nothing_of_one_launcher_reaches_the_broker_or_another_instance(ground: Ground) -> None:
    ground.write("say(sorted(environ), len(os.listdir('/dev/fd')))\nreturn 0")
    first = ground.run({"TEST_SECRET": "x", "REMOTE_RUNNER_NUMBER": "1", "LANG": "C"})
    second = ground.run({"LANG": "C"})
    assert first[0] == second[0] == 0
    (pid,) = brokers(ground.runtime)
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    names = {variable.partition(b"=")[0] for variable in environ if variable}
    assert names == {b"PATH", b"LANG", b"REMOTE_RUNNER_BROKER"}
    assert set(second[1][0][0]) - {"LC_CTYPE"} == {
        "LANG",
        "PATH",
        "REMOTE_RUNNER_CACHE_DIR",
        "REMOTE_RUNNER_RUNTIME_DIR",
    }
    # The same descriptors: those of its own, its connection, and that of the listing.
    assert first[1][0][1] == second[1][0][1]


def test_what_a_launcher_was_given_by_chance_does_not_stay_open_in_the_broker(ground: Ground) -> None:
    ground.write("return 0")
    read_fd, write_fd = os.pipe()
    launcher = ground.start(pass_fds=[write_fd])
    os.close(write_fd)
    assert said(launcher)[0] == 0
    assert len(brokers(ground.runtime)) == 1
    os.set_blocking(read_fd, False)
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_launcher_is_the_instances(ground: Ground, number: signal.Signals) -> None:
    ground.write("say('ready')\nawait stopped()\nsay(stop.reason)\nreturn 3")
    launcher = ground.start()
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b'["ready"]\n'
    launcher.send_signal(number)
    assert said(launcher) == (3, [[f"received {number.name}"]], "")


def test_an_instance_that_dies_is_a_failure_and_no_harm_to_others(ground: Ground) -> None:
    ground.write("if 'TEST_DIE' in environ: raise SystemError('a fault')\nreturn 0")
    assert ground.run() == (0, [], "")
    assert ground.run({"TEST_DIE": "1"})[0] == 1
    assert ground.run() == (0, [], "")
    assert ground.started() == ["broker"]


def test_a_killed_launchers_instance_hears_of_it_and_has_nothing_of_the_daemons(ground: Ground, tmp_path: Path) -> None:
    left = tmp_path / "left"
    ground.write(
        "say('ready')\nawait stopped()\nsay('dropped')\n"
        f"with open({str(left)!r}, 'w') as file: file.write(stop.reason)\nreturn 0"
    )
    launcher = ground.start()
    assert launcher.stdout is not None
    assert launcher.stdout.readline() == b'["ready"]\n'
    launcher.kill()
    assert said(launcher) == (-signal.SIGKILL, [], "")
    wait_for(lambda: left.exists() and "killed" in left.read_text(), 10)
    assert left.read_text() == "its launcher was killed (Testground's cancel)"


def test_nothing_begins_for_a_launcher_that_was_killed_before_it_was_taken(ground: Ground, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    ground.write("say('begun')\nreturn 0", before=f"open({str(tmp_path / 'go')!r}).close()")
    launchers = [ground.start() for _ in range(3)]
    wait_for(lambda: ground.starts.exists(), 20)
    for launcher in launchers:
        launcher.kill()
    (tmp_path / "go").write_text("")
    assert [said(launcher) for launcher in launchers] == [(-signal.SIGKILL, [], "")] * 3
    assert ground.run() == (0, [["begun"]], "")
    (log,) = (ground.runtime / "broker").glob("*.log")
    assert len(log.read_text().splitlines()) == 1, "nobody complained"


# Who starts it


def test_a_hundred_launchers_at_once_start_one_and_each_has_its_status(ground: Ground) -> None:
    ground.write("say(os.getpid())\nreturn int(environ['TEST_NUMBER']) % 100")
    launchers = [ground.start({"TEST_NUMBER": str(number)}) for number in range(100)]
    ended = [said(launcher) for launcher in launchers]
    assert [status for status, _, _ in ended] == list(range(100))
    assert ground.started() == ["broker"]
    (pid,) = brokers(ground.runtime)
    assert {line[0] for _, lines, _ in ended for line in lines} == {pid}


def test_of_launchers_that_find_none_together_the_first_starts_it(ground: Ground, controller: Controller) -> None:
    ground.write("say(os.getpid())\nreturn 0")
    _, ((pid,),), _ = ground.run()
    (place,) = [BrokerPlace(path) for path in (ground.runtime / "broker").iterdir() if path.is_socket()]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_gone(pid), 10)
    with controller.lock(place.lock_name):
        launchers = [ground.start() for _ in range(10)]
        inode = f":{place.lock.stat().st_ino} "
        wait_for(lambda: sum("->" in line and inode in line for line in locks()) == len(launchers), 20)
    assert len({tuple(lines[0]) for _, lines, _ in map(said, launchers)}) == 1
    assert ground.started() == ["broker", "broker"]


def locks() -> list[str]:
    """The kernel's list of locks, those waited for among them."""
    return Path("/proc/locks").read_text(encoding="ascii").splitlines()


def test_no_launcher_is_lost_that_comes_while_one_ends(ground: Ground) -> None:
    idle_s = 0.02
    ground.write("return 5", idle_s=idle_s)
    random = Random(7)
    statuses = []
    for _ in range(40):
        launchers = [ground.start(), ground.start()]
        statuses += [said(launcher)[0] for launcher in launchers]
        time.sleep(random.uniform(0.8, 1.2) * idle_s)  # just when it is about to end
    assert set(statuses) == {5}
    assert ground.started().count("broker") > 3
    assert "plain" not in ground.started()


def test_it_ends_when_nobody_comes_and_leaves_nothing(ground: Ground) -> None:
    ground.write("say(os.getpid())\nreturn 0", idle_s=0.3)
    _, ((pid,),), _ = ground.run()
    wait_for(lambda: is_gone(pid), 10)
    assert [path for name in ("broker", "locks") for path in (ground.runtime / name).iterdir()] == []
    assert ground.run()[1] != [[pid]]


def test_it_waits_for_instances_however_long_they_take(ground: Ground, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "go")
    ground.write(f"say(os.getpid())\nawait opened({str(tmp_path / 'go')!r})\nreturn 0", idle_s=0.1)
    launcher = ground.start()
    assert launcher.stdout is not None
    (pid,) = json.loads(launcher.stdout.readline())
    with pytest.raises(AssertionError, match="not so"):
        wait_for(lambda: is_gone(pid), 1.0)
    (tmp_path / "go").write_text("")
    assert said(launcher)[0] == 0
    wait_for(lambda: is_gone(pid), 10)


def test_changed_code_is_another_broker_and_the_old_one_ends_with_its_last_instance(
    ground: Ground, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "go")
    ground.write(f"say(os.getpid(), 'old')\nawait opened({str(tmp_path / 'go')!r})\nreturn 0")
    launcher = ground.start()
    assert launcher.stdout is not None
    old, _ = json.loads(launcher.stdout.readline())
    ground.write("say(os.getpid(), 'new')\nreturn 0")
    launchers = [ground.start() for _ in range(5)]
    found = [said(each) for each in launchers]
    assert {(status, lines[0][1]) for status, lines, _ in found} == {(0, "new")}
    (new,) = {lines[0][0] for _, lines, _ in found}
    assert brokers(ground.runtime) == [new] != [old]
    assert not is_gone(old)
    (tmp_path / "go").write_text("")
    assert said(launcher)[0] == 0
    wait_for(lambda: is_gone(old), 10)
    assert ground.run()[1] == [[new, "new"]]
    assert ground.started() == ["broker", "broker"]


def test_another_interpreters_variables_are_another_warm_process(ground: Ground) -> None:
    ground.write("say(os.getpid())\nreturn 0")
    plain, again, other = ground.run(), ground.run({"TEST_RUN": "x"}), ground.run({"PYTHONOPTIMIZE": "1"})
    assert plain == again != other


def test_a_killed_broker_takes_its_instances_with_it_and_is_replaced(ground: Ground) -> None:
    ground.write("say(os.getpid())\nif 'TEST_WAIT' in environ: await stopped()\nreturn 3")
    launcher = ground.start({"TEST_WAIT": "1", "TEST_GROUP_ID": "g", "TEST_RUN": "r"})
    assert launcher.stdout is not None
    (pid,) = json.loads(launcher.stdout.readline())
    os.kill(pid, signal.SIGKILL)
    status, (line,), _ = said(launcher)
    assert (status, line["group_id"], line["run_id"]) == (1, "g", "r")
    error = line["event"]["failure_event"]["error"]
    assert "the broker that ran this instance ended" in error
    assert "fab fetch --run r" in error
    status, ((other,),), _ = ground.run()
    assert (status, other != pid) == (3, True)
    assert ground.started() == ["broker", "broker"]


def test_one_that_was_replaced_does_not_take_the_others_socket_with_it(ground: Ground) -> None:
    ground.write("say(os.getpid())\nreturn 0", idle_s=0.5)
    _, ((old,),), _ = ground.run()
    for path in (ground.runtime / "broker").iterdir():
        path.unlink()
    ground.write("say(os.getpid())\nreturn 0")
    _, ((new,),), _ = ground.run()
    wait_for(lambda: is_gone(old), 10)
    assert new != old
    assert ground.run()[1] == [[new]]


# Where there is none


def test_a_program_that_cannot_serve_is_started_as_it_is(ground: Ground) -> None:
    ground.write("return 0", before="raise SystemExit('it cannot')")
    status, lines, stderr = ground.run()
    assert (status, stderr) == (42, "")
    assert reason_of(lines) == "it ended before it took the instance: it cannot"
    assert ground.started() == ["broker", "plain"]


def test_a_program_that_hangs_is_ended_and_started_as_it_is(ground: Ground) -> None:
    ground.write("return 0", before="print(os.getpid(), flush=True)\ntime.sleep(1000)")
    status, lines, _ = ground.run()
    assert status == 42
    said_nothing, _, pid = reason_of(lines).partition(": ")
    assert said_nothing == "it says nothing within 30s"
    assert is_gone(int(pid))


def test_a_lock_that_somebody_holds_for_ever(ground: Ground, controller: Controller) -> None:
    ground.write("return 0")
    assert ground.run()[0] == 0
    (pid,) = brokers(ground.runtime)
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: is_gone(pid), 10)
    (place,) = [BrokerPlace(path) for path in (ground.runtime / "broker").iterdir() if path.is_socket()]
    with controller.lock(place.lock_name):
        status, lines, _ = ground.run()
    assert (status, reason_of(lines)) == (42, f"{place.lock}: somebody holds it for more than 30s")
    assert ground.run()[0] == 0


def test_a_listener_of_another_protocol_is_left_alone(ground: Ground) -> None:
    ground.write("return 0")
    assert ground.run()[0] == 0
    (place,) = [path for path in (ground.runtime / "broker").iterdir() if path.is_socket()]
    place.rename(place.with_suffix(".away"))
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(str(place))
        stranger.listen()
        launcher = ground.start()
        with stranger.accept()[0] as connection:
            connection.sendall(b"hello")
            status, lines, _ = said(launcher)
    assert (status, reason_of(lines)) == (42, 'it speaks "hell", and this launcher "rrb1"')


def hostile(runtime: Path, kind: str) -> str:
    """Make the runtime directory one that cannot be used; a part of the reason."""
    if kind == "open":
        runtime.mkdir()
        runtime.chmod(0o777)
        return "other users may write to it"
    if kind == "link":
        (runtime.parent / "elsewhere").mkdir()
        runtime.symlink_to(runtime.parent / "elsewhere")
        return "is not a directory of user"
    if kind == "file":
        runtime.touch()
        return "not a directory"
    if kind == "link inside":
        runtime.mkdir(mode=0o700)
        (runtime.parent / "elsewhere").mkdir()
        (runtime / "broker").symlink_to(runtime.parent / "elsewhere")
        return "is not a directory of user"
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", ["open", "link", "file", "link inside"])
def test_a_runtime_directory_that_is_not_safe_is_not_used(ground: Ground, tmp_path: Path, kind: str) -> None:
    ground.write("return 0")
    place = tmp_path / "t"
    place.mkdir()
    ground.runtime = place / "rr"
    reason = hostile(place / "rr", kind)
    status, lines, _ = ground.run()
    assert status == 42
    assert reason in reason_of(lines)
    assert ground.started() == ["plain"]


def others_parent(place: Path, kind: str) -> str:
    """Make a directory, or a link to one, behind which somebody else could put another; a part of the reason."""
    if kind == "a link of another user":
        place.with_name("real").mkdir(mode=0o700)
        place.symlink_to("real")
        os.chown(place, 4242, 4242, follow_symlinks=False)
        return f"user 4242 owns {place} and could replace it"
    place.mkdir()
    if kind == "another user's":
        os.chown(place, 4242, 4242)
        return f"user 4242 owns {place} and could replace it"
    if kind == "writable by a group":
        os.chown(place, 0, 4242)
        place.chmod(0o775)
        return f"group 4242 could replace it: it may write to {place}"
    place.chmod(0o777)
    return f"{place} is writable by all"


@pytest.mark.parametrize("kind", ["a link of another user", "another user's", "writable by a group", "writable by all"])
def test_below_what_another_user_may_change_nothing_is_made(ground: Ground, tmp_path: Path, kind: str) -> None:
    """As Python's side has it: tests/remote_runner/test_controller.py."""
    need("netns")  # only root gives something away
    ground.write("return 0")
    ground.runtime = tmp_path / "shared" / "rr"
    reason = others_parent(tmp_path / "shared", kind)
    status, lines, _ = ground.run()
    assert status == 42
    assert reason in reason_of(lines)
    assert ground.started() == ["plain"]
    assert not ground.runtime.exists()


def test_a_path_too_long_for_a_socket(ground: Ground, tmp_path: Path) -> None:
    ground.write("return 0")
    ground.runtime = tmp_path / ("long" * 30)
    status, lines, _ = ground.run()
    assert status == 42
    assert "invalid argument" in reason_of(lines)
    assert ground.started() == ["plain"]


@pytest.fixture
def no_room(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for no file."""
    need("netns")
    place = tmp_path / "full"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "nr_inodes=1,mode=0700", "full", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def test_no_room_in_the_runtime_directory(ground: Ground, no_room: Path) -> None:
    ground.write("return 0")
    ground.runtime = no_room
    status, lines, _ = ground.run()
    assert status == 42
    assert "no space left on device" in reason_of(lines)


# Who may use it


def test_its_directory_and_socket_are_the_users_own(ground: Ground) -> None:
    ground.write("return 0")
    assert ground.run({"REMOTE_RUNNER_UMASK": "0"}, umask=0)[0] == 0
    modes = {path.name.partition(".")[2]: path.stat().st_mode for path in (ground.runtime / "broker").iterdir()}
    assert {name: stat.S_IMODE(mode) for name, mode in modes.items()} == {"": 0o600, "log": 0o600}
    assert stat.S_IMODE((ground.runtime / "broker").stat().st_mode) == 0o700


def test_another_user_is_not_heard(ground: Ground) -> None:
    """Even where the directory lets others in."""
    need("netns")  # root
    ground.write("return 0")
    assert ground.run()[0] == 0
    (place,) = [path for path in (ground.runtime / "broker").iterdir() if path.is_socket()]
    for path, mode in ((ground.runtime, 0o755), (place.parent, 0o755), (place, 0o777)):
        path.chmod(mode)
    code = "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(9))"
    python = which("python3") if shutil.which("python3", path="/usr/bin") is None else "/usr/bin/python3"
    done = subprocess.run(
        [python, "-c", code, place],
        user=65534,
        group=65534,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "b''\n"


def test_without_a_variable_it_is_the_same_directory_as_everybody_elses(ground: Ground, tmp_path: Path) -> None:
    need("netns")  # root: a directory of the test's own stands for the user's
    ground.write("return 0", idle_s=0.1)
    given = {"REMOTE_RUNNER_CACHE_DIR": str(tmp_path / "cache")}
    code = f"from remote_runner.controller import Controller; print(Controller.from_environ({given}).runtime)"
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    asked = subprocess.run([sys.executable, "-c", code], env=environ, stdout=subprocess.PIPE, text=True, check=True)
    own = tmp_path / "own"
    own.mkdir(mode=0o700)
    mount = 'mount --bind "$1" "$2"; shift 2; exec "$@"'
    argv = ["unshare", "-m", "sh", "-ec", mount, "sh", str(own), asked.stdout.strip(), str(ground.launcher)]
    done = subprocess.run(argv, env=environ, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert sorted(path.name for path in own.iterdir()) == ["broker", "locks"]
