"""The program that parses the command line: `remote-runner`, and `fab` once a fabfile has loaded these tasks."""

from __future__ import annotations

import inspect
import logging
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fabric
import fabric.main
import invoke
from invoke.parser import Argument, ParserContext
from invoke.util import LOG_FORMAT

from remote_runner.errors import RemoteRunnerError
from remote_runner.typed import as_typed, set_typed
from tasks.command_line.executor import Executor, with_bare_words
from tasks.command_line.mistakes import Line, explain
from tasks.command_line.task import Failed, Task
from tasks.say import filled_to, give_up_stdout, say
from tasks.view.table import filled

# Of Invoke's and Fabric's options those that mean something here, and what.
_SHOWN = {
    "directory": "go to this directory first",
    "search-root": "look for the fabfile from this directory upwards",
    "help": "show this, or the options of the task that is named",
    "hosts": "run the task on these hosts: names, globs and @labels, with commas between them",
    "list": "list the tasks, or those of one group (hosts, local, runs)",
    "dry": "the same as --dry-run of the task",
    "version": "show the version",
    "debug": "write what is done, with times, into a file that is named (as REMOTE_RUNNER_DEBUG=1 does)",
}
# Fabric's own for its connections; ours are OpenSSH's.
_NEVER = {
    "identity": "a key is ssh.identity_file in inventory.yaml, or IdentityFile in ~/.ssh/config",
    "ssh-config": "ssh reads ~/.ssh/config; ssh.options in inventory.yaml has further ones",
    "connect-timeout": "the time to connect is timeouts.connect_s in inventory.yaml",
    "prompt-for-login-password": "fab hosts.login --host NAME opens a connection where ssh may ask",
    "prompt-for-passphrase": "fab hosts.login --host NAME opens a connection where ssh may ask",
    "list-agent-keys": "ssh-add -l lists them",
    "print-completion-script": "fab completion bash prints it (zsh, fish)",
    "no-dedupe": "leave it out; every task that is named is run",
}
# Invoke's settings of `run`, for tasks of the user's own.
_OWN_TASKS_ONLY = {
    "command-timeout": "the time of a run is timeouts.run_s in inventory.yaml, or --timeout of fab local.single",
    "pty": "fab run --tty gives a command a terminal",
    "echo": "leave it out",
    "warn-only": "leave it out",
    "hide": "leave it out",
    "prompt-for-sudo-password": "leave it out",
    "config": "leave it out; inventory.yaml has the settings",
}

# Imported where they are used: a `fab` of another environment gets as far as that.
_NEEDED = {"asyncssh", "rich", "tomli", "yaml"}


