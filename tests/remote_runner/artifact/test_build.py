from __future__ import annotations

import io
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import tarfile
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from remote_runner.artifact import build as artifacts
from remote_runner.artifact.build import Artifact, BuilderChoice, build_for, decide_builder, plan_build
from remote_runner.artifact.content import hash_content, tar_content, tar_entries, walk_content
from remote_runner.controller import Controller
from remote_runner.deadline import NEVER, Deadline
from remote_runner.errors import ArtifactError, DeadlineError, NoBuilderError, RemoteRunnerError, build_failed
from remote_runner.inventory.inventory import AppSettings
from remote_runner.inventory.kinds import Builder
from remote_runner.inventory.systems import System
from remote_runner.made_once import pack_failure, unpack_failure

X86 = System("x86_64", "linux")
ARM = System("armv6l", "linux")


def app(*command: str, program: str | None = None, name: str = "node") -> AppSettings:
    return AppSettings(name, Builder.COMMAND, command or None, program)


def shell(script: str, program: str | None = None) -> AppSettings:
    return app("sh", "-c", script, "sh", "{out}", program=program)


MAKE_PROGRAM = 'printf "#!/bin/sh\\necho hello\\n" > "$1"; chmod +x "$1"'


@pytest.fixture
def controller(tmp_path: Path) -> Controller:
    made = Controller(tmp_path / "runtime", tmp_path / "cache")
    made.runtime.mkdir()
    made.cache.mkdir()
    return made


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    directory = tmp_path / "a plan"
    directory.mkdir()
    return directory


def build(settings: AppSettings, plan: Path, controller: Controller, **changes: Any) -> Artifact:
    values: dict[str, Any] = {
        "plan_dir": plan,
        "run_id": "run1",
        "controller": controller,
        "environ": {"PATH": os.environ["PATH"]},
        "deadline": Deadline.after(20),
        **changes,
    }
    artifact = build_for(settings, values.pop("system", X86), **values)
    assert isinstance(artifact, Artifact)
    return artifact


def failure(settings: AppSettings, plan: Path, controller: Controller, **changes: Any) -> RemoteRunnerError:
    with pytest.raises(RemoteRunnerError, match=f"^build of {settings.name} for ") as caught:
        build(settings, plan, controller, **changes)
    return caught.value


# Content: what counts, and how it is packed.


def make_tree(root: Path) -> None:
    (root / "bin").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "bin/node").write_bytes(b"#!/bin/sh\n")
    (root / "bin/node").chmod(0o700)
    (root / "data").write_bytes(bytes(range(256)) * 3000)
    (root / ".dot").write_bytes(b"")
    (root / "name with\nnewline").write_bytes(b"x" * 512)
    (root / ("long" * 30)).mkdir()
    (root / ("long" * 30) / ("file" * 30)).write_bytes(b"deep")
    (root / "link").symlink_to("bin/node")
    (root / "long-link").symlink_to("target/" * 30)
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).write_bytes(b"latin")


def test_the_hash_is_that_of_the_content_alone(tmp_path: Path) -> None:
    make_tree(tmp_path / "a")
    make_tree(tmp_path / "b")
    os.utime(tmp_path / "b/data", (1, 1))
    (tmp_path / "b/data").chmod(0o600)
    (tmp_path / "b/bin").chmod(0o700)
    first, second = hash_content(tmp_path / "a"), hash_content(tmp_path / "b")
    assert first == second
    assert len(first.hash) == 32
    assert int(first.hash, 16)
    assert (first.files, first.size_bytes) == (6, 10 + 768000 + 512 + 4 + 5)


@pytest.mark.parametrize(
    "change",
    [
        lambda root: (root / "data").write_bytes(bytes(range(256)) * 2999 + b"x" * 256),
        lambda root: (root / "data").chmod(0o755),
        lambda root: (root / "bin/node").chmod(0o600),
        lambda root: (root / "data").rename(root / "date"),
        lambda root: (root / "empty").rmdir(),
        lambda root: ((root / "link").unlink(), (root / "link").symlink_to("bin/nodf")),
        lambda root: ((root / "link").unlink(), shutil.copy(root / "bin/node", root / "link")),
        lambda root: (root / "more").write_bytes(b""),
        lambda root: (root / "bin/node").rename(root / "empty/node"),
    ],
)
def test_every_change_of_content_changes_the_hash(tmp_path: Path, change: Any) -> None:
    make_tree(tmp_path / "a")
    before = hash_content(tmp_path / "a")
    change(tmp_path / "a")
    assert hash_content(tmp_path / "a").hash != before.hash


