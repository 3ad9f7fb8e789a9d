from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.artifact.build import Artifact
from remote_runner.artifact.content import hash_content, tar_content
from remote_runner.artifact.push import Pushed, already_pushed, forget_push, push
from remote_runner.controller import Controller, FileLock
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    FarDiskFullError,
    FarReadOnlyError,
    FarShellError,
    FarToolMissingError,
    HostLostError,
    NoFarDirectoryError,
    PushFailedError,
    RemoteRunnerError,
    WrongSystemError,
)
from remote_runner.far_shell import far_command, far_script, load_script, quoted
from remote_runner.host import Host
from remote_runner.inventory.inventory import HostEntry, Inventory, host_key
from remote_runner.inventory.systems import System
from remote_runner.probe import forget_system, probe_system
from tests.hosts import UserSshd
from tests.needs import need
from tests.remote_runner.shell_host import LostHost, ShellHost

X86 = System("x86_64", "linux")
SHELLS = ["dash", "bash", "busybox sh"]
LARGE_BYTES = 3_000_000


def soon() -> Deadline:
    return Deadline.after(30)


@pytest.fixture
def near(tmp_path: Path) -> Controller:
    made = Controller(tmp_path / "runtime", tmp_path / "cache")
    made.runtime.mkdir()
    made.cache.mkdir()
    return made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    directory = tmp_path / "far home"
    directory.mkdir()
    return directory


def entry_for(name: str = "shellhost", **changes: Any) -> HostEntry:
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).host(name)
    return replace(entry, **changes)


