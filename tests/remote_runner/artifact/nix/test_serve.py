from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from remote_runner.artifact.nix import serve
from remote_runner.artifact.nix.here import Nix, find_nix
from remote_runner.artifact.nix.serve import PathInfo, ServeClient, in_dependency_order
from remote_runner.artifact.nix.source import LocalServer
from remote_runner.errors import LocalProgramError, RemoteRunnerError
from tests.nix_bed import NixHere, simple_flake


def parsed(reading: Generator[int, bytes, Any], data: bytes) -> Any:
    """What `reading` makes of exactly these bytes."""
    try:
        wanted = next(reading)
        while True:
            assert len(data) >= wanted, "it wants more than there is"
            piece, data = data[:wanted], data[wanted:]
            wanted = reading.send(piece)
    except StopIteration as done:
        assert data == b""
        return done.value


def info(path: str, *references: str) -> PathInfo:
    return PathInfo(path, "", references, 120, "00" * 32, "", ())


# Framing


def test_numbers_and_strings_are_framed_as_nix_frames_them() -> None:
    assert serve.number(0x205) == b"\x05\x02\0\0\0\0\0\0"
    assert serve.string("abc") == b"\x03\0\0\0\0\0\0\0abc\0\0\0\0\0"
    assert serve.string("12345678") == b"\x08\0\0\0\0\0\0\x0012345678"
    assert serve.string("") == bytes(8)
    assert serve.hello() == bytes.fromhex("eb9d0c390000000005020000 00000000")


@pytest.mark.parametrize("texts", [[], [""], ["a", "é", "12345678"], ["x" * 1000] * 300])
def test_strings_come_back_as_they_were(texts: list[str]) -> None:
    assert parsed(serve.read_strings(), serve.strings(texts)) == texts


@pytest.mark.parametrize("theirs", [0x205, 0x206, 0x207, 0x208])
def test_both_sides_speak_the_lower_version(theirs: int) -> None:
    assert parsed(serve.read_hello(), serve.number(0x5452EECB) + serve.number(theirs)) == 0x205


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Welcome ", "the greeting 0x20656d6f636c6557"),
        (serve.number(0x5452EECB) + serve.number(0x204), "version 2.4"),
        (serve.number(0x5452EECB) + serve.number(0x300), "version 3.0"),
    ],
)
def test_who_speaks_something_else_is_told_so(data: bytes, words: str) -> None:
    with pytest.raises(RemoteRunnerError, match=words):
        parsed(serve.read_hello(), data)


@pytest.mark.parametrize(
    ("reading", "data", "words"),
    [
        (serve.read_string, serve.number(1 << 40), "a string of 1099511627776 bytes"),
        (serve.read_strings, serve.number(1 << 40), "1099511627776 strings at once"),
        (serve.read_string, serve.number(1) + b"\xff" + bytes(7), "the string b"),
    ],
)
def test_nothing_is_reserved_for_what_no_server_says(reading: Any, data: bytes, words: str) -> None:
    with pytest.raises(RemoteRunnerError, match=f"expected an answer of `nix-store --serve`, found {words}"):
        parsed(reading(), data)


def test_a_hash_is_put_into_hexadecimal() -> None:
    # The SHA-256 of nothing, as nix-hash prints it in both.
    digits = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73"
    of_nothing = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert serve.hash_in_hex(f"sha256:{digits}") == of_nothing
    assert serve.hash_in_hex(of_nothing) == of_nothing
    with pytest.raises(RemoteRunnerError, match="found the hash"):
        serve.hash_in_hex("sha256:" + "e" * 52)


# Order


def test_each_path_comes_behind_those_that_it_refers_to() -> None:
    infos = {
        each.path: each for each in (info("a", "b", "c", "a"), info("b", "d"), info("c", "elsewhere"), info("d", "c"))
    }
    assert [each.path for each in in_dependency_order(infos)] == ["c", "d", "b", "a"]


def test_a_circle_of_references_is_an_error() -> None:
    with pytest.raises(RemoteRunnerError, match="circle"):
        in_dependency_order({"a": info("a", "b"), "b": info("b", "a")})


# A real server


@pytest.fixture
def nix(nix_here: NixHere) -> Nix:
    found = find_nix(os.environ)
    assert found is not None
    return found


def test_a_real_server_says_of_paths_what_nix_says(nix_here: NixHere, nix: Nix, tmp_path: Path) -> None:
    out = nix_here.build(f"path:{simple_flake(tmp_path / 'f', texts=['one', 'two'])}#packages.x86_64-linux.app")
    absent = f"{out[:43]}-absent"

    async def ask() -> tuple[list[str], frozenset[str], dict[str, PathInfo]]:
        async with LocalServer(nix) as server:
            client = ServeClient(server)
            assert await client.greet() == 0x205
            closure = await client.closure(out)
            valid = await client.valid_paths([*closure, absent], lock=False, substitute=False)
            return closure, valid, await client.path_infos([*closure, absent])

    closure, valid, infos = asyncio.run(ask())
    assert sorted(closure) == sorted(nix_here.closure(out))
    assert len(closure) == 3
    assert valid == frozenset(closure)
    assert infos.keys() == set(closure)
    for path, found in infos.items():
        assert sorted(found.references) == sorted(nix_here.run("nix-store", "-q", "--references", path).split())
        assert str(found.nar_bytes) == nix_here.run("nix-store", "-q", "--size", path)
        said = nix_here.run("nix-store", "-q", "--hash", path)
        assert found.nar_hash == nix_here.run("nix", "hash", "to-base16", said)
    assert infos[out].ca == ""
    assert all(found.ca.startswith("text:sha256:") for path, found in infos.items() if path != out)


def test_archives_come_whole_and_in_order(nix_here: NixHere, nix: Nix, tmp_path: Path) -> None:
    build = "head -c 1000000 /dev/urandom >$out/large\n"
    flake = simple_flake(tmp_path / "f", texts=["three", "four"], build=build)
    out = nix_here.build(f"path:{flake}#packages.x86_64-linux.app")

    async def take() -> None:
        async with LocalServer(nix) as server:
            source = ServeClient(server)
            await source.greet()
            infos = in_dependency_order(await source.path_infos(await source.closure(out)))
            async for found in source.dump(infos):
                archive = b""
                while len(archive) < found.nar_bytes:
                    archive += await server.read_some(found.nar_bytes - len(archive))
                assert hashlib.sha256(archive).hexdigest() == found.nar_hash
            assert await source.closure(infos[0].path)  # the stream is where it should be

    asyncio.run(take())


def test_a_server_that_fails_is_an_error_with_its_words(nix: Nix) -> None:
    async def ask() -> None:
        async with LocalServer(nix) as server:
            client = ServeClient(server)
            await client.greet()
            await client.closure("/nix/store/00000000000000000000000000000000-absent")

    with pytest.raises(LocalProgramError, match=r"status 1.*\n.*is not valid"):
        asyncio.run(ask())


def test_a_server_that_says_nothing_can_be_given_up(nix: Nix) -> None:
    async def ask() -> None:
        async with LocalServer(nix) as server, asyncio.timeout(0.2):
            await server.read_some(1)  # it waits for our greeting

    with pytest.raises(TimeoutError):
        asyncio.run(ask())