def test_a_single_file_is_a_folder_that_holds_it(tmp_path: Path) -> None:
    (tmp_path / "node").write_bytes(b"x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/node").write_bytes(b"x")
    (tmp_path / "other").write_bytes(b"x")
    assert hash_content(tmp_path / "node") == hash_content(tmp_path / "folder")
    assert hash_content(tmp_path / "other").hash != hash_content(tmp_path / "node").hash


def test_what_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(ArtifactError, match="fifo: is neither"):
        hash_content(tmp_path)
    with pytest.raises(ArtifactError, match="No such file"):
        hash_content(tmp_path / "absent")


def test_the_tar_stream_is_what_tarfile_reads(tmp_path: Path) -> None:
    make_tree(tmp_path / "a")
    stream = b"".join(tar_content(tmp_path / "a", prefix="c"))
    assert stream == b"".join(tar_content(tmp_path / "a", prefix="c"))
    with tarfile.open(fileobj=io.BytesIO(stream), errorlevel=2) as tar:
        members = tar.getmembers()
        assert {(m.mtime, m.uid, m.gid) for m in members} == {(0, 0, 0)}
        assert {oct(m.mode) for m in members if m.isfile()} == {"0o755", "0o644"}
        if hasattr(tarfile, "tar_filter"):  # from Python 3.11.4 on
            tar.extraction_filter = tarfile.tar_filter
        tar.extractall(tmp_path / "unpacked")
    assert hash_content(tmp_path / "unpacked/c") == hash_content(tmp_path / "a")


def test_a_large_file_is_packed_in_chunks_and_its_size_is_told(tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(9 << 30)  # no blocks are used
    chunks = tar_content(large, prefix="c")
    first = next(chunks)
    assert len(first) < 1 << 20
    with tarfile.open(fileobj=io.BytesIO(first), mode="r:", ignore_zeros=True) as tar:
        tar.next()
        member = tar.next()
        assert member is not None
        assert (member.name, member.size) == ("c/large", 9 << 30)


def test_a_file_that_goes_before_it_is_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/node").write_text("content")
    (tmp_path / "a/other").write_text("content")
    entries = walk_content(tmp_path / "a")
    first = next(entries)
    (tmp_path / "a/node").unlink()
    with pytest.raises(ArtifactError, match="a/node: No such file or directory"):
        list(tar_entries([first]))


def test_a_file_that_changes_while_it_is_sent_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"x" * 2_000_000)
    chunks = tar_content(tmp_path, prefix="c")
    next(chunks)
    (tmp_path / "data").write_bytes(b"")
    with pytest.raises(ArtifactError, match="changed while it was read"):
        list(chunks)


# Building.


def test_a_build_gets_its_words_and_leaves_an_artifact(plan: Path, controller: Controller) -> None:
    (plan / "source").write_text("#!/bin/sh\necho from source\n")
    settings = app(
        "{python}", "-c",
        "import os, shutil, sys; print(*sys.argv[2:]); print(os.getcwd()); print(os.environ['HOME']);"
        "shutil.copy('source', sys.argv[1]); os.chmod(sys.argv[1], 0o755)",
        "{out}", "{system} {os} {arch} {goos} {goarch} {goarm}", "{plan}",
    )  # fmt: skip
    artifact = build(settings, plan, controller, system=ARM)
    assert artifact.program == artifact.path.name == "node"
    assert artifact.system == ARM
    assert (artifact.files, artifact.size_bytes) == (1, 27)
    assert artifact.hash == hash_content(artifact.path).hash
    said = (artifact.path.parent / "log").read_text().splitlines()
    assert said[0] == f"armv6l-linux linux armv6l linux arm 6 {plan}"
    assert said[1] == str(plan)
    assert Path(said[2]).is_absolute()
    assert subprocess.run([artifact.path], capture_output=True, check=True).stdout == b"from source\n"