def environ_of(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"]}


def make_artifact(root: Path, size_bytes: int = 100) -> Artifact:
    (root / "bin").mkdir(parents=True)
    (root / "bin/node").write_text("#!/bin/sh\necho hello from the artifact\n")
    (root / "bin/node").chmod(0o755)
    (root / "empty").mkdir()
    (root / "data with\nnewline").write_bytes(os.urandom(size_bytes))
    (root / "link").symlink_to("bin/node")
    return Artifact.from_path(root, X86, "bin/node")


def far_hash(pushed: Pushed) -> str:
    return hash_content(Path(pushed.directory)).hash


def cache_of(home: Path) -> Path:
    return home / ".cache/remote-runner/artifacts"


def the_shell(name: str, tmp_path: Path) -> tuple[str, str]:
    """A sh, and the PATH that goes with it: with busybox every tool is busybox's."""
    need(name.split()[0])
    if name != "busybox sh":
        return str(shutil.which(name)), os.environ["PATH"]
    tools = tmp_path / "busybox"
    tools.mkdir()
    busybox = shutil.which("busybox")
    subprocess.run([str(busybox), "--install", "-s", tools], check=True)
    return f"{busybox} sh", str(tools)


# The same dialogue in every sh.


@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
@pytest.mark.parametrize("shell", SHELLS)
def test_an_artifact_arrives_and_is_then_there(
    tmp_path: Path, near: Controller, home: Path, shell: str, size_bytes: int
) -> None:
    sh, path = the_shell(shell, tmp_path)
    host = ShellHost({"HOME": str(home), "PATH": path}, sh=sh)
    artifact = make_artifact(tmp_path / "a", size_bytes)
    first = push(host, entry_for(), artifact, controller=near, deadline=soon())
    assert not first.present
    assert first.sent_bytes > size_bytes
    assert Path(first.directory) == cache_of(home) / artifact.hash / "c"
    assert far_hash(first) == artifact.hash
    assert subprocess.run([first.program], capture_output=True, check=True).stdout == b"hello from the artifact\n"
    second = push(host, entry_for(), artifact, controller=near, deadline=soon())
    assert second.present
    assert (second.directory, second.program) == (first.directory, first.program)
    assert second.sent_bytes == 0 or size_bytes == 100
    assert host.sessions == 2
    # Nothing lies beside it, nothing is open to others.
    assert [path.name for path in cache_of(home).iterdir()] == [artifact.hash]
    assert (home / ".cache/remote-runner").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("login", ["sh", "bash", "zsh", "fish", "tcsh"])
def test_any_login_shell_will_do(tmp_path: Path, near: Controller, home: Path, login: str) -> None:
    if login != "sh":
        need(login)
    host = ShellHost(environ_of(home), login=(str(shutil.which(login)),))
    artifact = make_artifact(tmp_path / "a")
    assert far_hash(push(host, entry_for(), artifact, controller=near, deadline=soon())) == artifact.hash


def test_a_noisy_login_shell_is_not_in_the_way(tmp_path: Path, near: Controller, home: Path) -> None:
    need("bash")
    noise = tmp_path / "noise"
    noise.write_text(
        "head -c 300000 /dev/zero | tr '\\0' x; head -c 300000 /dev/zero | tr '\\0' y >&2; printf 'no newline'\n"
        "PS1=; set -o history; alias exec=false; cd /\n"
    )
    host = ShellHost({**environ_of(home), "BASH_ENV": str(noise)}, login=("bash",))
    artifact = make_artifact(tmp_path / "a", LARGE_BYTES)
    assert far_hash(push(host, entry_for(), artifact, controller=near, deadline=soon())) == artifact.hash


@pytest.mark.parametrize("shell", SHELLS)
def test_what_follows_the_script_is_left_for_it(tmp_path: Path, shell: str) -> None:
    sh, path = the_shell(shell, tmp_path)
    odd = "a'b\"c\n$(x) \\n `y` ! é\n\n"
    script = far_script('printf "%s." "$value"; cat; exit 7', {"value": odd})
    rest = bytes(range(256)) * 50
    done = subprocess.run(
        ["/bin/sh", "-c", far_command(sh)], input=script + rest, capture_output=True, env={"PATH": path}, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == (f"{odd}.".encode() + rest, b"", 7)


def test_a_script_that_is_cut_is_not_run(tmp_path: Path) -> None:
    script = far_script(f"touch '{tmp_path}/ran'\n", {})
    done = subprocess.run(["/bin/sh", "-c", far_command()], input=script[:-3], capture_output=True, check=False)
    assert done.returncode == 125
    assert not (tmp_path / "ran").exists()


def test_the_command_line_is_safe_in_every_shell() -> None:
    inside = far_command().split("'")
    assert len(inside) == 3
    assert not set("!\n") & set(inside[1])
    assert quoted(b"a'b\xff") == b"'a'\\''b\xff'"


# Where it lies.


def test_the_directory_of_the_inventory_is_used(tmp_path: Path, near: Controller, home: Path) -> None:
    entry = entry_for(directory=str(tmp_path / "given place"))
    artifact = make_artifact(tmp_path / "a")
    pushed = push(ShellHost(environ_of(home)), entry, artifact, controller=near, deadline=soon())
    assert str(pushed.directory).startswith(f"{tmp_path}/given place/artifacts/")
    assert list(home.iterdir()) == []


def test_a_home_where_no_program_starts_is_passed_by(tmp_path: Path, near: Controller, home: Path) -> None:
    need("netns")
    places = tmp_path / "places"
    places.mkdir()
    # In a mount namespace of its own: the home noexec, /var/tmp a folder of the test.
    mounts = f"mount -t tmpfs -o noexec,mode=700 none '{home}' && mount --bind '{places}' /var/tmp && exec \"$@\""
    wrap = ("unshare", "-m", "sh", "-c", mounts, "sh")
    artifact = make_artifact(tmp_path / "a")
    host = ShellHost(environ_of(home), wrap=wrap)
    pushed = push(host, entry_for(), artifact, controller=near, deadline=soon())
    assert str(pushed.directory).startswith(f"/var/tmp/remote-runner-{os.getuid()}/artifacts/")
    assert hash_content(places / pushed.directory.relative_to("/var/tmp")).hash == artifact.hash
    with pytest.raises(NoFarDirectoryError) as caught:
        push(host, entry_for(directory=str(home)), artifact, controller=near, deadline=soon())
    assert "noexec" in str(caught.value)
    assert str(home) in str(caught.value)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda place: place.write_text("a file"), "File exists|not a directory"),
        (lambda place: place.symlink_to("elsewhere"), "File exists|not a directory"),
        (lambda place: (place.with_name("target").mkdir(0o700), place.symlink_to("target")), "not a directory"),
    ],
)
def test_a_directory_that_will_not_do_is_named_with_the_reason(
    tmp_path: Path, near: Controller, home: Path, make: Any, reason: str
) -> None:
    place = tmp_path / "place"
    make(place)
    entry = entry_for(directory=str(place))
    with pytest.raises(NoFarDirectoryError, match=reason) as caught:
        push(ShellHost(environ_of(home)), entry, make_artifact(tmp_path / "a"), controller=near, deadline=soon())
    assert str(place) in str(caught.value)
    assert "directory" in caught.value.next_step


