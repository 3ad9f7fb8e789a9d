"""Which systems this machine can build for: itself, and by the remote builders that its Nix is configured with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from remote_runner.artifact.nix.verbs import NixConfig

# Built by Nix itself, wherever it runs (`builtin:fetchurl`).
_ANYWHERE = "builtin"
# x86_64-v1-linux and the like, which Nix counts as extra platforms of a newer processor: noise in a sentence.
_LEVEL = re.compile(r"x86_64-v\d-")


@dataclass(frozen=True)
class BuildMachines:
    """The systems that this machine itself and its remote builders build; features that a build needs are not asked."""

    own: tuple[str, ...]
    remote: tuple[str, ...]

    @classmethod
    def from_config(cls, config: NixConfig) -> BuildMachines:
        """Read also the files of machines that `builders` names (`@/etc/nix/machines`)."""
        own = (config.system, *config.extra_platforms) if config.max_jobs else ()
        remote = [system for line in _lines(config.builders) for system in _systems(line, config.system)]
        return cls(own, tuple(dict.fromkeys(remote)))

    def why_not(self, systems: Iterable[str]) -> str:
        """Why nothing here builds for one of these systems, as a part of a sentence; "" when all can be built."""
        lacking = sorted({*systems} - {*self.own, *self.remote, _ANYWHERE})
        if not lacking:
            return ""
        own = [system for system in self.own if not _LEVEL.match(system)]
        builds = ", ".join(own) if own else "nothing (max-jobs = 0)"
        remote = f"its remote builders build {', '.join(self.remote)}" if self.remote else "it has no remote builders"
        return f"{' and '.join(lacking)} is needed; this machine builds {builds}, and {remote}"


def _lines(builders: str, *, nested: bool = False) -> Iterator[str]:
    """The lines of the setting `builders` (nix.conf(5)), comments left out, files read."""
    for line in builders.replace(";", "\n").splitlines():
        line = line.partition("#")[0].strip()
        if line.startswith("@") and not nested:
            try:
                text = Path(line[1:].strip()).read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue  # as Nix does; the default names a file that is seldom there
            yield from _lines(text, nested=True)
        elif line:
            yield line


def _systems(line: str, default: str) -> list[str]:
    words = line.split()
    return words[1].split(",") if len(words) > 1 and words[1] != "-" else [default]