class Program(fabric.main.Fab):
    """Fabric's program with help, mistakes and refusals in our words."""

    @classmethod
    def adopt(cls, program: invoke.Program) -> None:
        """Make a running `fab`, which has read its own options so far, go on as this program."""
        if type(program) is fabric.main.Fab:
            program.__class__ = cls

    def core_args(self) -> list[Argument]:
        """Invoke's and Fabric's, and -C."""
        return [*super().core_args(), Argument(names=("C", "directory"), help=_SHOWN["directory"])]

    def parse_core(self, argv: list[str] | None) -> None:
        """Read the program's own options; what Fabric would do by itself for some of them is refused."""
        invoke.Program.parse_core(self, argv)
        _quieten_invoke(self)

    def parse_core_args(self) -> None:
        """The first of it."""
        super().parse_core_args()
        set_typed(self._typed())
        self._refuse(_NEVER)

    def parse_tasks(self) -> None:
        """Read tasks and their options; the line's mistakes are told, and what means nothing here is refused."""
        core = self.core[0]
        if "directory" not in core.args:  # of an adopted program
            core.add_arg(self.core_args()[-1])
        self.core.unparsed[:] = with_bare_words(self.core.unparsed, self.collection)
        set_typed(self._typed())
        try:
            super().parse_tasks()
        except invoke.ParseError as error:
            raise Failed(self._explained(error)) from None
        set_typed(self._typed(), self.args.directory.value or "")
        self._refuse(_NEVER)
        if all(isinstance(self.collection[context.name], Task) for context in self.tasks):
            self._refuse(_OWN_TASKS_ONLY)
        if self.args.directory.value:
            try:
                os.chdir(self.args.directory.value)  # noqa: TID251 (before anything else is done here)
            except OSError as error:
                raise Failed(f"-C {self.args.directory.value}: {error.strerror}") from error
        self._start_log()

    def _start_log(self) -> None:
        """Log what is done, where --debug or the variable asks for it."""
        from remote_runner import debug
        from remote_runner.controller import Controller

        environ = dict(os.environ)  # noqa: TID251 (the edge of the process)
        if self.args.debug.value or debug.is_wanted(environ):
            _quieten_invoke(self)
            try:
                say(f"debug log: {debug.start_log(Controller.from_environ(environ))}")
            except RemoteRunnerError as error:
                raise Failed(f"--debug: {error}") from None

    def parse_cleanup(self) -> None:
        """Help and lists, which nobody need read to their end."""
        try:
            try:
                super().parse_cleanup()
            finally:
                if sys.stdout is not None:  # it was closed from the start
                    sys.stdout.flush()
        except BrokenPipeError:
            give_up_stdout()
            raise Failed(None, 141) from None
        except invoke.ParseError as error:
            raise Failed(self._explained(error)) from None

    def execute(self) -> None:
        """Run the tasks; Ctrl-C where no task minds it ends them."""
        try:
            super().execute()
        except ModuleNotFoundError as missing:
            if missing.name not in _NEEDED:
                raise
            raise Failed(
                f"{sys.argv[0]} belongs to a Python without {missing.name}, which remote-runner needs\n"
                "  next: put the environment that has remote-runner first on PATH (`source .venv/bin/activate`)"
            ) from None
        except KeyboardInterrupt:
            raise Failed("stopped by Ctrl-C", 130) from None
        finally:
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own would print a traceback while it ends

    def print_version(self) -> None:
        """Ours."""
        from importlib.metadata import version

        print(f"remote-runner {version('testground-remote-runner')}")

    def print_help(self) -> None:
        """The options that mean something here, and the tasks."""
        print(f"Usage: {self.binary} [options] TASK [its options] …\n\nOptions:\n")
        shown = [arg for arg in self.initial_context.args.values() if {*arg.names} & {*_SHOWN}]
        for arg in shown:
            arg.help = next(words for name, words in _SHOWN.items() if name in arg.names)
        self.print_columns(ParserContext(args=shown).help_tuples())
        self.list_tasks()

    def print_task_help(self, name: str) -> None:
        """What a task does, and its options."""
        context, task = self.parser.contexts[name], self.collection[name]
        bare = "".join(f" [{word.upper()}]" for word in (task.bare if isinstance(task, Task) else ()))
        command = " -- COMMAND" if getattr(task, "takes_command", False) else ""
        options = context.help_tuples()
        print(f"Usage: {self.binary} {name}{bare}{' [options]' if options else ''}{command}\n")
        print(f"{filled(as_typed(inspect.getdoc(task) or 'It has no description.'), filled_to())}\n")
        if options:
            print("Options:\n")
            counted = ("-v INT, --verbose=INT", "-v, --verbose")
            self.print_columns([(flags.replace(*counted), as_typed(words)) for flags, words in options])

    def _typed(self) -> str:
        words = [Path(self.argv[0]).name if self.argv else "fab"]
        for flag, name in (("-r", "search-root"), ("-C", "directory")):
            argument = self._argument(name)
            words += [flag, argument.value] if argument is not None and argument.value else []
        return shlex.join(words)

    def _argument(self, name: str) -> Any:
        """An option of the program by any of its names, `None` where it has none of that name."""
        return self.args[name] if name in self.args else None  # noqa: SIM401 (its `get` knows no aliases)

    def _explained(self, error: invoke.ParseError) -> str:
        contexts = self.parser.contexts
        context = error.context if error.context is not None and error.context.name else None
        known = sorted({*contexts, *self.core[0].args.aliases})
        flags = [] if context is None else sorted(context.flags)
        line = Line(tuple(self.core.unparsed), self.core.remainder)
        return as_typed(explain(str(error), line, None if context is None else context.name, flags, known))

    def _refuse(self, options: Mapping[str, str]) -> None:
        for name, instead in options.items():
            argument = self._argument(name)
            if argument is not None and argument.got_value:
                flag = min((f"-{n}" if len(n) == 1 else f"--{n}" for n in argument.names), key=len)
                raise Failed(f"{flag} means nothing to these tasks; {instead}")


class _Config(fabric.Config):
    @staticmethod
    def global_defaults() -> dict[str, object]:
        """Fabric's own, with the user's ssh configuration left to OpenSSH."""
        return {**fabric.Config.global_defaults(), "load_ssh_configs": False}


def own_program(tasks: invoke.Collection) -> Program:
    """`remote-runner` with these tasks."""
    return Program(
        name="remote-runner",
        binary="remote-runner",
        namespace=tasks,
        executor_class=Executor,
        config_class=_Config,
    )


def _quieten_invoke(program: invoke.Program) -> None:
    """Take back what Invoke makes of --debug: the lines of every library, on stderr."""
    if program.args.debug.value and not os.environ.get("INVOKE_DEBUG"):  # noqa: TID251 (Invoke's own)
        for handler in list(logging.root.handlers):
            if handler.formatter is not None and handler.formatter._fmt == LOG_FORMAT:  # none of a fabfile's own
                logging.root.removeHandler(handler)
                logging.root.setLevel(logging.WARNING)
