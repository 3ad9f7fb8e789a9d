"""No value becomes code: made-up values cross to every sh that may be a host's, and arrive byte for byte."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from remote_runner.controller import Controller
from remote_runner.far_shell import far_command, far_script
from remote_runner.inventory.command_template import fill
from tests.remote_runner.far import LOCAL_SHELLS, Far, local_shell, open_far

# A program of these would leave a file named so; looked for after every example.
CANARY = "canary"
FRAGMENTS = (
    *rb"""
    ' " \ \' '\'' '' ` $ $$ ${ } $(( )) ( ) ; & && | < > # ! !! ~ * ? [a] {a,b} = -n -- %s %n <<E E $'\x27' ${x:=touch}
    $(touch${IFS}canary) `touch${IFS}canary` ';touch${IFS}canary;' ";touch${IFS}canary;"
    rr_mark= REMOTE_RUNNER_INSTANCE=
    """.split(),
    *(b"\n", b"\r", b" ", b"\t", b"\x1e", b"\x1err-", b"\x7f", b"\x80", b"\xff", b"\xc3", b"\x81\x5c", b"\x1b[2J"),
    *(b"\ntouch canary\n", b"\nbye clean\n", b"\nstop\n", b"\nexit\n", b"\ndone\n", b"\n}\n", b"a" * 300),
)
VALUES = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.binary(max_size=12).map(lambda raw: raw.replace(b"\0", b"0"))), max_size=8
).map(b"".join)
NAMES = st.one_of(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,11}", fullmatch=True),
    st.sampled_from(
        ("IFS", "PS4", "ENV", "BASH_ENV", "SHELLOPTS", "UID", "OPTIND", "LC_ALL", "LANG", "CDPATH", "PATH", "HOME")
    ),
).filter(lambda name: name not in ("REMOTE_RUNNER_INSTANCE", "TEST_OUTPUTS_PATH", "TEST_TEMP_PATH"))
# Each example costs processes: there are few, and one that fails is shown as it was found.
BOUNDED = settings(
    deadline=None,
    database=None,
    phases=(Phase.generate,),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    print_blob=True,
)


@pytest.fixture(params=LOCAL_SHELLS)
def far(request: pytest.FixtureRequest, tmp_path: Path, controller: Controller) -> Iterator[Far]:
    with open_far(request.param, tmp_path, controller) as opened:
        yield opened


@pytest.mark.parametrize("kind", LOCAL_SHELLS)
@settings(BOUNDED, max_examples=60)
@given(values=st.lists(VALUES, min_size=1, max_size=12))
def test_values_of_a_script_arrive_as_they_are(
    kind: str, tmp_path_factory: pytest.TempPathFactory, values: list[bytes]
) -> None:
    directory = tmp_path_factory.mktemp("there")
    names = [f"rr_{number}" for number in range(len(values))]
    script = "printf '%s\\000' " + " ".join(f'"${name}"' for name in names)
    done = subprocess.run(
        [*shlex.split(local_shell(kind, directory)), "-c", far_command()],
        input=far_script(script, dict(zip(names, values, strict=True))),
        cwd=directory,
        capture_output=True,
        check=False,
        timeout=20,
    )
    assert done.stdout.split(b"\0")[:-1] == values
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (directory / CANARY).exists()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc (Linux)")
@settings(BOUNDED, max_examples=12)
@given(
    words=st.lists(VALUES, max_size=12),
    variables=st.dictionaries(NAMES, VALUES, max_size=16),
    note=VALUES,
)
def test_arguments_variables_and_record_of_a_job_arrive_as_they_are(
    far: Far, words: list[bytes], variables: dict[str, bytes], note: bytes
) -> None:
    show = (
        "import sys; w=sys.stdout.buffer.write; [w(open(f'/proc/self/{n}','rb').read()) for n in ('cmdline','environ')]"
    )
    argv: tuple[str | bytes, ...] = (sys.executable, "-I", "-S", "-c", show, *words)
    running = far.run(*argv, environment=variables, record={"note": os.fsdecode(note)}, keep=True)
    said = running.stdout.split(b"\0")
    assert said[5 : len(argv)] == words
    found = dict(entry.split(b"=", 1) for entry in said[len(argv) :] if entry)
    assert {name: found.get(name.encode()) for name in variables} == variables
    record = (far.directory / "runs" / running.job.instance_id / "record").read_bytes()
    assert b"note=" + note.replace(b"\n", b" ") in record.split(b"\n")
    assert running.stderr == b""
    assert not list(far.directory.parent.rglob(CANARY))


@settings(BOUNDED, max_examples=200)
@given(words=st.lists(st.text(max_size=20), min_size=1, max_size=5), value=st.text(max_size=20))
def test_what_a_placeholder_stands_for_is_no_template_itself(words: list[str], value: str) -> None:
    literal = [word.replace("{", "{{").replace("}", "}}") for word in words]
    assert fill((*literal, "{out}", "x={out}"), {"out": value}) == (*words, value, f"x={value}")
