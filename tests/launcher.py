"""The launcher as Testground makes it of a plan."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from remote_runner.plan_import import add_shim
from tests.hosts import which


def build(plan: Path, artifact: Path, *flags: str) -> None:
    """What the builder exec:go does in the plan's directory, with more flags of the user's GOFLAGS."""
    environ = {**os.environ, "GOFLAGS": " ".join(("-mod=mod", *flags)), "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    for words in (["mod", "tidy"], ["build", "-gcflags=all=-N -l", "-o", str(artifact), "./exec-go"]):
        subprocess.run([which("go"), *words], cwd=plan, env=environ, check=True)


def launcher_of(plan: Path) -> Path:
    """The launcher of a plan, in its directory, with this Python's words."""
    add_shim(plan)
    artifact = plan / "launcher"
    build(plan, artifact)
    return artifact
