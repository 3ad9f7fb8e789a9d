"""Our own messages between the application's lines: Testground events on stdout, whole lines only."""

from __future__ import annotations

import time
from dataclasses import dataclass

from remote_runner.instance.run_log import InstanceLog
from remote_runner.instance.writer import Writer
from remote_runner.secrets import Secrets
from remote_runner.typed import as_typed
from testground.events import CrashEvent, Event, FailureEvent, MessageEvent, SuccessEvent, encode_event, parse_line
from testground.terminal import harmless

# Testground stops reading an instance at a line of 64 KiB; an error with a page of stderr stays well below.
LONGEST_TEXT = 16_000
_LAST_BYTES = 400
STEP, WARNING = "remote-runner step", "remote-runner"
"""What `msg` says in the line of an event of ours that tells a step, or something else; Testground shows it nowhere."""
_LONGEST_LINE = 64 * 1024


@dataclass
class Seen:
    """Which of the events that make a verdict have passed."""

    success: bool = False
    failure: bool = False


class Reporter:
    """What an instance prints: our events between the application's lines, none cut by another.

    Our own words are made harmless for a terminal and go without the `secrets`; the application's lines pass as they
    are, and are looked through for the events that make the verdict.
    """

    def __init__(self, stdout: Writer, stderr: Writer, *, group_id: str, run_id: str) -> None:
        self._writers = {"stdout": stdout, "stderr": stderr}
        self._group_id = group_id
        self._run_id = run_id
        self._is_amid_line = False
        self._begun = b""  # the application's line on stdout whose end has not come
        self.secrets = Secrets()
        self.seen = Seen()
        self.log: InstanceLog | None = None
        """Keeps what is said from here on."""
        self.last_stderr = b""
        """The end of what has passed on stderr."""

    def message(self, text: str) -> None:
        """A message event."""
        self._event(MessageEvent(text := self._words(text)), text, WARNING)

    def step(self, text: str) -> None:
        """A message event that says how far the instance is, for readers who want every step."""
        self._event(MessageEvent(text := self._words(text)), text, STEP)

    def failure(self, text: str) -> None:
        """The failure event that makes Testground's verdict, with the reason and the next step."""
        self._event(FailureEvent(self._group_id, text := self._words(text)), text)

    def crash(self, text: str, trace: str) -> None:
        """A fault of remote-runner's own."""
        text, trace = self._words(text), self._words(trace)
        self._event(CrashEvent(self._group_id, text, trace), f"{text}\n{trace}")

    async def stdout(self, data: bytes) -> None:
        """The application's next bytes on stdout; returns when there is room for more."""
        end = data.rfind(b"\n") + 1
        if not end:
            self._begun += data
            if len(self._begun) > _LONGEST_LINE:  # only where the agent was told to cut no lines
                self._pass(self._begun)
                self._begun = b""
        else:
            whole = data if end == len(data) and not self._begun else self._begun + data[:end]
            self._begun = data[end:]
            self._pass(whole)
        await self._writers["stdout"].drain()
        if self.log is not None:
            await self.log.drain()

    async def stderr(self, data: bytes) -> None:
        """The same on stderr."""
        self.last_stderr = data[-_LAST_BYTES:]
        self._writers["stderr"].feed(data)
        await self._writers["stderr"].drain()
        if self.log is not None:
            self.log.stderr(data)
            await self.log.drain()

    def end_of_stdout(self) -> None:
        """The application has ended: a last line without its newline is passed on, and ours begin a new one."""
        if self._begun:
            self._pass(self._begun)
            self._begun = b""
            self._is_amid_line = True

    async def end_of_streams(self) -> None:
        """The same of both, and return once everything is in the files of the outputs."""
        self.end_of_stdout()
        if self.log is not None:
            self.log.end_of_streams()
            for problem in await self.log.flush():
                self.message(f"run: {problem}")

    async def flush(self) -> None:
        """Return once everything is written."""
        for writer in self._writers.values():
            await writer.flush()

    def _pass(self, data: bytes) -> None:
        # One byte is looked for 16 times faster than a word, and plain text has no quotes: 5 µs a chunk, not 240.
        quote = data.find(b'"')
        for kind in (b'success_event"', b'failure_event"', b'crash_event"') if quote >= 0 else ():
            position = data.find(kind, max(0, quote + 1 - len(kind)))
            while position >= 0:
                line_end = data.find(b"\n", position) + 1 or len(data)
                self._look(data[data.rfind(b"\n", 0, position) + 1 : line_end])
                position = data.find(kind, line_end)
        self._writers["stdout"].feed(data)
        if self.log is not None:
            self.log.stdout(data)

    def _look(self, line: bytes) -> None:
        found = parse_line(line)
        if found is not None:
            self.seen.success |= isinstance(found.event, SuccessEvent)
            self.seen.failure |= isinstance(found.event, FailureEvent | CrashEvent)

    def _event(self, event: Event, text: str, msg: str = "") -> None:
        line = encode_event(event, ts_ns=time.time_ns(), group_id=self._group_id, run_id=self._run_id, msg=msg)
        self._writers["stdout"].feed(b"\n" + line if self._is_amid_line else line)
        self._is_amid_line = False
        if self.log is not None:
            self.log.words(text)

    def _words(self, text: str) -> str:
        text = harmless(self.secrets.hide(as_typed(text)))
        return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}…"
