"""The real Testground on this machine, with all that its daemon's healthcheck wants to see (root needed).

    python -m tests.testground_bed [--home DIR] [--daemon PROGRAM]

runs until Ctrl-C and prints the variables for `testground` (TESTGROUND_HOME, DOCKER_HOST). It needs `testground` and
`sync-service` on PATH, which no package registry has, and Debian's docker.io, redis-server and influxdb. No image
registry is asked: an image is a program of this machine with the libraries that `ldd` lists.

| container | what it is |
| --- | --- |
| `testground-sync-service` | the official one, from PATH, on port 5050 |
| `testground-influxdb` | Debian's influxdb, with the database `testground`, on port 8086 |
| `testground-redis` | Debian's redis-server, on port 6379 |
| `testground-grafana` | a stand-in that answers nothing: Debian has no Grafana, and the daemon asks whether it runs |

Docker runs aside of any other one: own directories, own socket, no rules of iptables (its own would drop what crosses
the bridges of the test hosts), ports on 127.0.0.1 alone. The ports are fixed, so there is one bed at a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.hosts import which

SYNC_PORT, INFLUXDB_PORT = 5050, 8086
_PORTS = (SYNC_PORT, 6379, INFLUXDB_PORT, 3000)
_START_S = 60.0
_END_S = 20.0


@dataclass(frozen=True)
class _Container:
    """A container: its name behind `testground-`, its program with arguments there, and its port."""

    name: str
    program: str
    words: tuple[str, ...]
    port: int


_CONTAINERS = (
    _Container("sync-service", "sync-service", (), SYNC_PORT),
    _Container("redis", "redis-server", ("--save", "", "--appendonly", "no", "--protected-mode", "no"), 6379),
    _Container("influxdb", "influxd", (), INFLUXDB_PORT),
    _Container("grafana", "busybox", ("httpd", "-f", "-p", "3000", "-h", "/tmp"), 3000),
)


@dataclass(frozen=True)
class Docker:
    """A dockerd of this bed's own."""

    directory: Path

    @property
    def host(self) -> str:
        """DOCKER_HOST."""
        return f"unix://{self.directory}/docker.sock"

    def __call__(self, *words: str, stdin: bytes = b"") -> str:
        """What `docker` prints. Raises RuntimeError."""
        argv = [which("docker"), "--host", self.host, *words]
        done = subprocess.run(argv, input=stdin, capture_output=True, timeout=_START_S, check=False)
        if done.returncode:
            raise RuntimeError(f"docker {' '.join(words)}: {done.stderr.decode(errors='replace').strip()}")
        return done.stdout.decode()

    def restart(self) -> None:
        """Make the containers that `testground terminate` removed once more."""
        there = self("ps", "--all", "--format", "{{.Names}}").split()
        gone = [container for container in _CONTAINERS if f"testground-{container.name}" not in there]
        for container in gone:
            _run_container(self, container)
        for container in gone:
            _wait_for_port(self, container)

    def logs(self, container: str) -> str:
        """What a container's program has said."""
        argv = [which("docker"), "--host", self.host, "logs", f"testground-{container}"]
        return subprocess.run(argv, capture_output=True, text=True, timeout=_START_S, check=False).stderr

    def memory_bytes(self, container: str) -> int:
        """What the container's program has resident."""
        pid = self("inspect", "--format", "{{.State.Pid}}", f"testground-{container}").strip()
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(encoding="ascii"))
        assert found is not None
        return int(found[1]) * 1024


@contextmanager
def services() -> Iterator[Docker]:
    """The services of Testground as containers. Raises RuntimeError with what could not be started."""
    with ExitStack() as stack:
        # Gone with its process, so that a bed that was killed is in nobody's way.
        claim = stack.enter_context(socket.socket(socket.AF_UNIX))
        try:
            claim.bind("\0remote-runner-testground-bed")
        except OSError as error:
            raise RuntimeError("another bed is on this machine, and the ports are fixed") from error
        for port in _PORTS:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    raise RuntimeError(f"something listens on port {port} already")
        docker = stack.enter_context(docker_alone())
        docker("network", "create", "testground-control")
        stack.callback(_remove_network, docker)
        for container in _CONTAINERS:
            _start(docker, container)
        for container in _CONTAINERS:
            _wait_for_port(docker, container)
        influxdb("CREATE DATABASE testground")
        yield docker