def test_a_folder_has_its_program_inside(plan: Path, controller: Controller) -> None:
    settings = shell('mkdir -p "$1/bin"; printf "#!/bin/sh\\n" > "$1/bin/x"; chmod +x "$1/bin/x"', program="bin/x")
    artifact = build(settings, plan, controller)
    assert artifact.program == "bin/x"
    assert artifact.path.is_dir()
    assert Artifact.from_json(json.loads(json.dumps(artifact.to_json()))) == artifact
    assert Artifact.from_path(artifact.path, X86, "bin/x") == artifact


@pytest.mark.parametrize(
    ("script", "program", "words"),
    [
        ("echo one; echo two >&2; exit 3", None, ["ended with status 3", "| one", "| two", "log: "]),
        ("kill -9 $$", None, ["ended with signal 9"]),
        ("true", None, ["is not there", "has to make {out}"]),
        ('touch "$1"', None, ["is empty"]),
        ('mkdir "$1"', "x", ["is an empty folder"]),
        ('mkdir "$1"; touch "$1/a" "$1/b"', None, ["is a folder", "a, b", "app.program"]),
        ('mkdir "$1"; touch "$1/a"', "x", ["x is not in the result", "beside it: a"]),
        ('mkdir "$1"; touch "$1/a"', "x/y", ["x/y is not in the result"]),
        ('mkdir -p "$1/x"', "x", ["x is not in the result"]),
        ('mkdir "$1"; echo > "$1/x"', "x", ["x is not executable", "chmod +x"]),
        ('echo > "$1"', None, ["node is not executable"]),
        (MAKE_PROGRAM, "bin/x", ["is a file", "bin/x lies inside"]),
        (f'{MAKE_PROGRAM}; mv "$1" x; mkdir "$1"; mv x "$1"; mkfifo "$1/f"', "x", ["is neither a file"]),
    ],
)
def test_a_build_that_makes_nothing_usable_says_so(
    plan: Path, controller: Controller, script: str, program: str | None, words: list[str]
) -> None:
    error = failure(shell(script, program), plan, controller)
    for word in ["build of node for x86_64-linux", *words]:
        assert word in str(error)


def test_a_command_that_is_not_there_is_named(plan: Path, controller: Controller) -> None:
    error = failure(app("no-such-compiler", "{out}"), plan, controller)
    assert "no-such-compiler: cannot be started: No such file" in str(error)
    assert "install no-such-compiler" in error.next_step


@pytest.mark.parametrize(
    ("command", "next_step"),
    [
        ("exit 3", "app.command: sh -c 'exit 3'"),
        ("A=1 cp a {out}", "app.command: sh -c 'A=1 cp a {out}'"),
        (
            "cp $PWD/a {out}",
            "$PWD/a is passed on as it is: there is no shell; to have one: app.command: sh -c",
        ),
        ("cp *.none {out}", "sh -c 'cp *.none {out}'"),
        ("cp none", "app.command does not say {out}"),
    ],
)
def test_a_command_for_a_shell_is_told_how_to_have_one(
    plan: Path, controller: Controller, command: str, next_step: str
) -> None:
    assert next_step in failure(app(*command.split()), plan, controller).next_step


def test_without_a_command_there_is_no_build(plan: Path, controller: Controller) -> None:
    with pytest.raises(NoBuilderError, match=r"app\.command is not set"):
        build(app(), plan, controller)


@pytest.mark.slow
def test_a_build_that_hangs_is_ended_with_all_its_processes(plan: Path, controller: Controller) -> None:
    script = f"trap '' TERM; (trap '' TERM; echo $$ > '{plan}/ready'; exec sleep 600) & echo $! > '{plan}/child'; wait"
    started_s = time.monotonic()
    error = failure(shell(script), plan, controller, deadline=Deadline.after(0.5))
    assert "did not end within 0.5 s" in str(error)
    assert "timeouts.build_s" in error.next_step
    assert time.monotonic() - started_s < 10
    child = int((plan / "child").read_text())
    with pytest.raises(ProcessLookupError):
        wait_until_gone(child)


