from __future__ import annotations

import asyncio
import multiprocessing
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from remote_runner.artifact.nix import progress
from remote_runner.artifact.nix import push as nix_push
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.push import Pushed, push_artifact
from remote_runner.connection.agent import Agent
from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.errors import (
    DeadlineError,
    FarBuildFailedError,
    HostError,
    HostLostError,
    NotTrustedError,
    PushFailedError,
    RemoteRunnerError,
)
from remote_runner.inventory.inventory import HostEntry, Inventory
from remote_runner.inventory.kinds import BuildOn, StoreChoice
from remote_runner.inventory.systems import System
from tests import hosts_nix
from tests.hosts import Keys, TestHost, which
from tests.hosts_netns import Lan, NetnsHost
from tests.nix_bed import NixHere, simple_flake

X86 = System("x86_64", "linux")
WAIT_S = 60.0
LARGE = "head -c 60000000 /dev/urandom >$out/large\n"


@dataclass
class Pushing:
    """Pushes as a task by hand does: over a connection for each."""

    controller: Controller
    known_by_name: Callable[[TestHost], str]
    reports: list[str]

    def entry(self, host: TestHost, **changes: Any) -> HostEntry:
        entry = Inventory.parse("", Path("/plan/inventory.yaml")).host(host.name)
        return replace(entry, **changes)

    def push(self, host: TestHost, artifact: StoreArtifact, *, seconds: float = WAIT_S, **changes: Any) -> Pushed:
        entry = self.entry(host, **changes)
        return push_entry(self.controller, entry, artifact, seconds=seconds, report=self.reports.append)


def push_entry(
    controller: Controller,
    entry: HostEntry,
    artifact: StoreArtifact,
    *,
    seconds: float = WAIT_S,
    report: Callable[[str], None] = lambda words: None,
) -> Pushed:
    build_s = entry.timeouts.build_s if artifact.here else 0.0
    entry = replace(entry, timeouts=replace(entry.timeouts, push_s=seconds, build_s=build_s))

    async def push() -> Pushed:
        agent = await Agent.connect(entry, controller, os.environ, Deadline.after(WAIT_S))
        try:
            return await push_artifact(agent, entry, artifact, controller, os.environ, report)
        finally:
            await agent.close()

    return asyncio.run(push())


@pytest.fixture
def pushing(agents: Controller, known_by_name: Callable[[TestHost], str]) -> Pushing:
    return Pushing(agents, known_by_name, [])


@dataclass
class Apps:
    """Applications of flakes of this test's own."""

    nix: NixHere
    directory: Path
    made: int = 0

    def app(self, *, here: bool = True, system: str = "x86_64-linux", **flake: Any) -> StoreArtifact:
        self.made += 1
        directory = simple_flake(self.directory / f"flake{self.made}", **flake)
        installable = f"path:{directory}#packages.{system}.app"
        drv = self.nix.run("nix", "eval", "--raw", f"{installable}.drvPath")
        out = self.nix.build(installable) if here else self.nix.run("nix", "eval", "--raw", f"{installable}.outPath")
        why = "" if here else "app.build_on is target"
        return StoreArtifact(out, drv, "bin/app", "app", System.parse(system), here, why)


@pytest.fixture
def apps(nix_here: NixHere, tmp_path: Path) -> Apps:
    return Apps(nix_here, tmp_path)


def run(host: TestHost, command: str) -> str:
    return host.ssh(command).decode()


def is_valid(host: TestHost, path: str) -> bool:
    return subprocess.run(host.ssh_argv(f"nix-store --check-validity {path}"), capture_output=True).returncode == 0


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture
def host(nix_host: NetnsHost, pushing: Pushing) -> NetnsHost:
    """Root's single-user store."""
    pushing.known_by_name(nix_host)
    return nix_host


@pytest.fixture
def daemon(nix_daemon_host: NetnsHost, pushing: Pushing) -> NetnsHost:
    """A daemon, and a user whom it does not trust."""
    pushing.known_by_name(nix_daemon_host)
    return nix_daemon_host


# What travels, and what stays