def test_somebody_elses_directory_is_not_used(tmp_path: Path, near: Controller, home: Path) -> None:
    need("netns")
    place = tmp_path / "place"
    place.mkdir(0o700)
    os.chown(place, 4242, 4242)
    entry = entry_for(directory=str(place))
    with pytest.raises(NoFarDirectoryError, match="belongs to user 4242"):
        push(ShellHost(environ_of(home)), entry, make_artifact(tmp_path / "a"), controller=near, deadline=soon())


# What goes wrong.


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("options", "size_bytes", "kind"),
    [
        ("size=200k", LARGE_BYTES, FarDiskFullError),
        ("size=48k", 150_000, FarDiskFullError),
        ("nr_inodes=4", 100, FarDiskFullError),
        ("ro", 100, FarReadOnlyError),
    ],
)
def test_a_host_without_room_says_so_and_keeps_nothing(
    tmp_path: Path,
    near: Controller,
    home: Path,
    shell: str,
    options: str,
    size_bytes: int,
    kind: type[RemoteRunnerError],
) -> None:
    need("netns")
    sh, path = the_shell(shell, tmp_path)
    listing = tmp_path / "listing"
    # What is left there is seen from inside the namespace, when the script has ended.
    mounts = f"mount -t tmpfs -o {options} none '{home}' && {{ \"$@\"; find '{home}' > '{listing}'; }}"
    wrap = (str(shutil.which("unshare")), "-m", "/bin/sh", "-c", f"PATH={os.environ['PATH']}; {mounts}", "sh")
    host = ShellHost({"HOME": str(home), "PATH": path}, sh=sh, wrap=wrap)
    artifact = make_artifact(tmp_path / "a", size_bytes)
    entry = entry_for(directory=f"{home}/here")
    with pytest.raises(kind) as caught:
        push(host, entry, artifact, controller=near, deadline=soon())
    assert str(caught.value).startswith("shellhost: ")
    assert "inventory.yaml" in caught.value.next_step
    left = listing.read_text()
    assert artifact.hash not in left
    assert ".tmp-" not in left
    assert already_pushed(near, entry, artifact) is None


