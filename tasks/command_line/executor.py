"""Fabric's executor with hosts as the inventory names them, and commands as they were typed.

Named in `fabric.yaml` (`tasks: {executor_class: …}`); `install` does the same for a plan without that file.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fabric
import fabric.main
import invoke

from remote_runner.errors import RemoteRunnerError
from tasks.command_line.task import Failed, Task


def install(program: invoke.Program) -> None:
    """Make a running `fab` use this executor, and leave the user's ssh configuration to OpenSSH.

    A fabfile of one line (`from tasks import ns`) is loaded by a Fabric that has already chosen its own executor.
    """
    from tasks.command_line.program import Program

    _hold_standard_streams()
    if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # inherited, it hides how every program ended
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    Program.adopt(program)
    program.executor_class = Executor
    if hasattr(program, "config"):
        program.config["load_ssh_configs"] = False


def with_bare_words(words: Sequence[str], collection: invoke.Collection) -> list[str]:
    """The words of a command line with the option in front of each that belongs to one of a task's `bare` ones."""
    named: list[str] = []
    task: invoke.Task | None = None
    bare: Sequence[str] = ()
    due = 0  # the next words are the task's, though they may be names of tasks: `init sh clean`
    is_value = False  # of the option before it
    for word in words:
        if is_value or word.startswith("-"):
            is_value = not is_value and "=" not in word and _takes_value(task, word)
        elif not due and (found := _task_called(collection, word)) is not None:
            task, bare = found, found.bare if isinstance(found, Task) else ()
            due = len(bare) if len(bare) > 1 else 0
        elif bare:
            named.append(f"--{bare[0]}")
            bare, due = bare[1:] or bare, max(0, due - 1)
        named.append(word)
    return named


def _task_called(collection: invoke.Collection, name: str) -> invoke.Task | None:
    try:
        return collection[name]
    except (KeyError, ValueError):
        return None


def _takes_value(task: invoke.Task | None, flag: str) -> bool:
    options = [] if task is None else task.get_arguments()
    return any(option.takes_value for option in options if flag.lstrip("-").replace("-", "_") in option.names)


def _hold_standard_streams() -> None:
    """Give a standard stream that was closed (`>&-`) to /dev/null, before something else gets its number."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free
        if getattr(sys, name) is None:  # `print` takes stdout then, also for what is meant for stderr
            setattr(sys, name, Path(os.devnull).open("w" if fd else "r", encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # its encoding may lack a character, as stderr's may
        sys.stdout.reconfigure(errors="backslashreplace")


def typed_command(argv: Sequence[str]) -> tuple[str, ...]:
    """What follows the first `--`, word for word (Invoke joins it with spaces)."""
    return tuple(argv[argv.index("--") + 1 :]) if "--" in argv else ()


class Executor(fabric.Executor):
    """Turns `-H` into the `host` option of this project's tasks, and into agents' connections for the user's own."""

    def expand_calls(self, calls: list[invoke.Call], apply_hosts: bool = True) -> list[invoke.Call]:
        """One call per task of ours with all its hosts; one per host, in parallel, for other tasks."""
        named: str | None = self.core[0].args.hosts.value
        hosts = [name.strip() for name in named.split(",") if name.strip()] if named and apply_hosts else []
        command = typed_command(sys.argv) if self.core.remainder else ()
        self.config["typed_command"] = list(command)
        if command and not calls and apply_hosts:
            from tasks.run import run

            calls = [invoke.Call(run)]  # `remote-runner -H dex -- CMD`, as Fabric has it
        expanded: list[invoke.Call] = []
        for call in calls:
            if command and apply_hosts and not getattr(call.task, "takes_command", False):
                raise Failed(f"{call.called_as}: takes no command after --; fab run does")
            expanded += self.expand_calls(_as_calls(call.task.pre), apply_hosts=False)
            if isinstance(call.task, Task):
                call.task.called_as = (call.called_as or call.task.name).removesuffix(".list")  # of `hosts` and `runs`
                call = _dry(call, call.task) if self.config.run.dry else call
            expanded.append(_with_hosts(call, hosts if apply_hosts else []))
            expanded += self.expand_calls(_as_calls(call.task.post), apply_hosts=False)
        return expanded

    def dedupe(self, calls: list[invoke.Call]) -> list[invoke.Call]:
        """Every call counts, as in Fabric: the same task for another host is another call."""
        return calls


def _dry(call: invoke.Call, task: Task) -> invoke.Call:
    """Invoke's `--dry` means a task's own `--dry-run`."""
    if not task.dry_runs:
        raise Failed(f"{call.called_as}: has no --dry-run, so --dry means nothing to it; leave --dry out")
    call.kwargs = {**call.kwargs, "dry_run": True}
    return call


def _as_calls(tasks: Sequence[invoke.Task | invoke.Call]) -> list[invoke.Call]:
    return [task if isinstance(task, invoke.Call) else invoke.Call(task) for task in tasks]


def _with_hosts(call: invoke.Call, hosts: list[str]) -> invoke.Call:
    if not isinstance(call.task, Task):
        listed = hosts or [str(host) for host in getattr(call.task, "hosts", None) or ()]
        return _OnEachHost(call, listed) if listed else call
    if not hosts:
        return call
    if not call.task.takes_hosts:
        raise Failed(f"{call.called_as}: runs on no host, so -H means nothing to it; leave -H out")
    call.kwargs = {**call.kwargs, "host": [*(call.kwargs.get("host") or ()), *hosts]}
    return call


class _OnEachHost(invoke.Call):
    """A user's own task, run once per host, all hosts at once, each with a connection to its host's agent."""

    def __init__(self, call: invoke.Call, patterns: list[str]) -> None:
        super().__init__(
            invoke.Task(self._fan_out(call.task.body, patterns), name=call.task.name),
            called_as=call.called_as,
            args=call.args,
            kwargs=call.kwargs,
        )

    @staticmethod
    def _fan_out(body: Callable[..., Any], patterns: list[str]) -> Callable[..., Any]:
        def run(context: invoke.Context, *args: Any, **kwargs: Any) -> None:
            from tasks.connection.connection import on_each_connection

            try:
                on_each_connection(context.config, patterns, lambda connection: body(connection, *args, **kwargs))
            except invoke.UnexpectedExit:
                raise  # Invoke tells it, and its status becomes fab's
            except (RemoteRunnerError, invoke.Failure) as error:
                raise Failed(str(error)) from error

        return run