def test_a_closure_arrives_stays_and_is_then_there(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(texts=["a", "b"])
    connections = host.connections()
    first = pushing.push(host, artifact)
    assert host.connections() == connections + 1
    assert (first.store, first.present, first.built) == (Store.NIX, False, False)
    assert (first.sent_paths, first.paths) == (3, 3)
    assert first.sent_bytes > 3 * 96
    assert run(host, str(first.program)) == f"hello from {artifact.out}/bin/app\n"
    run(host, "nix-store --gc")
    assert is_valid(host, artifact.out)
    second = pushing.push(host, artifact)
    assert second.present
    assert (second.sent_bytes, second.directory) == (0, first.directory)
    assert second.far_artifact == first.far_artifact


def test_archives_arrive_whole(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(texts=["a", "b"], build=LARGE)
    pushed = pushing.push(host, artifact)
    assert pushed.sent_paths == 3
    assert pushed.sent_bytes > 60_000_000
    assert run(host, f"nix-store --verify-path {artifact.out} $(cat {artifact.out}/texts) && echo whole") == "whole\n"


def test_of_a_closure_of_300_paths_with_3_missing_3_are_sent(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    texts = [f"text {number}" for number in range(299)]
    first = pushing.push(host, apps.app(texts=texts))
    assert (first.sent_paths, first.paths) == (300, 300)
    artifact = apps.app(texts=[*texts[:-2], "another", "and another"])
    second = pushing.push(host, artifact)
    assert (second.sent_paths, second.paths) == (3, 300)
    assert second.words.startswith("3 of 300 paths sent, ")
    assert is_valid(host, artifact.out)


def test_what_is_valid_there_is_rooted(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app()
    pushing.push(host, artifact)
    run(host, "rm .cache/remote-runner/nix/roots/*")
    assert pushing.push(host, artifact).present
    run(host, "nix-store --gc")
    assert is_valid(host, artifact.out)


def test_validity_decides_and_not_presence(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app()
    run(host, f"mkdir -p {artifact.out}/bin && echo wrong >{artifact.out}/bin/app")
    pushed = pushing.push(host, artifact)
    assert not pushed.present
    assert run(host, str(pushed.program)).startswith("hello")


def test_what_was_collected_since_is_pushed_again(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app()
    pushing.push(host, artifact)
    run(host, "rm .cache/remote-runner/nix/roots/* && nix-store --gc")
    assert not is_valid(host, artifact.out)
    assert not pushing.push(host, artifact).present
    assert is_valid(host, artifact.out)


def test_a_push_to_this_machine_is_only_a_root(pushing: Pushing, apps: Apps, nix_here: NixHere) -> None:
    artifact = apps.app()
    entry = Inventory.parse("", Path("/plan/inventory.yaml")).this_host
    entry = replace(entry, directory=str(apps.directory / "base"))
    pushed = push_entry(pushing.controller, entry, artifact)
    assert (pushed.present, str(pushed.directory)) == (True, artifact.out)
    assert (apps.directory / "base/nix/roots" / artifact.hash).readlink() == Path(artifact.out)


def test_noise_of_a_login_does_not_reach_the_protocol(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    noise = "i=0; while [ $i -lt 500 ]; do echo noise of a login; echo more >&2; i=$((i+1)); done\n"
    (host.home / ".bashrc").write_text(noise)
    assert run(host, "true").count("noise") == 500
    assert pushing.push(host, apps.app()).sent_paths == 1


def test_long_copies_tell_how_far_they_are(
    pushing: Pushing, apps: Apps, host: NetnsHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "INTERVAL_S", 0.0)
    pushing.push(host, apps.app(build=LARGE, texts=["a"]))
    assert pushing.reports[0].startswith("nix1: path 1 of 2, 120 bytes of 57 MiB sent")
    assert pushing.reports[-1] == "nix1: path 2 of 2, 57 MiB of 57 MiB sent"


def test_the_wrong_system_is_told_before_anything_is_copied(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = replace(apps.app(), system=System("aarch64", "linux"))
    with pytest.raises(HostError, match="the artifact is for aarch64-linux, and the host says"):
        pushing.push(host, artifact)
    assert not (host.directory / "nix/store" / artifact.hash).exists()


# Killed, stuck, full


def push_in_process(
    controller: Controller, entry: HostEntry, artifact: StoreArtifact, ready: Any, results: Any
) -> None:
    ready.release()
    try:
        pushed = push_entry(controller, entry, artifact)
        results.put((pushed.present, str(pushed.directory)))
    except RemoteRunnerError as error:
        results.put((type(error).__name__, str(error)))


def test_a_push_killed_half_way_is_repaired_by_the_next(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(build=LARGE, texts=["a"])
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    arguments = (pushing.controller, pushing.entry(host), artifact, context.Semaphore(0), results)
    large = host.directory / "nix/store" / artifact.hash / "large"
    process = context.Process(target=push_in_process, args=arguments)
    process.start()
    wait_until(lambda: large.exists() and large.stat().st_size > 0)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    wait_until(lambda: not [each for each in host.processes() if "--serve" in each.command])
    assert results.empty()
    assert large.exists()
    assert not is_valid(host, artifact.out)
    assert pushing.push(host, artifact).sent_paths in (1, 2)
    run(host, "nix-store --verify --check-contents")
    assert is_valid(host, artifact.out)


def test_a_server_that_stops_there_ends_with_the_deadline(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(build=LARGE)
    large = host.directory / "nix/store" / artifact.hash / "large"

    def stop_it() -> None:
        wait_until(large.exists)
        for each in host.processes():
            if "--serve" in each.command:
                os.kill(each.pid, signal.SIGSTOP)

    stopper = threading.Thread(target=stop_it)
    stopper.start()
    began_s = time.monotonic()
    with pytest.raises(DeadlineError, match="push to nix1 did not end within 5 s"):
        pushing.push(host, artifact, seconds=5)
    assert time.monotonic() - began_s < 10
    stopper.join()


def test_a_server_that_dies_there_is_told(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(build=LARGE)
    large = host.directory / "nix/store" / artifact.hash / "large"

    def reboot() -> None:
        wait_until(large.exists)
        host.kill()

    killer = threading.Thread(target=reboot)
    killer.start()
    with pytest.raises(HostLostError):
        pushing.push(host, artifact, tolerate_s=2.0)
    killer.join()


def test_a_full_disk_is_told(pushing: Pushing, apps: Apps, lan: Lan, keys: Keys, tmp_path: Path) -> None:
    small = tmp_path / "small"
    (small / "nix").mkdir(parents=True)
    subprocess.run([which("mount"), "-t", "tmpfs", "-o", "size=20m", "none", str(small / "nix")], check=True)
    try:
        with hosts_nix.single_user(lan, small, name="small", keys=keys) as host:
            pushing.known_by_name(host)
            with pytest.raises(PushFailedError, match=r"(?s)no room for.*No space left.*nix-collect-garbage"):
                pushing.push(host, apps.app(build=LARGE))
    finally:
        subprocess.run([which("umount"), "--lazy", str(small / "nix")], check=True)


# Garbage collection


def test_no_garbage_collection_takes_a_path_away(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    done = host.directory / "tmp/done"
    loop = (
        "n=0; while [ $n -lt 2000 ] && ! [ -e /tmp/done ]; do nix-store --gc >/dev/null 2>&1; n=$((n+1)); done; echo $n"
    )
    shared = [f"text {number}" for number in range(20)]
    with subprocess.Popen(host.ssh_argv(loop), stdout=subprocess.PIPE, text=True) as collecting:
        try:
            for round_ in range(3):
                artifact = apps.app(
                    texts=[*shared, f"round {round_}"], build="head -c 3000000 /dev/urandom >$out/large\n"
                )
                pushed = pushing.push(host, artifact)
                assert not pushed.present
                assert run(host, str(pushed.program)).startswith("hello")
                run(host, "rm .cache/remote-runner/nix/roots/*")  # so that the next finds some of it, about to go
        finally:
            done.touch()
        assert collecting.stdout is not None
        assert int(collecting.stdout.read()) > 3


def test_garbage_collections_at_the_seams_take_nothing_away(
    pushing: Pushing, apps: Apps, host: NetnsHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushing.push(host, apps.app(texts=["kept"]))
    run(host, "rm .cache/remote-runner/nix/roots/*")  # garbage now, but valid
    collected = []

    original_send, original_wait = nix_push._Copy.send, nix_push._Copy.wait

    def collect() -> None:
        collected.append(run(host, "nix-store --gc --print-dead | wc -l; nix-store --gc"))

    async def send(copy: Any) -> None:
        collect()  # what is there was asked for
        await original_send(copy)

    async def wait(copy: Any) -> None:
        await original_wait(copy)
        collect()  # all is there, without a root

    monkeypatch.setattr(nix_push._Copy, "send", send)
    monkeypatch.setattr(nix_push._Copy, "wait", wait)
    artifact = apps.app(texts=["kept", "new"])
    pushed = pushing.push(host, artifact)
    assert (pushed.sent_paths, pushed.paths) == (2, 3)
    assert int(collected[0].split()[0]) > 0  # the first application, but not its text
    assert len(collected) == 2
    run(host, "nix-store --gc")
    assert run(host, str(pushed.program)).startswith("hello")
    run(host, "nix-store --verify --check-contents")


# Who may push


def test_a_user_whom_the_daemon_does_not_trust_has_it_built_there(
    pushing: Pushing, apps: Apps, daemon: NetnsHost
) -> None:
    artifact = apps.app(texts=["a", "b"])
    pushed = pushing.push(daemon, artifact)
    assert (pushed.store, pushed.built, pushed.present) == (Store.NIX, True, False)
    assert pushed.words.startswith("built there; of its derivation 5 of 5 paths sent, ")
    assert pushing.reports == [
        "nix2: its Nix does not trust this user, so it builds app itself",
        "nix2: builds app now",
    ]
    assert run(daemon, str(pushed.program)).startswith("hello")
    assert run(daemon, "ls .cache/remote-runner/nix/roots") == f"{artifact.hash}\n"
    assert run(daemon, "ls -A .cache/remote-runner/nix") == "roots\n"
    assert pushing.push(daemon, artifact).present


def test_who_is_not_trusted_and_may_not_build_there_is_told_the_ways(
    pushing: Pushing, apps: Apps, daemon: NetnsHost
) -> None:
    artifact = apps.app()
    entry = pushing.entry(daemon)
    with pytest.raises(NotTrustedError) as caught:
        pushing.push(daemon, artifact, app=replace(entry.app, build_on=BuildOn.LOCAL))
    text = str(caught.value)
    for words in (
        "does not trust user tester",
        artifact.out,
        "build_on: target",
        "nix key generate-secret --key-name",
        "nix store sign --recursive",
        "trusted-public-keys =",
        "trusted-users = tester",
        "store: user",
    ):
        assert words in text


def test_a_build_there_that_fails_says_why_and_names_the_other_ways(
    pushing: Pushing, apps: Apps, daemon: NetnsHost
) -> None:
    here_only = apps.directory / "only here"
    here_only.touch()
    artifact = apps.app(build=f'echo looking for it; [ -e "{here_only}" ] || [ -e /root/only-here ] || exit 3\n')
    here_only.unlink()
    with pytest.raises(NotTrustedError, match=r"(?s)could not build.*looking for it.*trusted-users = tester"):
        pushing.push(daemon, artifact)


def test_signed_paths_are_taken_from_anybody(
    pushing: Pushing, apps: Apps, nix_here: NixHere, lan: Lan, keys: Keys, tmp_path: Path
) -> None:
    artifact = apps.app(texts=["a", "b"])
    key = tmp_path / "key"
    key.write_text(nix_here.run("nix", "key", "generate-secret", "--key-name", "tester-1"))
    with key.open() as secret:
        public = subprocess.run(
            [which("nix"), "key", "convert-secret-to-public"], stdin=secret, capture_output=True, check=True, text=True
        ).stdout
    conf = f"extra-trusted-public-keys = {public.strip()}"
    with hosts_nix.with_daemon(lan, tmp_path / "far", name="signed", keys=keys) as host:
        pushing.known_by_name(host)
        nix_here.run("nix", "store", "sign", "--recursive", "--key-file", str(key), artifact.out)
        entry = pushing.entry(host)
        local = replace(entry.app, build_on=BuildOn.LOCAL)
        with pytest.raises(NotTrustedError):  # signed, by whom nobody there knows
            pushing.push(host, artifact, app=local)
        conf_file = tmp_path / "far/etc-nix/nix.conf"
        conf_file.write_text(f"{conf_file.read_text()}{conf}\n")
        hosts_nix.restart_daemon(host)
        pushed = pushing.push(host, artifact, app=local)
        assert (pushed.sent_paths, pushed.built) == (1, False)  # the texts, addressed by content, went at once
        assert run(host, str(pushed.program)).startswith("hello")


def test_a_trusted_user_of_a_daemon_just_copies(
    pushing: Pushing, apps: Apps, lan: Lan, keys: Keys, tmp_path: Path
) -> None:
    conf = ("extra-trusted-users = tester",)
    with hosts_nix.with_daemon(lan, tmp_path / "far", name="trusting", keys=keys, conf=conf) as host:
        pushing.known_by_name(host)
        pushed = pushing.push(host, apps.app(texts=["a"]))
        assert (pushed.sent_paths, pushed.built) == (2, False)
        assert run(host, str(pushed.program)).startswith("hello")


@pytest.mark.parametrize("substitute", [True, False])
def test_a_host_fetches_what_its_substituters_have_if_it_may(
    pushing: Pushing, apps: Apps, lan: Lan, keys: Keys, tmp_path: Path, substitute: bool
) -> None:
    conf = ("substituters = file:///srv/cache", "require-sigs = false")
    cache = tmp_path / "cache"
    binds = {"/srv": tmp_path}
    with hosts_nix.single_user(lan, tmp_path / "far", name="fetching", keys=keys, conf=conf, binds=binds) as host:
        pushing.known_by_name(host)
        artifact = apps.app(texts=["a"])
        (text,) = (path for path in apps.nix.closure(artifact.out) if path != artifact.out)
        apps.nix.run("nix", "copy", "--to", f"file://{cache}", text)
        pushed = pushing.push(host, artifact, substitute=substitute)
        assert (pushed.sent_paths, pushed.paths) == (1 if substitute else 2, 2)
        assert is_valid(host, artifact.out)


def test_a_daemon_that_hangs_is_named(pushing: Pushing, apps: Apps, lan: Lan, keys: Keys, tmp_path: Path) -> None:
    with hosts_nix.with_daemon(lan, tmp_path / "far", name="hung", keys=keys) as host:
        pushing.known_by_name(host)
        for each in host.processes():
            os.kill(each.pid, signal.SIGSTOP)
        with pytest.raises(DeadlineError, match=r"asking its Nix .* did not end within 3 s\n.*ssh hung .*nix-daemon"):
            pushing.push(host, apps.app(), seconds=3)


@pytest.mark.parametrize("kind", ["foreign", "bare"])
def test_without_a_store_to_add_to_it_goes_into_the_users_own(
    pushing: Pushing, apps: Apps, request: pytest.FixtureRequest, kind: str
) -> None:
    host: NetnsHost = request.getfixturevalue("foreign_nix_host" if kind == "foreign" else "no_nix_host")
    pushing.known_by_name(host)
    artifact = apps.app(texts=["a", "b"])
    with pytest.raises(HostError, match="another user's" if kind == "foreign" else "there is no Nix"):
        pushing.push(host, artifact, store=StoreChoice.NIX)
    with pytest.raises(HostError, match=r"would have to build app itself \(app.build_on is target\)"):
        pushing.push(host, replace(artifact, here=False, why_not_here="app.build_on is target"))
    pushed = pushing.push(host, artifact)
    assert (pushed.store, pushed.paths, pushed.present) == (Store.USER, 3, False)
    assert pushed.sent_bytes > 0
    assert str(pushed.program) == f"{artifact.out}/bin/app"
    assert pushing.push(host, artifact).present


def test_the_users_own_store_can_be_asked_for(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app()
    assert pushing.push(host, artifact, store=StoreChoice.USER).store is Store.USER
    assert not (host.directory / "nix/store" / artifact.hash).exists()


# Builds on the target


def test_the_target_builds_from_the_derivation_alone(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(here=False, texts=["a", "b of the target"])
    assert not apps.nix.is_valid(artifact.out)
    pushed = pushing.push(host, artifact)
    assert (pushed.built, pushed.present) == (True, False)
    assert run(host, str(pushed.program)).startswith("hello")
    run(host, "nix-store --gc")
    assert is_valid(host, artifact.out)
    assert pushing.push(host, artifact).present


def test_a_long_build_there_is_told_of(
    pushing: Pushing, apps: Apps, host: NetnsHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "WAITING_S", 0.3)
    pushing.push(host, apps.app(here=False, build="sleep 2\n"))
    begins = pushing.reports.index("nix1: builds app now")
    assert re.fullmatch(r"nix1: still builds app \(\d+ s\)", pushing.reports[begins + 1])


def test_a_build_that_fails_there_shows_its_last_lines(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(here=False, build="echo this is why; exit 7\n")
    with pytest.raises(FarBuildFailedError, match=r"(?s)could not build .*this is why.*nix log"):
        pushing.push(host, artifact)
    assert run(host, "ls -A .cache/remote-runner/nix") == "roots\n"


def test_a_build_there_ends_with_the_deadline(pushing: Pushing, apps: Apps, host: NetnsHost) -> None:
    artifact = apps.app(here=False, build="echo begun; sleep 123\n")
    with pytest.raises(DeadlineError, match="build of app on nix1 did not end within 4 s"):
        pushing.push(host, artifact, seconds=4)
    wait_until(lambda: not [each for each in host.processes() if "sleep 123" in each.command])
    wait_until(lambda: run(host, "ls -A .cache/remote-runner/nix") == "roots\n")
