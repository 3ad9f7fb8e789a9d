"""The part of invoke 2.2 that `tasks/` uses, typed for mypy strict."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

class Config:
    def __getattr__(self, name: str) -> Any: ...
    def __getitem__(self, name: str) -> Any: ...
    def __setitem__(self, name: str, value: object) -> None: ...
    def get(self, name: str, default: object = None) -> Any: ...
    def clone(self) -> Config: ...

class Result:
    command: str
    stdout: str
    stderr: str
    exited: int
    ok: bool

class Context:
    config: Config
    def __init__(self, config: Config | None = None) -> None: ...
    def run(self, command: str, **kwargs: Any) -> Result: ...
    def _run(self, runner: Any, command: str, **kwargs: Any) -> Result: ...

class Task:
    body: Callable[..., Any]
    name: str
    help: dict[str, str]
    pre: list[Task | Call]
    post: list[Task | Call]
    def __init__(self, body: Callable[..., Any], **kwargs: Any) -> None: ...
    def get_arguments(self) -> list[Argument]: ...
    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]: ...

class Argument:
    name: str
    help: str | None
    names: tuple[str, ...]
    takes_value: bool

class Call:
    task: Task
    called_as: str | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    def __init__(
        self,
        task: Task,
        called_as: str | None = None,
        args: tuple[Any, ...] | None = None,
        kwargs: dict[str, Any] | None = None,
    ) -> None: ...
    def make_context(self, config: Config) -> Context: ...

class Collection:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def add_task(
        self, task: Task, name: str | None = None, aliases: Iterable[str] | None = None, default: bool | None = None
    ) -> None: ...
    def add_collection(self, coll: Collection, name: str | None = None) -> None: ...
    def configure(self, options: Mapping[str, Any]) -> None: ...
    def configuration(self, taskpath: str | None = None) -> dict[str, Any]: ...
    task_names: dict[str, list[str]]
    def to_contexts(self) -> list[Any]: ...
    def __getitem__(self, name: str) -> Task: ...

class Failure(Exception):
    result: Result

class UnexpectedExit(Failure): ...

class Exit(Exception):
    def __init__(self, message: str | None = None, code: int | None = None) -> None: ...
    message: str | None
    code: int

class Program:
    args: Any
    config: Config
    argv: list[str]
    binary: str
    core: Any
    parser: Any
    tasks: list[Any]
    collection: Collection
    initial_context: Any
    executor_class: type[Any]
    parse_tasks: Callable[[], None]
    def parse_core(self, argv: list[str] | None) -> None: ...
    def parse_core_args(self) -> None: ...
    def execute(self) -> None: ...
    def __init__(self, **kwargs: Any) -> None: ...
    def run(self, argv: list[str] | None = None, exit: bool = True) -> None: ...
    def core_args(self) -> list[Any]: ...
    def parse_cleanup(self) -> None: ...
    def list_tasks(self) -> None: ...
    def print_columns(self, tuples: list[tuple[str, str]]) -> None: ...

class ParseResult:
    remainder: str
    unparsed: list[str]
    def __getitem__(self, index: int) -> Any: ...

def task(*args: Any, **kwargs: Any) -> Callable[[_F], Task]: ...

class ParseError(Exception):
    context: Any
