"""Tries a wheel as somebody would who has nothing else of ours: `python -m tests.wheel dist/*.whl`.

It is installed into an environment of its own, and used from another directory, without Go, compilers and git on PATH.
The plan is a new one. CI does this; the first step that fails ends it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.brokers_end import end_brokers

_END_S = 300.0
_LACKING = ("go", "gofmt", "gcc", "cc", "c99", "g++", "clang", "git", "make", "nix")


def main(argv: Sequence[str]) -> int:
    """Exit status 0 if the demo and the plan ended in success."""
    (wheel,) = argv
    with tempfile.TemporaryDirectory(prefix="wheel-") as name, ExitStack() as stack:
        directory = Path(name)
        stack.callback(end_brokers, directory / "run")
        venv, work = directory / "venv", directory / "work"
        work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", venv], check=True, timeout=_END_S)
        subprocess.run([venv / "bin/pip", "install", "--quiet", Path(wheel).absolute()], check=True, timeout=_END_S)
        environ = {
            "HOME": str(directory),
            "PATH": f"{venv}/bin:{_programs(directory / 'bin')}",
            "REMOTE_RUNNER_CACHE_DIR": str(directory / "cache"),
            "REMOTE_RUNNER_RUNTIME_DIR": str(directory / "run"),
        }
        for words in ("--version", "demo", "init python mine", "-C mine local.single --testcase greet"):
            print(f"$ remote-runner {words}", flush=True)
            argv = [str(venv / "bin/remote-runner"), *words.split()]
            done = subprocess.run(argv, cwd=work, env=environ, check=False, timeout=_END_S)
            if done.returncode != 0:
                return done.returncode
    return 0


def _programs(directory: Path) -> Path:
    """A directory with links to this machine's programs, but for those that nobody may need."""
    directory.mkdir()
    for place in (Path("/usr/bin"), Path("/bin")):
        for program in place.iterdir():
            link = directory / program.name
            if program.name not in _LACKING and not link.is_symlink():
                link.symlink_to(program)
    return directory


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
