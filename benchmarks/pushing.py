"""One push as a program: `python pushing.py HOST (content PATH | store OUT)` in the plan's directory.

Prints its seconds, from the first word to the host: what is to be pushed has been hashed or built before, and all
modules are imported, as in an instance of the warm process.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path

from remote_runner.artifact.build import AnyArtifact, Artifact
from remote_runner.artifact.nix.artifact import StoreArtifact
from remote_runner.artifact.push import forget_push, push
from remote_runner.controller import Controller
from remote_runner.deadline import Deadline
from remote_runner.hosts import open_host
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.systems import System
from remote_runner.warm import MODULES

_PUSH_S = 120.0


def main(name: str, kind: str, what: str) -> None:
    """Push it; the host is asked, whatever is known of earlier pushes."""
    for module in MODULES:
        importlib.import_module(module)
    system = System.local()
    artifact: AnyArtifact = (
        StoreArtifact(what, "", "", "application", system, here=True)
        if kind == "store"
        else Artifact.from_path(Path(what), system)
    )
    controller = Controller.from_environ(os.environ)
    entry = Inventory.load(Path.cwd()).host(name)
    forget_push(controller, entry, artifact.hash)
    began_s = time.monotonic()
    with open_host(entry, controller, os.environ) as host:
        push(host, entry, artifact, controller=controller, deadline=Deadline.after(_PUSH_S), environ=os.environ)
        print(time.monotonic() - began_s)


if __name__ == "__main__":
    main(*sys.argv[1:])
