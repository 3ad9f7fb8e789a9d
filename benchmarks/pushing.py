"""One push as a program: `python pushing.py HOST (content PATH | store OUT)` in the plan's directory.

Prints its seconds, from the first word to the host over a connection that is open: what is to be pushed has been hashed
or built before, and all modules are imported, as in the broker.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.nix import push as nix_push
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.controller import Controller
from remote_runner.instance.shared import Shared
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.systems import System


async def main(name: str, kind: str, what: str) -> None:
    """Push it; the host is asked, whatever is known of earlier pushes."""
    assert nix_push
    system = System.local()
    artifact: AnyArtifact = (
        StoreArtifact(what, "", "", "application", system, here=True)
        if kind == "store"
        else Artifact.from_path(Path(what), system)
    )
    entry = Inventory.load(Path.cwd()).host(name)
    async with Shared(Controller.from_environ(os.environ)) as shared:
        await shared.agent(entry, os.environ)
        began_s = time.monotonic()
        await shared.push(entry, artifact, os.environ, lambda words: None)
        print(time.monotonic() - began_s)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
