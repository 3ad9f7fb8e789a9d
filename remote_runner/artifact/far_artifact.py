"""How a host keeps an artifact, and by which name the supervisor finds it there."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Store(Enum):
    """Where artifacts lie on a host."""

    CACHE = "cache"
    """Ours: a folder under the hash of its content."""
    NIX = "nix"
    """The host's Nix store."""
    USER = "user"
    """A store of the user's own, shown at /nix/store to the application alone."""


@dataclass(frozen=True)
class FarArtifact:
    """An artifact on a host; `name` is the hash in the cache, or the store path."""

    store: Store
    name: str


@dataclass(frozen=True)
class Delivery:
    """What a push came to. `base` is our directory there; of `paths` store paths, `sent_paths` were missing and sent.

    built: the host has built the artifact itself, and what was sent is the closure of its derivation.
    """

    store: Store
    base: str
    present: bool
    sent_bytes: int = 0
    sent_paths: int = 0
    paths: int = 0
    built: bool = False
