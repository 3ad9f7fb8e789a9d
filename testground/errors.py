"""The errors of `testground`.

TestgroundError
├── RunEnvError         a TEST_* variable is missing or unreadable
├── ParamError          a test parameter is missing or unreadable
├── PackingError        a parameter whose name Testground's packing would not bring through whole
├── PlanFileError       something in a plan's file
│   ├── ManifestError       in manifest.toml
│   └── CompositionError    in a composition, or in what stands for one on the command line
├── LocalExecError      a run without a daemon could not begin
└── SyncError           something between this program and a sync service
    ├── SyncSettingError        the settings that name the service are unreadable
    ├── SyncUnreachableError    nothing that speaks the sync protocol answers there
    ├── SyncClosedError         the connection ended before the answer came
    ├── SyncTimeoutError        the service did not answer in time
    ├── SyncAnswerError         the service answered with an error, or with what is no answer
    ├── SyncRequestError        a request that the service would not take, so it was not sent
    └── SyncListenError         the embedded service cannot listen, or ended by itself
"""

from __future__ import annotations


class TestgroundError(Exception):
    """Root of everything that `testground` raises on purpose; `next_step` tells the user what to do ("" if nothing)."""

    __test__ = False  # pytest collects classes called Test*

    next_step: str = ""


def shortened(text: str) -> str:
    """The text in quotes, as much of it as a message takes."""
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def in_one_line(text: str) -> str:
    """A peer's words, as much of them as a message takes; none of them begins a line of ours, such as `next: `."""
    return " ".join(text[:1000].split())


class RunEnvError(TestgroundError):
    """A variable of the run environment is missing (`found` None) or cannot be read."""

    next_step = "Testground sets these variables for an instance; without a daemon, `fab local.single` does"

    def __init__(self, variable: str, found: str | None, expected: str) -> None:
        super().__init__(variable)
        self.variable, self.found, self.expected = variable, found, expected

    def __str__(self) -> str:
        found = "is not set" if self.found is None else f"is {shortened(self.found)}"
        return f"{self.variable} {found}; expected {self.expected}\n  next: {self.next_step}"


class ParamError(TestgroundError):
    """A test parameter is missing (`found` None) or cannot be read."""

    def __init__(self, name: str, found: str | None, expected: str) -> None:
        super().__init__(name)
        self.name, self.found, self.expected = name, found, expected
        self.next_step = f"give it with --test-param {name}=…, in the composition, or as a default in manifest.toml"

    def __str__(self) -> str:
        found = "is not set" if self.found is None else f"is {shortened(self.found)}"
        return f"test parameter {self.name} {found}; expected {self.expected}\n  next: {self.next_step}"


class PackingError(TestgroundError):
    """A parameter's `name` would not come out of Testground's `k=v|k=v` as it went in."""

    next_step = "give it a name without | and ="

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return (
            f"test parameter {self.name!r} would not reach an instance under this name: "
            f"Testground packs parameters as k=v|k=v, without escaping\n  next: {self.next_step}"
        )


class PlanFileError(TestgroundError):
    """Something is wrong at `key` in `file`: `problem` says what was found and what is expected there."""

    def __init__(self, file: str, key: str, problem: str, *, next_step: str = "") -> None:
        super().__init__(problem)
        self.file, self.key, self.problem, self.next_step = file, key, problem, next_step

    def __str__(self) -> str:
        where = ": ".join(part for part in (self.file, self.key) if part)
        return f"{where}: {self.problem}" + (f"\n  next: {self.next_step}" if self.next_step else "")


class ManifestError(PlanFileError):
    """Something is wrong in a plan's manifest."""


class CompositionError(PlanFileError):
    """Something is wrong in a composition, in itself or against the manifest."""


class LocalExecError(TestgroundError):
    """A run without a daemon could not begin."""

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step

    def __str__(self) -> str:
        return super().__str__() + (f"\n  next: {self.next_step}" if self.next_step else "")


class SyncError(TestgroundError):
    """Something between this program and the sync service at `endpoint` ("HOST:PORT")."""

    def __init__(self, endpoint: str, problem: str, *, next_step: str | None = None) -> None:
        super().__init__(problem)
        self.endpoint, self.problem = endpoint, problem
        if next_step is not None:
            self.next_step = next_step

    def __str__(self) -> str:
        return f"sync service at {self.endpoint}: {self.problem}" + (
            f"\n  next: {self.next_step}" if self.next_step else ""
        )


class SyncSettingError(SyncError):
    """A variable that names the sync service cannot be read; `variable` and the value `found` in it."""

    def __init__(self, variable: str, found: str, expected: str) -> None:
        super().__init__("?", f"{variable} is {found!r}; expected {expected}")
        self.variable, self.found, self.expected = variable, found, expected
        self.next_step = f"set {variable} to {expected}"

    def __str__(self) -> str:
        return f"{self.problem}\n  next: {self.next_step}"


class SyncUnreachableError(SyncError):
    """Nothing answers at the endpoint, or something other than a sync service answers."""

    next_step = (
        "start a sync service there (the daemon's healthcheck does, or `fab local.sync-service`), "
        "or name the right one in SYNC_SERVICE_HOST and SYNC_SERVICE_PORT"
    )


class SyncClosedError(SyncError):
    """The connection ended while it was needed: close `code` and `reason` as received, None and "" without any."""

    next_step = "see whether the sync service still runs, and what it logged; its memory of the run may be lost"

    def __init__(self, endpoint: str, code: int | None, reason: str, *, next_step: str | None = None) -> None:
        how = "without a word" if code is None else f"with code {code}" + (f": {in_one_line(reason)}" if reason else "")
        super().__init__(endpoint, f"closed the connection {how}", next_step=next_step)
        self.code, self.reason = code, reason


class SyncTimeoutError(SyncError):
    """The service did not do `what` within `timeout_s`."""

    def __init__(self, endpoint: str, what: str, timeout_s: float, *, next_step: str = "") -> None:
        super().__init__(endpoint, f"{what} took longer than {timeout_s:g} s", next_step=next_step)
        self.what, self.timeout_s = what, timeout_s


class SyncAnswerError(SyncError):
    """The service answered `what` with an error, or with an unexpected answer."""

    next_step = "see what the sync service logged"

    def __init__(self, endpoint: str, what: str, answer: str) -> None:
        super().__init__(endpoint, f"{what} was answered: {in_one_line(answer)}")
        self.what, self.answer = what, answer


class SyncRequestError(SyncError):
    """The service would close the connection at this request, so it was not sent."""


class SyncListenError(SyncError):
    """The embedded sync service cannot listen at its endpoint, or stopped by itself."""
