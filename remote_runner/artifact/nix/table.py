"""The table in a flake's `bin/remote-runner`: its packages' store paths, without evaluating anything.

`REMOTE_RUNNER_ARTIFACTS` names it, a JSON file: `{"app": "node", "systems": {"x86_64-linux": {"drv": …, "out": …,
"program": "bin/node"}, …}}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from remote_runner.artifact.nix.artifact import TABLE_VARIABLE
from remote_runner.artifact.nix.verbs import STORE_PATH, Package
from remote_runner.errors import RunEnvironmentError


def table_of(environ: Mapping[str, str], app: str) -> Mapping[str, Package]:
    """The packages of an application by system; none if there is no table, or it is another application's.

    Raises `RunEnvironmentError` for a file that is no such table.
    """
    file = environ.get(TABLE_VARIABLE)
    if not file:
        return {}
    try:
        table = json.loads(Path(file).read_text(encoding="utf-8"))
        systems = {
            system: Package(_path(row["drv"]), _path(row["out"]), "", str(row["program"]))
            for system, row in table["systems"].items()
        }
        return systems if table["app"] == app else {}
    except OSError as error:
        raise RunEnvironmentError(TABLE_VARIABLE, file, f"a file that can be read ({error.strerror})") from error
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise RunEnvironmentError(TABLE_VARIABLE, file, f"a table of artifacts as JSON ({error})") from error


def _path(text: str) -> str:
    if not STORE_PATH.fullmatch(text):
        raise ValueError(f"{text} is not a store path")
    return text
