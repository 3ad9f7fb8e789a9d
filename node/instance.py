"""What a test case gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from node.identity import Identity
from testground.recorder import Recorder
from testground.runenv import RunEnv
from testground.sync.client import SyncClient


class CaseError(Exception):
    """The test case failed: what happened, and the next step for whoever reads it."""

    def __init__(self, message: str, *, next_step: str) -> None:
        super().__init__(f"{message}\n  next: {next_step}")


@dataclass(frozen=True)
class Instance:
    """One instance: what it is told, where it tells, and where it runs; `connect` opens the sync service."""

    runenv: RunEnv
    recorder: Recorder
    identity: Identity
    connect: Callable[[], SyncClient]
