"""Testground's line limit, kept for an application that does not know it.

The daemon stops reading an instance at a line of 64 KiB (recordings/verdict/long-line-then-success). So a longer line
is shortened on its way: an event by its text, so that it stays an event; whole it stands in a file of the outputs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from remote_runner.errors import ControllerError
from testground.events import CrashEvent, FailureEvent, SuccessEvent, parse_line

LONGEST_LINE = 60 * 1024
"""Bytes, newline included, up to which a line is passed on as it is."""
KEPT_BYTES = 1 << 30
"""How much of the lines that were cut is kept of each stream."""
# What a cut line may still get: the note, brackets, a timestamp.
_ROOM = 512
_LAST_BYTES = 400


@dataclass
class Seen:
    """Which of the events that make a verdict have passed."""

    success: bool = False
    failure: bool = False


class LineGuard:
    """Bytes in, whole lines out, none longer than `LONGEST_LINE`; memory stays flat for a line of any length.

    `emit` gets one or more whole lines at a time (the last of a stream may lack its newline). Lines that were cut are
    written to `whole_file`, which is made when the first one comes, until it holds `kept_bytes`.
    """

    def __init__(
        self, emit: Callable[[bytes | memoryview], None], whole_file: Path, *, kept_bytes: int = KEPT_BYTES
    ) -> None:
        self._room_bytes = kept_bytes
        self.seen = Seen()
        self.cut_lines = 0
        self.last = b""
        """The end of what has passed: a few hundred bytes of the last chunk."""
        self._emit = emit
        self._whole_file = whole_file
        self._file: BinaryIO | None = None
        self._held = b""  # the beginning of a line whose end has not come
        self._long: _LongLine | None = None

    def feed(self, data: bytes) -> None:
        """The stream's next bytes, cut anywhere."""
        start = 0
        if self._long is not None:
            start = data.find(b"\n") + 1
            self._spool(data[:start] if start else data)
            if not start:
                return
            self._finish_long()
        elif self._held:
            start = data.find(b"\n", 0, LONGEST_LINE) + 1
            if not start or start + len(self._held) > LONGEST_LINE:
                data, start = self._held + data, 0
            else:
                self._pass(self._held + data[:start])
            self._held = b""
        ready = data.rfind(b"\n", start) + 1 or start
        position = start
        # A whole chunk goes on in one piece: only every 60 KiB is it asked for a line's end.
        while ready - position > LONGEST_LINE:
            line_end = data.rfind(b"\n", position, position + LONGEST_LINE) + 1
            if line_end:
                position = line_end
                continue
            self._pass(data, start, position)
            end = data.find(b"\n", position) + 1
            self._long = _LongLine()
            self._spool(data[position:end])
            self._finish_long()
            start = position = end
        self._pass(data, start, ready)
        if len(data) - ready >= LONGEST_LINE:
            self._long = _LongLine()
            self._spool(data[ready:])
        else:
            self._held = data[ready:]

    def close(self) -> None:
        """The stream has ended: a last line without its newline goes on as it is."""
        if self._long is not None:
            self._finish_long()
        if self._held:
            self._pass(self._held)
            self._held = b""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _pass(self, data: bytes, start: int = 0, end: int | None = None) -> None:
        end = len(data) if end is None else end
        if start == end:
            return
        # One byte is looked for 16 times faster than a word, and plain text has no quotes: 5 µs a chunk, not 240.
        quote = data.find(b'"', start, end)
        for kind in (b'success_event"', b'failure_event"', b'crash_event"') if quote >= 0 else ():
            # The quote is its last byte.
            position = data.find(kind, max(start, quote + 1 - len(kind)), end)
            while position >= 0:
                line_end = data.find(b"\n", position, end) + 1 or end
                self._look(data[data.rfind(b"\n", start, position) + 1 or start : line_end])
                position = data.find(kind, line_end, end)
        self.last = bytes(data[max(start, end - _LAST_BYTES) : end])
        # No copy: the same chunk goes to the descriptor.
        self._emit(data if start == 0 and end == len(data) else memoryview(data)[start:end])

    def _look(self, line: bytes) -> None:
        found = parse_line(line)
        if found is not None:
            self.seen.success |= isinstance(found.event, SuccessEvent)
            self.seen.failure |= isinstance(found.event, FailureEvent | CrashEvent)

    def _spool(self, data: bytes) -> None:
        assert self._long is not None
        self._long.take(data)
        kept = data[: self._room_bytes]
        self._room_bytes -= len(kept)
        self._long.kept_bytes += len(kept)
        try:
            if self._file is None:
                self._file = self._whole_file.open("ab")
            self._file.write(kept)
        except OSError as error:
            raise ControllerError(
                f"{self._whole_file}: a long line of the application cannot be kept: {error.strerror}",
                next_step="make room there and run again",
            ) from error

    def _finish_long(self) -> None:
        assert self._long is not None
        self.cut_lines += 1
        how = "whole" if self._long.kept_bytes == self._long.size_bytes else f"its first {self._long.kept_bytes} bytes"
        where = f"{how} as line {self.cut_lines} of {self._whole_file.name}"
        self._pass(shorten(self._long.head, self._long.size_bytes, where))
        self._long = None


