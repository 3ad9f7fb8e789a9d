"""The part of fabric 3.2 that `tasks/` uses, typed for mypy strict."""

from typing import Any

import invoke

class Config(invoke.Config):
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @staticmethod
    def global_defaults() -> dict[str, Any]: ...

class Connection(invoke.Context):
    host: str
    original_host: str
    user: str
    port: int
    def __init__(self, host: str, **kwargs: Any) -> None: ...
    def local(self, *args: Any, **kwargs: Any) -> invoke.Result: ...
    _entry: Any
    _plan: Any
    _shared: Any
    _background: Any
    def _set(self, **values: Any) -> None: ...

class Executor:
    collection: invoke.Collection
    config: invoke.Config
    core: invoke.ParseResult
    def __init__(
        self,
        collection: invoke.Collection,
        config: invoke.Config | None = None,
        core: invoke.ParseResult | None = None,
    ) -> None: ...
    def execute(self, *tasks: Any) -> dict[invoke.Task, Any]: ...
    def normalize(self, tasks: Any) -> list[invoke.Call]: ...
    def expand_calls(self, calls: list[invoke.Call], apply_hosts: bool = True) -> list[invoke.Call]: ...
