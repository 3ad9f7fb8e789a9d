"""Completion in bash, zsh and fish: `completion SHELL` prints a script, which asks `remote-runner _complete`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import invoke

from remote_runner.errors import RemoteRunnerError
from remote_runner.typed import typed
from tasks.command_line.task import Failed, Task, task
from tasks.init import LANGUAGES
from tasks.plan import Plan
from tasks.say import show
from testground.errors import TestgroundError

if TYPE_CHECKING:
    from testground.manifest import Manifest

ASK = "_complete"
SHELLS = ("bash", "zsh", "fish")


@task(bare="shell", help={"shell": f"{', '.join(SHELLS)}"})
def completion(c: invoke.Context, shell: str = "") -> None:
    """Print what a shell completes by: eval "$(remote-runner completion bash)"."""
    if shell not in SHELLS:
        raise Failed(f"completion: say for which shell: {typed()} completion {'|'.join(SHELLS)}")
    script = Path(__file__).with_name(f"completion.{shell}").read_text(encoding="utf-8")
    show(script.replace("PROGRAM", typed().partition(" ")[0]).rstrip("\n"))


@dataclass(frozen=True)
class Grammar:
    """The tasks with their options (a flag, whether a value follows) and bare words, and the program's options."""

    tasks: Mapping[str, Mapping[str, bool]]
    words: Mapping[str, Sequence[str]]
    program: Mapping[str, bool]


class Names:
    """What the plan knows names for. What cannot be read has none: completion says nothing of it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @cached_property
    def hosts(self) -> list[str]:
        """Hosts and @labels; no program of `hosts_from` is asked."""
        from remote_runner.inventory.inventory import Inventory

        try:
            inventory = Inventory.load(self._plan.inventory_directory)
        except RemoteRunnerError:
            return []
        labels = {f"@{label}" for host in inventory.hosts for label in host.labels}
        return [*(host.name for host in inventory.hosts), *sorted(labels)]

    @cached_property
    def _manifest(self) -> Manifest | None:
        try:
            return self._plan.manifest
        except (TestgroundError, Failed):
            return None

    @property
    def cases(self) -> list[str]:
        """The test cases."""
        return [case.name for case in self._manifest.testcases] if self._manifest else []

    def params(self, case: str) -> list[str]:
        """A case's parameters; those of all cases for any other name."""
        cases = self._manifest.testcases if self._manifest else ()
        chosen = [one for one in cases if one.name == case] or cases
        return sorted({name for one in chosen for name in one.params})

    @property
    def runs(self) -> list[str]:
        """The runs of which something may be on hosts or here, the newest first."""
        from remote_runner.runs import noted_runs

        local = [path.name for path in self._plan.directory.glob("outputs/local_exec/*/*") if path.is_dir()]
        try:
            return sorted({*local, *noted_runs(self._plan.controller)}, reverse=True)
        except RemoteRunnerError:
            return local


def candidates(words: Sequence[str], grammar: Grammar, names: Names) -> list[str]:
    """What the last word may become, given those before it; none where it is a file, or anything."""
    *before, current = words or [""]
    in_task, options, bare = False, grammar.program, list[str]()
    previous = ""
    for word in before:
        if options.get(previous) or grammar.program.get(previous):
            previous = ""
            continue
        if word == "--":
            return []
        if word in grammar.tasks:
            in_task, options, bare = True, grammar.tasks[word], list(grammar.words.get(word, ()))
        elif bare and not word.startswith("-"):
            bare.pop(0)
        previous = word
    if options.get(previous) or grammar.program.get(previous):
        return _values(previous, current, before, names)
    if current.startswith("-"):
        option, equals, value = current.partition("=")
        if equals and options.get(option):
            return [f"{option}={one}" for one in _values(option, value, before, names)]
        return [flag for flag in options if flag.startswith(current)]
    if bare:
        return [one for one in _values(f"--{bare[0]}", current, before, names) if one.startswith(current)]
    return [name for name in (options if in_task else grammar.tasks) if name.startswith(current)]


def _values(option: str, current: str, before: Sequence[str], names: Names) -> list[str]:
    from remote_runner.inventory.systems import SYSTEMS

    case = next((value for flag, value in itertools.pairwise(before) if flag == "--testcase"), "")
    known: dict[str, Callable[[], Sequence[str]]] = {
        "--host": lambda: names.hosts,
        "-H": lambda: [f"{head}{comma}{name}" for name in names.hosts],
        "--testcase": lambda: names.cases,
        "--test-param": lambda: [f"{name}=" for name in names.params(case)],
        "--run": lambda: names.runs,
        "--id": lambda: names.runs,
        "--arch": lambda: SYSTEMS,
        "--language": lambda: list(LANGUAGES),
        "--shell": lambda: SHELLS,
    }
    head, comma, _ = current.rpartition(",")
    known["--hosts"] = known["-H"]
    return [value for value in known.get(option, lambda: ())() if value.startswith(current)]


def grammar_of(collection: invoke.Collection, program: invoke.Program) -> Grammar:
    """What the tasks of a collection take."""
    tasks: dict[str, Mapping[str, bool]] = {}
    words: dict[str, Sequence[str]] = {}
    for context in collection.to_contexts():
        flags = {flag: argument.takes_value for flag, argument in context.flags.items() if flag.startswith("--")}
        for name in (context.name, *context.aliases):
            tasks[name] = flags
            found = collection[name]
            words[name] = found.bare if isinstance(found, Task) else ()
    core = {f: a.takes_value and not a.optional for f, a in program.initial_context.flags.items()}
    return Grammar(tasks, words, {flag: core[flag] for flag in core if flag in _PROGRAMS})


_PROGRAMS = ("-C", "--directory", "-H", "--hosts", "--help", "--list", "--version", "--debug", "--dry")


def answer(words: Sequence[str], collection: invoke.Collection, program: invoke.Program) -> None:
    """Print the candidates, one a line."""
    found = candidates(words, grammar_of(collection, program), Names(Plan.here()))
    if found:
        show("\n".join(found))
