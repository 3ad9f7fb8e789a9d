"""Nix's serve protocol, the client's side: what `nix copy --to ssh://` speaks with `nix-store --serve`.

As in Nix's src/libstore/serve-protocol.hh and legacy-ssh-store.cc, and opServe in src/nix-store/nix-store.cc. A number
is 8 bytes, little-endian; a string is its length, its bytes, and zeros up to a multiple of 8; several are their count
and each. Both sides speak the lower of their two versions; ours is 2.5, the first in which paths are added one at a
time, and every server since Nix 2.4 (at the latest) speaks it.

A server takes requests one after the other, so the next may be on its way before the last is answered. Where a request
fails it ends, its reason on stderr.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from remote_runner.errors import RemoteRunnerError

VERSION = 0x205
_CLIENT, _SERVER = 0x390C9DEB, 0x5452EECB
_QUERY_VALID_PATHS, _QUERY_PATH_INFOS, _DUMP_STORE_PATH, _QUERY_CLOSURE, _ADD_TO_STORE_NAR = 1, 2, 3, 7, 9
# More than any server sends: something else is talking, and no memory is reserved for it.
_LONGEST_STRING = 1 << 20
_MOST_STRINGS = 1 << 20
_READ_BYTES = 256 << 10
_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"

Value = TypeVar("Value")
Reading = Generator[int, bytes, Value]
"""Reads a value: yields how many bytes it wants, is sent exactly these, and returns the value."""


@dataclass(frozen=True)
class PathInfo:
    """What a store knows of a valid path. `nar_hash` is SHA-256 in hexadecimal, `nar_bytes` the archive's size.

    ca: the content that addresses it, "" for none. A store takes a path from anybody if it is so addressed, or if a
    signature is by a key that the store trusts.
    """

    path: str
    deriver: str
    references: tuple[str, ...]
    nar_bytes: int
    nar_hash: str
    ca: str
    signatures: tuple[str, ...]


class Stream(Protocol):
    """Bytes to a server and from it; both raise where it has gone."""

    async def write(self, data: bytes) -> None: ...

    async def read_some(self, count: int) -> bytes:
        """Read at least one byte, and at most that many."""


# Framing: values to bytes


def number(value: int) -> bytes:
    return value.to_bytes(8, "little")


def string(text: str) -> bytes:
    raw = text.encode()
    return number(len(raw)) + raw + bytes(-len(raw) % 8)


def strings(texts: Collection[str]) -> bytes:
    return number(len(texts)) + b"".join(string(text) for text in texts)


def hello() -> bytes:
    return number(_CLIENT) + number(VERSION)


def query_valid_paths(paths: Collection[str], *, lock: bool, substitute: bool) -> bytes:
    """Which of them are valid? `lock` holds all of them against garbage collection as long as the server runs."""
    return number(_QUERY_VALID_PATHS) + number(lock) + number(substitute) + strings(paths)


def query_path_infos(paths: Collection[str]) -> bytes:
    return number(_QUERY_PATH_INFOS) + strings(paths)


def query_closure(paths: Collection[str]) -> bytes:
    """All that these paths need; not the outputs of the derivations among them."""
    return number(_QUERY_CLOSURE) + number(0) + strings(paths)


def dump_store_path(path: str) -> bytes:
    return number(_DUMP_STORE_PATH) + string(path)


def add_to_store_nar(info: PathInfo) -> bytes:
    """To be followed by the archive. What is added is held like what is locked."""
    return b"".join(
        (
            number(_ADD_TO_STORE_NAR),
            string(info.path),
            string(info.deriver),
            string(info.nar_hash),
            strings(info.references),
            number(0),  # when it was registered: the server sets it
            number(info.nar_bytes),
            number(0),  # not "ultimate": it was not built there
            strings(info.signatures),
            string(info.ca),
        )
    )


def _unexpected(found: str) -> RemoteRunnerError:
    """The error for an answer that the protocol does not allow."""
    return RemoteRunnerError(f"expected an answer of `nix-store --serve`, found {found}")


# Framing: bytes to values


def read_number() -> Reading[int]:
    raw = yield 8
    return int.from_bytes(raw, "little")


def read_string() -> Reading[str]:
    length = yield from read_number()
    if length > _LONGEST_STRING:
        raise _unexpected(f"a string of {length} bytes")
    raw = yield length + -length % 8
    try:
        return raw[:length].decode()
    except UnicodeDecodeError as error:
        raise _unexpected(f"the string {raw[:40]!r}") from error


def read_strings() -> Reading[list[str]]:
    count = yield from read_number()
    if count > _MOST_STRINGS:
        raise _unexpected(f"{count} strings at once")
    texts = []
    for _ in range(count):
        texts.append((yield from read_string()))  # noqa: PERF401 (nothing yields in a comprehension)
    return texts


def read_hello() -> Reading[int]:
    """The version that both sides speak. Raises `RemoteRunnerError` where the server does not speak ours."""
    magic = yield from read_number()
    if magic != _SERVER:
        raise _unexpected(f"the greeting {magic:#x}")
    theirs = yield from read_number()
    if theirs >> 8 != VERSION >> 8 or theirs < VERSION:
        raise _unexpected(f"version {theirs >> 8}.{theirs & 0xFF} (2.5 or later is needed: Nix 2.4)")
    return min(theirs, VERSION)


def read_path_infos() -> Reading[dict[str, PathInfo]]:
    """What is known of the valid ones among the paths that were asked for."""
    infos = {}
    while path := (yield from read_string()):
        deriver = yield from read_string()
        references = yield from read_strings()
        yield from read_number()  # the size of a download, once
        nar_bytes = yield from read_number()
        nar_hash = yield from read_string()
        ca = yield from read_string()
        signatures = yield from read_strings()
        infos[path] = PathInfo(
            path, deriver, tuple(references), nar_bytes, hash_in_hex(nar_hash), ca, tuple(signatures)
        )
    return infos


def hash_in_hex(text: str) -> str:
    """A SHA-256 as Nix writes it (`sha256:` and its base 32, or hexadecimal), in hexadecimal.

    Its base 32 begins with the last byte's highest bits; as a number, the last digit is the lowest.
    """
    digits = text.removeprefix("sha256:")
    if len(digits) == 64:
        return digits
    value = 0
    if len(digits) != 52 or any(digit not in _BASE32 for digit in digits):
        raise _unexpected(f"the hash {text!r}")
    for digit in digits:
        value = value * 32 + _BASE32.index(digit)
    return value.to_bytes(33, "little")[:32].hex()


# Deciding


def in_dependency_order(infos: Mapping[str, PathInfo]) -> list[PathInfo]:
    """Each path behind those that it refers to, as a store takes them. References out of `infos` do not count."""
    from graphlib import CycleError, TopologicalSorter

    graph = {path: [to for to in info.references if to != path and to in infos] for path, info in infos.items()}
    try:
        return [infos[path] for path in TopologicalSorter(graph).static_order()]
    except CycleError as error:
        raise _unexpected(f"references in a circle: {', '.join(error.args[1])}") from error


# The thin shell


class ServeClient:
    """Talks to one server over a stream. Raises `RemoteRunnerError`, and what the stream raises.

    `greet` comes before everything else.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._read_ahead = bytearray()

    async def greet(self) -> int:
        await self._stream.write(hello())
        return await self._run(read_hello())

    async def valid_paths(self, paths: Collection[str], *, lock: bool, substitute: bool) -> frozenset[str]:
        await self._stream.write(query_valid_paths(paths, lock=lock, substitute=substitute))
        return frozenset(await self._run(read_strings()))

    async def path_infos(self, paths: Collection[str]) -> dict[str, PathInfo]:
        await self._stream.write(query_path_infos(paths))
        return await self._run(read_path_infos())

    async def closure(self, path: str) -> list[str]:
        await self._stream.write(query_closure([path]))
        return await self._run(read_strings())

    async def dump(self, infos: Iterable[PathInfo]) -> AsyncIterator[PathInfo]:
        """Each path in turn: the next on the stream is its archive, which the caller reads before it continues.

        The server reads the next path while this one is taken.
        """
        if self._read_ahead:
            raise _unexpected(f"{len(self._read_ahead)} bytes that nobody asked for")
        behind: PathInfo | None = None
        for info in infos:
            await self._stream.write(dump_store_path(info.path))
            if behind is not None:
                yield behind
            behind = info
        if behind is not None:
            yield behind

    async def add(self, info: PathInfo) -> None:
        """Announce a path, whose archive the caller puts on the stream next; `added` waits until it is there."""
        await self._stream.write(add_to_store_nar(info))

    async def added(self) -> None:
        """The answer to the oldest `add` that was not answered yet."""
        answer = await self._run(read_number())
        if answer != 1:
            raise _unexpected(f"the answer {answer} to a path")

    def _take(self, count: int) -> bytes:
        """What was read already, at most that much."""
        data = bytes(self._read_ahead[:count])
        del self._read_ahead[:count]
        return data

    async def _run(self, reading: Reading[Value]) -> Value:
        try:
            wanted = next(reading)
            while True:
                while len(self._read_ahead) < wanted:
                    self._read_ahead += await self._stream.read_some(_READ_BYTES)
                wanted = reading.send(self._take(wanted))
        except StopIteration as done:
            value: Value = done.value
            return value
