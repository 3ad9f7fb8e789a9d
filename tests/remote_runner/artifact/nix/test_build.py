"""Building with real Nix, offline, in a store of the tests' own."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.artifact.attempt import Attempt
from remote_runner.artifact.build import AnyArtifact, Artifact, build_for, choose_builder
from remote_runner.artifact.nix import here, verbs
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.builder import planned_commands, store_artifact
from remote_runner.artifact.nix.here import Nix, find_nix
from remote_runner.artifact.nix.serve import ServeClient
from remote_runner.artifact.nix.source import LocalServer
from remote_runner.cancellation import Cancellation, WorkCancelledError
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactError,
    EvaluationFailedError,
    RemoteRunnerError,
)
from remote_runner.inventory.inventory import AppSettings
from remote_runner.inventory.kinds import Builder, BuildOn
from remote_runner.inventory.systems import System
from tests import hosts_nix
from tests.hosts import Keys, TestHost, which
from tests.hosts_netns import Lan
from tests.nix_bed import NixHere

X86 = System("x86_64", "linux")
ARM = System("aarch64", "linux")
MAC = System("aarch64", "darwin")
MAKE = 'mkdir -p "$out/bin"; echo "#!/bin/sh" > "$out/bin/node"; chmod 755 "$out/bin/node"'

FLAKE = """{
  outputs = { self }: {
    packages = builtins.listToAttrs (map (system: {
      name = system;
      value =
        let
          make = attributes: script: derivation ({
            inherit system;
            PATH = "/usr/bin:/bin";
            builder = "/bin/sh";
            args = [ "-ec" script ];
          } // attributes);
        in
        PACKAGES;
    }) [ "x86_64-linux" "aarch64-linux" "aarch64-darwin" ]);
  };
}
"""


def packages(plan: Path, text: str) -> None:
    """A flake without inputs; `text` are its packages, each `make { name = …; } SCRIPT`."""
    (plan / "flake.nix").write_text(FLAKE.replace("PACKAGES", f"{{ {text} }}"), encoding="utf-8")


def node(script: str = MAKE, attributes: str = 'name = "node-1.0";') -> str:
    return f"node = make {{ {attributes} }} ''{script}'';"


def app(name: str = "node", **changes: Any) -> AppSettings:
    return replace(AppSettings(name, Builder.NIX, None, None), **changes)


@pytest.fixture
def plan(nix_here: NixHere, tmp_path: Path) -> Path:
    """A plan whose package `node` is another one in each test, as the store is the session's."""
    directory = tmp_path / "plan"
    directory.mkdir()
    packages(directory, node(f": {tmp_path}; {MAKE}"))
    return directory


@pytest.fixture
def configured(nix_here: NixHere) -> Iterator[NixHere]:
    """Nix, whose settings the test may change."""
    yield nix_here
    nix_here.configure()


def build(settings: AppSettings, plan: Path, controller: Controller, **changes: Any) -> AnyArtifact:
    values: dict[str, Any] = {
        "plan_dir": plan,
        "run_id": "run1",
        "controller": controller,
        "environ": dict(os.environ),
        "deadline": Deadline.after(60),
        **changes,
    }
    return build_for(settings, values.pop("system", X86), **values)


def built(settings: AppSettings, plan: Path, controller: Controller, **changes: Any) -> StoreArtifact:
    artifact = build(settings, plan, controller, **changes)
    assert isinstance(artifact, StoreArtifact)
    return artifact


def attempts(controller: Controller) -> list[Path]:
    return [path for path in controller.cache.glob("builds/*/*/*") if path.is_dir()]


def the_nix() -> Nix:
    nix = find_nix(os.environ)
    assert nix is not None
    return nix


@pytest.fixture
def attempt(tmp_path: Path, plan: Path) -> Attempt:
    (tmp_path / "attempt").mkdir()
    return Attempt(tmp_path / "attempt", plan, dict(os.environ), Deadline.after(60))


# Built here.


def test_a_package_is_built_and_its_path_known(nix_here: NixHere, plan: Path, controller: Controller) -> None:
    artifact = built(app(), plan, controller)
    assert (artifact.program, artifact.app, artifact.system, artifact.here) == ("bin/node", "node", X86, True)
    assert artifact.out.endswith("-node-1.0")
    assert artifact.hash == Path(artifact.out).name
    assert nix_here.is_valid(artifact.out)
    assert nix_here.run("nix-store", "-q", "--deriver", artifact.out) == artifact.drv
    assert StoreArtifact.from_json(json.loads(json.dumps(artifact.to_json()))) == artifact
    assert subprocess.run([artifact.path / artifact.program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("attributes", "meta", "program"),
    [
        ('name = "node-1.0";', '{ meta.mainProgram = "other"; }', "bin/other"),
        ('name = "x-1.0"; pname = "other";', "{ }", "bin/other"),
        ('name = "other-1.0";', "{ meta.description = 3; }", "bin/other"),
        ('name = "node"; outputs = [ "out" "bin" ];', '{ meta.mainProgram = "other"; }', "bin/other"),
    ],
)
def test_the_program_is_what_nixpkgs_would_start(
    plan: Path, controller: Controller, attributes: str, meta: str, program: str
) -> None:
    script = f': {plan}; echo 1 > "$out"; '
    into = "$bin" if "outputs" in attributes else "$out"
    script = script if into == "$bin" else ":;"
    script += f'mkdir -p "{into}/bin"; cp /bin/sh "{into}/bin/other"'
    packages(plan, f"node = make {{ {attributes} }} ''{script}'' // {meta};")
    artifact = built(app(), plan, controller)
    assert artifact.program == program
    assert os.access(artifact.path / program, os.X_OK)
    assert artifact.out.endswith("-bin") == ("outputs" in attributes)


def test_the_inventory_may_name_the_program_and_the_flake(tmp_path: Path, plan: Path, controller: Controller) -> None:
    (plan / "flake.nix").rename(tmp_path / "flake.nix")
    with pytest.raises(EvaluationFailedError, match=r"write one, or set app\.flake"):
        build(app(flake="./sub"), plan, controller)
    artifact = built(app(flake=f"path:{tmp_path}", program="bin/../bin/node"), plan, controller)
    assert artifact.program == "bin/../bin/node"


def test_a_name_with_a_dot_is_one_name(plan: Path, controller: Controller) -> None:
    packages(plan, node().replace("node = ", '"my.app" = '))
    assert built(app("my.app"), plan, controller).out.endswith("-node-1.0")


def test_what_other_instances_write_meanwhile_does_not_end_the_evaluation(
    plan: Path, controller: Controller, tmp_path: Path
) -> None:
    nix = the_nix()
    (tmp_path / "bin").mkdir()
    for name, program in (("nix-store", nix.nix_store), ("nix-instantiate", nix.nix_instantiate)):
        (tmp_path / "bin" / name).symlink_to(program)
    # Nix 2.8's words for a file that goes while it copies the directory.
    gone = f"error: getting status of '{plan}/outputs/run/.remote-runner.json.tmp': No such file or directory"
    (tmp_path / "bin/nix").write_text(
        f'#!/bin/sh\nif [ -e {tmp_path}/gone ]; then rm {tmp_path}/gone; echo "{gone}" >&2; exit 1; fi\n'
        f'exec {nix.nix} "$@"\n'
    )
    (tmp_path / "bin/nix").chmod(0o755)
    (tmp_path / "gone").touch()
    environ = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    assert built(app(), plan, controller, environ=environ).here
    assert not (tmp_path / "gone").exists()


def test_nix_gets_a_home_where_testground_gives_none(plan: Path, controller: Controller) -> None:
    environ = {name: value for name, value in os.environ.items() if name not in ("HOME", "PATH")}
    assert built(app(), plan, controller, environ=environ).here


# What stays in the store.


def test_what_was_built_stays_as_long_as_the_build_does(nix_here: NixHere, plan: Path, controller: Controller) -> None:
    artifact = built(app(), plan, controller)
    nix_here.run("nix-store", "--gc")
    assert nix_here.is_valid(artifact.out)
    assert nix_here.is_valid(artifact.drv)
    (attempt,) = attempts(controller)
    for root in ("out", "drv"):
        (attempt / root).unlink()
    nix_here.run("nix-store", "--gc")
    assert not nix_here.is_valid(artifact.out)


def test_a_derivation_for_the_target_stays_as_well(nix_here: NixHere, plan: Path, controller: Controller) -> None:
    artifact = built(app(), plan, controller, system=MAC)
    assert not artifact.here
    assert artifact.program == "bin/node"
    assert "aarch64-darwin is needed; this machine builds x86_64-linux" in artifact.why_not_here
    nix_here.run("nix-store", "--gc")
    assert nix_here.is_valid(artifact.drv)
    assert '"aarch64-darwin"' in Path(artifact.drv).read_text()
    assert not nix_here.is_valid(artifact.out)
    (attempt,) = attempts(controller)
    (attempt / "drv").unlink()
    nix_here.run("nix-store", "--gc")
    assert not nix_here.is_valid(artifact.drv)


def test_a_derivation_that_was_collected_at_once_is_evaluated_again(
    nix_here: NixHere, plan: Path, controller: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = verbs.evaluate, []

    def then_collect(*args: Any) -> Any:
        package = real(*args)
        seen.append(package)
        nix_here.run("nix-store", "--gc")
        return package

    monkeypatch.setattr(verbs, "evaluate", then_collect)
    artifact = built(app(), plan, controller, system=MAC)
    assert len(seen) == 2
    assert nix_here.is_valid(artifact.drv)


# Where it is built.


def test_extra_platforms_are_built_here(configured: NixHere, plan: Path, controller: Controller) -> None:
    assert not built(app(), plan, controller, system=ARM).here
    configured.configure("extra-platforms = aarch64-linux")
    artifact = built(app(), plan, controller, system=ARM, run_id="run2")
    assert artifact.here
    assert configured.is_valid(artifact.out)
    configured.configure()
    # What is here already needs nobody to build it.
    assert built(app(), plan, controller, system=ARM, run_id="run3") == artifact


def test_a_dependency_of_another_system_decides_as_well(plan: Path, controller: Controller) -> None:
    other = f'make {{ name = "part"; system = "aarch64-darwin"; }} \': {plan}; echo > $out\''.replace("'", "''")
    packages(plan, node(f"cat ${{{other}}}; {MAKE}"))
    artifact = built(app(), plan, controller)
    assert not artifact.here
    assert "aarch64-darwin is needed" in artifact.why_not_here


def test_build_on_forces_the_place(nix_here: NixHere, plan: Path, controller: Controller) -> None:
    there = built(app(build_on=BuildOn.TARGET), plan, controller)
    assert (there.here, there.why_not_here) == (False, "app.build_on is target")
    assert nix_here.is_valid(there.drv)
    assert not nix_here.is_valid(there.out)
    assert built(app(build_on=BuildOn.LOCAL), plan, controller).out == there.out
    with pytest.raises(RemoteRunnerError) as caught:
        build(app(build_on=BuildOn.LOCAL), plan, controller, system=MAC)
    assert str(caught.value).startswith("node for aarch64-darwin can be built nowhere:\n  here: ")
    for words in ("here: aarch64-darwin is needed", "no remote builders", "on the target: app.build_on is local"):
        assert words in str(caught.value)


def test_a_configured_remote_builder_counts(configured: NixHere, plan: Path, attempt: Attempt, tmp_path: Path) -> None:
    for run, there in enumerate((True, False, True)):
        if run == 1:
            (tmp_path / "machines").write_text("ssh://nobody aarch64-linux,aarch64-darwin\n")
            configured.configure(f"builders = @{tmp_path}/machines")
        if run == 2:
            configured.configure("builders = ssh://nobody riscv64-linux")
        planned = planned_commands(the_nix(), app(), MAC, attempt, tmp_path)
        assert planned["here"] is not there
    assert "its remote builders build riscv64-linux" in str(planned["why_not_here"])


def test_what_is_planned_is_what_is_run(plan: Path, attempt: Attempt, tmp_path: Path, controller: Controller) -> None:
    planned = planned_commands(the_nix(), app(), X86, attempt, tmp_path)
    assert isinstance(planned["argv"], list)
    done = subprocess.run(planned["argv"], cwd=plan, check=True, capture_output=True, text=True)
    assert Path(done.stdout.strip()).resolve() == Path(str(planned["out"]))
    assert built(app(), plan, controller).out == planned["out"]


# Under Testground with the flake's own remote-runner.


def test_a_table_is_used_in_place_of_evaluating(
    nix_here: NixHere, tmp_path: Path, plan: Path, controller: Controller
) -> None:
    artifact = built(app(), plan, controller)
    table = tmp_path / "table.json"
    row = {"drv": artifact.drv, "out": artifact.out, "program": "bin/node"}
    table.write_text(json.dumps({"app": "node", "systems": {str(X86): row, str(MAC): row}}))
    environ = {**os.environ, "REMOTE_RUNNER_ARTIFACTS": str(table)}
    (plan / "flake.nix").write_text("no flake")
    for builder in (Builder.NIX, None):
        assert built(app(builder=builder), plan, controller, environ=environ, run_id=str(builder)) == artifact
    for other in (app("other"), app(flake=".")):
        with pytest.raises(EvaluationFailedError, match="cannot be evaluated"):
            build(other, plan, controller, environ=environ)
    for attempt in attempts(controller):
        for root in ("out", "drv"):
            (attempt / root).unlink(missing_ok=True)
    nix_here.run("nix-store", "--gc")
    with pytest.raises(EvaluationFailedError, match="no longer in this machine's store"):
        build(app(), plan, controller, environ=environ, run_id="run2")


# Which builder.


def choice(settings: AppSettings, plan: Path) -> str:
    return "command" if choose_builder(settings, plan, os.environ) is None else "nix"


def test_where_the_plan_says_nix_it_is_needed(nix_here: NixHere, plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choice(app(builder=None), plan) == "nix"
    assert choice(app(builder=None, command=("make",)), plan) == "command"
    monkeypatch.setattr(here, "_program", lambda name, path: None)
    assert choice(app(builder=None, command=("make",)), plan) == "command"
    for settings in (app(), app(builder=None), app(builder=None, command=("make",), flake="github:a/b")):
        with pytest.raises(RemoteRunnerError, match=r"(?s)needs Nix.* install Nix .* or set app\.builder: command"):
            choice(settings, plan)


def test_a_command_builds_beside_it(plan: Path, controller: Controller) -> None:
    command = ("cp", "/bin/sh", "{out}")
    assert isinstance(build(app(builder=None, command=command), plan, controller), Artifact)
    assert isinstance(build(app(builder=Builder.NIX, command=command), plan, controller), StoreArtifact)


# One build for each run, application and system.


def build_in_process(plan: Path, controller: Controller, results: Any) -> None:
    try:
        results.put(built(app(flake="./flake"), plan, controller).out)
    except RemoteRunnerError as error:
        results.put(f"error: {error}")


@pytest.mark.parametrize("ok", [True, False])
def test_processes_wait_for_one_build_and_share_what_comes_of_it(plan: Path, controller: Controller, ok: bool) -> None:
    # The build goes on until the test has seen that it has begun; the others come to its lock meanwhile.
    os.mkfifo(plan / "gate")
    os.mkfifo(plan / "begun")
    packages(plan, node(f"echo > {plan}/begun; cat {plan}/gate; {MAKE if ok else 'exit 4'}"))
    # A flake's directory is copied to the store, where a fifo cannot go.
    (plan / "flake").mkdir()
    (plan / "flake.nix").rename(plan / "flake/flake.nix")
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=build_in_process, args=(plan, controller, results)) for _ in range(6)]
    for process in processes:
        process.start()
    (plan / "begun").read_text()
    with (plan / "gate").open("w"):
        pass
    said = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(30)
        assert process.exitcode == 0
    assert len(attempts(controller)) == 1
    (what,) = said
    assert what.startswith("/nix/store/" if ok else "error: build of node for x86_64-linux: ")


def test_another_flake_program_or_place_is_another_build(plan: Path, controller: Controller) -> None:
    changes: list[dict[str, Any]] = [{}, {"flake": "."}, {"program": "bin/node"}, {"build_on": BuildOn.LOCAL}]
    for count, change in enumerate(changes, start=1):
        for _ in range(2):
            build(app(**change), plan, controller)
            assert len(attempts(controller)) == count


# What goes wrong.


def failure(settings: AppSettings, plan: Path, controller: Controller, **changes: Any) -> RemoteRunnerError:
    with pytest.raises(RemoteRunnerError) as caught:
        build(settings, plan, controller, **changes)
    with pytest.raises(type(caught.value)) as shared:
        build(settings, plan, controller, **changes)
    assert str(shared.value) == str(caught.value)
    return caught.value


async def closure(nix: Nix, path: str) -> list[str]:
    """What the serve protocol says of it."""
    async with LocalServer(nix) as server:
        client = ServeClient(server)
        await client.greet()
        return await client.closure(path)


def test_a_build_that_fails_shows_its_last_lines_and_its_log(plan: Path, controller: Controller) -> None:
    packages(plan, node("seq 1 50; echo broken >&2; exit 3"))
    error = failure(app(), plan, controller)
    for words in ("build of node for x86_64-linux: Nix did not make /nix/store/", "| 50", "| broken", "exit code 3"):
        assert words in str(error)
    assert "\n1\n2\n" in Path(str(error).partition("\n  log: ")[2].partition("\n")[0]).read_text()
    assert re.fullmatch(r"`nix-store --realise /nix/store/\S+\.drv` does the same by hand", error.next_step)


def test_a_daemon_of_this_machine_builds(nix_here: NixHere, plan: Path, controller: Controller) -> None:
    environ = {**os.environ, "NIX_REMOTE": "daemon"}
    with subprocess.Popen([which("nix-daemon")], stderr=subprocess.PIPE, text=True) as daemon:
        try:
            while not Path("/nix/var/nix/daemon-socket/socket").exists():
                assert daemon.poll() is None
                time.sleep(0.01)
            artifact = built(app(), plan, controller, environ=environ)
            assert asyncio.run(closure(replace(the_nix(), environ=environ), artifact.out)) == [artifact.out]
        finally:
            daemon.terminate()
            assert daemon.stderr is not None
            said = daemon.stderr.read()
    assert artifact.here
    assert nix_here.is_valid(artifact.out)
    assert said.count("accepted connection") > 3  # each step went to the daemon
    Path("/nix/var/nix/daemon-socket/socket").unlink()  # else an ordinary user's Nix would look for somebody there


def test_a_nix_that_nobody_set_up_is_told(configured: NixHere, plan: Path, controller: Controller) -> None:
    configured.configure("build-users-group = nobody-made-it")
    error = failure(app(), plan, controller)
    for words in ("`build-users-group =` into /etc/nix/nix.conf", "nix-setup-systemd"):
        assert words in error.next_step


def test_a_package_that_is_not_there_is_named_with_those_that_are(plan: Path, controller: Controller) -> None:
    packages(plan, f"{node()} other = throw ''never asked'';")
    error = failure(app("nod"), plan, controller)
    assert ".#packages.x86_64-linux.nod: the flake has no such package; it has node, other for aarch64-darwin" in str(
        error
    )
    assert "--app" in error.next_step
    assert "no such package" in str(failure(app(), plan, controller, system=System("riscv64", "linux")))


def test_a_flake_without_packages_says_so(plan: Path, controller: Controller) -> None:
    (plan / "flake.nix").write_text("{ outputs = { self }: { }; }")
    error = failure(app(), plan, controller)
    assert "does not provide attribute" in str(error)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("node = throw ''not for this system'';", "not for this system"),
        ("node = 3;", "error: "),
        ("node = ;", "syntax error"),
        ("node = ./flake.nix;", "error: "),
    ],
)
def test_what_cannot_be_evaluated_is_told_in_nixs_words(
    plan: Path, controller: Controller, text: str, words: str
) -> None:
    packages(plan, text)
    error = failure(app(), plan, controller)
    assert isinstance(error, EvaluationFailedError)
    assert ".#packages.x86_64-linux.node: cannot be evaluated\n  | " in str(error)
    assert words in str(error)
    assert words in Path(error.log).read_text()


