"""`remote-runner init`: each template is a plan that runs at once, here and on a host, and can fail."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_runner.controller import Controller
from tests.hosts import TestHost, UserSshd
from tests.needs import need
from tests.tasks.fab import ONE_LINE_FABFILE, PlanDirectory, Ran

NEEDED = {"sh": (), "python": (), "go": ("go",), "js": ("npm",), "rust": ("cargo",)}


def remote_runner(directory: PlanDirectory, *words: str) -> Ran:
    return directory.fab(*words, program="remote-runner")


@pytest.mark.parametrize("language", NEEDED)
def test_a_template_runs_here_and_on_a_host(
    language: str,
    tmp_path: Path,
    controller: Controller,
    user_sshd: UserSshd,
    known_by_name: Callable[[TestHost], str],
) -> None:
    need(*NEEDED[language])
    made = remote_runner(PlanDirectory(tmp_path), "init", language, "mine")
    assert made.status == 0, made.words
    assert made.words == ""
    assert made.out.startswith("a plan in mine/: ")
    assert made.out.endswith("\nnext:\ncd mine\nremote-runner local.single --testcase greet\n")
    plan = PlanDirectory(tmp_path / "mine")
    text = (plan.path / "inventory.yaml").read_text(encoding="utf-8")
    entry = f"  dex:\n    ssh: {{host: {known_by_name(user_sshd)}}}\n    directory: {tmp_path}/far\n"
    plan.inventory(text + entry)

    ran = remote_runner(plan, "local.single", "--testcase", "greet", "--json")
    assert ran.status == 0, ran.words
    ((first, second),) = [outcome["instances"] for outcome in ran.data]
    assert [first["verdict"], second["verdict"]] == ["ok", "ok"], ran.words
    assert {first["record"]["host"], second["record"]["host"]} == {"localhost", "dex"}
    for instance in (first, second):
        outputs = Path(instance["outputs"])
        assert (outputs / "greetings.txt").read_text() == "hello, 1 of 3\nhello, 2 of 3\nhello, 3 of 3\n"
        metric = json.loads((outputs / "results.out").read_text())
        assert (metric["name"], metric["type"], metric["measures"]) == ("greetings", "point", {"value": 3})
    assert "MESSAGE << single[000] >> hello from " in ran.words

    failed = remote_runner(plan, "local.single", "--testcase", "greet", "--instances", "1", "--test-param", "times=0")
    assert failed.status == 1
    assert "expected 1 or more" in failed.out


MUSL = "RUSTFLAGS=-C linker=rust-lld build --quiet --release --target-dir target --target"
NATIVE = "RUSTFLAGS= build --quiet --release --target-dir target"


@pytest.mark.parametrize(
    ("uname", "system", "said"),
    [
        ("Linux x86_64", "x86_64-linux", NATIVE),
        ("Darwin arm64", "aarch64-darwin", NATIVE),
        ("Darwin arm64", "aarch64-linux", f"{MUSL} aarch64-unknown-linux-musl"),
        ("Darwin x86_64", "x86_64-linux", f"{MUSL} x86_64-unknown-linux-musl"),
        ("Linux x86_64", "armv7l-linux", f"{MUSL} armv7-unknown-linux-musleabihf"),
        ("Darwin arm64", "x86_64-darwin", f"{NATIVE} --target x86_64-apple-darwin"),
    ],
)
def test_rust_is_built_for_the_system_of_the_host(
    uname: str, system: str, said: str, tmp_path: Path, controller: Controller
) -> None:
    remote_runner(PlanDirectory(tmp_path), "init", "rust", "mine")
    programs = tmp_path / "bin"
    programs.mkdir()
    sysname, machine = uname.split()
    cargo = (
        'echo "RUSTFLAGS=$RUSTFLAGS $*" >said; made=target; for last; do :; done; '
        '[ "$last" = target ] || made=target/$last; mkdir -p "$made/release"; echo made >"$made/release/mine"'
    )
    for name, script in (("cargo", cargo), ("uname", f"[ $1 = -m ] && echo {machine} || echo {sysname}")):
        (programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (programs / name).chmod(0o755)
    environ = {"PATH": f"{programs}:{os.environ['PATH']}"}
    subprocess.run(["sh", "build.sh", system, tmp_path / "out"], cwd=tmp_path / "mine", env=environ, check=True)
    assert (tmp_path / "mine" / "said").read_text() == f"{said}\n"
    assert (tmp_path / "out").read_text() == "made\n"


def test_the_files_for_editors_are_there(tmp_path: Path, controller: Controller) -> None:
    remote_runner(PlanDirectory(tmp_path), "init", "sh", "mine")
    for name, comment in (("inventory.yaml", "# yaml-language-server: $schema="), ("manifest.toml", "#:schema ")):
        first = (tmp_path / "mine" / name).read_text(encoding="utf-8").partition("\n")[0]
        assert "properties" in json.loads((tmp_path / "mine" / first.removeprefix(comment)).read_text(encoding="utf-8"))
    assert "/outputs/" in (tmp_path / "mine" / ".gitignore").read_text(encoding="utf-8")
    assert "remote-runner local.single --testcase greet" in (tmp_path / "mine" / "README.md").read_text("utf-8")


def test_the_next_step_holds_where_it_was_typed(tmp_path: Path, controller: Controller) -> None:
    (tmp_path / "my work").mkdir()
    PlanDirectory(tmp_path).write("fabfile.py", ONE_LINE_FABFILE)
    for program, name in (("remote-runner", "mine"), ("fab", "yours")):
        ran = PlanDirectory(tmp_path).fab("-C", "my work", "init", "sh", name, program=program)
        assert ran.status == 0
        assert ran.out.endswith(f"\ncd 'my work/{name}'\nremote-runner local.single --testcase greet\n")
        readme = (tmp_path / "my work" / name / "README.md").read_text(encoding="utf-8")
        assert "\n$ remote-runner local.single --testcase greet\n" in readme


def test_what_is_there_is_left_alone(tmp_path: Path, controller: Controller) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").touch()
    ran = remote_runner(PlanDirectory(tmp_path), "init", "sh", "mine")
    assert (ran.status, ran.words) == (
        1,
        "init: mine is there already; choose another name: remote-runner init sh NAME\n",
    )
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["kept"]


def test_a_language_is_asked_for_only_on_a_terminal(tmp_path: Path, controller: Controller) -> None:
    ran = remote_runner(PlanDirectory(tmp_path), "init")
    assert (ran.status, ran.words) == (
        1,
        "init: say what the application is written in: remote-runner init sh|python|go|js|rust [NAME]\n",
    )