def test_a_host_without_tar_is_told(tmp_path: Path, near: Controller, home: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("id", "mkdir", "ls", "chmod", "mv", "rm", "tr", "cat", "touch"):
        (tools / name).symlink_to(str(shutil.which(name)))
    host = ShellHost({"HOME": str(home), "PATH": str(tools)})
    for size_bytes in (100, LARGE_BYTES):
        artifact = make_artifact(tmp_path / f"a{size_bytes}", size_bytes)
        with pytest.raises(FarToolMissingError, match="no tar on the PATH"):
            push(host, entry_for(), artifact, controller=near, deadline=soon())


@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
def test_a_stream_that_ends_early_leaves_nothing(
    tmp_path: Path, near: Controller, home: Path, size_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*args: Any, **kwargs: Any) -> Iterator[bytes]:
        whole = b"".join(tar_content(*args, **kwargs))
        # At the end of an entry, where tar itself takes the stream for complete.
        yield whole[: whole.index(b"c/empty/") // 512 * 512]

    monkeypatch.setattr("remote_runner.artifact.push.tar_content", cut)
    artifact = make_artifact(tmp_path / "a", size_bytes)
    with pytest.raises(PushFailedError, match=r"ended early|Unexpected EOF"):
        push(ShellHost(environ_of(home)), entry_for(), artifact, controller=near, deadline=soon())
    assert list(cache_of(home).iterdir()) == []
    monkeypatch.undo()
    pushed = push(ShellHost(environ_of(home)), entry_for(), artifact, controller=near, deadline=soon())
    assert not pushed.present
    assert far_hash(pushed) == artifact.hash


@pytest.mark.parametrize("shell", SHELLS)
def test_a_host_that_gives_up_a_push_that_stands_still_says_so(
    tmp_path: Path, near: Controller, home: Path, monkeypatch: pytest.MonkeyPatch, shell: str
) -> None:
    sh, path = the_shell(shell, tmp_path)
    artifact = make_artifact(tmp_path / "a", LARGE_BYTES)

    def stands_still(*given: Any, **more: Any) -> Iterator[bytes]:
        yield next(tar_content(*given, **more))
        while list(cache_of(home).iterdir()):  # until what was half pushed is removed there
            time.sleep(0.1)
        yield bytes(1 << 20)

    monkeypatch.setattr("remote_runner.artifact.push.tar_content", stands_still)
    monkeypatch.setattr("remote_runner.artifact.push.RECOVERY_S", 0.0)
    host = ShellHost({"HOME": str(home), "PATH": path}, sh=sh)
    with pytest.raises(PushFailedError, match="the host gave it up"):
        push(host, entry_for(tolerate_s=1), artifact, controller=near, deadline=soon())


def test_a_host_that_runs_something_else_is_told(tmp_path: Path, near: Controller, home: Path) -> None:
    login = tmp_path / "login"
    login.write_text("#!/bin/sh\necho this account is for backups only\nexit 1\n")
    login.chmod(0o755)
    host = ShellHost(environ_of(home), login=(str(login),))
    for size_bytes in (100, LARGE_BYTES):
        artifact = make_artifact(tmp_path / f"a{size_bytes}", size_bytes)
        with pytest.raises(FarShellError, match=r"(?s)status 1 .*\| this account is for backups only"):
            push(host, entry_for(), artifact, controller=near, deadline=soon())


@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
def test_a_host_that_does_not_answer_is_given_up(tmp_path: Path, near: Controller, home: Path, size_bytes: int) -> None:
    login = tmp_path / "login"
    login.write_text("#!/bin/sh\nexec sleep 60 < /dev/null\n")
    login.chmod(0o755)
    host = ShellHost(environ_of(home), login=(str(login),))
    artifact = make_artifact(tmp_path / "a", size_bytes)
    sessions: list[Any] = []
    start = host.start_session

    def noted(command: str, *, brief: bool = False) -> Any:
        sessions.append(start(command, brief=brief))
        timer = threading.Timer(1.5, sessions[-1].process.kill)
        timer.start()
        return sessions[-1]

    host.start_session = noted  # type: ignore[method-assign]
    with pytest.raises(DeadlineError, match=r"push to shellhost did not end within 0\.3 s"):
        push(host, entry_for(), artifact, controller=near, deadline=Deadline.after(0.3))


# The cache there.


def age(home: Path, artifact: Artifact, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(cache_of(home) / artifact.hash / "used", (when, when))


@pytest.mark.parametrize("shell", SHELLS)
def test_the_least_recently_used_make_room(tmp_path: Path, near: Controller, home: Path, shell: str) -> None:
    sh, path = the_shell(shell, tmp_path)
    host = ShellHost({"HOME": str(home), "PATH": path}, sh=sh)
    entry = entry_for(cache_limit_bytes=500_000)
    artifacts = [make_artifact(tmp_path / f"a{n}", 100_000) for n in range(6)]
    for n, artifact in enumerate(artifacts[:5]):
        push(host, entry_for(), artifact, controller=near, deadline=soon())
        age(home, artifact, 10_000 - n * 1000)
    push(host, entry, artifacts[0], controller=near, deadline=soon())  # use makes it young
    run = home / ".cache/remote-runner/runs/one"
    run.mkdir(parents=True)
    (run / "record").write_text(f"id=one\nartifact={artifacts[1].hash}\n")
    push(host, entry, artifacts[5], controller=near, deadline=soon())
    left = {path.name for path in cache_of(home).iterdir()}
    # 0 was used just now, 1 is named by a run, 5 is new; of 2, 3 and 4 the oldest have gone, no more than needed.
    assert left == {artifacts[n].hash for n in (0, 1, 4, 5)}


def test_nothing_of_the_last_minutes_makes_room(tmp_path: Path, near: Controller, home: Path) -> None:
    host, entry = ShellHost(environ_of(home)), entry_for(cache_limit_bytes=1000)
    for n in range(3):
        push(host, entry, make_artifact(tmp_path / f"a{n}", 100_000), controller=near, deadline=soon())
    assert len(list(cache_of(home).iterdir())) == 3


def test_what_old_pushes_left_is_removed(tmp_path: Path, near: Controller, home: Path) -> None:
    host = ShellHost(environ_of(home))
    push(host, entry_for(), make_artifact(tmp_path / "a"), controller=near, deadline=soon())
    for name, days in (("old", 2), ("young", 0)):
        left = cache_of(home) / f".tmp-{name}"
        (left / "c").mkdir(parents=True)
        os.utime(left, (time.time() - days * 86400, time.time() - days * 86400))
    push(host, entry_for(), make_artifact(tmp_path / "b"), controller=near, deadline=soon())
    assert not (cache_of(home) / ".tmp-old").exists()
    assert (cache_of(home) / ".tmp-young").exists()


# One push for each host and artifact.


def test_warm_instances_need_not_ask(tmp_path: Path, near: Controller, home: Path) -> None:
    host, artifact, entry = ShellHost(environ_of(home)), make_artifact(tmp_path / "a"), entry_for()
    assert already_pushed(near, entry, artifact) is None
    pushed = push(host, entry, artifact, controller=near, deadline=soon())
    known = already_pushed(near, entry, artifact)
    assert known is not None
    assert (known.directory, known.program, known.hash) == (pushed.directory, pushed.program, artifact.hash)
    assert known.present
    for other in (entry_for("other"), entry_for(directory="/elsewhere")):
        assert already_pushed(near, other, artifact) is None
    # The host has cleaned its cache: who is told so forgets, and pushes.
    shutil.rmtree(cache_of(home))
    forget_push(near, entry, artifact.hash)
    forget_push(near, entry, artifact.hash)
    assert already_pushed(near, entry, artifact) is None
    assert not push(host, entry, artifact, controller=near, deadline=soon()).present


def test_a_push_asks_the_host_although_it_was_pushed_before(tmp_path: Path, near: Controller, home: Path) -> None:
    host, artifact = ShellHost(environ_of(home)), make_artifact(tmp_path / "a")
    push(host, entry_for(), artifact, controller=near, deadline=soon())
    shutil.rmtree(cache_of(home))
    again = push(host, entry_for(), artifact, controller=near, deadline=soon())
    assert not again.present
    assert far_hash(again) == artifact.hash


class TellingController(Controller):
    """Tells when somebody begins to wait for a lock."""

    ready: Any

    def lock(self, name: str, *, shared: bool = False) -> FileLock:
        lock = super().lock(name, shared=shared)
        assert not lock.try_acquire()
        self.ready.release()
        return lock


def push_in_process(host: Host, artifact: Artifact, near: Controller, ready: Any, results: Any) -> None:
    near = TellingController(near.runtime, near.cache)
    object.__setattr__(near, "ready", ready)
    try:
        pushed = push(host, entry_for(), artifact, controller=near, deadline=soon())
        results.put((pushed.present, str(pushed.program), getattr(host, "sessions", 0)))
    except RemoteRunnerError as error:
        results.put((type(error).__name__, str(error), getattr(host, "sessions", 0)))


@pytest.mark.parametrize("lost", [False, True])
def test_processes_wait_for_one_push_and_share_what_comes_of_it(
    tmp_path: Path, near: Controller, home: Path, lost: bool
) -> None:
    host = (LostHost if lost else ShellHost)(environ_of(home))
    artifact = make_artifact(tmp_path / "a", LARGE_BYTES)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Semaphore(0), context.Queue()
    processes = [context.Process(target=push_in_process, args=(host, artifact, near, ready, results)) for _ in range(5)]
    lock_name = f"push-{host_key(entry_for())}-{artifact.hash}"
    with near.lock(lock_name):  # until all five are at the door
        for process in processes:
            process.start()
        for _ in processes:
            assert ready.acquire(timeout=30)
    said = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join(30)
    assert sum(sessions for _, _, sessions in said) == 1
    assert len({text for _, text, _ in said}) == 1
    if lost:
        assert {kind for kind, _, _ in said} == {"HostLostError"}
    else:
        assert sorted(present for present, _, _ in said) == [False, True, True, True, True]


def test_a_failure_of_before_is_not_shared(tmp_path: Path, near: Controller, home: Path) -> None:
    artifact = make_artifact(tmp_path / "a")
    with pytest.raises(HostLostError):
        push(LostHost(environ_of(home)), entry_for(), artifact, controller=near, deadline=soon())
    assert already_pushed(near, entry_for(), artifact) is None
    assert not push(ShellHost(environ_of(home)), entry_for(), artifact, controller=near, deadline=soon()).present


def test_two_controllers_may_push_at_once(tmp_path: Path, near: Controller, home: Path) -> None:
    # Neither knows of the other: the second arrives while the first still unpacks.
    artifact = make_artifact(tmp_path / "a", LARGE_BYTES)
    other = Controller(tmp_path / "runtime2", tmp_path / "cache2")
    other.runtime.mkdir()
    results: list[Pushed] = []

    def one(controller: Controller) -> None:
        results.append(push(ShellHost(environ_of(home)), entry_for(), artifact, controller=controller, deadline=soon()))

    threads = [threading.Thread(target=one, args=(controller,)) for controller in (near, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [far_hash(pushed) for pushed in results] == [artifact.hash] * 2
    assert [path.name for path in cache_of(home).iterdir()] == [artifact.hash]
    assert sorted(path.name for path in (cache_of(home) / artifact.hash).iterdir()) == ["c", "kib", "used"]


# What system it is.


def test_a_host_is_asked_once_what_system_it_is(near: Controller, home: Path) -> None:
    host = ShellHost(environ_of(home))
    entry = entry_for()
    for _ in range(3):
        assert probe_system(host, entry, controller=near, deadline=soon()) == System.local()
    assert host.sessions == 1
    forget_system(near, entry)
    probe_system(host, entry, controller=near, deadline=soon())
    assert host.sessions == 2
    known = entry_for(system=System("riscv64", "linux"))
    assert probe_system(host, known, controller=near, deadline=soon()) == System("riscv64", "linux")
    assert host.sessions == 2


@pytest.mark.parametrize(
    ("uname", "bits", "expected"),
    [
        ("Darwin arm64", "64", "aarch64-darwin"),
        ("Linux aarch64", "32", "armv7l-linux"),
        ("Linux x86_64", "", "x86_64-linux"),
    ],
)
def test_a_host_may_be_another_system(
    tmp_path: Path, near: Controller, home: Path, uname: str, bits: str, expected: str
) -> None:
    tools = fake_tools(tmp_path, uname, bits)
    host = ShellHost({"HOME": str(home), "PATH": str(tools)})
    assert str(probe_system(host, entry_for(), controller=near, deadline=soon())) == expected


def test_a_system_without_a_name_is_told(tmp_path: Path, near: Controller, home: Path) -> None:
    host = ShellHost({"HOME": str(home), "PATH": str(fake_tools(tmp_path, "SunOS i86pc", "64"))})
    with pytest.raises(FarShellError, match="SunOS i86pc") as caught:
        probe_system(host, entry_for(), controller=near, deadline=soon())
    assert "hosts.shellhost.system" in caught.value.next_step


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("size_bytes", [100, LARGE_BYTES])
def test_a_host_that_is_another_system_is_sent_nothing(
    tmp_path: Path, near: Controller, home: Path, shell: str, size_bytes: int
) -> None:
    sh, path = the_shell(shell, tmp_path)
    host = ShellHost({"HOME": str(home), "PATH": f"{fake_tools(tmp_path, 'Linux aarch64', '64')}:{path}"}, sh=sh)
    artifact = make_artifact(tmp_path / "a", size_bytes)
    entry = entry_for(system=X86)
    with pytest.raises(WrongSystemError) as caught:
        push(host, entry, artifact, controller=near, deadline=soon())
    assert str(caught.value) == (
        "shellhost: inventory.yaml says that it is x86_64-linux, and the host says that it is aarch64-linux "
        "(uname -sm: Linux aarch64)\n"
        "  next: correct `system` of shellhost in inventory.yaml, or leave it out: then the host is asked"
    )
    assert list(home.iterdir()) == []
    assert already_pushed(near, entry, artifact) is None
    with pytest.raises(WrongSystemError, match=r"the artifact is for x86_64-linux, and the host says"):
        push(host, entry_for(), artifact, controller=near, deadline=soon())


def test_a_machine_that_was_replaced_is_asked_anew(tmp_path: Path, near: Controller, home: Path) -> None:
    entry, artifact = entry_for(), make_artifact(tmp_path / "a")
    tools = fake_tools(tmp_path, "Linux x86_64", "64")
    host = ShellHost({"HOME": str(home), "PATH": f"{tools}:{os.environ['PATH']}"})
    assert probe_system(host, entry, controller=near, deadline=soon()) == X86
    fake_tools(tmp_path, "SunOS sun4u", "")
    with pytest.raises(WrongSystemError, match=r"it was x86_64-linux when .* says that it is SunOS sun4u") as caught:
        push(host, entry, artifact, controller=near, deadline=soon())
    assert "again" in caught.value.next_step
    fake_tools(tmp_path, "Linux riscv64", "64")
    assert probe_system(host, entry, controller=near, deadline=soon()) == System("riscv64", "linux")


@pytest.mark.parametrize(
    ("uname", "bits", "system"),
    [
        ("Linux x86_64", "64", "i686-linux"),
        ("Linux x86_64", "undefined", "x86_64-linux"),
        ("Linux aarch64", "32", "armv6l-linux"),
        ("Darwin arm64", "64", "aarch64-darwin"),
    ],
)
def test_a_host_that_runs_it_is_sent_it(
    tmp_path: Path, near: Controller, home: Path, uname: str, bits: str, system: str
) -> None:
    host = ShellHost({"HOME": str(home), "PATH": f"{fake_tools(tmp_path, uname, bits)}:{os.environ['PATH']}"})
    artifact = replace(make_artifact(tmp_path / "a"), system=System.parse(system))
    assert not push(host, entry_for(), artifact, controller=near, deadline=soon()).present


def fake_tools(tmp_path: Path, uname: str, bits: str) -> Path:
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    sysname, machine = uname.split()
    (tools / "uname").write_text(f"#!/bin/sh\ncase $1 in -s) echo {sysname} ;; -m) echo {machine} ;; esac\n")
    (tools / "getconf").write_text(f"#!/bin/sh\necho {bits}\n" if bits else "#!/bin/sh\nexit 1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    return tools


def test_scripts_are_sent_without_their_comments() -> None:
    text = load_script("base.sh", "artifact/push.sh")
    assert "rr_base" in text
    assert "# " not in text.replace("#!/bin/sh", "")
    # The far sh reads each byte by itself.
    assert len(text) < 5500


# Over a real sshd.


def test_pushing_over_ssh(tmp_path: Path, near: Controller) -> None:
    need("ssh")
    from remote_runner.masters import SshHost

    with UserSshd.start(tmp_path / "sshd") as sshd, SshHost(sshd.target, near, os.environ) as host:
        entry = entry_for(sshd.name, ssh=sshd.target, directory=f"{tmp_path}/far")
        for size_bytes in (100, 20_000_000):
            artifact = make_artifact(tmp_path / f"a{size_bytes}", size_bytes)
            first = push(host, entry, artifact, controller=near, deadline=soon())
            assert not first.present
            assert far_hash(first) == artifact.hash
            second = push(host, entry, artifact, controller=near, deadline=soon())
            assert second.present
            assert far_hash(second) == artifact.hash
        assert probe_system(host, entry, controller=near, deadline=soon()) == System.local()
        assert sshd.connections() == 2  # the banner's own and one master