def test_a_store_that_is_not_this_users_is_told(plan: Path, controller: Controller, tmp_path: Path) -> None:
    assert built(app(), plan, controller).here
    nix = the_nix()
    (tmp_path / "bin").mkdir()
    for name, program in (("nix", nix.nix), ("nix-store", nix.nix_store), ("nix-instantiate", nix.nix_instantiate)):
        as_nobody = f"setpriv --reuid 65534 --regid 65534 --clear-groups {program}"
        (tmp_path / "bin" / name).write_text(
            f'#!/bin/sh\ncd /; export HOME=/tmp XDG_CACHE_HOME=/tmp\nexec {as_nobody} "$@"\n'
        )
        (tmp_path / "bin" / name).chmod(0o755)
    environ = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    error = failure(app(), plan, controller, environ=environ, run_id="run2")
    assert "/nix/var/nix/" in str(error)
    for words in ("this user cannot use the Nix store of this machine", "app.builder: command"):
        assert words in error.next_step


def test_a_flake_that_git_does_not_track_is_hinted_at(plan: Path, controller: Controller) -> None:
    subprocess.run(["git", "init", "-q", plan], check=True)
    error = failure(app(), plan, controller)
    assert f"git add what it misses, or set app.flake: path:{plan}" in error.next_step
    subprocess.run(["git", "-C", plan, "add", "flake.nix"], check=True)
    assert built(app(), plan, controller, run_id="run2").here


