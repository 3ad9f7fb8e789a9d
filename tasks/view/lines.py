"""Passing what commands on hosts print to this process's stdout and stderr."""

from __future__ import annotations

from remote_runner.cancellation import Cancellation
from remote_runner.instance.writer import Writer
from tasks.command_line.task import Failed
from tasks.say import give_up_stdout, printable, unwritable_stdout
from tasks.view.display import DISPLAY

_HELD_BYTES = 1 << 16


class Screen:
    """This process's two streams, for the commands of some hosts; with `results` stdout is kept free for these.

    When stdout takes nothing more, or nobody reads it, `stop` is set.
    """

    def __init__(self, stop: Cancellation, *, results: bool) -> None:
        self._unread: str | None = None
        self._stop = stop
        self._stderr = Writer(2)
        self._stdout_fd = 2 if results else 1
        self._stdout = self._stderr if results else Writer(1)
        if not results:
            self._stdout.on_unread = self._end

    def streams(self, tag: str) -> tuple[HostLines, HostLines]:
        """Where one host's stdout and stderr go."""
        return HostLines(self._stdout, self._stdout_fd, tag), HostLines(self._stderr, 2, tag)

    async def flush(self) -> None:
        """Return once everything is written, so that words can stand behind it."""
        await self._stdout.flush()
        await self._stderr.flush()

    def close(self) -> None:
        """The streams are the process's own again. Raises `ControllerError` or `Failed` if stdout took not all."""
        self._stdout.close()
        self._stderr.close()
        if self._unread is not None:
            give_up_stdout()
            raise unwritable_stdout(self._unread) if self._unread else Failed(None, 141)  # as with SIGPIPE

    def _end(self, why: str) -> None:
        self._unread = why
        self._stop.cancel("stdout here takes nothing more" if why else "nobody reads its stdout any more")


class HostLines:
    """One stream of a host: with a tag whole lines behind it, to tell hosts apart; else bytes as they are."""

    def __init__(self, writer: Writer, fd: int, tag: str) -> None:
        self._writer = writer
        self._covered = DISPLAY.covers(fd)
        self._tag = tag.encode()
        self._held = b""

    async def feed(self, data: bytes) -> None:
        """Print some bytes; returns when there is room for more."""
        if not self._tag:
            self._writer.feed(data)
        else:
            *lines, self._held = (self._held + data).split(b"\n")
            if len(self._held) > _HELD_BYTES:  # a line without end is shown in pieces
                lines.append(self._held)
                self._held = b""
            if self._covered:
                for line in lines:
                    DISPLAY.line(printable((self._tag + line).decode("utf-8", "replace")))
            else:
                self._writer.feed(b"".join(self._tag + line + b"\n" for line in lines))
        await self._writer.drain()

    async def close(self) -> None:
        """Print the last line, if it lacks its end."""
        if self._held:
            await self.feed(b"\n")
