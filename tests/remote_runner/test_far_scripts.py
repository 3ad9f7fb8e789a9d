"""The scripts that run on hosts keep to POSIX sh and to tools as dash, busybox and macOS have them."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

import remote_runner
from remote_runner.artifact.far_artifact import FarArtifact, Store
from remote_runner.far_shell import far_command, far_stdin, load_script
from remote_runner.job import Job, compose, prepare
from tests.needs import need

ROOT = Path(remote_runner.__file__).parent
# What a run is told.
_JOB = Job("id", ("app",), {})
_PREPARED = re.findall(r"^(rr_\w+)='", prepare(_JOB.seat, "nonce", "secret", "sh").decode(), re.M)
_OF_A_RUN = [*_PREPARED, *re.findall(r"^(rr_\w+)='", compose(_JOB).decode(), re.M)]
# nix/user.sh goes along with a run from the user's own store only.
_OF_USER_SH = "rr_how rr_unshare rr_flags rr_enter rr_tools rr_ids"
# Each script as it is sent, with the variables that are sent along; and those that only functions need which it does
# not call.
SENT: dict[tuple[str, ...], tuple[str, str]] = {
    ("base.sh", "artifact/push.sh"): ("nonce systems hash kib limit_kib directory eager pause_s", ""),
    ("base.sh", "artifact/nix/store.sh", "probe.sh"): ("nonce directory", ""),
    ("base.sh", "artifact/nix/store.sh", "artifact/nix/push.sh"): ("nonce systems directory out", ""),
    ("base.sh", "artifact/nix/realise.sh"): ("nonce base out drv substitute", ""),
    ("base.sh", "artifact/nix/user.sh", "artifact/nix/user_store.sh"): (
        "nonce systems directory out length limit_kib rr_enter",
        "rr_home",
    ),
    ("base.sh", "supervisor.sh", "artifact/nix/user.sh", "leftovers.sh"): (
        "rr_mark rr_directory rr_blanks rr_tar rr_ids rr_older_s rr_end_alive rr_grace_s rr_wanted",
        " ".join(["rr_enter", *_OF_A_RUN]),
    ),
    ("base.sh", "supervisor.sh"): (" ".join(_OF_A_RUN), _OF_USER_SH),
    ("artifact/nix/user.sh",): ("rr_home rr_store_here", ""),
    ("artifact/nix/enter.sh",): ("", ""),
}
# What shellcheck(1) says and is not followed, and why.
NOT_FOLLOWED = {
    "SC2012": "ls sorts by time, and the names are hashes and store paths, which hold no blanks",
    "SC2045": "the same",
    "SC2015": "A && B || C means that: C for whatever failed",
    "SC2016": "a dollar in single quotes is for the sh or the awk that gets the words",
    "SC2030": "what a subshell sets is used in it",
    "SC2031": "the same",
    "SC2046": "words are meant to be split where no quotes are; IFS and globbing are as they should be there",
    "SC2086": "the same",
    "SC2034": "a variable of base.sh that one of the scripts behind it needs, and another does not",
    "SC2317": "functions that only some of the calls reach, and all that stands behind an exit",
    "SC3044": "declare is bash's, and stands behind a look at BASH_VERSION",
}

# Options that macOS's own tools do not know or read in another way (its manual pages; POSIX has none of them). Of these
# tools none takes long options there.
GNU_ONLY = {
    **dict.fromkeys(("cat", "chmod", "cut", "env", "mkdir", "rm", "tee", "uname"), ""),
    "cp": "-t -T -u",
    "date": "-d -I",
    "df": "-B -T -t",
    "du": "-b -B",
    "find": "-printf -fprintf -regextype -readable -writable -executable -daystart",
    "grep": "-P -z -T",
    "head": "-z",
    "id": "-z",
    "ln": "-r -t -T",
    "ls": "-I -v -w -X -Z",
    "mktemp": "-p",
    "mv": "-t -T -u -Z",
    "od": "-w -S",
    "ps": "-e",
    "readlink": "-f -e -m",
    "sed": "-r -s -z -i",
    "sort": "-z -h -R",
    "stat": "-c -L",
    "tail": "-z",
    "tar": "-a",
    "touch": "-d",
    "tr": "-t",
    "wc": "-L",
    "xargs": "-a -d -r",
}
# Tools that macOS does not have at all.
LINUX_ONLY = (
    "flock getent ionice mount numfmt pidof pivot_root realpath setsid sha256sum shuf stdbuf tac timeout umount unshare"
)
# What stands in the scripts nevertheless, and why it does no harm on macOS.
ALLOWED = {
    ("leftovers.sh", "stat -c"): "stat -f, behind it, is macOS's",
    ("supervisor.sh", "grep -z"): "where there is a /proc",
    ("artifact/nix/enter.sh", "mount"): "a user's own store is for Linux",
    ("artifact/nix/enter.sh", "pivot_root"): "the same",
    ("artifact/nix/enter.sh", "umount"): "the same",
    ("probe.sh", "unshare"): "the same; what is missing is an answer",
    ("artifact/nix/user.sh", "unshare"): "the same; looked for, and missed, before anything is sent",
    ("supervisor.sh", "setsid"): "looked for, and only where sh makes no process groups",
}
_WORDS = r"((?:[ \t]+[^ \t|&;()<>]+)*)"
# A command stands at the beginning, or behind something that begins one.
_BEGIN = (
    r"(?:^|[|&;({`!]|\b(?:then|do|else|if|while|until|exec|command(?: -v)?|rr_search_path)\b)"
    r"[ \t]*(?:[A-Za-z_]\w*=\S*[ \t]+)*"
)


def strangers(script: str) -> list[str]:
    """What of a script macOS would not take: `TOOL -OPTION`, or a tool by itself."""
    found = []
    for line in script.splitlines():
        if line.lstrip().startswith("#"):
            continue
        for tool, options in GNU_ONLY.items():
            for command in re.finditer(rf"{_BEGIN}{tool}\b(?![-./=]){_WORDS}", line):
                for word in command[1].split():
                    found += [f"{tool} {option}" for option in _options(tool, word) if option in options.split()]
                    if re.match(r"--[a-z]", word):
                        found.append(f"{tool} {word.partition('=')[0]}")
        found += [tool for tool in LINUX_ONLY.split() if re.search(rf"{_BEGIN}{tool}\b(?![-./=])", line)]
    return found


def _options(tool: str, word: str) -> list[str]:
    """`-ab` as -a and -b; find's are words."""
    letters = re.match(r"-([A-Za-z]+)", word)
    if letters is None or tool == "find":
        return [word]
    return [f"-{letter}" for letter in letters[1]]


