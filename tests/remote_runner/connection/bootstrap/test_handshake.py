"""What a login on a host is made to do: in every sh, whatever others prepared, whatever the login exports."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remote_runner.connection.bootstrap.handshake import Answers, Greeting, script
from remote_runner.connection.frames import BreachError
from remote_runner.connection.transports.openssh import shell_command
from tests.hostile_places import HOSTILE, OTHER_USER
from tests.needs import need

SHELLS = ("dash", "bash", "bash as sh", "busybox", "zsh as sh")
NONCE = "0123456789abcdef" * 2
HOSTILE_OPTIONS = (
    *("SHELLOPTS=braceexpand:hashall:nounset", "SHELLOPTS=noglob", "SHELLOPTS=noclobber", "SHELLOPTS=errexit"),
    *("SHELLOPTS=xtrace:verbose", "SHELLOPTS=allexport", "BASHOPTS=failglob", "BASHOPTS=nullglob"),
    *("BASHOPTS=nocasematch", "TMOUT=1", "CDPATH=/:/tmp", "ENV=/etc/profile", "IFS=/"),
)


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """argv of a sh that reads a script from its input."""
    name, _, alias = str(request.param).partition(" as ")
    need(name)
    found = shutil.which(name)
    assert found is not None
    if alias:
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / alias).symlink_to(found)
        found = str(tmp_path / "bin" / alias)
    return [found, "sh", "-s"] if name == "busybox" else [found, "-s"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    parent = tmp_path / "shared"
    parent.mkdir()
    return parent / "remote-runner"


def ask(
    shell: list[str],
    home: Path | str,
    *,
    directory: str | Path = "",
    replace: str = "",
    program: bytes = b"",
    environ: Mapping[str, str] | None = None,
) -> list[tuple[str, str]]:
    """All that the script answers; it is given `program` where it needs one."""
    values = {
        **{"nonce": NONCE, "agent": "0123456789abcdef", "session": "5" * 32, "epoch": "1"},
        **{"directory": str(directory), "replace": replace},
    }
    process = subprocess.Popen(
        shell,
        env={"PATH": os.environ["PATH"], "HOME": str(home), **(environ or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    answers, found = Answers(NONCE), []
    with process:
        process.stdin.write(script(values))
        process.stdin.flush()
        while data := os.read(process.stdout.fileno(), 4096):
            answers.feed(data)
            while answer := answers.next():
                found.append(answer)
                if answer[0] == "need":
                    with suppress(BrokenPipeError):  # it has ended, with a reason
                        os.write(process.stdin.fileno(), b"%d\n" % (len(program) or 1000))
                        process.stdin.write(program)
                        process.stdin.flush()
                    if not program:  # and the rest never comes
                        process.stdin.close()
        with suppress(BrokenPipeError):
            process.stdin.close()
    if answers.noise():
        found.append(("noise", answers.noise()))
    return found


ECHO = b'#!/bin/sh\nprintf "%s arguments %s\\n" "$3" "$*"\nprintf "%s directory %s\\n" "$3" "$PWD"\n'


ODD = b"\t!! \\\\n \\0041 %s $HOME `id` \"x\" * ~ # ; & \n 'quoted' \xc3\xbc \xff \x01 end"
# Says that, and a line of its input, of which nothing was read before.
ODD_SCRIPT = b"{\nprintf %s '" + ODD.replace(b"'", b"'\\''") + b'\'\nread -r line\necho "$line"\n}\n'


def said_by(shell: list[str], command: str, tmp_path: Path) -> bytes:
    input_ = b"first\nsecond\n"
    return subprocess.run([*shell, "-c", command], input=input_, capture_output=True, check=True, cwd=tmp_path).stdout


@pytest.mark.parametrize("name", ["dash", "bash", "zsh", "fish", "tcsh"])
def test_the_command_is_one_that_every_login_shell_reads_alike(tmp_path: Path, name: str) -> None:
    need(name)
    assert said_by([name], shell_command(ODD_SCRIPT), tmp_path) == ODD + b"first\n"


def test_every_sh_makes_the_same_script_of_it(shell: list[str], tmp_path: Path) -> None:
    command = shell_command(ODD_SCRIPT).replace("/bin/sh", shlex.join(shell[:-1]))
    assert said_by(["/bin/sh"], command, tmp_path) == ODD + b"first\n"


def test_the_program_is_taken_once_and_becomes_the_session(shell: list[str], tmp_path: Path) -> None:
    program = ECHO + os.urandom(300_000).replace(b"\n", b"")
    name = os.uname()
    base = tmp_path / "home with a space" / ".cache" / "remote-runner"
    become = [
        ("start", ""),
        ("arguments", f"session {base} {NONCE} {'5' * 32} 1"),
        ("directory", "/"),
    ]
    first = ask(shell, base.parent.parent, program=program)
    assert first[0][0] == "need"
    assert first[0][1].split()[:2] == [name.sysname, name.machine]
    assert first[0][1].split()[2] in ("64", "32", "0")
    assert first[1:4] == become
    (found,) = (base / "agents").iterdir()
    assert found.name == f"0123456789abcdef-{name.sysname}-{name.machine}"
    assert found.read_bytes() == program
    assert stat.S_IMODE(found.stat().st_mode) == 0o700
    assert ask(shell, base.parent.parent)[:3] == become
    assert ask(shell, base.parent.parent, replace="1", program=ECHO)[0][0] == "need"
    assert found.read_bytes() == ECHO
    assert [path.name for path in base.iterdir()] == ["agents"]


@pytest.mark.parametrize("setting", HOSTILE_OPTIONS)
def test_what_a_login_exports_changes_nothing(shell: list[str], tmp_path: Path, setting: str) -> None:
    environ = dict([setting.split("=", 1)])
    first = ask(shell, tmp_path / "home", program=ECHO, environ=environ)
    assert [kind for kind, _ in first[:4]] == ["need", "start", "arguments", "directory"], first
    assert [kind for kind, _ in ask(shell, tmp_path / "home", environ=environ)[:3]] == [
        "start",
        "arguments",
        "directory",
    ]


def test_a_program_that_is_cut_off_is_not_kept(shell: list[str], tmp_path: Path) -> None:
    answers = ask(shell, tmp_path / "home")
    assert [kind for kind, _ in answers] == ["need", "fault"]
    assert list((tmp_path / "home/.cache/remote-runner").rglob("0123*")) == []


def test_a_warm_login_starts_nothing_but_ls_and_uname(tmp_path: Path) -> None:
    need("dash")
    ask(["dash", "-s"], tmp_path / "home", program=ECHO)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("ls", "uname"):
        (tools / tool).symlink_to(shutil.which(tool) or "")
    assert [
        kind for kind, _ in ask([shutil.which("dash") or "", "-s"], tmp_path / "home", environ={"PATH": str(tools)})
    ] == [*("start", "arguments", "directory")]


def test_a_full_disk_is_told(shell: list[str], tmp_path: Path) -> None:
    need("netns")  # a mount namespace of the test's own
    home = tmp_path / "home"
    home.mkdir()
    mount = f'mount -t tmpfs -o size=64k,mode=700 none {home} && exec "$@"'
    answers = ask(["unshare", "-m", "sh", "-c", mount, "sh", *shell], home, program=os.urandom(200_000))
    assert [kind for kind, _ in answers] == ["need", "fault"]
    assert answers[1][1].startswith("room ")


def test_a_place_where_no_programs_start_is_passed_over(shell: list[str], tmp_path: Path) -> None:
    need("netns")
    home, var = tmp_path / "home", tmp_path / "var"
    home.mkdir()
    var.mkdir()
    mount = (
        f"mount -t tmpfs -o noexec,mode=700 none {home} && chmod 1777 {var} && mount --bind {var} /var/tmp && "
        'mkdir /var/tmp/remote-runner-0 && chmod 700 /var/tmp/remote-runner-0 && exec "$@"'
    )
    answers = ask(["unshare", "-m", "sh", "-c", mount, "sh", *shell], home, program=ECHO)
    assert [kind for kind, _ in answers[:2]] == ["need", "start"]
    assert len(list((var / "remote-runner-0" / "agents").iterdir())) == 1
    mount = f'mount -t tmpfs -o noexec,mode=700 none {home} && exec "$@"'
    answers = ask(["unshare", "-m", "sh", "-c", mount, "sh", *shell], home, directory=home / "x", program=ECHO)
    assert answers[0][0] == "fault"
    assert "programs cannot be started there" in answers[0][1]


# Directories that others prepared


def make_parent_of_another(place: Path) -> None:
    need("netns")
    place.mkdir(mode=0o700)
    os.chown(place.parent, OTHER_USER, OTHER_USER)


def make_sticky_parent_of_another(place: Path) -> None:
    make_parent_of_another(place)
    place.parent.chmod(0o1777)


def make_parent_writable_by_a_group(place: Path) -> None:
    need("netns")
    place.mkdir(mode=0o700)
    os.chown(place.parent, os.getuid(), OTHER_USER)
    place.parent.chmod(0o775)


def make_link_of_another_on_the_way(place: Path) -> None:
    need("netns")
    real = place.parent.with_name("real")
    place.parent.rename(real)
    place.parent.symlink_to(real)
    os.chown(place.parent, OTHER_USER, OTHER_USER, follow_symlinks=False)
    (real / place.name).mkdir(mode=0o700)


def make_link_into_what_another_has(place: Path) -> None:
    need("netns")
    real = place.parent.with_name("real")
    place.parent.rename(real)
    place.parent.symlink_to(real)
    (real / place.name).mkdir(mode=0o700)
    os.chown(real, OTHER_USER, OTHER_USER)


HOSTILE_THERE: Mapping[str, Callable[[Path], None]] = {
    **HOSTILE,
    "in a directory of another user": make_parent_of_another,
    "in a sticky directory of another user": make_sticky_parent_of_another,
    "in a directory that a group may write to": make_parent_writable_by_a_group,
    "behind another user's link": make_link_of_another_on_the_way,
    "behind our link to another user's": make_link_into_what_another_has,
}


def state_of(place: Path) -> object:
    """Everything around the place: names, kinds, permissions, owners."""
    return sorted((str(path), path.lstat().st_mode, path.lstat().st_uid) for path in place.parent.parent.rglob("*"))


@pytest.mark.parametrize("make", HOSTILE_THERE.values(), ids=HOSTILE_THERE)
def test_what_others_prepared_is_refused_and_left_alone(
    shell: list[str], tmp_path: Path, place: Path, make: Callable[[Path], None]
) -> None:
    make(place)
    before = state_of(place)
    answers = ask(shell, tmp_path, directory=place, program=ECHO)
    assert [kind for kind, _ in answers] == ["fault"]
    assert answers[0][1].startswith(f"directory {place}: ")
    assert state_of(place) == before


@pytest.mark.parametrize("mode", [0o755, 0o775, 0o1777, 0o700])
def test_a_parent_that_protects_what_is_ours_will_do(shell: list[str], tmp_path: Path, place: Path, mode: int) -> None:
    place.parent.chmod(mode)  # 0775: its group has the number of its user
    assert ask(shell, tmp_path, directory=f"{place}//", program=ECHO)[0][0] == "need"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_directory_that_others_may_read_is_closed(shell: list[str], tmp_path: Path, place: Path) -> None:
    place.mkdir(mode=0o755)
    assert ask(shell, tmp_path, directory=place, program=ECHO)[0][0] == "need"
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_a_link_of_ours_or_roots_on_the_way_will_do(shell: list[str], tmp_path: Path, place: Path) -> None:
    (tmp_path / "link").symlink_to(place.parent)
    assert ask(shell, tmp_path, directory=tmp_path / "link" / "x" / "y", program=ECHO)[0][0] == "need"
    assert stat.S_IMODE((place.parent / "x").stat().st_mode) == 0o700


@pytest.mark.parametrize("directory", ["relative", "/", "//", "a\nb", "/tmp/a\nb", "-x", "'"])
def test_what_is_no_path_is_refused(shell: list[str], tmp_path: Path, directory: str) -> None:
    assert ask(shell, tmp_path, directory=directory)[0][0] == "fault"


def test_a_name_with_anything_in_it_is_a_name(shell: list[str], tmp_path: Path) -> None:
    place = tmp_path / "it's $(touch x) `y` \\n *? ü"
    assert ask(shell, tmp_path, directory=place, program=ECHO)[2] == (
        "arguments",
        f"session {place} {NONCE} {'5' * 32} 1",
    )


def test_a_default_acl_does_not_open_what_is_made(shell: list[str], tmp_path: Path, place: Path) -> None:
    if not shutil.which("setfacl"):
        pytest.skip("install acl")
    if subprocess.run(["setfacl", "-d", "-m", "g::rwx,g:daemon:rwx", tmp_path], check=False).returncode:
        pytest.skip("a file system without ACLs")
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    subprocess.run(["setfacl", "-d", "-m", "g::rwx,g:daemon:rwx", home], check=True)
    home.chmod(0o700)
    tmp_path.chmod(0o700)
    answers = ask(shell, home, program=ECHO)
    assert answers[2] == ("arguments", f"session {home}/.cache/remote-runner {NONCE} {'5' * 32} 1")
    for path in (home / ".cache", home / ".cache/remote-runner", home / ".cache/remote-runner/agents"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_the_next_place_is_taken_when_one_was_prepared_by_others(shell: list[str], tmp_path: Path) -> None:
    """Without a home: /var/tmp of a mount namespace of the test, with a trap in it, then /tmp."""
    need("netns")
    uid = os.getuid()
    shared = {name: tmp_path / name for name in ("var", "tmp")}
    for directory in shared.values():
        directory.mkdir()
        directory.chmod(0o1777)
    (shared["var"] / f"remote-runner-{uid}").symlink_to("/etc")
    before = Path("/etc").stat().st_mode
    if str(tmp_path) in shell[0]:
        shutil.copy(shell[0], shared["tmp"] / "sh")  # /tmp goes out of sight
        shell = ["/tmp/sh", *shell[1:]]
    mounts = f"mount --bind {shared['var']} /var/tmp && mount --bind {shared['tmp']} /tmp && exec {shlex.join(shell)}"
    answers = ask(["unshare", "-m", "sh", "-c", mounts], "", program=ECHO)
    assert answers[2] == ("arguments", f"session /tmp/remote-runner-{uid} {NONCE} {'5' * 32} 1")
    assert Path("/etc").stat().st_mode == before


# What comes back


@given(st.lists(st.binary(max_size=80)), st.integers(1, 40))
def test_answers_are_found_among_any_noise(noise: list[bytes], size: int) -> None:
    noise = [piece for piece in noise if NONCE.encode() not in piece]
    wire = b"\n".join(noise) + f"\n{NONCE} start \r\nmore noise\n{NONCE} agent {{}}\nrest".encode()
    answers, found = Answers(NONCE), []
    for start in range(0, len(wire), size):
        answers.feed(wire[start : start + size])
        while answer := answers.next():
            found.append(answer)
    assert found == [("start", ""), ("agent", "{}")]
    assert answers.rest() == b"rest"


def test_an_echo_of_what_was_sent_is_no_answer() -> None:
    answers = Answers(NONCE)
    answers.feed(f"$ nonce='{NONCE}'\nx{NONCE} agent 1\n{NONCE}agent 2\n".encode() + b"z" * 100_000)
    assert answers.next() is None
    assert len(answers.noise()) <= 3 * (4 << 10)


GREETING = (
    '{"protocol":1,"agent":"0123456789abcdef","epoch":1,"received":0,"base":"/h/.cache/remote-runner","uid":1000,'
    '"user":"u","sysname":"Linux","machine":"x86_64","bits":64,"hostname":"dex","boot":"b","pid":4711,"address":""}'
)


def test_the_greeting_is_read() -> None:
    greeting = Greeting.parse(GREETING)
    assert str(greeting.system) == "x86_64-linux"
    assert (greeting.pid, greeting.hostname, greeting.epoch) == (4711, "dex", 1)


@pytest.mark.parametrize(
    ("found", "other"),
    [
        ('"protocol":1', '"protocol":2'),
        ('"pid":4711', '"pid":-1'),
        ('"pid":4711', '"pid":true'),
        ('"pid":4711', '"pid":' + "9" * 400),
        ('"uid":1000', '"uid":"1000"'),
        ('"uid":1000', '"uid":NaN'),
        ('"user":"u"', '"user":null'),
        ('"user":"u"', '"user":"' + "u" * 5000 + '"'),
        ("{", "["),
    ],
)
def test_a_greeting_that_is_none_is_a_breach(found: str, other: str) -> None:
    with pytest.raises(BreachError):
        Greeting.parse(GREETING.replace(found, other, 1))
