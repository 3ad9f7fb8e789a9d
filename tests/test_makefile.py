"""What `make` says on a machine that lacks something, before it installs anything."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITABLE = f"{sys.version_info.major}.{sys.version_info.minor}"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone in which nothing is installed; beside it `bin`, a PATH with little more than a shell."""
    checkout = tmp_path / "checkout"
    checkout.mkdir()
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-go.lock"):
        shutil.copyfile(ROOT / name, checkout / name)
    (tmp_path / "bin").mkdir()
    for name in ("sh", "id"):
        found = shutil.which(name)
        assert found, name
        (tmp_path / "bin" / name).symlink_to(found)
    program(tmp_path / "bin" / "apt-get", "exit 1")
    return checkout


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def lines_of_make(checkout: Path, *arguments: str) -> list[str]:
    """What `make demo` prints, which has to fail without having made anything."""
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make: install make")
    done = subprocess.run(
        [make, "demo", *arguments],
        cwd=checkout,
        env={"PATH": str(checkout.parent / "bin")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert not (checkout / ".venv").exists()
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", ["python3", f"python{SUITABLE}"])
def test_without_venv_the_first_line_installs_it(checkout: Path, name: str) -> None:
    python = checkout.parent / "bin" / name
    program(python, f'case $* in *ensurepip*) exit 1 ;; esac\nexec {sys.executable} "$@"')
    assert lines_of_make(checkout)[0].removeprefix("sudo ") == f"apt-get install {name}-venv"


def test_without_python_the_first_line_installs_it(checkout: Path) -> None:
    assert lines_of_make(checkout)[0].removeprefix("sudo ") == "apt-get install python3 python3-venv"


def test_an_old_python_is_named_with_what_to_do(checkout: Path) -> None:
    python = checkout.parent / "bin" / "python3"
    program(python, "case $* in *print*) echo 3.9 ;; *) exit 1 ;; esac")
    first, second = lines_of_make(checkout)[:2]
    assert first == "remote-runner needs Python 3.11 or newer, found: python3 (3.9)"
    assert "make PYTHON=" in second


def test_a_python_asked_for_that_is_none_is_named(checkout: Path) -> None:
    assert (
        lines_of_make(checkout, "PYTHON=/nowhere/python3")[0] == "PYTHON=/nowhere/python3 is not a Python 3.11 or newer"
    )


def test_the_lock_has_hashes_for_all_and_no_address_of_an_index() -> None:
    text = (ROOT / "requirements.lock").read_text()
    requirements = text.replace("\\\n", " ").splitlines()
    pinned = [line for line in requirements if line and not line.lstrip().startswith("#")]
    assert len(pinned) > 20
    assert all("==" in line and "--hash=sha256:" in line for line in pinned)
    assert "://" not in text


def test_help_fits_a_screen_and_has_every_target() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make: install make")
    shown = subprocess.run([make, "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert len(shown.splitlines()) < 24
    (phony,) = (line for line in (ROOT / "Makefile").read_text().splitlines() if line.startswith(".PHONY:"))
    for target in phony.split()[1:]:
        assert target == "help" or f"make {target}" in shown, target