def test_a_package_without_its_program_says_what_it_has(plan: Path, controller: Controller) -> None:
    error = failure(app(program="bin/nod"), plan, controller)
    for words in ("bin/nod is not there (beside it: node)", "app.program in inventory.yaml says"):
        assert words in str(error)
    packages(plan, node('mkdir -p "$out/bin"; echo > "$out/bin/node"'))
    error = failure(app(), plan, controller, run_id="run2")
    for words in ("bin/node is not executable", "meta.mainProgram"):
        assert words in str(error)


def test_a_build_that_hangs_is_ended_with_what_it_started(plan: Path, tmp_path: Path, controller: Controller) -> None:
    packages(plan, node(f"echo $$ > {tmp_path}/pid; sleep 600"))
    error = failure(app(), plan, controller, deadline=Deadline.after(3))
    assert "Nix did not end within 3 s" in str(error)
    assert "timeouts.build_s" in error.next_step
    wait_until_gone(int((tmp_path / "pid").read_text()))


def wait_until_gone(pid: int) -> None:
    end_s = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists():
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            return
        assert time.monotonic() < end_s, f"{pid} is still there"
        time.sleep(0.01)


def test_a_cancellation_ends_the_build_and_leaves_it_to_the_next(
    plan: Path, tmp_path: Path, controller: Controller
) -> None:
    os.mkfifo(tmp_path / "begun")
    packages(plan, node(f"[ -e {tmp_path}/second ] || {{ echo $$ > {tmp_path}/begun; sleep 600; }}; {MAKE}"))
    pids = []
    with Cancellation() as cancellation:

        def cancel() -> None:
            pids.append(int((tmp_path / "begun").read_text()))
            cancellation.cancel("enough")

        thread = threading.Thread(target=cancel)
        thread.start()
        try:
            with pytest.raises(WorkCancelledError, match="enough"):
                build(app(), plan, controller, cancellation=cancellation)
        finally:
            thread.join(30)
    wait_until_gone(pids[0])
    (tmp_path / "second").touch()
    assert built(app(), plan, controller).here