def wait_until_gone(pid: int) -> None:
    for _ in range(500):
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rsplit(")", 1)[1].split()[0] == "Z":
            raise ProcessLookupError  # ended; whoever adopted it has not looked yet
        os.kill(pid, 0)
        time.sleep(0.01)


def test_words_reach_the_command_as_they_are(plan: Path, controller: Controller) -> None:
    script = "import sys; open(sys.argv[1], 'w').write(repr(sys.argv[2:])); import os; os.chmod(sys.argv[1], 0o755)"
    settings = app("{python}", "-c", script, "{out}", "a b", "$(x)", "{{out}}", "'")
    artifact = build(settings, plan, controller)
    assert artifact.path.read_text() == repr(["a b", "$(x)", "{out}", "'"])


def test_plan_build_is_what_is_run(plan: Path) -> None:
    command = plan_build(app("cc", "-o", "{out}", "{goos}/{goarch}"), X86, plan, plan / "o")
    assert command.argv == ("cc", "-o", f"{plan}/o", "linux/amd64")
    assert command.directory == plan


# One build for each run, application and system.


def count_builds(plan: Path) -> int:
    return len((plan / "count").read_text().splitlines()) if (plan / "count").exists() else 0


COUNTED = f"echo x >> count; {MAKE_PROGRAM}"


def test_a_run_builds_once_for_each_system_and_command(plan: Path, controller: Controller) -> None:
    first = build(shell(COUNTED), plan, controller)
    assert build(shell(COUNTED), plan, controller) == first
    assert count_builds(plan) == 1
    build(shell(COUNTED), plan, controller, system=ARM)
    assert count_builds(plan) == 2
    build(shell(f"{COUNTED}; true"), plan, controller)
    assert count_builds(plan) == 3
    other = build(shell(COUNTED), plan, controller, run_id="run/2")
    assert count_builds(plan) == 4
    assert other.path != first.path
    assert other.hash == first.hash


def test_by_hand_it_is_always_built(plan: Path, controller: Controller) -> None:
    for count in (1, 2, 3):
        build(shell(COUNTED), plan, controller, run_id=None)
        assert count_builds(plan) == count


def test_a_failure_is_shared_within_its_run_only(plan: Path, controller: Controller) -> None:
    settings = shell('echo x >> count; echo broken >&2; [ -e fixed ] && cp /bin/sh "$1"')
    first, second = failure(settings, plan, controller), failure(settings, plan, controller)
    assert count_builds(plan) == 1
    assert str(first) == str(second)
    assert vars(first) == vars(second)
    (plan / "fixed").touch()
    assert build(settings, plan, controller, run_id="run2").program == "node"


def build_in_process(number: int, plan: Path, controller: Controller, script: str, results: Any) -> None:
    try:
        results.put(str(build(shell(script), plan, controller).path))
    except RemoteRunnerError as error:
        results.put(f"error: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("ok", [True, False])
def test_processes_wait_for_one_build_and_share_what_comes_of_it(plan: Path, controller: Controller, ok: bool) -> None:
    # The build goes on until the test has seen that every process has started.
    os.mkfifo(plan / "gate")
    script = f"echo x >> count; cat gate; {MAKE_PROGRAM if ok else 'exit 4'}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [
        context.Process(target=build_in_process, args=(number, plan, controller, script, results))
        for number in range(6)
    ]
    for process in processes:
        process.start()
    with (plan / "gate").open("w"):
        pass
    said = {results.get(timeout=30) for _ in processes}
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert count_builds(plan) == 1
    assert len(said) == 1
    assert said.pop().startswith("/" if ok else "error: build of node for x86_64-linux: ")


def test_a_builder_that_dies_leaves_the_build_to_the_next(plan: Path, controller: Controller) -> None:
    os.mkfifo(plan / "gate")
    script = f"echo x >> count; [ -e second ] || cat gate; {MAKE_PROGRAM}"
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=build_in_process, args=(0, plan, controller, script, results))
    process.start()
    with (plan / "gate").open("w"):  # opens when the build is there
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(30)
        (plan / "second").touch()
        assert build(shell(script), plan, controller).program == "node"
    assert count_builds(plan) == 2


