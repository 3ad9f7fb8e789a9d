"""What of invoke's parser is used."""

from typing import Any

class Argument:
    name: str
    names: tuple[str, ...]
    value: Any
    got_value: bool
    def __init__(self, names: tuple[str, ...], **kwargs: Any) -> None: ...

class ParserContext:
    args: Any
    def __init__(self, name: str | None = None, args: Any = ()) -> None: ...
    def help_tuples(self) -> list[tuple[str, str]]: ...
