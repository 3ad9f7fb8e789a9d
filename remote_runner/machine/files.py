"""Names and sizes of files; writing files atomically, and removing directories."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path

from remote_runner.errors import ControllerError
from remote_runner.machine.descriptors import write_all


def write_atomically(
    path: Path, data: bytes, *, mode: int = 0o600, umask: int | None = None, optional: bool = False
) -> bool:
    """Put `data` at `path` by way of a file beside it, making the directory where it is missing; whether it is there.

    `umask` holds for `mode` (`None`: that of the process). What is `optional` (a cache, a note) is left out where it
    cannot be written; else raises `ControllerError`.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            if umask is not None:
                os.fchmod(fd, mode & ~umask)
            write_all(fd, data)
        finally:
            os.close(fd)
        aside.replace(path)
    except OSError as error:
        with suppress(OSError):
            aside.unlink()
        if optional:
            return False
        raise ControllerError(
            f"{path}: cannot be written: {error.strerror}", next_step="make room there, or look at its permissions"
        ) from error
    return True


def safe_name(text: str) -> str:
    """The text as one file name of at most 113 characters, different for different texts."""
    safe = re.sub(r"[^A-Za-z0-9._-]", "_", text)[:100].lstrip(".-")
    return safe if safe and safe == text else f"{safe or 'run'}-{hashlib.sha256(os.fsencode(text)).hexdigest()[:12]}"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a directory, as they can be read."""
    is_tree = path.is_dir() and not path.is_symlink()
    files = (Path(place) / name for place, _, names in os.walk(path) for name in names) if is_tree else [path]
    total = 0
    for file in files:
        with suppress(OSError):  # it went meanwhile
            total += file.lstat().st_size
    return total


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it, also where directories in it are closed. Raises `OSError` where some stays."""
    import shutil  # takes 4 ms, and only who removes needs it

    try:
        shutil.rmtree(path)
    except OSError:
        if not os.path.lexists(path):
            return  # another process removes as well
        _open(path)
        for place, directories, _ in os.walk(path):
            for name in directories:
                _open(Path(place, name))  # before its content is read
        shutil.rmtree(path)


def _open(directory: Path) -> None:
    with suppress(OSError):  # who removes it then tells
        if not directory.is_symlink():
            directory.chmod(0o700)