@contextmanager
def docker_alone() -> Iterator[Docker]:
    """A dockerd without a container; in the end those that were made are removed. Raises RuntimeError."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="rr-docker-", dir="/tmp"))
        stack.callback(_remove, directory)
        docker = Docker(directory)
        stack.enter_context(_dockerd(docker))
        yield docker


def _remove_network(docker: Docker) -> None:
    _remove_containers(docker)
    with contextlib.suppress(RuntimeError):
        docker("network", "rm", "testground-control")


def _remove_containers(docker: Docker) -> None:
    names = docker("ps", "--all", "--quiet").split()
    if names:
        docker("rm", "--force", *names)


def _remove(directory: Path) -> None:
    # A container's end leaves its mounts for a moment.
    for mount in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        where = mount.split()[1]
        if where.startswith(f"{directory}/"):
            subprocess.run([which("umount"), "--lazy", where], check=False, capture_output=True)
    shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _dockerd(docker: Docker) -> Iterator[None]:
    directory = docker.directory
    log = directory / "dockerd.log"
    argv = [which("dockerd"), "--host", docker.host, "--data-root", str(directory / "data")]
    argv += ["--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid")]
    argv += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--userland-proxy=true"]
    with _running(argv, log):
        deadline = time.monotonic() + _START_S
        while True:
            try:
                docker("info")
                break
            except RuntimeError as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"dockerd does not answer:\n{_tail(log)}") from error
                time.sleep(0.1)  # nothing tells when a foreign process listens
        try:
            yield
        finally:
            _remove_containers(docker)


@contextmanager
def _running(
    argv: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=None if environ is None else dict(environ),
            start_new_session=True,
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(docker: Docker, container: _Container) -> None:
    docker("import", "-", f"bed/{container.name}", stdin=image_of(which(container.program)))
    _run_container(docker, container)


def _run_container(docker: Docker, container: _Container) -> None:
    words = ["run", "--detach", "--name", f"testground-{container.name}", "--network", "testground-control"]
    words += ["--publish", f"127.0.0.1:{container.port}:{container.port}"]
    words += [f"bed/{container.name}", which(container.program), *container.words]
    docker(*words)


def image_of(program: str) -> bytes:
    """A tar archive of the program, the libraries it needs, and a /tmp."""
    listed = subprocess.run([which("ldd"), program], capture_output=True, text=True, check=False).stdout
    libraries = re.findall(r"(/\S+) \(0x", listed)
    with tempfile.TemporaryDirectory(prefix="rr-image-") as name:
        root = Path(name)
        for path in (program, *libraries):
            copy = root / path.lstrip("/")
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
            copy.chmod(0o755)
        for place in ("tmp", "root", "var/lib/influxdb"):
            (root / place).mkdir(parents=True, exist_ok=True)
        return subprocess.run([which("tar"), "-C", name, "-c", "."], stdout=subprocess.PIPE, check=True).stdout


def _wait_for_port(docker: Docker, container: _Container) -> None:
    """Docker's proxy takes a connection at once; the program behind it answers when it is up."""
    if container.name == "grafana":
        return
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", container.port), 5) as asked:
            asked.sendall(b"PING\r\n" if container.name == "redis" else b"GET /ping HTTP/1.0\r\n\r\n")
            if asked.recv(1):
                return
        time.sleep(0.1)  # nothing tells when a foreign process listens
    raise RuntimeError(f"testground-{container.name} does not answer:\n{docker.logs(container.name)[-2000:]}")


def influxdb(query: str) -> list[dict[str, object]]:
    """The series that InfluxDB answers with: name, tags, columns, values."""
    body = urllib.parse.urlencode({"q": query}).encode()
    asked = f"http://127.0.0.1:{INFLUXDB_PORT}/query?{urllib.parse.urlencode({'db': 'testground'})}"
    with urllib.request.urlopen(asked, body, timeout=_START_S) as answer:
        (result,) = json.load(answer)["results"]
    if "error" in result:
        raise RuntimeError(f"{query}: {result['error']}")
    found: list[dict[str, object]] = result.get("series", [])
    return found