@pytest.mark.parametrize("scripts", SENT, ids=" ".join)
def test_shellcheck_finds_nothing_else(scripts: tuple[str, ...]) -> None:
    check(given(*SENT[scripts]) + load_script(*scripts) + "\n")


@pytest.mark.parametrize("store", [None, *Store])
def test_shellcheck_finds_nothing_else_in_a_whole_run(store: Store | None) -> None:
    artifact = None if store is None else FarArtifact(store, "name")
    job = Job("id", ("app", "$1"), {"A": "it's", "PWD": "/"}, artifact)
    script = (prepare(job.seat, "nonce", "secret", "/bin/sh") + compose(job)).decode()
    check((given("rr_store_here") if store is Store.USER else given(_OF_USER_SH)) + script)


def given(*names: str) -> str:
    return "".join(f"{name}=$1\n" for name in " ".join(names).split())


def check(script: str) -> None:
    need("shellcheck")
    argv = ["shellcheck", "-s", "sh", "-f", "gcc", "-e", ",".join(NOT_FOLLOWED), "-"]
    done = subprocess.run(argv, input=f"#!/bin/sh\n{script}", capture_output=True, text=True, check=False, timeout=120)
    assert (done.stdout, done.stderr) == ("", "")


def test_shellcheck_would_find_what_it_is_asked_for() -> None:
    with pytest.raises(AssertionError, match="SC2154"):
        check('echo "$never_set"')
    with pytest.raises(AssertionError, match="SC3010"):
        check("[[ -e /bin/sh ]]")


def test_every_script_is_looked_at_as_it_is_sent() -> None:
    files = {str(path.relative_to(ROOT)) for path in ROOT.rglob("*.sh")}
    assert {name for scripts in SENT for name in scripts} | {"supervisor.sh"} == files
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "load_script":
                names = tuple(word.value for word in node.args if isinstance(word, ast.Constant))
                assert len(names) != len(node.args) or names in SENT, f"{path.name} sends {names}"


@pytest.mark.parametrize("name", sorted(str(path.relative_to(ROOT)) for path in ROOT.rglob("*.sh")))
def test_macos_has_what_the_scripts_use(name: str) -> None:
    found = set(strangers((ROOT / name).read_text(encoding="utf-8")))
    assert found == {what for script, what in ALLOWED if script == name}


def test_macos_has_what_starts_a_script() -> None:
    assert strangers(far_command()) == strangers(far_stdin()) == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('x=$(readlink -f "$1")', ["readlink -f"]),
        ("ls | sed -nr 's/a/b/'", ["sed -r"]),
        ('LC_ALL=C grep -lzF -e "$x" f', ["grep -z"]),
        ("find . -type f -printf '%p'", ["find -printf"]),
        ("[ -e x ] || mkdir --parents x", ["mkdir --parents"]),
        ("[ -e x ] || mv --no-clobber x y", ["mv --no-clobber"]),
        ("if timeout 3 true; then", ["timeout"]),
        ("stat -c %Y x || stat -f %m x", ["stat -c"]),
        ("find . -type d -path './*/*' -exec chmod 555 {} +", []),
        ("# sed -r", []),
        ("cp -P a b; du -sk x; touch -h y; readlink z; grep -q -x -F -e a b; tar -xf -; date +%s", []),
    ],
)
def test_the_look_for_what_macos_lacks_can_fail(line: str, found: list[str]) -> None:
    assert strangers(line) == found
