from typing import Any

import invoke

class Result(invoke.Result):
    connection: Any
    def __init__(self, **kwargs: Any) -> None: ...
