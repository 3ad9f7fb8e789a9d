"""Files to and from a host, as Fabric's `put` and `get` mean them."""

from __future__ import annotations

import asyncio
import codecs
import io
import os
import posixpath
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fabric.transfer import Result

from remote_runner.connection.agent import Agent
from tasks.command_line.task import Failed

if TYPE_CHECKING:
    from tasks.connection.connection import AgentConnection

_CHUNK_BYTES = 1 << 18
_MODE_BITS = 0o777

Write = Callable[[bytes], object]


def put_file(
    connection: AgentConnection, local: str | Path | IO[Any], remote: str | None, *, preserve_mode: bool
) -> Result:
    """Copy a file there. Raises `Failed` for one that cannot be read here, before anything is asked of the host."""
    if not local:
        raise ValueError("Local path must not be empty!")
    name = posixpath.basename(str(local) if isinstance(local, str | Path) else str(getattr(local, "name", "")))
    if not remote and not isinstance(local, str | Path):
        raise ValueError("Must give non-empty remote path when local is a file-like object!")
    path = remote or name
    path += name if path.endswith("/") else ""
    what = f"{connection.name}: put {local if isinstance(local, str | Path) else name or 'from an open file'}"
    with ExitStack() as stack:
        mode = None
        if isinstance(local, str | Path):
            try:
                source: IO[Any] = stack.enter_context(Path(local).open("rb"))
            except OSError as error:
                raise Failed(f"{what}: {error.strerror}") from error
            if preserve_mode:
                mode = os.fstat(source.fileno()).st_mode & _MODE_BITS
        else:
            source = stack.enter_context(_from_its_beginning(local))
        agent = connection.agent()
        written = connection.do(agent.put(_chunks(source, what), path, name=name, mode=mode))
    here = str(Path(local).absolute()) if isinstance(local, str | Path) else local
    return Result(here, local, written, remote, connection)


@contextmanager
def _from_its_beginning(file: IO[Any]) -> Iterator[IO[Any]]:
    """An open file from its beginning, where it can be told to go there, and back where it was."""
    if not getattr(file, "seekable", lambda: False)():
        yield file
        return
    before = file.tell()
    file.seek(0)
    try:
        yield file
    finally:
        file.seek(before)


def _chunks(source: IO[Any], what: str) -> Iterator[bytes]:
    while True:
        try:
            chunk: object = source.read(_CHUNK_BYTES)
        except OSError as error:
            raise Failed(f"{what}: {error.strerror}") from error
        if not chunk:
            return
        if isinstance(chunk, str):
            chunk = chunk.encode()
        if not isinstance(chunk, bytes):
            raise Failed(f"{what}: it gives {type(chunk).__name__}; expected bytes or text")
        yield chunk


def get_file(
    connection: AgentConnection, remote: str, local: str | Path | IO[Any] | None, *, preserve_mode: bool
) -> Result:
    """Copy a file from there; where that fails, what was here stays."""
    if not remote:
        raise ValueError("Remote path must not be empty!")
    agent = connection.agent()
    what = f"{connection.name}: get {remote}"
    if local is None or isinstance(local, str | Path):
        path = _path_here(connection, agent, remote, str(local or ""))
        far = connection.do(
            _receive(agent, remote, lambda mode: _into_file(path, mode if preserve_mode else None, what))
        )
        return Result(str(path), local, far, remote, connection)
    far = connection.do(_receive(agent, remote, lambda mode: _into_stream(local, what)))
    return Result(local, local, far, remote, connection)


async def _receive(agent: Agent, remote: str, target: Callable[[int], Any]) -> str:
    """Bring it; the target is opened with its mode once it is known to be there. Its path there."""
    async with agent.get(remote) as (file, chunks):
        with target(file.mode & _MODE_BITS) as write:
            async for data in chunks:
                await asyncio.to_thread(write, data)
        return str(file.path)


def _path_here(connection: AgentConnection, agent: Agent, remote: str, local: str) -> Path:
    name = posixpath.basename(remote)
    try:
        filled = local.format(
            host=connection.host,
            user=agent.greeting.user,
            port=connection.port,
            dirname=posixpath.dirname(remote),
            basename=name,
        )
    except (KeyError, IndexError, ValueError) as error:
        raise Failed(
            f"{connection.name}: get {remote}: {local!r} cannot be filled in ({error}); there are {{host}}, {{user}}, "
            "{port}, {dirname} and {basename}, and a brace is written twice"
        ) from error
    path = Path(filled or name)
    return (path / name if filled.endswith("/") or path.is_dir() else path).absolute()


@contextmanager
def _into_file(path: Path, mode: int | None, what: str) -> Iterator[Write]:
    """Write beside it, and put that in its place; a device or a pipe is written into."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("wb") as file:
                yield file.write
            return
        aside = path.with_name(f".{path.name}.{os.urandom(4).hex()}")
        try:
            with aside.open("xb") as file:
                yield file.write
            if mode is not None:
                aside.chmod(mode)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)
    except OSError as error:
        raise Failed(f"{what}: {path} cannot be written here: {error.strerror}") from error


@contextmanager
def _into_stream(file: IO[Any], what: str) -> Iterator[Write]:
    """Write to an open file, text where it takes that."""
    if not isinstance(file, io.TextIOBase):
        yield file.write
        return
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        yield lambda data: file.write(decoder.decode(data))
        file.write(decoder.decode(b"", final=True))
    except UnicodeDecodeError as error:
        raise Failed(f"{what}: it is not UTF-8 text; get it into a stream of bytes") from error
