"""What a wheel has beside the packages of pyproject.toml: the agents, the example plan, the sources of the launcher.

Building one from a checkout or an sdist takes a Go; installing it takes none.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))

from remote_runner.connection.bootstrap import program  # noqa: E402
from remote_runner.example import PARTS  # noqa: E402


class BuildPy(build_py):
    """Adds them to the packages that go into a wheel; an editable installation finds them in the checkout."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib) / "remote_runner"
        example = package / "example"
        shutil.rmtree(example, ignore_errors=True)
        for part in PARTS:
            source, target = ROOT / part, example / part
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copyfile(source, target)
        status = program.main(["--release", str(package / "agents")], os.environ)
        if status:
            sys.exit(status)


setup(cmdclass={"build_py": BuildPy})
