from typing import Any

class Result:
    local: Any
    orig_local: Any
    remote: str
    orig_remote: str | None
    def __init__(self, local: Any, orig_local: Any, remote: str, orig_remote: str | None, connection: Any) -> None: ...
