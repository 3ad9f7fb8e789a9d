"""The rows: each declares its work, its bounds and its contestants in one place."""

from __future__ import annotations

from benchmarks.rows import barriers, crowds, files, instances, nix, pushes, streams, sync_service, watching
from benchmarks.work import Work

WORKS: tuple[Work, ...] = (
    *instances.WORKS,
    *crowds.WORKS,
    *streams.WORKS,
    *files.WORKS,
    *pushes.WORKS,
    *nix.WORKS,
    *sync_service.WORKS,
    *barriers.WORKS,
    *watching.WORKS,
)
