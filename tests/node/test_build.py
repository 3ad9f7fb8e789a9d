"""The artifact: the same bytes on each build, complete, and started by any suitable Python or by none at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from testground.events import FailureEvent, parse_line

PLAN = Path(__file__).parents[2]
BUILD = PLAN / "node" / "build.py"


def run_build(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, str(BUILD), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, env={**os.environ, **environ}, timeout=60, check=False)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("build") / "artifact"
    done = run_build(str(out))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return out


def content_of(folder: Path) -> dict[str, tuple[int, str]]:
    """Mode and hash of each file below, by its path."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mode, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in folder.rglob("*")
        if path.is_file()
    }


def run_launcher(artifact: Path, path: Path, **environ: str) -> subprocess.CompletedProcess[bytes]:
    env = {"PATH": str(path), "TEST_GROUP_ID": 'si"ng\\le', "TEST_RUN": "run-1", **environ}
    return subprocess.run([artifact / "bin" / "node"], capture_output=True, env=env, timeout=60, check=False)


def programs(directory: Path, *names: str) -> Path:
    """A PATH with these of the machine's programs."""
    directory.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (directory / name).symlink_to(found)
    return directory


def script(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def failure(done: subprocess.CompletedProcess[bytes]) -> str:
    """The reason of the one failure event on stdout."""
    line = parse_line(done.stdout)
    assert line is not None, done
    assert (line.group_id, line.run_id) == ('si"ng\\le', "run-1")
    assert isinstance(line.event, FailureEvent)
    assert done.returncode == 1
    return line.event.error


@pytest.mark.slow
def test_each_build_has_the_same_bytes(artifact: Path, tmp_path: Path) -> None:
    first = content_of(artifact)
    for seed in ("0", "1", "12345"):
        out = tmp_path / f"deeper-{seed}" / "out"
        assert run_build(str(out), PYTHONHASHSEED=seed, TZ="Asia/Tokyo", LC_ALL="C").returncode == 0
        assert content_of(out) == first


def test_the_artifact_does_not_tell_where_it_was_built(artifact: Path) -> None:
    for path in artifact.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert str(artifact).encode() not in content, path
            assert str(PLAN).encode() not in content, path


def test_it_holds_the_application_and_the_sdk_and_nothing_compiled_to_machine_code(artifact: Path) -> None:
    names = content_of(artifact)
    for name in ("bin/node", "lib/node/__main__.py", "lib/testground/runenv.py"):
        assert name in names
    assert not [name for name in names if name.endswith((".so", ".c", ".dylib"))]
    assert stat.S_IMODE(names["bin/node"][0]) & 0o111 == 0o111


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out" / "bin").mkdir(parents=True)
    done = run_build(str(tmp_path / "out"))
    assert done.returncode == 1
    assert "exists" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / "out" / "bin").iterdir())


def test_starting_changes_nothing_in_the_artifact(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artifact, copy)
    # Bytecode of another version: this interpreter has to compile, and must not leave the result.
    for compiled in copy.rglob("__pycache__"):
        shutil.rmtree(compiled)
    before = content_of(copy)
    done = run_launcher(copy, Path(sys.executable).parent, PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert "TEST_PLAN" in failure(done)
    assert content_of(copy) == before


def test_nothing_of_the_users_python_joins_in(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = run_launcher(artifact, tmp_path, PATH=path, PYTHONPATH=str(tmp_path), PYTHONHOME="/nowhere")
    assert "TEST_PLAN" in failure(done)


def test_without_python_the_failure_says_what_is_needed(artifact: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sh", "date", "sed", "tr")
    reason = failure(run_launcher(artifact, path, REMOTE_RUNNER_HOST="dex"))
    assert "no suitable Python on dex" in reason
    assert "Python 3.11 or newer" in reason
    assert "found none" in reason
    assert "\n  next: install one" in reason


def test_an_old_python_and_a_shim_without_one_are_passed_over(artifact: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sh", "date", "sed", "tr")
    # As an old Python answers: the launcher's question prints nothing.
    script(path / "python3", 'case $1 in -V) echo "Python 3.9.2" ;; *) exit 0 ;; esac')
    script(path / "python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    reason = failure(run_launcher(artifact, path))
    assert "found python3 (Python 3.9.2) on" in reason
    (path / "python3.11").symlink_to(sys.executable)
    assert "TEST_PLAN" in failure(run_launcher(artifact, path))


def test_a_python_without_its_library_is_passed_over(artifact: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", "sh", "date", "sed", "tr")
    # As Debian's python3-minimal: the interpreter is new enough, and finds neither http nor json.
    without = "import importlib.machinery as m; m.PathFinder.find_spec = lambda *_: None; import sys; exec(sys.argv[1])"
    script(path / "python3", f'[ "$1" = -V ] && exec {sys.executable} -V\nexec {sys.executable} -ISc "{without}" "$2"')
    assert "found python3 (Python 3." in failure(run_launcher(artifact, path))


def test_the_launcher_names_its_reason_as_json_whatever_the_path(artifact: Path, tmp_path: Path) -> None:
    path = programs(tmp_path / 'odd "path\\', "sh", "date", "sed", "tr")
    done = run_launcher(artifact, path)
    assert str(path) in failure(done)
    assert json.loads(done.stdout)["ts"] > 1_600_000_000_000_000_000


def test_it_starts_through_a_relative_path_and_a_folder_with_spaces(artifact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "with space"
    shutil.copytree(artifact, copy)
    done = subprocess.run(
        ["with space/bin/node"],
        cwd=tmp_path,
        executable="with space/bin/node",
        capture_output=True,
        env={
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TEST_GROUP_ID": 'si"ng\\le',
            "TEST_RUN": "run-1",
        },
        timeout=60,
        check=False,
    )
    assert "TEST_PLAN" in failure(done)
