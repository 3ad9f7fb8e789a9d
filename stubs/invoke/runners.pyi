import invoke

class Runner:
    using_pty: bool
    _asynchronous: bool
    _disowned: bool
    def __init__(self, context: invoke.Context) -> None: ...
    def stop(self) -> None: ...
