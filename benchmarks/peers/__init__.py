"""Other ways to run a command on many hosts, each with its best settings, as contestants.

What they need is installed for the benchmark only: into build/peers (`make build/peers/installed`), pssh by apt.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.ground import ROOT, Way
from benchmarks.stage import Stage
from benchmarks.work import Contestant, Trial
from tests.brokers_end import end_brokers
from tests.hosts import which

INSTALLED = ROOT / "build" / "peers" / "bin"
SSH = "`ssh`"
_PROGRAMS = Path(__file__).parent
_SESSIONS = 10  # what a stock sshd allows on one connection
_ONLY = "runs what is there: no push, forwards, outputs, cleaning or supervision"
_OWN = f"{_ONLY}; its connections end with it"


@dataclass(frozen=True)
class Crowd:
    """Instances of the application: the way to each, and the test case."""

    ways: Sequence[Way]
    case: str = "nothing"

    def command(self, outputs: str = "/tmp") -> str:
        """The command line of one of them there, the same for all."""
        return self.ways[0].application(self.case, outputs)

    @property
    def tasks(self) -> list[dict[str, object]]:
        """Every instance's host, for a program of ours that runs a peer's library."""
        return [
            {
                "host": way.target.host,
                "port": way.target.port,
                "user": way.target.user,
                "key": way.target.identity_file,
            }
            for way in self.ways
        ]


@dataclass(frozen=True)
class Peer:
    """A program that runs commands on hosts. `argvs`: how it is started for a crowd, once or for each instance.

    `keeps`: it goes through OpenSSH, so it can use masters that are open.
    """

    name: str
    argvs: Callable[[Stage, Crowd], list[list[str]]]
    lacks: str
    keeps: bool = False


def peer_program(name: str) -> str:
    """A program of a peer. Raises RuntimeError where it is not installed."""
    by_apt = name.startswith("parallel-")
    found = shutil.which(name, path=None if by_apt else str(INSTALLED))
    if found is None:
        raise RuntimeError(
            f"{name} is not installed: {'apt-get install pssh' if by_apt else 'make build/peers/installed'}"
        )
    return found


def contestants(names: Iterable[str], *, case: str = "nothing", count: int = 1, warm: bool = False) -> list[Contestant]:
    """Peers that run instances at once, round the stage's ways; `warm`: if they can, on masters that are open."""
    return [_contestant(PEERS[name], case, count, warm) for name in names]


def _contestant(peer: Peer, case: str, count: int, warm: bool) -> Contestant:
    def ready(stage: Stage) -> None:
        if "argvs" not in stage.kept:
            crowd = Crowd([stage.ways[number % len(stage.ways)] for number in range(count)], case)
            write_ssh_config(stage, crowd.ways, masters=warm and peer.keeps)
            stage.kept["argvs"] = peer.argvs(stage, crowd)

    def go(stage: Stage) -> Trial:
        drained = case in ("lines", "line")
        jobs = [stage.job(argv, drained=drained) for argv in stage.kept["argvs"]]
        return stage.measure(jobs, starts=count)[0]

    return Contestant(peer.name, go, ready, peer.lacks)


def write_ssh_config(stage: Stage, ways: Sequence[Way], *, masters: bool = False) -> None:
    """The stage's ssh_config(5), in which `n000`, `n001`, … are these ways; the masters they use are opened."""
    config = stage.directory / "ssh_config"
    sockets = Path(tempfile.mkdtemp(prefix="rr-", dir="/tmp"))  # socket paths are short
    stage.stack.callback(shutil.rmtree, sockets, ignore_errors=True)
    stage.stack.callback(end_brokers, sockets)
    used: dict[str, int] = {}
    first: dict[str, str] = {}
    blocks = []
    for number, way in enumerate(ways):
        name = f"n{number:03}"
        values = {
            "HostName": way.target.host,
            "Port": way.target.port,
            "User": way.target.user,
            "IdentityFile": way.target.identity_file,
            "BatchMode": "yes",
            "LogLevel": "ERROR",
            **way.options,
        }
        if masters:
            place = used[way.host.name] = used.get(way.host.name, -1) + 1
            values["ControlPath"] = socket = f"{sockets}/{way.host.name}-{place // _SESSIONS}"
            first.setdefault(socket, name)
        blocks.append(f"Host {name}\n" + "".join(f"    {key} {value}\n" for key, value in values.items()))
    config.write_text("".join(blocks), encoding="utf-8")
    for name in first.values():
        stage.stand.run([stage.job([*ssh(stage), "-o", "ControlMaster=yes", "-N", "-f", name])])


def names(crowd: Crowd) -> list[str]:
    """The names of a crowd's instances in the stage's ssh_config."""
    return [f"n{number:03}" for number in range(len(crowd.ways))]


def ssh(stage: Stage) -> list[str]:
    return [which("ssh"), "-F", str(stage.directory / "ssh_config")]


