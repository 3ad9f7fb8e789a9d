"""The result of a push to a host."""

from __future__ import annotations

from dataclasses import dataclass

from remote_runner.connection.verbs.far_artifact import Store


@dataclass(frozen=True)
class Delivery:
    """The result of a push. `base` is our directory there; of `paths` store paths, `sent_paths` were missing and sent.

    built: the host has built the artifact itself, and what was sent is the closure of its derivation.
    """

    store: Store
    base: str
    present: bool
    sent_bytes: int = 0
    sent_paths: int = 0
    paths: int = 0
    built: bool = False
