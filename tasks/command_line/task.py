"""Turning a function into a task: no guessed short flags, help for every option, errors as messages."""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import fabric.tasks
import invoke

from remote_runner.errors import RemoteRunnerError, no_room_here
from tasks.say import message as said
from testground.errors import TestgroundError, shortened

_F = TypeVar("_F", bound=Callable[..., Any])


class Failed(invoke.Exit):
    """Ends `fab` with one message on stderr and a status, without a traceback (Invoke prints and exits)."""

    def __init__(self, message: str | None, code: int = 1) -> None:
        super().__init__(None if message is None else said(message), code)


class Task(fabric.tasks.Task):
    """A task of this project; `takes_hosts` and `takes_command` tell the executor what -H and `--` may do.

    `short` names the options that have a short flag as well (else Invoke takes `-f` for its own, wherever it stands).
    `bare` names the options that words without one belong to, in this order, the last one taking all further words:
    `fab runs.show ID`, where there may be none or several.
    """

    def __init__(self, body: Callable[..., Any], **kwargs: Any) -> None:
        parameters = inspect.signature(body).parameters
        self.takes_hosts: bool = "host" in parameters
        self.dry_runs: bool = "dry_run" in parameters
        self.takes_command: bool = kwargs.pop("takes_command", False)
        self.short: Mapping[str, str] = kwargs.pop("short", {})
        bare: str | Sequence[str] = kwargs.pop("bare", ())
        self.bare: Sequence[str] = (bare,) if isinstance(bare, str) else bare
        super().__init__(body, **kwargs)
        self.called_as: str = self.name

    def get_arguments(self, ignore_unknown_help: bool | None = None) -> list[invoke.Argument]:
        """Its options; Invoke takes their words out of `help`, so that a second call would find none."""
        words = dict(self.help)
        try:
            return super().get_arguments(ignore_unknown_help)
        finally:
            self.help = words

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Do it; errors become the message that ends `fab`, under the name by which the task was called."""
        try:
            return super().__call__(*args, **kwargs)
        except (RemoteRunnerError, TestgroundError) as error:
            raise Failed(f"{self.called_as}: {error}") from error
        except BrokenPipeError:
            raise Failed(None, 141) from None  # the reader of our output went away, as with SIGPIPE
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise Failed(f"{self.called_as}: {shortened(str(error.filename))}: {error.strerror}") from error
            full = no_room_here(error)
            if full is None:
                raise
            raise Failed(f"{self.called_as}: {full}") from error

    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]:
        """Invoke's options of an argument, with its short flag."""
        options = super().arg_opts(name, default, taken_names)
        if name in self.short:
            options["names"] = (*options["names"], self.short[name])
        return options


_SHOWS_HELP = {
    "quiet": "show the summary alone",
    "verbose": "show each step as well; twice (-vv): also what testground itself shows",
    "plain": "draw nothing on a terminal: lines alone, as in a pipe",
}
_SHOWS_OPTIONS = {"quiet": False, "verbose": 0, "plain": False}


def task(
    *,
    help: Mapping[str, str],  # noqa: A002 (Invoke's word)
    shows: bool = False,
    **kwargs: Any,
) -> Callable[[Callable[..., Any]], Task]:
    """Declare a task; `help` has a line for every option, or this raises `TypeError`.

    One that `shows` what it does while it does it has the options that say how (-q, -v, --plain), for the display.
    A parameter annotated as a list may be given several times (Invoke takes the kind from the default alone).
    `auto_shortflags` is off: with it `--host` takes `-h` from help (invoke 2.2).
    """

    def declare(body: Callable[..., Any]) -> Task:
        parameters = list(inspect.signature(body).parameters.values())[1:]
        names = {parameter.name for parameter in parameters}
        if names != set(help):
            raise TypeError(f"task {body.__name__}: options {sorted(names)} but help for {sorted(help)}")
        lists = [parameter.name for parameter in parameters if str(parameter.annotation).startswith("list[")]
        options: dict[str, Any] = {**kwargs, "help": dict(help), "iterable": lists}
        work = _shown(body) if shows else body
        if shows:
            options["help"] |= _SHOWS_HELP
            options["incrementable"] = ["verbose"]
            options["short"] = {**kwargs.get("short", {}), "quiet": "q", "verbose": "v"}
        return Task(work, auto_shortflags=False, positional=[], **options)

    return declare


def _shown(body: Callable[..., Any]) -> Callable[..., Any]:
    """The same with the display's options, which it takes for itself."""

    @functools.wraps(body)
    def run(*args: Any, quiet: bool = False, verbose: int = 0, plain: bool = False, **kwargs: Any) -> Any:
        from tasks.plan import Plan
        from tasks.view.display import DISPLAY
        from tasks.view.how import How

        how = How.from_options(quiet=quiet, verbose=verbose, plain=plain)
        with DISPLAY.shown(how, Plan.here().environ):
            return body(*args, **kwargs)

    signature = inspect.signature(body)
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _SHOWS_OPTIONS.items()
    ]
    run.__signature__ = signature.replace(parameters=[*signature.parameters.values(), *added])  # type: ignore[attr-defined]
    return run
