"""The demo's ssh server, spoken to by the real OpenSSH client."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import select
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_runner.demo import sshd
from remote_runner.demo.server import DemoHost, DemoServer
from remote_runner.errors import DemoServerError
from tests.needs import need


def test_a_containers_user_is_called_by_its_number(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert sshd._environment(tmp_path)["USER"] == str(os.getuid())


class Client:
    """The ssh client with what the inventory entry says, and nothing else, of the server."""

    def __init__(self, demo: DemoHost) -> None:
        entry = demo.inventory_entry()["ssh"]
        assert isinstance(entry, dict)
        self.options = [f"-o{key}={value}" for key, value in entry["options"].items()]
        self.options += ["-i", entry["identity_file"], "-p", str(entry["port"]), "-l", entry["user"], "-oBatchMode=yes"]
        self.host = entry["host"]

    def argv(self, *arguments: str, config: str = "none") -> list[str]:
        return ["ssh", "-F", config, *self.options, *arguments]

    def run(self, command: str, *, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(self.argv(self.host, command), input=stdin, capture_output=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DemoHost]:
    need("ssh")
    with DemoHost(tmp_path_factory.mktemp("demo") / "with space") as demo:
        yield demo


@pytest.fixture
def client(demo: DemoHost) -> Client:
    return Client(demo)


def read_line(stream: int, timeout_s: float = 30.0) -> bytes:
    """One line from a descriptor, byte by byte so that nothing is read beyond it."""
    line = b""
    deadline_s = time.monotonic() + timeout_s
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([stream], [], [], max(0.0, deadline_s - time.monotonic()))
        assert readable, f"nothing more after {line!r}"
        piece = os.read(stream, 1)
        assert piece, f"ended after {line!r}"
        line += piece
    return line


def wait_gone(pid: int, timeout_s: float = 30.0) -> None:
    """Return once no process has this id (one that is no child of this test)."""
    try:
        fd = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    except ProcessLookupError:
        return
    try:
        if fd >= 0:
            assert select.select([fd], [], [], timeout_s)[0], f"process {pid} still runs"
            return
    finally:
        if fd >= 0:
            os.close(fd)
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.02)  # nothing here to wait on: kill(2) has to be asked again
    raise AssertionError(f"process {pid} still runs")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_command_runs_by_sh_in_a_home_of_its_own(demo: DemoHost, client: Client) -> None:
    done = client.run('printf "%s|%s|%s" "$HOME" "$PWD" "$0"; echo words >&2; exit 7')
    home = str(demo.server.home)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (7, f"{home}|{home}|/bin/sh", b"words\n")
    assert home.startswith(str(demo.directory))


@pytest.mark.parametrize("status", [0, 1, 77, 255])
def test_the_exit_status_comes_back(client: Client, status: int) -> None:
    assert client.run(f"exit {status}").returncode == status


def test_a_command_ended_by_a_signal_is_no_success(client: Client) -> None:
    done = subprocess.run(
        client.argv("-v", client.host, "kill -TERM $$"), capture_output=True, timeout=60, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 255
    assert b"exit-signal" in done.stderr


def test_the_end_of_stdin_reaches_the_command(client: Client) -> None:
    data = os.urandom(3_000_000)
    assert client.run("wc -c", stdin=data).stdout.split() == [b"3000000"]
    assert client.run("cat; echo end", stdin=b"no newline").stdout == b"no newlineend\n"


def test_a_command_that_does_not_read_its_stdin_can_end(client: Client) -> None:
    done = client.run("exec <&-; echo closed", stdin=bytes(2_000_000))
    assert (done.returncode, done.stdout) == (0, b"closed\n")


def test_twenty_megabytes_arrive_unchanged_both_ways(client: Client) -> None:
    data = os.urandom(1_000_000) * 20
    for _ in range(3):  # an end of input that overtook the last of it was lost once in six
        done = client.run("cat", stdin=data)
        assert (len(done.stdout), hashlib.sha256(done.stdout).digest()) == (len(data), hashlib.sha256(data).digest())


def test_a_client_that_does_not_read_holds_the_command_up(client: Client, tmp_path: Path) -> None:
    progress = tmp_path / "progress"
    command = f"i=0; while [ $i -lt 200 ]; do head -c 100000 /dev/zero; i=$((i+1)); echo $i >{progress}; done"
    with subprocess.Popen(
        client.argv(client.host, command), stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        seen, same = "", 0
        deadline_s = time.monotonic() + 30
        while same < 5 and time.monotonic() < deadline_s:  # until the command stands still
            time.sleep(0.1)
            now = progress.read_text() if progress.exists() else ""
            same = same + 1 if now and now == seen else 0
            seen = now
        assert same == 5
        assert int(seen) < 100  # 20 MB wanted out; windows, pipes and socket buffers hold less than half
        size_bytes = 0
        while piece := process.stdout.read(65536):
            size_bytes += len(piece)
        assert (process.wait(timeout=30), size_bytes) == (0, 20_000_000)


def test_many_sessions_share_one_connection(client: Client, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("m")
    control = directory / "s"
    master = subprocess.Popen(
        client.argv("-M", "-N", "-S", str(control), "-oControlPersist=no", client.host), stdin=subprocess.DEVNULL
    )
    try:
        deadline_s = time.monotonic() + 30
        check = ["ssh", "-F", "none", "-S", str(control), "-O", "check", client.host]
        while subprocess.run(check, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline_s, "the master did not come up"
            time.sleep(0.05)  # the control socket has no event to wait for
        gate = directory / "gate"
        # Each of the sessions is still open when the last one starts: all wait for the gate.
        command = f'echo "$SSH"; until [ -e {gate} ]; do sleep 0.05; done; echo $$'
        sessions = [
            subprocess.Popen(
                ["ssh", "-F", "none", "-S", str(control), client.host, command],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            for _ in range(30)
        ]
        for session in sessions:
            assert session.stdout is not None
            read_line(session.stdout.fileno())
        gate.touch()
        pids = [session.communicate(timeout=30)[0].strip() for session in sessions]
        assert [session.returncode for session in sessions] == [0] * 30
        assert len(set(pids)) == 30
    finally:
        # Asked, not signalled: ssh 9.2 may miss a TERM that comes while it ends sessions, and then waits for ever.
        subprocess.run(["ssh", "-F", "none", "-S", str(control), "-O", "exit", client.host], capture_output=True)
        try:
            master.wait(timeout=30)
        finally:
            master.kill()


def test_the_users_own_ssh_configuration_does_not_matter(client: Client, tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.write_text(
        "Host *\n  ProxyJump nowhere.invalid\n  User somebody\n  Port 1\n  StrictHostKeyChecking no\n"
        f"  UserKnownHostsFile {tmp_path}/elsewhere\n  IdentityFile {tmp_path}/missing\n"
    )
    done = subprocess.run(
        client.argv(client.host, "echo reached", config=str(config)),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == (b"reached\n", b"")
    assert not (tmp_path / "elsewhere").exists()


def test_another_key_and_no_key_are_refused(demo: DemoHost, client: Client, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    argv = [str(tmp_path / "key") if part == str(demo.server.identity_file) else part for part in client.argv()]
    done = subprocess.run([*argv, client.host, "true"], capture_output=True, stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 255
    assert b"Permission denied" in done.stderr


def test_keys_are_the_owners_alone(demo: DemoHost) -> None:
    for path in (demo.directory, demo.server.host_key, demo.server.identity_file, demo.server.home):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    need("ssh")
    with DemoHost(tmp_path / "demo") as demo:
        client = Client(demo)
        # One that heeds nothing but KILL, and one that left session, group and parent behind.
        command = (
            "trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM; echo $$; exec >&- 2>&-; while :; do sleep 1; done' &); "
            "echo $$; while :; do sleep 1; done"
            if sys.platform == "linux"
            else "trap '' TERM HUP; echo $$; echo $$; while :; do sleep 1; done"
        )
        argv = client.argv(client.host, command)
        with subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        ) as process:
            assert process.stdout is not None
            pids = {int(read_line(process.stdout.fileno())) for _ in range(2)}
            server_pid = demo.server.pid
            assert all(alive(pid) for pid in pids)
            demo.__exit__(None, None, None)
            # They are killed when it has ended; init collects what had left its parent, a little later.
            for pid in (server_pid, *pids):
                wait_gone(pid)
            assert process.wait(timeout=30) == 255


def test_it_ends_with_an_owner_that_was_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from remote_runner.demo.server import DemoHost\n"
        "with DemoHost(Path(sys.argv[1])) as demo:\n    print(demo.server.pid, flush=True)\n    sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "demo")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        server_pid = int(read_line(owner.stdout.fileno()))
        assert alive(server_pid)
        owner.kill()
        wait_gone(server_pid)


def test_by_hand_it_prints_one_line_and_ends_with_stdin(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "remote_runner.demo.server", "--directory", str(tmp_path / "demo")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = read_line(process.stdout.fileno())
        server = DemoServer.from_line(line.decode())
        assert json.loads(line)["pid"] == process.pid == server.pid
        assert server.identity_file.is_file()
        assert server.known_hosts.read_text().startswith(f"[127.0.0.1]:{server.port} ssh-ed25519 ")
        stdout, stderr = process.communicate(timeout=30)
    assert (process.returncode, stdout, stderr) == (0, b"", b"")


def test_a_server_that_cannot_start_is_said_with_its_words(tmp_path: Path) -> None:
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / "home").write_text("in the way")
    with pytest.raises(DemoServerError, match=r"ended with status 1\n.*cannot serve from .*home"), DemoHost(directory):
        pass


def test_a_missing_asyncssh_is_said_with_what_installs_it(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['asyncssh'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, package=None: None if name == 'asyncssh' else find(name, package)\n"
        "from remote_runner.demo.server import main; sys.exit(main(['--directory', sys.argv[1]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "demo")], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "pip install asyncssh" in done.stderr
    assert "Traceback" not in done.stderr
