"""One deadline, passed down through everything that waits."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from remote_runner.errors import DeadlineError


@dataclass(frozen=True)
class Deadline:
    """A point on the monotonic clock (seconds), and the budget it came from."""

    at_s: float
    budget_s: float

    @classmethod
    def after(cls, seconds: float | None) -> Deadline:
        """A deadline that many seconds from now; `None` never comes."""
        budget_s = math.inf if seconds is None else seconds
        return cls(time.monotonic() + budget_s, budget_s)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never negative; `inf` where there is no deadline."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def timeout_s(self) -> float | None:
        """The remaining seconds as `select` and `socket.settimeout` take them: `None` where there is no deadline."""
        remaining_s = self.remaining_s
        return None if math.isinf(remaining_s) else remaining_s

    @property
    def expired(self) -> bool:
        return self.remaining_s <= 0.0

    def check(self, what: str) -> None:
        """Raise `DeadlineError` naming `what` once the time is over."""
        if self.expired:
            raise DeadlineError(what, self.budget_s)


NEVER = Deadline(math.inf, math.inf)
