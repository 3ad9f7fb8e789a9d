"""What a shell alone understands, told from what a program may be given."""

from __future__ import annotations

import subprocess

import pytest

from remote_runner.machine.shell_words import expanded_by_shell, needs_shell, operator_in, shell_line


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cd src && make", "&&"),
        ("make; cp a {out}", ";"),
        ("make ; cp a {out}", ";"),
        ("cat a b >{out}", ">{out}"),
        ("make 2>&1", "2>&1"),
        ("a | b", "|"),
        ("sh -c 'a; b && c >d'", ""),
        ("sh -c='a; b'", ""),
        (r"find . -exec ls {} \;", ""),
        ('sed "s/;/x; /" a', ""),
        ("curl -o {out} https://192.0.2.1/?a=1&b=2", ""),
        ("cc -DF(x)=x a.c -o {out}", ""),
    ],
)
def test_an_operator_stands_outside_of_quotes(text: str, found: str) -> None:
    assert operator_in(text) == found


@pytest.mark.parametrize("command", ["exit 3", ". ./env", "cd /tmp", "A=1 make", "if true", "umask 022", "source x"])
def test_what_no_program_is_called_needs_a_shell(command: str) -> None:
    assert needs_shell(command.split())


@pytest.mark.parametrize("command", ["true", "env A=1 make", "./A=1", "test -f x", "echo exit", "[ -f x ]", "a-b=c"])
def test_a_program_needs_none(command: str) -> None:
    assert not needs_shell(command.split())


def test_what_a_shell_would_expand_is_found_unless_a_shell_gets_it() -> None:
    for word in ("$HOME/a", "${A}", "$(id)", "*.c", "~/a"):
        assert expanded_by_shell(["cp", word]) == word
        assert expanded_by_shell(["/bin/sh", "-c", word]) == ""
    assert expanded_by_shell(["cp", "a~", "5$", "{out}"]) == ""


def test_the_line_gives_a_shells_words_their_meaning_and_keeps_the_others() -> None:
    for words, printed in (
        (["A=1", "printf", "%s", "a b", "&&", "echo", "it's", ";"], "a bit's\n"),
        (["echo", "(x)", "$((1 + 1))", "|", "cat"], "(x) $((1 + 1))\n"),
        (["cd", "/", "&&", "pwd"], "/\n"),
    ):
        done = subprocess.run(["sh", "-c", shell_line(words)], capture_output=True, text=True, check=True)
        assert done.stdout == printed, shell_line(words)
    assert shell_line(["cp", "*.sh", "{out}"]) == "sh -c 'cp *.sh {out}'"