def _openssh(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [[*ssh(stage), name, crowd.command()] for name in names(crowd)]


def _fabric(stage: Stage, crowd: Crowd) -> list[list[str]]:
    program = [sys.executable, str(_PROGRAMS / "fabric_run.py")]
    return [[*program, *(str(value) for value in task.values()), crowd.command()] for task in crowd.tasks]


def clush_argv(stage: Stage, count: int) -> list[str]:
    """How clush is started for so many instances; what it does is still to come."""
    last = f"n[000-{count - 1:03}]" if count > 1 else "n000"
    config = f"-F {stage.directory / 'ssh_config'}"
    return [peer_program("clush"), "-n", "-S", "-N", "-q", "-f", str(count), "-o", config, "-w", last]


def pssh_argv(stage: Stage, count: int, program: str = "parallel-ssh") -> list[str]:
    """How a program of pssh is started for so many instances; what it does is still to come."""
    hosts = stage.directory / "pssh-hosts"
    hosts.write_text("".join(f"n{number:03}\n" for number in range(count)), encoding="utf-8")
    config = f"-F {stage.directory / 'ssh_config'}"
    return [peer_program(program), "-h", str(hosts), "-p", str(count), "-t", "0", "-x", config]


def _clush(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [[*clush_argv(stage, len(crowd.ways)), crowd.command()]]


def _pssh(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [[*pssh_argv(stage, len(crowd.ways)), "-P", crowd.command()]]


def library(name: str, **values: object) -> list[str]:
    """argv of the program of ours that drives a peer's library."""
    return [peer_program("python"), str(_PROGRAMS / name), json.dumps(values)]


def _parallel_ssh(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [library("parallel_ssh_run.py", tasks=crowd.tasks, command=crowd.command())]


def _mitogen(stage: Stage, crowd: Crowd) -> list[list[str]]:
    options = [f"{key}={value}" for key, value in crowd.ways[0].options.items() if "Host" not in key]
    ssh_args = ["-F", "/dev/null", *(word for option in options for word in ("-o", option))]
    return [library("mitogen_run.py", tasks=crowd.tasks, ssh_args=ssh_args, command=crowd.command())]


def pyinfra_argv(stage: Stage, crowd: Crowd) -> list[str]:
    """How pyinfra is started for a crowd; the operation is still to come."""
    inventory = stage.directory / "pyinfra_inventory.py"
    data = [
        {
            "ssh_hostname": way.target.host,
            "ssh_port": way.target.port,
            "ssh_user": way.target.user,
            "ssh_key": way.target.identity_file,
            "ssh_known_hosts_file": way.options["UserKnownHostsFile"],
            "ssh_strict_host_key_checking": "off",
            "ssh_look_for_keys": False,
            "ssh_allow_agent": False,
            "ssh_connect_retries": 30,
            "ssh_connect_retry_min_delay": 0.1,
            "ssh_connect_retry_max_delay": 0.3,
        }
        for way in crowd.ways
    ]
    inventory.write_text(f"hosts = {list(zip(names(crowd), data, strict=True))!r}\n", encoding="utf-8")
    return [peer_program("pyinfra"), "-y", "--parallel", str(len(crowd.ways)), str(inventory)]


def _pyinfra(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [[*pyinfra_argv(stage, crowd), "exec", "--", crowd.command()]]


def _script(stage: Stage, crowd: Crowd) -> list[list[str]]:
    return [["sh", "-c", script(stage, way, crowd.command("$far/outputs"))] for way in crowd.ways]


def script(stage: Stage, way: Way, command: str, *, copy: Sequence[str] = ()) -> str:
    """The shape of the original remote-runner, for sh: four connections of its own with stock options.

    An `ssh` for `mktemp`, one with a reverse forward that runs the application, an `scp -r` for the outputs, an `ssh`
    for `rm`. `command` runs the application, with $far for the directory there; `copy` is a command that brings it
    there, on yet another connection.
    """
    options = ["-F", "/dev/null", "-o", "BatchMode=yes", "-i", str(way.target.identity_file)]
    options += [word for key, value in way.options.items() for word in ("-o", f"{key}={value}")]
    where = f"{way.target.user}@{way.target.host}"
    outputs = stage.fresh("outputs")
    outputs.mkdir()
    ssh = shlex.join([which("ssh"), *options, "-p", str(way.target.port)])
    scp = shlex.join([which("scp"), *options, "-P", str(way.target.port)])
    port = stage.ground.sync.port
    return f"""set -e
far=$({ssh} {where} 'far=$(mktemp -d) && mkdir "$far/outputs" && echo "$far"')
{shlex.join(copy) or ":"}
{ssh} -R {port}:localhost:{port} {where} "{command}"
{scp} -q -r "{where}:$far/outputs/." {outputs}/
{ssh} {where} "rm -rf $far"
test -e {outputs}/case
"""


PEERS = {
    peer.name: peer
    for peer in (
        Peer(SSH, _openssh, _ONLY, keeps=True),
        Peer("script", _script, "the original's shape: outputs and one forward, but no push, retry or supervision"),
        Peer("Fabric", _fabric, f"a process for each instance; {_OWN}"),
        Peer("clush", _clush, _ONLY, keeps=True),
        Peer("pssh", _pssh, _ONLY, keeps=True),
        Peer("parallel-ssh", _parallel_ssh, _OWN),
        Peer("pyinfra", _pyinfra, _OWN),
        Peer("mitogen", _mitogen, f"{_OWN}; one after the other on a host, which needs Python"),
    )
}
ALL = tuple(PEERS)
