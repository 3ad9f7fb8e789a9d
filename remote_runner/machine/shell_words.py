"""What only a shell understands in a command, and the line that hands the command to one."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

OPERATORS = frozenset({"&&", "||", "|", ";", "&", ">", ">>", "<", "2>", "2>&1", "&>", "|&"})
"""What means something to a shell and nothing to a program that is started without one."""

# POSIX's and bash's keywords, and the builtins that no program does the work of.
_SHELL_ONLY = frozenset(
    re.findall(
        r"\S+",
        "if then else elif fi for while until select do done case esac function { } ( ! [[ (( : . source alias bg bind "
        "break builtin caller cd continue declare dirs disown enable eval exec exit export fc fg getopts hash history "
        "jobs let local logout mapfile popd pushd read readonly return set shift shopt suspend times trap type typeset "
        "ulimit umask unalias unset wait",
    )
)
_SHELLS = frozenset({"sh", "bash", "dash", "ksh", "zsh", "fish", "busybox"})
_QUOTED = re.compile(r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.""", re.DOTALL)
_OPERATOR = re.compile(r"&&|\|\|?|\|&|;|&|\d?>>?(&\d)?|&>|<")
_REDIRECTION = re.compile(r"(\d?>>?|&>|<)\S+")
_EXPANDED = re.compile(r"\$[\w{(]|`|^~(/|$)|[*?]")
_AS_IT_IS = re.compile(r"[^\s'\"\\;|&<>()`#!]+")


def operator_in(text: str) -> str:
    """The first operator of a shell's that stands outside of quotes in a command's text; "" where there is none."""
    for word in _QUOTED.sub("_", text).split():
        if _OPERATOR.fullmatch(word) or _REDIRECTION.fullmatch(word):
            return word
        if word.endswith(";"):
            return ";"
    return ""


def needs_shell(words: Sequence[str]) -> bool:
    """Whether a command begins with what no program is called: a shell's own word, or `NAME=value`."""
    return words[0] in _SHELL_ONLY or re.fullmatch(r"[A-Za-z_]\w*=.*", words[0], re.DOTALL) is not None


def expanded_by_shell(words: Sequence[str]) -> str:
    """The first word that a shell would replace by another (`$HOME`, `*.c`); "" where none is, or a shell gets it."""
    if words[0].rpartition("/")[2] in _SHELLS:
        return ""
    return next((word for word in words if _EXPANDED.search(word)), "")


def shell_line(words: Sequence[str]) -> str:
    """The command that hands these words to a shell, which gives its own among them their meaning."""
    line = " ".join(word if word in OPERATORS or _AS_IT_IS.fullmatch(word) else shlex.quote(word) for word in words)
    return f"sh -c {shlex.quote(line)}"
