"""The errors of `testground`: a class for each kind that a user of it may handle in a way of its own.

TestgroundError
├── RunEnvError         a TEST_* variable is missing or unreadable
├── ParamError          a test parameter is missing or unreadable
├── PlanFileError       something in a plan's file
│   ├── ManifestError       in manifest.toml
│   └── CompositionError    in a composition, or in what stands for one on the command line
└── SyncError           something between this program and a sync service
    ├── SyncUnreachableError    nothing that speaks the sync protocol answers there
    ├── SyncClosedError         the connection ended before the answer came
    ├── SyncTimeoutError        the service did not answer in time
    └── SyncListenError         the embedded service cannot listen, or ended by itself
"""

from __future__ import annotations


class TestgroundError(Exception):
    """Root of everything that `testground` raises on purpose; `next_step` tells the user what to do ("" if nothing)."""

    __test__ = False  # pytest collects classes called Test*

    next_step: str = ""

    def __init__(self, message: str, *, next_step: str | None = None) -> None:
        super().__init__(message)
        if next_step is not None:
            self.next_step = next_step

    def __str__(self) -> str:
        return super().__str__() + (f"\n  next: {self.next_step}" if self.next_step else "")


def shortened(text: str) -> str:
    """The text in quotes, as much of it as a message takes."""
    shown = repr(text)
    return shown if len(shown) <= 200 else f"{shown[:200]}…"


def _is(found: str | None) -> str:
    return "is not set" if found is None else f"is {shortened(found)}"


def in_one_line(text: str) -> str:
    """A peer's words, as much of them as a message takes; none of them begins a line of ours, such as `next: `."""
    return " ".join(text[:1000].split())


class RunEnvError(TestgroundError):
    """A variable of the run environment is missing (`found` None) or cannot be read."""

    next_step = "Testground sets these variables for an instance; without a daemon, `fab local.single` does"

    def __init__(self, variable: str, found: str | None, expected: str) -> None:
        super().__init__(f"{variable} {_is(found)}; expected {expected}")
        self.variable, self.found, self.expected = variable, found, expected


class ParamError(TestgroundError):
    """A test parameter is missing (`found` None) or cannot be read; a class for plans with a value of their own."""

    def __init__(self, name: str, found: str | None, expected: str) -> None:
        next_step = f"give it with --test-param {name}=…, in the composition, or as a default in manifest.toml"
        super().__init__(f"test parameter {name} {_is(found)}; expected {expected}", next_step=next_step)
        self.name, self.found, self.expected = name, found, expected


class PlanFileError(TestgroundError):
    """Something is wrong at `key` in `file`: `problem` says what was found and what is expected there."""

    def __init__(self, file: str, key: str, problem: str, *, next_step: str = "") -> None:
        where = ": ".join(part for part in (file, key) if part)
        super().__init__(f"{where}: {problem}", next_step=next_step)
        self.file, self.key, self.problem = file, key, problem


class ManifestError(PlanFileError):
    """Something is wrong in a plan's manifest; a class for programs that read both files, and say which to mend."""


class CompositionError(PlanFileError):
    """Something is wrong in a composition, in itself or against the manifest; a class for the same programs."""


class SyncError(TestgroundError):
    """Something between this program and the sync service at `endpoint` ("HOST:PORT", "" where that cannot be read)."""

    def __init__(self, endpoint: str, problem: str, *, next_step: str | None = None) -> None:
        super().__init__(f"sync service at {endpoint}: {problem}" if endpoint else problem, next_step=next_step)
        self.endpoint, self.problem = endpoint, problem


class SyncUnreachableError(SyncError):
    """Nothing answers at the endpoint, or something other than a sync service; a class for plans that try again."""

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
    """The service did not do `what` within `timeout_s`; a class for plans that go on without the others."""

    def __init__(self, endpoint: str, what: str, timeout_s: float, *, next_step: str = "") -> None:
        super().__init__(endpoint, f"{what} took longer than {timeout_s:g} s", next_step=next_step)
        self.what, self.timeout_s = what, timeout_s


def sync_answer_error(endpoint: str, what: str, answer: str) -> SyncError:
    """The error for a service that answered `what` with an error, or with an unexpected answer."""
    problem = f"{what} was answered: {in_one_line(answer)}"
    return SyncError(endpoint, problem, next_step="see what the sync service logged")


class SyncListenError(SyncError):
    """The embedded sync service cannot listen at its endpoint, or stopped by itself."""