class _LongLine:
    """A line on its way into the file: its first bytes and its length so far."""

    def __init__(self) -> None:
        self.head = b""
        self.size_bytes = 0
        self.kept_bytes = 0

    def take(self, data: bytes) -> None:
        if len(self.head) < LONGEST_LINE:
            self.head += data[: LONGEST_LINE - len(self.head)]
        self.size_bytes += len(data)


def shorten(head: bytes, size_bytes: int, where: str) -> bytes:
    """One line of at most `LONGEST_LINE` bytes for a line of `size_bytes` that begins with `head`.

    `where` says where the line stands, and whether whole. An event stays an event where its head shows that it is one.
    """
    note = f"… [cut: {size_bytes} bytes, {where}]".encode()
    head = head[: LONGEST_LINE - _ROOM]
    event = _shorten_event(head, note)
    if event is not None:
        return event
    return _whole_characters(head.rstrip(b"\r\n")) + b" " + note + b"\n"


# A string (its end may be missing), a bracket, or a comma or colon.
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*("|\\?\Z)|[{}\[\]]|[,:]', re.DOTALL)


def _shorten_event(head: bytes, note: bytes) -> bytes | None:
    """The beginning of an event's JSON, ended inside its last text or after its last whole text; None for others."""
    if not head.lstrip().startswith(b"{"):
        return None
    stack: list[bytes] = []
    before = b""
    key = b""
    top_keys = set[bytes]()
    safe: tuple[int, list[bytes]] | None = None
    for token in _TOKEN.finditer(head):
        text = token[0]
        if text[:1] == b'"':
            is_value = before == b":" or (bool(stack) and stack[-1] == b"]")
            if token[1] != b'"':
                if is_value and b'"event"' in top_keys:
                    cut = _whole_characters(_whole_escapes(head))
                    return _close(cut + note + b'"', stack, top_keys)
                break
            if is_value:
                safe = (token.end(), stack.copy())
            key = text
        elif text in b"{[":
            stack.append(b"}" if text == b"{" else b"]")
        elif text in b"}]":
            if not stack or stack.pop() != text:
                return None  # no JSON
        elif text == b":" and len(stack) == 1:
            top_keys.add(key)
        before = text
    if safe is None or b'"event"' not in top_keys:
        return None
    end, open_brackets = safe
    return _close(head[:end], open_brackets, top_keys)


def _close(text: bytes, stack: list[bytes], top_keys: set[bytes]) -> bytes:
    closed = text + b"".join(reversed(stack[1:]))
    if b'"ts"' not in top_keys:
        closed += b',"ts":%d' % time.time_ns()
    return closed + b"}\n"


def _whole_escapes(text: bytes) -> bytes:
    """Without an escape that was cut: a lone backslash, or `\\u` with less than four digits behind it."""
    cut = re.search(rb"(?<!\\)(?:\\\\)*(\\(?:u[0-9a-fA-F]{0,3})?)\Z", text)
    return text[: cut.start(1)] if cut else text


def _whole_characters(text: bytes) -> bytes:
    """Without a UTF-8 sequence that was cut."""
    for back in range(1, min(4, len(text)) + 1):
        byte = text[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return text[:-back] if length > back else text
    return text
