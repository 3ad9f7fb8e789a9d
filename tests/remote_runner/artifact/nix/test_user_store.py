"""Hosts without Nix: a closure in the user's own store, and programs that find it at /nix/store."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from remote_runner.artifact.nix import progress
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.nix.user_store import push_user_store
from remote_runner.artifact.push import Pushed
from remote_runner.connection.verbs.far_artifact import FarArtifact, Store
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    ArtifactError,
    ArtifactMissingError,
    HostError,
    PushFailedError,
)
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.systems import System
from tests import hosts_nix
from tests.hosts import Keys, TestHost, which
from tests.hosts_netns import Lan, NetnsHost
from tests.nix_bed import NixHere, simple_flake
from tests.remote_runner.artifact.nix.far import WAIT_S, Far

BASE = "/home/tester/.cache/remote-runner"
STORE = f"{BASE}/store"
# A copy of dash: a program that the kernel itself starts from the store.
BUILD = f"""cp {which("dash")} $out/bin/app
mkdir "$out/share"
printf data >"$out/share/a file"
ln -s app "$out/bin/link"
ln -s "$out" "$out/itself"
"""
# What a session of a user gets in whose namespace there may be one more, and it is this one.
NO_NAMESPACES = (
    "ForceCommand unshare -r sh -c 'echo 1 >/proc/sys/user/max_user_namespaces && "
    'exec unshare -U --map-user=4242 --map-group=4242 sh -c "$SSH_ORIGINAL_COMMAND"\''
)


@dataclass(frozen=True)
class Built:
    """An application whose closure is its output and some texts."""

    artifact: StoreArtifact
    closure: tuple[str, ...]

    @property
    def far(self) -> FarArtifact:
        return FarArtifact(Store.USER, self.artifact.out)


def build(nix: NixHere, directory: Path, *, texts: tuple[str, ...] = ("one", "two"), more: str = "") -> Built:
    flake = simple_flake(directory, texts=texts, build=BUILD + more)
    out = nix.build(f"{flake}#packages.x86_64-linux.app")
    artifact = StoreArtifact(out, f"{out}.drv", "bin/app", "app", System("x86_64", "linux"), True)
    return Built(artifact, tuple(nix.closure(out)))


@pytest.fixture
def app(nix_here: NixHere, tmp_path: Path) -> Built:
    return build(nix_here, tmp_path / "flake")


@dataclass(frozen=True)
class Bare:
    """A machine without Nix, and a connection to it."""

    machine: NetnsHost
    far: Far
    reports: list[str] = field(default_factory=list)

    def push(self, app: Built, **settings: Any) -> Pushed:
        entry = replace(Inventory.parse("", Path("/plan/inventory.yaml")).host(self.machine.name), **settings)
        return self.far.do(
            push_user_store(
                self.far.agent,
                entry,
                app.artifact,
                app.closure,
                deadline=Deadline.after(WAIT_S),
                report=self.reports.append,
            )
        )

    def names(self, place: str) -> list[str]:
        directory = self.machine.here(f"{STORE}/{place}")
        return sorted(path.name for path in directory.iterdir()) if directory.exists() else []

    def wait_empty(self, place: str) -> None:
        """Until the agent has tidied up behind a request that was given up."""
        deadline = time.monotonic() + WAIT_S
        while left := [name for name in self.names(place) if name.startswith(".tmp-")]:
            assert time.monotonic() < deadline, left
            time.sleep(0.02)  # nobody tells


Opened = Callable[..., Bare]


@pytest.fixture
def opened(
    nix_here: NixHere, agents: Controller, known_by_name: Callable[[TestHost], str], tmp_path: Path
) -> Iterator[Opened]:
    """Connects to a machine, until the end of the test."""
    with ExitStack() as stack:

        def connect(machine: NetnsHost, **settings: Any) -> Bare:
            known_by_name(machine)
            entry = replace(Inventory.parse("", Path("/plan/inventory.yaml")).host(machine.name), **settings)
            return Bare(machine, stack.enter_context(Far.open(entry, agents, tmp_path / "outputs")))

        yield connect


@pytest.fixture
def bare(no_nix_host: NetnsHost, opened: Opened) -> Bare:
    return opened(no_nix_host)


# --- the push


def test_the_store_there_is_a_copy_of_the_one_here(nix_here: NixHere, app: Built, bare: Bare) -> None:
    pushed = bare.push(app)
    sent_bytes = pushed.sent_bytes
    assert (pushed.store, str(pushed.directory), pushed.present) == (Store.USER, app.artifact.out, False)
    assert (pushed.sent_paths, pushed.paths) == (len(app.closure), len(app.closure))
    assert sent_bytes > Path(which("dash")).stat().st_size
    assert bare.names("nix/store") == sorted(Path(path).name for path in app.closure)
    for path in app.closure:
        there = bare.machine.here(STORE + path)
        told = nix_here.run("nix-hash", "--type", "sha256", path)
        assert nix_here.run("nix-hash", "--type", "sha256", str(there)) == told
        for far, near in zip(
            [there, *sorted(there.rglob("*"))], [Path(path), *sorted(Path(path).rglob("*"))], strict=True
        ):
            assert far.lstat().st_mode == near.lstat().st_mode, far
            assert far.is_dir() or far.is_symlink() or far.lstat().st_mtime == near.lstat().st_mtime == 1
    assert bare.names("closures") == [app.artifact.hash]
    assert not [name for name in bare.names(".") if name.startswith(".tmp")]
    again = bare.push(app)
    assert (again.present, again.sent_bytes, again.sent_paths, again.paths) == (True, 0, 0, len(app.closure))


def test_only_what_is_missing_is_sent(nix_here: NixHere, tmp_path: Path, bare: Bare) -> None:
    texts = tuple(f"{number:030}" for number in range(300))
    old = build(nix_here, tmp_path / "old", texts=texts, more='head -c 1000000 /dev/zero >"$out/large"')
    new = build(nix_here, tmp_path / "new", texts=(*texts, "one more"))
    assert len(old.closure) == 301
    missing = set(new.closure) - set(old.closure)
    assert len(missing) == 2
    bare.push(old)
    pushed = bare.push(new)
    assert (pushed.present, pushed.sent_paths, pushed.paths) == (False, 2, 302)
    assert 100_000 < pushed.sent_bytes < 300_000
    assert set(bare.names("nix/store")) == {Path(path).name for path in (*old.closure, *new.closure)}


def test_a_long_copy_tells_how_far_it_is(app: Built, bare: Bare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    bare.push(app)
    assert bare.reports[-1].startswith("bare: path 3 of 3, 1")


def test_a_push_that_is_cut_off_leaves_nothing_that_counts(app: Built, bare: Bare) -> None:
    gone = replace(app, closure=(*app.closure, "/nix/store/00000000000000000000000000000000-gone"))
    with pytest.raises(ArtifactError, match="gone"):
        bare.push(gone)
    bare.wait_empty(".")
    bare.wait_empty("closures")
    assert bare.names("nix/store") == bare.names("closures") == []
    assert not bare.push(app).present
    assert bare.far.run("bin/app", "-c", "exit 4", artifact=app.far)[1].exit_status == 4


@pytest.mark.parametrize(
    ("options", "then", "words"),
    [
        ("size=64k", "true", "no room"),
        ("size=10m", f"mount -o remount,ro {STORE}", "read-only"),
    ],
)
def test_a_file_system_that_will_not_do_is_told_of(
    app: Built,
    no_nix_host: NetnsHost,
    opened: Opened,
    options: str,
    then: str,
    words: str,
) -> None:
    mount = f"mkdir -p {STORE} && chown -R tester /home/tester/.cache && chmod 700 {BASE} && mount -t tmpfs -o "
    no_nix_host.as_root(f"{mount}uid=4242,gid=4242,mode=700,{options} none {STORE} && {then}")
    bare = opened(no_nix_host)
    with pytest.raises(PushFailedError, match=words):
        bare.push(app)
    assert bare.names("nix/store") == []


# --- a program in it


def test_a_program_finds_its_store_at_its_place(app: Built, bare: Bare) -> None:
    script = """readlink /proc/$$/exe; ls -d /nix/store/*; ls /; pwd; id -u; uname -n
        cat /proc/$$/stat; ls /proc/$$/fd; echo words >&2; echo kept >"$TEST_OUTPUTS_PATH/file"; exit 5"""
    bare.push(app)
    running, exited = bare.far.run("bin/app", "-c", script, artifact=app.far)
    lines = running.stdout.decode().splitlines()
    assert lines.pop(0) == f"{app.artifact.out}/bin/app"
    assert [lines.pop(0) for _ in app.closure] == sorted(app.closure)
    outside = bare.machine.ssh("ls /").decode().split()
    assert [lines.pop(0) for _ in range(len(outside) + 1)] == sorted([*outside, "nix"])
    assert lines[:3] == [f"{running.directory}/tmp", "4242", "bare"]
    stat = lines[3].rpartition(")")[2].split()
    assert stat[2] == lines[3].split()[0], "it leads a process group of its own"
    assert lines[4:] == ["0", "1", "2"]
    assert running.stderr == b"words\n"
    assert (exited.exit_status, exited.leftover_processes) == (5, 0)
    assert (running.outputs / "file").read_text() == "kept\n"
    assert bare.far.runs() == []


def test_its_environment_is_the_given_one(app: Built, bare: Bare) -> None:
    given = {
        "PATH": "/nowhere:/usr/bin:/bin",
        "PS1": "$ ",
        "IFS": ":",
        "LC_ALL": "no_SUCH",
        "BYTES": "\udcff\n'\"",
        "UID": "7",
    }
    bare.push(app)
    running, _ = bare.far.run("bin/app", "-c", "cat /proc/$$/environ", artifact=app.far, environment=given)
    found = dict(entry.split(b"=", 1) for entry in running.stdout.split(b"\0") if entry)
    assert found.pop(b"HOME") == b"/home/tester"
    assert {found.pop(name.encode()) for name in given} == {os.fsencode(value) for value in given.values()}
    names = "HOSTNAME REMOTE_RUNNER_INSTANCE TEST_OUTPUTS_PATH TEST_TEMP_PATH TMPDIR"
    assert {name.decode() for name in found} == set(names.split())
    assert running.stderr == b""


def test_it_gets_term_and_what_it_leaves_is_ended(app: Built, bare: Bare) -> None:
    script = "trap 'echo told; exit 3' TERM; setsid sh -c 'echo ready; exec sleep 600' & while :; do sleep 0.1; done"
    bare.push(app)
    with bare.far.start("bin/app", "-c", script, artifact=app.far, grace_s=3) as running:
        running.wait_for(b"ready")
        running.stop()
        exited = running.finish()
    assert (exited.exit_status, exited.reason, running.stdout) == (3, "stop", b"ready\ntold\n")
    assert exited.leftover_processes == 1
    assert not [process for process in bare.machine.processes() if "sleep 600" in process.command]


def test_where_somebody_else_has_a_store_it_is_hidden_from_the_program_alone(
    app: Built, foreign_nix_host: NetnsHost, opened: Opened
) -> None:
    bare = opened(foreign_nix_host)
    bare.push(app)
    running, _ = bare.far.run("bin/app", "-c", "readlink /proc/$$/exe; ls /nix/store; id -un", artifact=app.far)
    names = [Path(path).name for path in app.closure]
    assert running.stdout.decode().split() == [f"{app.artifact.out}/bin/app", *sorted(names), "tester"]
    assert app.artifact.hash not in foreign_nix_host.as_root("ls /nix/store")


def test_none_of_the_hosts_tools_is_needed(
    nix_here: NixHere, app: Built, lan: Lan, keys: Keys, opened: Opened, tmp_path: Path
) -> None:
    (tmp_path / "nothing").touch(mode=0o644)
    binds = {which(tool): tmp_path / "nothing" for tool in ("unshare", "mount", "tar", "find")}
    with NetnsHost.start(
        lan, tmp_path / "bare", name="bare", ordinary_user=True, without=("/nix",), binds=binds, keys=keys
    ) as machine:
        bare = opened(machine)
        bare.push(app)
        assert bare.far.run("bin/app", "-c", "exit 4", artifact=app.far)[1].exit_status == 4


def test_links_in_the_store_are_followed_as_the_program_would(app: Built, bare: Bare) -> None:
    bare.push(app)
    running, _ = bare.far.run("itself/itself/bin/link", "-c", "echo $0 $1", "a", "b", artifact=app.far)
    assert running.stdout == b"a b\n"
    for program, problem in (
        ("itself/bin/none", "is not there"),
        ("itself", "is a directory"),
        ("itself/share/a file", "is not executable"),
    ):
        with pytest.raises(HostError, match=re.escape(f": {app.artifact.out}/{program}: {problem}")):
            bare.far.run(program, artifact=app.far)


def test_a_closure_that_was_cleaned_away_is_missed(app: Built, bare: Bare) -> None:
    bare.push(app)
    bare.machine.here(f"{STORE}/closures/{app.artifact.hash}").unlink()
    with pytest.raises(ArtifactMissingError, match=app.artifact.hash):
        bare.far.run("bin/app", artifact=app.far)
    assert bare.push(app).present
    assert bare.far.run("bin/app", "-c", "exit 4", artifact=app.far)[1].exit_status == 4


# --- what stays there


def test_a_closure_that_runs_stays_and_of_the_others_what_only_they_have_goes(
    nix_here: NixHere, tmp_path: Path, bare: Bare
) -> None:
    used = build(nix_here, tmp_path / "used", texts=("one", "two"))
    unused = build(nix_here, tmp_path / "unused", texts=("one", "three"), more="head -c 300000 /dev/zero >$out/large")
    for app in (used, unused):
        bare.push(app)
    gone = unused.artifact.hash
    os.utime(bare.machine.here(f"{STORE}/closures/{gone}"), (1_000_000_000, 1_000_000_000))
    # What a push left that ended before its list was complete, and one that goes on and found its path.
    for name in ("0-left", "0-found"):
        bare.machine.here(f"{STORE}/nix/store/{name}").mkdir()
    bare.machine.here(f"{STORE}/closures/.tmp-other").write_text("0-found\n")
    bare.machine.as_root(f"chown -R tester {STORE}")
    with bare.far.start("bin/app", "-c", "echo ready; sleep 60", artifact=used.far, grace_s=1) as running:
        running.wait_for(b"ready")
        found = {artifact.name: artifact for artifact in bare.far.artifacts()}
        assert {name: (one.is_used, one.is_partial) for name, one in found.items()} == {
            used.artifact.hash: (True, False),
            gone: (False, False),
            "0-left": (False, True),
        }
        assert (found[gone].store, found[gone].directory) == (Store.USER, PurePosixPath(f"{STORE}/closures/{gone}"))
        assert 300_000 < found[gone].size_bytes < 600_000
        assert found[gone].age_s > 1_000_000 > found[used.artifact.hash].age_s
        removal = bare.far.remove_artifacts([*found, "unknown"])
        assert set(removal.removed) == {f"{STORE}/closures/{gone}", f"{STORE}/nix/store/0-left"}
        assert removal.alive == (f"{STORE}/closures/{used.artifact.hash}",)
        assert removal.unknown == ("unknown",)
        assert bare.names("nix/store") == ["0-found", *sorted(Path(path).name for path in used.closure)]
    bare.machine.here(f"{STORE}/closures/.tmp-other").unlink()
    bare.far.remove_artifacts([used.artifact.hash])
    assert bare.names("nix/store") == bare.names("closures") == []
    assert bare.far.artifacts() == ()


def test_a_push_makes_room_by_what_was_not_used_for_long(nix_here: NixHere, tmp_path: Path, bare: Bare) -> None:
    built = [build(nix_here, tmp_path / name, texts=(name, "shared")) for name in ("old", "recent", "new")]
    for app in built[:2]:
        bare.push(app)
    old, recent, new = (app.artifact.hash for app in built)
    os.utime(bare.machine.here(f"{STORE}/closures/{old}"), (1_000_000_000, 1_000_000_000))
    bare.push(built[2], cache_limit_bytes=1 << 20)
    assert len(bare.names("closures")) == 3
    bare.push(replace(built[2], artifact=replace(built[2].artifact, out=f"{built[2].artifact.out}-more")))
    assert len(bare.names("closures")) == 4, "nothing was sent, so nothing has to go"
    last = build(nix_here, tmp_path / "last", texts=("last",))
    bare.push(last, cache_limit_bytes=1 << 10)
    deadline = time.monotonic() + WAIT_S
    while old in bare.names("closures"):
        assert time.monotonic() < deadline
        time.sleep(0.02)  # the push has ended before the script there
    bare.wait_empty(".")
    assert set(bare.names("closures")) == {recent, new, f"{new}-more", last.artifact.hash}
    kept = {Path(path).name for app in (*built[1:], last) for path in app.closure}
    assert set(bare.names("nix/store")) == kept


# --- hosts whose kernel refuses


@pytest.fixture
def refusing(lan: Lan, keys: Keys, opened: Opened, tmp_path: Path) -> Iterator[Bare]:
    with hosts_nix.without_nix(lan, tmp_path / "bare", name="bare", keys=keys, conf=(NO_NAMESPACES,)) as machine:
        yield opened(machine)


def test_a_kernel_that_refuses_is_told_of_before_anything_is_sent(app: Built, refusing: Bare) -> None:
    with pytest.raises(HostError) as caught:
        # Were it sent, the missing path would be told of.
        refusing.push(replace(app, closure=("/nix/store/00000000000000000000000000000000-gone",)))
    words = str(caught.value)
    assert "the kernel gives no namespaces: no space left on device" in words
    assert "max_user_namespaces" in words
    assert "store: nix" in words
    assert "builder: command" in words
    assert refusing.names("closures") == refusing.names("nix/store") == []


def test_a_kernel_that_refuses_since_the_push_is_told_of_at_the_start(app: Built, refusing: Bare) -> None:
    for name in ("closures", "root", "nix/store"):
        refusing.machine.here(f"{STORE}/{name}").mkdir(parents=True)
    refusing.machine.here(f"{STORE}/closures/{app.artifact.hash}").touch()
    refusing.machine.here(f"{STORE}/how.bare").write_text("kept\n")
    program = refusing.machine.here(f"{STORE}{app.artifact.out}/bin/app")
    program.parent.mkdir(parents=True)
    program.write_bytes(Path(which("dash")).read_bytes())
    program.chmod(0o755)
    refusing.machine.as_root("chown -R tester /home/tester/.cache && chmod 700 " + BASE)
    with pytest.raises(HostError, match=r"(?s)a store of the user's own cannot be shown.*no space left on device"):
        refusing.far.run("bin/app", "-c", "exit 0", artifact=app.far)
    assert refusing.far.runs() == []
    with pytest.raises(HostError, match=r"(?s)a store of the user's own cannot be shown.*no space left on device"):
        refusing.push(app)
