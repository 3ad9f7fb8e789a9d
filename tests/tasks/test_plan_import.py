"""`fab plan.import`, and the shim that Testground's builder exec:go makes of what it imported."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

import pytest

from remote_runner.controller import Controller
from remote_runner.errors import PlanImportError
from remote_runner.plan_import import check_builders, home_of_testground, instance_command, own_files
from testground.manifest import Manifest
from tests.hosts import which
from tests.launcher import build
from tests.manifests import manifest
from tests.needs import need
from tests.tasks.fab import REPOSITORY, PlanDirectory

MANIFEST = manifest("greeter", "greet", exec_pkg=True)
SHIM_FILES = {"go.mod", "exec-go/command", *(f"exec-go/{path.name}" for path in (REPOSITORY / "exec-go").glob("*.go"))}
OWN_FILES = {"manifest.toml", "inventory.yaml", "fabfile.py", "greeter.sh"}


def files_in(directory: Path) -> set[str]:
    assert not any(path.is_symlink() for path in directory.rglob("*"))
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "testground home"


@pytest.fixture
def importing(plan: PlanDirectory) -> PlanDirectory:
    """The plan with a manifest, and with what a checkout gathers."""
    plan.write("manifest.toml", MANIFEST)
    for folder, file in (
        (".git", "HEAD"),
        (".venv", "pyvenv.cfg"),
        ("tools/environment", "pyvenv.cfg"),
        ("__pycache__", "fabfile.cpython-311.pyc"),
        ("target", "CACHEDIR.TAG"),
        ("outputs/local_exec/greeter", "run.out"),
    ):
        (plan.path / folder).mkdir(parents=True)
        (plan.path / folder / file).write_text("not the plan's own")
    return plan


def test_a_plan_arrives_with_its_own_files_and_the_shim(importing: PlanDirectory, home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_text("by a link")
    (importing.path / "linked").symlink_to(tmp_path / "elsewhere")
    (importing.path / "data").symlink_to(tmp_path / "elsewhere" / "data")
    done = importing.ok("plan.import", "--home", str(home))
    there = home / "plans" / "greeter"
    assert done.out == f"{there}\n"
    assert "(all but caches, outputs and version control, since git says: fatal: " in done.words
    assert files_in(there) == OWN_FILES | SHIM_FILES | {"data", "linked/data"}
    assert (there / "linked" / "data").read_text() == "by a link"
    assert os.access(there / "greeter.sh", os.X_OK)
    assert [path.name for path in (home / "plans").iterdir()] == ["greeter"]


def test_in_a_checkout_of_git_it_is_what_git_would_add(importing: PlanDirectory, home: Path) -> None:
    shutil.rmtree(importing.path / ".git")
    git = [which("git"), "-C", str(importing.path)]
    subprocess.run([*git, "init", "-q"], check=True)
    importing.write(".gitignore", "ignored\ntarget/\n.venv\noutputs/\nenvironment/\n__pycache__/\n")
    importing.write("ignored", "")
    importing.write("new", "")
    importing.write("gone", "")
    subprocess.run([*git, "add", "manifest.toml", "gone"], check=True)
    (importing.path / "gone").unlink()
    done = importing.ok("plan.import", "--home", str(home))
    assert "(what git tracks or would add)" in done.words
    assert files_in(home / "plans" / "greeter") == OWN_FILES | SHIM_FILES | {".gitignore", "new"}
    names, choice = own_files(importing.path, {"PATH": str(home)})
    assert PurePath("ignored") in names
    assert choice == "all but caches, outputs and version control, since git is not on PATH"


def test_it_is_imported_again_in_the_place_of_what_was_there(
    importing: PlanDirectory, home: Path, tmp_path: Path
) -> None:
    linked = tmp_path / "linked by testground"
    linked.mkdir()
    (linked / "kept").touch()
    (home / "plans").mkdir(parents=True)
    (home / "plans" / "greeter").symlink_to(linked)
    importing.write("first", "")
    importing.ok("plan.import", "--home", str(home))
    (importing.path / "first").unlink()
    importing.write("second", "")
    importing.ok("plan.import", "--home", str(home))
    assert files_in(home / "plans" / "greeter") == OWN_FILES | SHIM_FILES | {"second"}
    assert (linked / "kept").exists()


def test_somebody_elses_directory_is_not_replaced(importing: PlanDirectory, home: Path) -> None:
    there = home / "plans" / "greeter"
    there.mkdir(parents=True)
    (there / "precious").touch()
    refused = importing.fab("plan.import", "--home", str(home))
    assert refused.status == 1
    assert f"{there}: exists, and is no import of this program" in refused.words
    assert "next: remove it" in refused.words
    assert [path.name for path in there.iterdir()] == ["precious"]


def test_what_lies_in_the_home_is_not_imported_into_itself(importing: PlanDirectory, home: Path) -> None:
    importing.ok("plan.import", "--home", str(home))
    (home / "plans" / "greeter" / "fabfile.py").write_text("from tasks import ns  # noqa: F401\n")
    refused = PlanDirectory(home / "plans" / "greeter").fab("plan.import", "--home", str(home))
    assert refused.status == 1
    assert "is in Testground's home itself" in refused.words


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ('exec_pkg = "./exec-go"\n', "", "has no exec_pkg, .*next: add to it, below .*: exec_pkg = "),
        ('exec_pkg = "./exec-go"\n', 'exec_pkg = "./cmd"\n', "exec_pkg is './cmd', .*next: set it to \"./exec-go\""),
        ("exec:go", "docker:go", 'there is no "exec:go", .*next: add to it: .builders."exec:go"., and below'),
    ],
)
def test_a_manifest_by_which_testground_would_not_build_the_shim_is_refused(change: str, to: str, message: str) -> None:
    manifest = Manifest.from_toml(MANIFEST.replace(change, to), file="m.toml")
    with pytest.raises(PlanImportError, match=f"(?s)^m.toml: builders.*{message}"):
        check_builders(manifest)


def test_a_manifest_of_the_nix_builder_alone_needs_no_shim() -> None:
    check_builders(Manifest.from_toml(MANIFEST.replace("exec:go", "nix:generic")))


def test_a_manifest_without_the_shim_imports_nothing(importing: PlanDirectory, home: Path) -> None:
    importing.write("manifest.toml", MANIFEST.replace('exec_pkg = "./exec-go"\n', ""))
    refused = importing.fab("plan.import", "--home", str(home))
    assert refused.status == 1
    assert 'exec_pkg = "./exec-go"' in refused.words
    assert not home.exists()


def test_a_home_that_cannot_be_made(importing: PlanDirectory, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = importing.fab("plan.import", "--home", str(tmp_path / "file" / "home"))
    assert refused.status == 1
    assert "Not a directory" in refused.words
    assert "Traceback" not in refused.words


def test_a_user_without_a_home_names_testgrounds(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert home_of_testground({"HOME": "/home/x"}) == Path("/home/x/.config/testground")
    with pytest.raises(PlanImportError, match=r"has no home: .*\n  next: name Testground's home with --home"):
        home_of_testground({})


def test_the_home_is_testgrounds(tmp_path: Path) -> None:
    given = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")}
    assert home_of_testground({**given, "TESTGROUND_HOME": "/srv/tg"}) == Path("/srv/tg")
    assert home_of_testground(given) == tmp_path / "config" / "testground"
    (tmp_path / "testground").mkdir()
    assert home_of_testground(given) == tmp_path / "testground"


def test_our_own_plan_needs_what_its_ignore_file_leaves(tmp_path: Path) -> None:
    """Testground leaves out what `.testgroundignore` names; Nix and the application are built from the rest."""
    need("go")
    home = tmp_path / "home"
    PlanDirectory(REPOSITORY).ok("plan.import", "--home", str(home))
    there = files_in(home / "plans" / "remote-runner")
    assert {"manifest.toml", "inventory.yaml", ".testgroundignore", "node/build.py", "testground/runenv.py"} <= there
    assert not {name for name in there if name.startswith((".git/", ".venv/", "outputs/"))}
    ignored = (REPOSITORY / ".testgroundignore").read_text().splitlines()
    for needed in ("tasks", "remote_runner", "testground", "node", "exec-go", "manifest.toml", "inventory.yaml"):
        assert not any(line.strip("/") == needed for line in ignored)


# The shim


@pytest.fixture
def imported(importing: PlanDirectory, home: Path, controller: Controller) -> Path:
    """The plan as the daemon has it for one run: a copy of what was imported."""
    need("go")
    importing.ok("plan.import", "--home", str(home))
    copy = home / "data" / "work" / "requests" / "id" / "plan"
    shutil.copytree(home / "plans" / "greeter", copy)
    return copy


def start(artifact: Path, environ: Mapping[str, str]) -> tuple[int, list[dict[str, Any]], str]:
    """Start it as `local:exec` does; its status, the events of its stdout, and its stderr."""
    done = subprocess.run(
        [str(artifact)], cwd="/", env=dict(environ), capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, [json.loads(line)["event"] for line in done.stdout.splitlines()], done.stderr


def environ_of(tmp_path: Path, **more: str) -> dict[str, str]:
    outputs = tmp_path / "given" / "0"
    outputs.mkdir(parents=True, exist_ok=True)
    return {
        "TEST_PLAN": "greeter",
        "TEST_CASE": "greet",
        "TEST_RUN": "run1",
        "TEST_GROUP_ID": 'a "group"',
        "TEST_GROUP_INSTANCE_COUNT": "1",
        "TEST_INSTANCE_COUNT": "1",
        "TEST_INSTANCE_PARAMS": "",
        "TEST_OUTPUTS_PATH": str(outputs),
        "TEST_TEMP_PATH": str(tmp_path),
        "SYNC_SERVICE_HOST": "localhost",
        "SYNC_SERVICE_PORT": "1",
        "PATH": "/nowhere",
        "REMOTE_RUNNER_RUNTIME_DIR": os.environ["REMOTE_RUNNER_RUNTIME_DIR"],  # the fixture's
        "REMOTE_RUNNER_CACHE_DIR": os.environ["REMOTE_RUNNER_CACHE_DIR"],
        **more,
    }


def test_the_shim_starts_the_python_that_imported_the_plan_without_a_path(imported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    status, events, stderr = start(artifact, environ_of(tmp_path))
    (told,) = events[-1].values()
    # It got as far as the sync service, where nobody listens.
    assert list(events[-1]) == ["failure_event"]
    assert "sync service at localhost:1" in told["error"]
    assert told["group"] == 'a "group"'
    assert (status, stderr) == (1, "")


@pytest.mark.parametrize("program", ["fab", "remote-runner"])
def test_what_an_instance_says_names_the_program_that_imported_the_plan(
    importing: PlanDirectory, home: Path, tmp_path: Path, program: str
) -> None:
    need("go")
    importing.ok("plan.import", "--home", str(home), program=program)
    artifact = tmp_path / "artifact"
    build(home / "plans" / "greeter", artifact)
    for broker in ({}, {"REMOTE_RUNNER_BROKER": "off"}):
        _, events, _ = start(artifact, environ_of(tmp_path, **broker))
        assert f"`{program} local.sync-service`" in events[-1]["failure_event"]["error"]
    command = home / "plans" / "greeter" / "exec-go" / "command"
    command.write_text(command.read_text().replace(sys.executable, "/nowhere/python"))
    _, events, _ = start(artifact, environ_of(tmp_path))
    assert f"run `{program} plan.import` again" in events[-1]["failure_event"]["error"]


def test_the_shim_becomes_the_instance_in_the_plan_that_it_was_built_from(imported: Path, tmp_path: Path) -> None:
    words = (
        sys.executable,
        "-c",
        "import json, os; print(json.dumps([os.getcwd(), os.getpid(), *sorted(os.environ)]))",
    )
    (imported / "exec-go" / "command").write_text("\n".join(words) + "\n")
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    given = {"TEST_RUN": "x", "REMOTE_RUNNER_RUNTIME_DIR": os.environ["REMOTE_RUNNER_RUNTIME_DIR"]}
    process = subprocess.Popen([str(artifact)], cwd="/", env=given, stdout=subprocess.PIPE, text=True)
    said, _ = process.communicate(timeout=60)
    told, become = said.splitlines()
    # No warm process comes of these words, which end at once; what they said there is the reason.
    assert "no broker takes this instance" in json.loads(told)["event"]["message_event"]["message"]
    where, pid, *environ = json.loads(become)
    assert (where, pid) == (str(imported), process.pid)
    assert set(environ) <= {*given, "LC_CTYPE", "REMOTE_RUNNER_BROKER"}  # Python's own, where no locale is set


def test_a_linked_plan_is_started_by_the_fab_on_path(imported: Path, tmp_path: Path) -> None:
    (imported / "exec-go" / "command").unlink()
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    (tmp_path / "bin").mkdir()
    fab = tmp_path / "bin" / "fab"
    fab.write_text('#!/bin/sh\necho "{\\"event\\":{\\"started\\":\\"$0 $* in $PWD\\"}}"\n')
    fab.chmod(0o755)
    status, events, _ = start(artifact, environ_of(tmp_path, PATH=str(tmp_path / "bin")))
    assert (status, events[1:]) == (0, [{"started": f"{fab} instance in {imported}"}])
    assert f'it ended before it took the instance: {{"event":{{"started":"{fab}' in str(events[0])


def test_without_a_fab_the_failure_says_what_to_do(imported: Path, tmp_path: Path) -> None:
    (imported / "exec-go" / "command").unlink()
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    status, events, stderr = start(artifact, environ_of(tmp_path))
    (failure,) = events
    assert failure["failure_event"]["group"] == 'a "group"'
    assert "no `fab` on the PATH of Testground's daemon (/nowhere)" in failure["failure_event"]["error"]
    assert "next: run `fab plan.import`" in failure["failure_event"]["error"]
    assert (status, stderr) == (1, "")


def test_a_python_that_has_gone_is_told(imported: Path, tmp_path: Path) -> None:
    (imported / "exec-go" / "command").write_text("/nowhere/python\n-V\n")
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    status, events, _ = start(artifact, environ_of(tmp_path))
    assert "no broker takes this instance" in events[0]["message_event"]["message"]
    assert "/nowhere/python cannot be started: no such file" in events[1]["failure_event"]["error"]
    assert "run `fab plan.import` again" in events[1]["failure_event"]["error"]
    assert status == 1


def test_a_plan_copy_that_has_gone_is_told(imported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    build(imported, artifact)
    shutil.rmtree(imported)
    status, events, _ = start(artifact, environ_of(tmp_path))
    assert "the plan's directory that this was built from is gone" in events[0]["failure_event"]["error"]
    assert status == 1


def test_a_launcher_without_the_plans_directory_in_it_is_told(imported: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    build(imported, artifact, "-trimpath")
    status, events, _ = start(artifact, environ_of(tmp_path))
    assert "take -trimpath out of GOFLAGS in the environment of Testground" in events[0]["failure_event"]["error"]
    assert status == 1


def test_the_command_works_wherever_one_stands(tmp_path: Path) -> None:
    done = subprocess.run(
        instance_command(), cwd="/", env={"TEST_RUN": "x"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "TEST_" in json.loads(done.stdout)["event"]["failure_event"]["error"]
