"""Builds the application's artifact, a folder: `bin/node` (a launcher in sh) and `lib/` (Python, nothing compiled).

    python node/build.py [--python PYTHON] OUT

The `command` builder's command for this plan (`app` in inventory.yaml), and what flake.nix runs. Pure Python runs on
every system, so one build serves all; with PYTHON the launcher starts that one and looks for no other. The same
sources give the same bytes: the artifact is known by the hash of its content.
"""

from __future__ import annotations

import py_compile
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

PLAN = Path(__file__).resolve().parent.parent
_UNUSED_IN_NODE = frozenset({"build.py"})
_LAUNCHER = '#!/bin/sh\nexec {python} -BIS "${{0%/*}}/../lib"\n'  # the options as in launcher.sh
_MAIN = "import sys\n\nfrom node.__main__ import main\n\nsys.exit(main())\n"


def build(out: Path, python: str | None = None) -> None:
    """Make the folder `out`; raises `FileExistsError` where something is there already."""
    lib = out / "lib"
    (out / "bin").mkdir(parents=True)
    launcher = out / "bin" / "node"
    if python is None:
        launcher.write_bytes((PLAN / "node" / "launcher.sh").read_bytes())
    else:
        launcher.write_text(_LAUNCHER.format(python=python))
    launcher.chmod(0o755)
    _copy_package(PLAN / "node", lib / "node", without=_UNUSED_IN_NODE)
    _copy_package(PLAN / "testground", lib / "testground")
    (lib / "__main__.py").write_text(_MAIN)
    _compile(lib)


def _copy_package(source: Path, target: Path, without: frozenset[str] = frozenset()) -> None:
    for path in sorted(source.rglob("*.py")):
        inside = path.relative_to(source)
        if inside.parts[0] in without or path.name.startswith("."):
            continue
        (target / inside).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target / inside)


def _compile(lib: Path) -> None:
    """Bytecode for the interpreter that builds; another version on a host compiles for itself, each time."""
    for path in sorted(lib.rglob("*.py")):
        py_compile.compile(
            str(path),
            dfile=str(path.relative_to(lib)),  # in tracebacks; not the path of this build
            doraise=True,
            invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,  # no time stamps in it
        )


def main(argv: Sequence[str]) -> int:
    """Build into the folder named by the one argument; the exit status."""
    python = None
    if len(argv) == 3 and argv[0] == "--python":
        python, argv = argv[1], argv[2:]
    if len(argv) != 1:
        print("usage: python node/build.py [--python PYTHON] OUT", file=sys.stderr)
        return 2
    try:
        build(Path(argv[0]), python)
    except FileExistsError as error:
        print(f"node/build.py: {error.filename} exists; name a folder that does not", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
