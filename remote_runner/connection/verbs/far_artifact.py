"""Where a host keeps an artifact, and the name by which its agent finds it."""

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
