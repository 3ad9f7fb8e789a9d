"""The content of a file or folder (names, bytes, executable bits, links), its hash, and its tar stream.

The same content gives the same hash and the same stream, whoever made it and when.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from remote_runner.errors import ArtifactError

_CHUNK_BYTES = 1 << 18
_BLOCK_BYTES = 512


@dataclass(frozen=True)
class ContentEntry:
    """One name: `kind` is `f`, `d` or `l`; `path` is inside the content, `source` on this machine."""

    path: str
    source: str
    kind: str
    executable: bool = False
    size_bytes: int = 0
    target: str = ""


@dataclass(frozen=True)
class Content:
    """What a file or folder holds; `hash` is 32 hex digits."""

    hash: str
    size_bytes: int
    files: int


def walk_content(root: Path) -> Iterator[ContentEntry]:
    """The entries below a folder, or the one file, in the order of their names' bytes.

    Raises `ArtifactError` for what is not there and for what is neither file, folder nor link.
    """
    source = os.path.realpath(root)
    try:
        found = os.stat(source)  # noqa: PTH116 (a string all the way down: this runs for every file)
        if stat.S_ISDIR(found.st_mode):
            yield from _walk(source, "")
        else:
            yield _entry(root.name, source, found)
    except OSError as error:
        raise ArtifactError(f"{error.filename or root}: {error.strerror}") from error


def _walk(source: str, prefix: str) -> Iterator[ContentEntry]:
    with os.scandir(source) as found:
        names = sorted(found, key=lambda entry: os.fsencode(entry.name))
    for name in names:
        entry = _entry(prefix + name.name, name.path, name.stat(follow_symlinks=False))
        yield entry
        if entry.kind == "d":
            yield from _walk(name.path, f"{entry.path}/")


def _entry(path: str, source: str, found: os.stat_result) -> ContentEntry:
    if stat.S_ISREG(found.st_mode):
        return ContentEntry(path, source, "f", bool(found.st_mode & 0o100), found.st_size)
    if stat.S_ISDIR(found.st_mode):
        return ContentEntry(path, source, "d")
    if stat.S_ISLNK(found.st_mode):
        return ContentEntry(path, source, "l", target=os.readlink(source))  # noqa: PTH115 (as above)
    raise ArtifactError(f"{source}: is neither a file nor a folder nor a link")


def hash_content(root: Path) -> Content:
    """Read everything once. Raises `ArtifactError`."""
    digest = hashlib.sha256()
    size_bytes = files = 0
    for entry in walk_content(root):
        name, target = os.fsencode(entry.path), os.fsencode(entry.target)
        # Every part with its length, so that no two contents read the same.
        head = f"{entry.kind}{int(entry.executable)} {len(name)} {len(target)} {entry.size_bytes} ".encode()
        digest.update(head + name + target)
        if entry.kind == "f":
            files += 1
            size_bytes += entry.size_bytes
            for chunk in _read(entry):
                digest.update(chunk)
    return Content(digest.hexdigest()[:32], size_bytes, files)


def walk_path(path: Path) -> Iterator[ContentEntry]:
    """A file, folder or link under its own name, and what is below it. Raises `ArtifactError`."""
    try:
        top = _entry(path.name, str(path), path.lstat())
        yield top
        if top.kind == "d":
            yield from _walk(top.source, f"{top.path}/")
    except OSError as error:
        raise ArtifactError(f"{error.filename or path}: {error.strerror}") from error


def tar_content(root: Path, *, prefix: str) -> Iterator[bytes]:
    """The content below `prefix` as `tar_entries` makes it."""
    below = (replace(entry, path=f"{prefix}/{entry.path}") for entry in walk_content(root))
    return tar_entries(chain((ContentEntry(prefix, "", "d"),), below))


def tar_entries(entries: Iterable[ContentEntry], *, as_in_store: bool = False) -> Iterator[bytes]:
    """A tar stream in chunks.

    `as_in_store`: files are read-only and were last changed at second 1, as in a Nix store (Python's bytecode there
    belongs to sources of that second).

    Old GNU format. Raises `ArtifactError` for a file that changes meanwhile.
    """
    pending: list[bytes] = []
    pending_bytes = 0
    for part in _tar_parts(entries, as_in_store=as_in_store):
        pending.append(part)
        pending_bytes += len(part)
        if pending_bytes >= _CHUNK_BYTES:
            yield b"".join(pending)  # of a large file each chunk as it was read: one part is not copied
            pending.clear()
            pending_bytes = 0
    yield b"".join(pending)


def _tar_parts(entries: Iterable[ContentEntry], *, as_in_store: bool) -> Iterator[bytes]:
    plain, executable, mtime_s = (0o444, 0o555, 1) if as_in_store else (0o644, 0o755, 0)
    for entry in entries:
        name = os.fsencode(entry.path)
        if entry.kind == "d":
            yield _header(name + b"/", b"5", 0o755, 0, mtime_s=mtime_s)
        elif entry.kind == "l":
            yield _header(name, b"2", 0o777, 0, os.fsencode(entry.target), mtime_s)
        else:
            mode = executable if entry.executable else plain
            yield _header(name, b"0", mode, entry.size_bytes, mtime_s=mtime_s)
            yield from _read(entry)
            yield bytes(-entry.size_bytes % _BLOCK_BYTES)
    yield bytes(2 * _BLOCK_BYTES)


def _read(entry: ContentEntry) -> Iterator[bytes]:
    left = entry.size_bytes
    try:
        file = open(entry.source, "rb", buffering=0)  # noqa: PTH123, SIM115 (strings, as above; closed below)
    except OSError as error:
        raise ArtifactError(f"{entry.source}: {error.strerror}") from error
    with file:
        while chunk := file.read(_CHUNK_BYTES):
            left -= len(chunk)
            if left < 0:
                break
            yield chunk
    if left:
        raise ArtifactError(f"{entry.source}: changed while it was read")


_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s167s")


def _header(name: bytes, kind: bytes, mode: int, size_bytes: int, target: bytes = b"", mtime_s: int = 0) -> bytes:
    """One entry's header (tar(5), old GNU format), with the long name and the long target before it."""
    before = b""
    for letter, text in ((b"K", target), (b"L", name)):
        if len(text) > 100:
            long = text + b"\0"
            before += _header(b"././@LongLink", letter, 0o644, len(long)) + long + bytes(-len(long) % _BLOCK_BYTES)
    size = b"%011o\x00" % size_bytes if size_bytes < 8**11 else b"\x80" + size_bytes.to_bytes(11, "big")
    fields = [name[:100], b"%07o\0" % mode, b"%07o\0" % 0, b"%07o\0" % 0, size, b"%011o\0" % mtime_s]
    fields += [b" " * 8, kind, target[:100], b"ustar  \0", b"root", b"root", b"", b"", b""]
    block = _HEADER.pack(*fields)
    return before + block[:148] + b"%06o\0 " % sum(block) + block[156:]
