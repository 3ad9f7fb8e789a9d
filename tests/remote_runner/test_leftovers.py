"""What stays on a host is found by its record, brought and removed; what lives is not touched unasked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from remote_runner.artifact.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.errors import UnknownRunError
from remote_runner.leftovers import (
    LeftArtifact,
    choose_artifacts,
    fetch_run,
    list_artifacts,
    list_runs,
    remove_artifacts,
    remove_runs,
)
from tests.remote_runner.far import Far, is_running, open_far, wait_gone

PROC = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc (Linux)")


@pytest.fixture(params=["dash", "bash", "busybox", "ssh"])
def far(
    request: pytest.FixtureRequest, tmp_path: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Far]:
    keys = request.getfixturevalue("keys") if request.param == "ssh" else None
    with open_far(request.param, tmp_path, controller, keys) as opened:
        # These sessions take the host's own sh; in the tests it is this one.
        command = f"exec {opened.shell} -c "
        start = opened.host.start_session
        monkeypatch.setattr(
            opened.host,
            "start_session",
            lambda line, brief=False: start(line.replace("exec /bin/sh -c ", command, 1), brief=brief),
        )
        yield opened


def test_a_kept_run_is_listed_fetched_and_removed(far: Far, tmp_path: Path) -> None:
    script = """cd "$TEST_OUTPUTS_PATH"; echo 1 >"a file"; mkdir d; chmod 500 d
        head -c 100000 /dev/urandom >more; ln -s "$TEST_OUTPUTS_PATH/more" l"""
    far.sh(script, keep=True, record={"plan": "a plan", "group": "g=1"})
    directory = str(far.directory)
    (run,) = list_runs(far.host, directory=directory)
    assert (run.run_id, run.is_alive, run.host) == ("run-1", False, far.host.name)
    assert run.directory == PurePosixPath(far.directory / "runs/run-1")
    assert (run.record["plan"], run.record["group"], run.record["exit"]) == ("a plan", "g=1", "0")
    assert run.size_bytes >= 100_000
    assert run.age_s is not None
    report = fetch_run(far.host, "run-1", tmp_path / "fetched", directory=directory)
    assert report.files == 2
    assert (tmp_path / "fetched/a file").read_text() == "1\n"
    assert (tmp_path / "fetched/l").readlink() == Path("more")
    assert far.runs() == ["run-1"]
    removal = remove_runs(far.host, ("run-1", "run-7"), directory=directory)
    assert (removal.removed, removal.unknown) == ((str(run.directory),), ("run-7",))
    assert far.runs() == []
    assert list_runs(far.host, directory=directory) == ()


def test_a_run_that_is_not_there(far: Far, tmp_path: Path) -> None:
    with pytest.raises(UnknownRunError, match="no run nothing"):
        fetch_run(far.host, "nothing", tmp_path / "fetched", directory=str(far.directory))


@PROC
def test_a_living_run_is_removed_only_when_told(far: Far, tmp_path: Path) -> None:
    directory = str(far.directory)
    script = 'echo now >"$TEST_OUTPUTS_PATH/f"; setsid sleep 700 & trap "" TERM; echo $$; while :; do sleep 0.1; done'
    with far.start("/bin/sh", "-c", script) as running:
        running.wait_for(b"\n")
        (run,) = list_runs(far.host, directory=directory)
        assert run.is_alive
        assert fetch_run(far.host, run.run_id, tmp_path / "early", directory=directory).files == 1
        assert remove_runs(far.host, directory=directory).alive == (str(run.directory),)
        assert is_running(int(running.stdout))
        removal = remove_runs(far.host, end_alive=True, grace_s=0, directory=directory)
        assert removal.removed == (str(run.directory),)
        wait_gone(int(running.stdout))
    assert far.runs() == []


@PROC
def test_what_outlived_its_supervisor_is_found_by_its_marker(far: Far) -> None:
    directory = str(far.directory)
    far.sh("true", keep=True)
    record = far.directory / "runs/run-1/record"
    marker = next(line for line in record.read_text().splitlines() if line.startswith("marker="))[7:]
    read_end, write_end = os.pipe()
    pid = os.posix_spawn(
        "/bin/sh",
        ["sh", "-c", "read word"],
        {"PATH": os.environ["PATH"], "REMOTE_RUNNER_INSTANCE": marker},
        file_actions=[(os.POSIX_SPAWN_DUP2, read_end, 0), (os.POSIX_SPAWN_CLOSE, write_end)],
    )
    try:
        (run,) = list_runs(far.host, directory=directory)
        assert run.is_alive
        removal = remove_runs(far.host, ("run-1",), end_alive=True, grace_s=2, directory=directory)
        assert removal.removed
    finally:
        os.close(write_end)
        os.close(read_end)
        _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "it was told to end"


@PROC
def test_a_number_that_another_process_has_now_is_not_the_run(far: Far) -> None:
    directory = str(far.directory)
    far.sh("true", keep=True)
    record = far.directory / "runs/run-1/record"
    lines = [line for line in record.read_text().splitlines() if not line.startswith(("supervisor=", "application="))]
    record.write_text("\n".join([*lines, f"supervisor={os.getpid()}", f"application={os.getpgrp()}"]) + "\n")
    (run,) = list_runs(far.host, directory=directory)
    assert not run.is_alive
    assert remove_runs(far.host, end_alive=True, grace_s=0, directory=directory).removed


def test_only_what_is_old_enough_is_removed(far: Far) -> None:
    directory = str(far.directory)
    for _ in range(2):
        far.sh("true", keep=True)
    record = far.directory / "runs/run-1/record"
    os.utime(record, (1e9, 1e9))
    assert len(remove_runs(far.host, older_than_s=3600, directory=directory).removed) == 1
    assert far.runs() == ["run-2"]


def test_a_directory_without_a_record_is_a_run_too(far: Far) -> None:
    (far.directory / "runs/broken off/tmp").mkdir(parents=True)
    far.directory.chmod(0o700)
    (run,) = list_runs(far.host, directory=str(far.directory))
    assert (run.run_id, run.is_alive, run.age_s, run.record) == ("broken off", False, None, {})
    assert remove_runs(far.host, directory=str(far.directory)).removed == (str(run.directory),)


@PROC
def test_artifacts_are_listed_and_removed_but_not_while_they_run(far: Far) -> None:
    directory = str(far.directory)
    for name, size_bytes in (("used", 1000), ("unused", 200_000)):
        content = far.directory / f"artifacts/{name}/c"
        content.mkdir(parents=True)
        (content / "app").write_text("#!/bin/sh\necho ready; sleep 60\n")
        (content / "app").chmod(0o755)
        (content / "data").write_bytes(os.urandom(size_bytes))
        content.chmod(0o555)
    (far.directory / "artifacts/.tmp-half").mkdir()
    os.utime(far.directory / "artifacts/unused", (1_000_000_000, 1_000_000_000))
    with far.start("app", artifact=FarArtifact(Store.CACHE, "used")) as running:
        running.wait_for(b"ready")
        found = {artifact.name: artifact for artifact in list_artifacts(far.host, directory=directory)}
        assert {name: artifact.is_used for name, artifact in found.items()} == {
            "used": True,
            "unused": False,
            ".tmp-half": False,
        }
        assert found["unused"].size_bytes >= 200_000
        assert found["unused"].age_s > 1_000_000
        assert found["used"].age_s < 1_000
        assert found[".tmp-half"].is_partial
        removal = remove_artifacts(far.host, [*found, "gone"], directory=directory)
        assert sorted(PurePosixPath(path).name for path in removal.removed) == [".tmp-half", "unused"]
        assert [PurePosixPath(path).name for path in removal.alive] == ["used"]
        assert removal.unknown == ("gone",)
    assert [path.name for path in (far.directory / "artifacts").iterdir()] == ["used"]


def test_without_a_directory_in_the_inventory_every_place_of_ours_is_looked_at(
    tmp_path: Path, controller: Controller
) -> None:
    with open_far("dash", tmp_path, controller) as far:
        far.sh("true", keep=True, directory=None)
        found = [run.directory for run in list_runs(far.host) if run.directory.is_relative_to(tmp_path)]
        assert found == [PurePosixPath(tmp_path / ".cache/remote-runner/runs/run-1")]
        assert far.runs() == []


def test_which_artifacts_go() -> None:
    def artifact(name: str, age_s: int, size_bytes: int, is_used: bool = False) -> LeftArtifact:
        return LeftArtifact("h", name, PurePosixPath("/a", name), is_used, age_s, size_bytes)

    cache = [artifact("new", 10, 100), artifact("old", 1000, 100), artifact("older", 2000, 100, True)]
    cache.append(artifact("oldest", 3000, 100))

    def names(**limits: float) -> list[str]:
        return [chosen.name for chosen in choose_artifacts(cache, **limits)]  # type: ignore[arg-type]

    assert names() == ["oldest", "old", "new"]
    assert names(older_than_s=500) == ["oldest", "old"]
    assert names(keep_bytes=400) == []
    assert names(keep_bytes=399) == ["oldest"]
    assert names(keep_bytes=0, older_than_s=500) == ["oldest", "old"]
