"""What Nix builds for a system: a store path, and the derivation that makes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from remote_runner.inventory.systems import System

TABLE_VARIABLE = "REMOTE_RUNNER_ARTIFACTS"
"""Names the table that a flake's `bin/remote-runner` brings along (`table.py`)."""


@dataclass(frozen=True)
class StoreArtifact:
    """An output in a Nix store.

    out: the output's store path; drv: that of its derivation, valid in this machine's store ("" for an output that
    was given by hand). program: what is started, as a path inside the output.
    here: whether the output is valid in this machine's store; where it is not, the target builds it, and
    `why_not_here` says why (a part of a sentence). choice: what built it, and why that.
    """

    out: str
    drv: str
    program: str
    app: str
    system: System
    here: bool
    why_not_here: str = ""
    choice: str = field(default="", compare=False)

    @property
    def path(self) -> Path:
        """The output, as a path in the builder's store."""
        return Path(self.out)

    @property
    def hash(self) -> str:
        """Its name in records and messages: the store path's last part, which begins with Nix's hash."""
        return self.out.rpartition("/")[2]

    def to_json(self) -> dict[str, Any]:
        """The artifact as JSON values."""
        return {**vars(self), "system": str(self.system)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """The artifact that `to_json` wrote."""
        return cls(**{**values, "system": System.parse(values["system"])})