def test_waiting_for_a_build_has_an_end(plan: Path, controller: Controller) -> None:
    os.mkfifo(plan / "gate")
    script = f"cat gate; {MAKE_PROGRAM}"
    thread = threading.Thread(target=lambda: build(shell(script), plan, controller))
    thread.start()
    with (plan / "gate").open("w"):
        with pytest.raises(DeadlineError, match="another process that builds node for x86_64-linux"):
            build(shell(script), plan, controller, deadline=Deadline.after(0.2))
    thread.join(20)
    assert not thread.is_alive()


def test_builds_of_old_runs_are_swept(plan: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_KEPT_RUNS", 2)
    builds = controller.cache / "builds"
    for number in range(6):
        build(shell(COUNTED), plan, controller, run_id=f"run{number}")
    assert len(list(builds.iterdir())) == 6  # all of the last hour
    for number in range(6):
        os.utime(builds / f"run{number}", (1000 + number, 1000 + number))
    build(shell(COUNTED), plan, controller, run_id="now")
    assert {path.name for path in builds.iterdir()} == {"now", "run5"}


def test_an_error_survives_being_packed() -> None:
    error = build_failed("node", "x86_64-linux", "why", log="/log", said="a\nb", next_step="do it")
    again = unpack_failure(json.loads(json.dumps(pack_failure(error))))
    assert type(again) is RemoteRunnerError
    assert str(again) == str(error)
    assert vars(again) == vars(error)
    other = pack_failure(DeadlineError("it", 3.0))
    assert str(unpack_failure(other)) == str(DeadlineError("it", 3.0))
    assert type(unpack_failure({**other, "kind": "GoneError"})) is RemoteRunnerError


def test_no_deadline_is_no_deadline(plan: Path, controller: Controller) -> None:
    assert build(shell(MAKE_PROGRAM), plan, controller, deadline=NEVER).files == 1


@pytest.mark.parametrize(
    ("builder", "flake", "command", "has_table", "has_flake_nix", "chosen", "reason"),
    [
        (Builder.NIX, None, ("make",), False, False, Builder.NIX, "app.builder is nix"),
        (Builder.COMMAND, ".", ("make",), True, True, Builder.COMMAND, "app.builder is command"),
        (None, ".", ("make",), False, True, Builder.NIX, "app.flake is set"),
        (None, None, ("make",), True, True, Builder.NIX, "Testground's Nix builder made this launcher"),
        (None, None, ("make",), False, True, Builder.COMMAND, "app.command is set"),
        (None, None, ("make",), False, False, Builder.COMMAND, "app.command is set"),
        (None, None, None, False, True, Builder.NIX, "the plan has a flake.nix, and app.command is not set"),
    ],
)
def test_the_plan_says_what_builds_and_not_what_this_machine_has(
    tmp_path: Path,
    builder: Builder | None,
    flake: str | None,
    command: tuple[str, ...] | None,
    has_table: bool,
    has_flake_nix: bool,
    chosen: Builder,
    reason: str,
) -> None:
    if has_flake_nix:
        (tmp_path / "flake.nix").touch()
    table = tmp_path / "table.json"
    row = {"drv": "/nix/store/" + "0" * 32 + "-d.drv", "out": "/nix/store/" + "0" * 32 + "-o", "program": "bin/node"}
    table.write_text(json.dumps({"app": "node", "systems": {str(X86): row}}))
    environ = {"REMOTE_RUNNER_ARTIFACTS": str(table)} if has_table else {}
    settings = AppSettings("node", builder, command, None, flake)
    assert decide_builder(settings, tmp_path, environ) == BuilderChoice(chosen, reason)


def test_a_plan_that_says_nothing_of_building_is_told_what_to_say(tmp_path: Path) -> None:
    with pytest.raises(NoBuilderError, match=r"no app\.command, and the plan no flake\.nix\n  next: set app\.command"):
        decide_builder(AppSettings("node", None, None, None), tmp_path, {})
