"""The environment and the output of an application, byte for byte, and where neither may be seen.

An instance is started as Testground does it, with `TEST_*`, for values no `fab` can pass.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from testground.runenv import RunEnv
from testground.sync.service import SyncService
from tests.hosts import Keys, UserSshd
from tests.hosts_netns import NetnsHost
from tests.integration.runs import Ended, Machine, Place, Plan, ended, localhost, nothing_left, place_on
from tests.integration.ways import DIRECT, LAUNCHER, instance_argv
from tests.needs import need

SECRET = os.urandom(12).hex()
PARAMS = (
    (
        f"secret={SECRET}|quotes='\"`|dollar=$(id) ${{HOME}} $((1+1))|semicolon=a;b & c || d > e|"
        "spaces=  two  |newlines=a\nb\n\n|back=\\n\\\\|equals==a=b=|empty=|glob=* ? [a] ~ !x #y\t|"
    ).encode()
    + b"bytes=\xff\xfe\x80\xc3\x28|"
    + b"long="
    + b"0123456789abcdef" * 6400
)
INVENTORY_ENV = {
    "FROM_INVENTORY": f'{SECRET} it\'s "quoted" $(here); `there` | & \\ * ~ !end\n\tand = more\n',
    "EMPTY": "",
    "UNICODE": "größe 大小",
    "IFS": ":",
    "PS4": "$(echo bad)",
}
# A shell takes these for itself and need not pass them on to its children.
OF_A_SHELL = ("IFS", "PS4")
SAMPLE_S = 0.005


class Sampler:
    """Looks at every process's command line on this kernel, the hosts' of network namespaces included."""

    def __init__(self, word: str) -> None:
        self._word = word.encode()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ps")
        self.samples = 0
        self.seen: set[bytes] = set()

    def _watch(self) -> None:
        # Sampling is the measurement itself: what ps would show, again and again.
        while not self._over.wait(SAMPLE_S):
            self.samples += 1
            for name in os.listdir("/proc"):  # noqa: PTH208 (a Path for each costs more than the read)
                if name.isdigit():
                    try:
                        with open(f"/proc/{name}/cmdline", "rb") as file:  # noqa: PTH123 (the same)
                            line = file.read()
                    except OSError:
                        continue
                    if self._word in line:
                        self.seen.add(line[:200])

    @classmethod
    @contextmanager
    def watching(cls, word: str) -> Iterator[Sampler]:
        sampler = cls(word)
        sampler._thread.start()
        try:
            yield sampler
        finally:
            sampler._over.set()
            sampler._thread.join()


def start_instance(
    plan: Plan, service: SyncService, run: str, more: Mapping[str, str | bytes], way: str
) -> tuple[subprocess.Popen[bytes], Path]:
    """An instance as Testground starts it, and its outputs."""
    outputs = plan.directory / "instance" / run
    temp = plan.directory / "temp" / run
    for made in (outputs, temp):
        made.mkdir(parents=True)
    runenv = RunEnv(
        plan="script",
        case="case",
        run=run,
        group_id="single",
        instance_count=1,
        group_instance_count=1,
        outputs_path=outputs,
        temp_path=temp,
        sync_service_host="localhost",
        sync_service_port=service.port,
    )
    machine = {name: text for name, text in plan.machine.environ.items() if name.startswith("REMOTE_RUNNER_")}
    environ = {**runenv.to_environ(path=plan.machine.environ["PATH"]), **machine, **more}
    process = subprocess.Popen(
        instance_argv(plan.directory, way),
        cwd=plan.directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    return process, outputs


def run_instance(plan: Plan, run: str, more: Mapping[str, str | bytes], way: str = DIRECT) -> tuple[Ended, Path]:
    """One, to its end."""
    with SyncService() as service:
        process, outputs = start_instance(plan, service, run, more, way)
        return ended(process), outputs


def variables(file: Path) -> dict[bytes, bytes]:
    """An environment as /proc tells it."""
    pairs = (item.partition(b"=") for item in file.read_bytes().split(b"\0") if item)
    return {name: value for name, _, value in pairs}


@pytest.fixture(params=["localhost", "sshd", "netns", "netns busybox"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """This machine, an sshd on it, another machine, and one with busybox as its sh."""
    if request.param == "localhost":
        yield localhost(tmp_path / "far", env=INVENTORY_ENV)
        return
    need("ssh")
    keys: Keys = request.getfixturevalue("keys")
    if request.param == "sshd":
        with UserSshd.start(tmp_path / "sshd", keys=keys) as sshd:
            yield place_on(sshd, tmp_path / "far", env=INVENTORY_ENV)
        return
    need("netns")
    sh = None
    if "busybox" in request.param:
        need("busybox")
        sh = "busybox"
    lan = request.getfixturevalue("lan")
    with NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys, ordinary_user=True, sh=sh) as host:
        yield place_on(host, env=INVENTORY_ENV)


@pytest.mark.parametrize("way", [DIRECT, LAUNCHER])
def test_it_arrives_byte_for_byte_and_in_no_ps(way: str, place: Place, tmp_path: Path, machine: Machine) -> None:
    # cat is a child of the application's sh: what it has went through execve twice, as any program's does.
    script = 'cat /proc/self/environ >"$TEST_OUTPUTS_PATH/child"; cat /proc/$$/environ >"$TEST_OUTPUTS_PATH/own"; ok\n'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])

    with Sampler.watching(SECRET) as sampler:
        done, outputs = run_instance(plan, "bytes", {"TEST_INSTANCE_PARAMS": PARAMS}, way)

    assert done.status == 0, str(done)
    assert sampler.samples > 20
    assert sampler.seen == set()
    own = variables(outputs / "own")
    for found in (own, variables(outputs / "child")):
        assert found[b"TEST_INSTANCE_PARAMS"] == PARAMS
        for name, value in INVENTORY_ENV.items():
            if name not in OF_A_SHELL:
                assert found[name.encode()] == value.encode(), name
    for name in OF_A_SHELL:
        assert own[name.encode()] == INVENTORY_ENV[name].encode()
    nothing_left("bytes", [place])


def test_the_same_look_finds_a_value_on_a_command_line(place: Place, tmp_path: Path, machine: Machine) -> None:
    # Half a second long, as ssh HOST env NAME=VALUE program would be all the time; a busy machine samples less often.
    script = 'sh -c "sleep 0.5; :" "$FROM_INVENTORY"; ok\n'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])

    with Sampler.watching(SECRET) as sampler:
        done, _ = run_instance(plan, "seen", {})

    assert done.status == 0, str(done)
    assert sampler.seen != set()


def test_nothing_else_of_the_environment_here_goes_there(place: Place, tmp_path: Path, machine: Machine) -> None:
    plan = Plan.of_script(tmp_path / "plan", machine, 'cat /proc/$$/environ >"$TEST_OUTPUTS_PATH/own"; ok\n', [place])

    done, outputs = run_instance(plan, "other", {"SOME_TOKEN": SECRET, "LD_SOMETHING": "x", "HOME": "/nowhere"})

    assert done.status == 0, str(done)
    found = variables(outputs / "own")
    assert b"SOME_TOKEN" not in found
    assert b"LD_SOMETHING" not in found
    assert found.get(b"HOME") != b"/nowhere" or place.is_local
    assert {b"REMOTE_RUNNER_RUNTIME_DIR", b"REMOTE_RUNNER_CACHE_DIR"} & found.keys() == set()
    assert found[b"REMOTE_RUNNER_HOST"] == place.name.encode()
    assert found[b"REMOTE_RUNNER_NUMBER"] == b"1"
    run = Path(os.fsdecode(found[b"TMPDIR"])).parent
    assert Path(os.fsdecode(found[b"TEST_OUTPUTS_PATH"])) == run / "outputs"


@pytest.mark.parametrize("way", [DIRECT, LAUNCHER])
def test_what_it_prints_arrives_byte_for_byte(way: str, place: Place, tmp_path: Path, machine: Machine) -> None:
    # The last line looks like one of the supervisor's own.
    printed = bytes(range(256)) * 3 + b"\r\n\0\n" + b"\x1err-0000 exit 0\n"
    octal = "".join(f"\\{byte:03o}" for byte in printed)
    script = f"printf '{octal}'; printf '\\377err\\n' >&2; ok; printf rest\n"
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])
    with SyncService() as service:
        process, _ = start_instance(plan, service, "print", {}, way)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert printed in out
    assert out.count(b"success_event") == 1
    assert b"rest" in out.rpartition(b"success_event")[2]
    assert err == b"\xfferr\n"