# A store path given by hand.


def test_a_store_path_is_an_artifact(nix_here: NixHere, plan: Path, controller: Controller, attempt: Attempt) -> None:
    artifact = built(app(), plan, controller)
    nix = the_nix()
    assert store_artifact(nix, artifact.path, app(), X86, attempt) == artifact
    assert store_artifact(nix, artifact.path / "bin/node", app(program="other"), X86, attempt) == artifact
    with pytest.raises(ArtifactError, match=r"bin/other is not there \(beside it: node\)"):
        store_artifact(nix, artifact.path, app("other"), X86, attempt)
    with pytest.raises(ArtifactError, match="is not valid in this machine's store"):
        store_artifact(nix, Path(f"{artifact.out}2"), app(), X86, attempt)
    with pytest.raises(RemoteRunnerError, match="as a store path, needs Nix"):
        store_artifact(None, artifact.path, app(), X86, attempt)
    (plan / "start").touch(mode=0o755)
    added = Path(nix_here.run("nix-store", "--add", str(plan)))
    assert store_artifact(nix, added / "start", app(program="x"), X86, attempt).drv == ""


# A remote builder.


@pytest.fixture
def mac(lan: Lan, tmp_path: Path, keys: Keys, known_by_name: Callable[[TestHost], str]) -> Iterator[TestHost]:
    """A machine that builds for aarch64-darwin: no Mac, but its Nix takes it for one, and its sh will do."""
    conf = ("extra-platforms = aarch64-darwin",)
    with hosts_nix.single_user(lan, tmp_path / "mac", name="mac", keys=keys, conf=conf) as host:
        known_by_name(host)
        yield host


def test_a_remote_builder_builds_for_here(
    configured: NixHere, mac: TestHost, plan: Path, controller: Controller, tmp_path: Path
) -> None:
    (tmp_path / "machines").write_text("ssh://mac aarch64-darwin\n")
    configured.configure(f"builders = @{tmp_path}/machines")
    artifact = built(app(), plan, controller, system=MAC)
    assert artifact.here
    assert configured.is_valid(artifact.out)
    assert mac.ssh(f"nix-store --check-validity {artifact.out} && echo there").decode() == "there\n"