@dataclass(frozen=True)
class Daemon:
    """A running daemon, and how its client is called."""

    program: str
    home: Path
    environ: Mapping[str, str]
    process: subprocess.Popen[bytes]
    log: Path

    def client(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[str]:
        """`testground WORDS`, both streams together."""
        return subprocess.Popen(
            [self.program, *words],
            cwd=cwd or self.home,
            env=dict(self.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )


@dataclass(frozen=True)
class User:
    """Somebody whose home is another directory than this user's, for those who look into the passwd file.

    Testground hands an instance no HOME, so what reads the user's files (ssh, remote-runner) asks there. `runtime`
    stands for the directory in which remote-runner has its sockets.
    """

    home: Path
    runtime: Path

    def argv(self, words: Sequence[str]) -> list[str]:
        """The program in a mount namespace where this is so; it stays one process."""
        own = pwd.getpwuid(os.getuid())
        lines = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
        lines = [line.replace(f":{own.pw_dir}:", f":{self.home}:") if _is_for(line, own) else line for line in lines]
        passwd = self.home / "passwd"
        passwd.write_text("\n".join(lines) + "\n", encoding="utf-8")
        place = Path(f"/run/user/{os.getuid()}/remote-runner")
        if not place.parent.is_dir():
            place = Path(f"/tmp/remote-runner-{os.getuid()}")
        place.mkdir(mode=0o700, exist_ok=True)
        mounts = 'mount --bind "$1" /etc/passwd; mount --bind "$2" "$3"; shift 3; exec "$@"'
        return [which("unshare"), "-m", "sh", "-ec", mounts, "sh", str(passwd), str(self.runtime), str(place), *words]


def _is_for(line: str, own: pwd.struct_passwd) -> bool:
    return line.split(":")[2:3] == [str(own.pw_uid)]


@contextmanager
def daemon(
    docker: Docker,
    home: Path,
    *,
    program: str = "testground",
    path: str | None = None,
    settings: str = "",
    user: User | None = None,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Daemon]:
    """A daemon with this home; `path` is its PATH, `variables` are more of its own, `settings` go into `.env.toml`."""
    home.mkdir(parents=True, exist_ok=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (home / ".env.toml").write_text(
        f'[daemon]\nlisten = "127.0.0.1:{port}"\n[client]\nendpoint = "http://127.0.0.1:{port}"\n{settings}',
        encoding="utf-8",
    )
    environ = {
        "PATH": os.environ["PATH"] if path is None else path,
        "HOME": os.environ.get("HOME", "/root"),
        "TESTGROUND_HOME": str(home),
        "DOCKER_HOST": docker.host,
        **(variables or {}),
        # None of these reaches an instance: the runner hands on PATH alone.
        **{name: text for name, text in os.environ.items() if name in ("GOCACHE", "GOPATH", "GOPROXY")},
    }
    found = which(program)
    log = home / "daemon.log"
    argv = [found, "daemon"]
    with _running(argv if user is None else user.argv(argv), log, environ) as process:
        deadline = time.monotonic() + _START_S
        while True:
            with socket.socket() as asked:
                if asked.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"testground daemon does not answer:\n{_tail(log)}")
            time.sleep(0.05)  # nothing tells when a foreign process listens
        yield Daemon(found, home, environ, process, log)


def _tail(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-3000:]


def main(argv: Sequence[str]) -> int:
    """Run the bed until it is interrupted."""
    parser = argparse.ArgumentParser(prog="python -m tests.testground_bed", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--home", type=Path, default=Path.home() / "testground", help="TESTGROUND_HOME")
    parser.add_argument("--daemon", default="testground", help="the program, when it is not `testground` on PATH")
    given = parser.parse_args(argv)
    try:
        with services() as docker, daemon(docker, given.home.absolute(), program=given.daemon) as running:
            print(f"export TESTGROUND_HOME={running.home} DOCKER_HOST={docker.host}")
            print(
                "testground-grafana is a stand-in that answers nothing; the rest is real. Ctrl-C ends all.", flush=True
            )
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            running.process.wait()
            print(f"testground daemon ended:\n{_tail(running.log)}", file=sys.stderr)
    except KeyboardInterrupt:
        return 0
    except (FileNotFoundError, RuntimeError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
