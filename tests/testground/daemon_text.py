"""What testground's daemon printed about instances, taken apart for comparison."""

from __future__ import annotations

import re
from dataclasses import dataclass

_STAMPED = re.compile(r"[A-Z][a-z]{2} \d\d \d\d:\d\d:\d\d\.\d{6}\t([A-Z]+)\t(.*)", re.DOTALL)
_PRINTED = re.compile(r"(\d+\.\d{4})s +([A-Z_]+) << ([^ ]+)\[(\d{3})\] >> (.*)", re.DOTALL)

# A long recording (metrics) was cut here, in the middle of a line.
_CUT_CHARACTERS = 20_000


@dataclass(frozen=True)
class Printed:
    """One line (or several, where the text has newlines) about an instance."""

    elapsed_s: float
    word: str
    group: str
    number: int
    text: str

    def said_by(self, recorded: Printed) -> bool:
        """Whether a recording that was cut, lines at 400 characters, can come from this."""
        if (self.word, self.text) == (recorded.word, recorded.text):
            return True
        cut = recorded.text.startswith("a" * 300) and set(recorded.text) == {"a"}
        return cut and self.word == recorded.word and self.text.startswith(recorded.text)

    @property
    def said(self) -> tuple[str, str]:
        return self.word, self.text


def daemon_printed(recording: str) -> list[Printed]:
    """The lines about instances in a recording; other lines of the daemon end a text that goes on over lines."""
    entries: list[str] = []
    for line in recording.split("\n"):
        stamped = _STAMPED.fullmatch(line)
        if stamped is not None:
            entries.append(stamped[2])
        elif entries:
            entries[-1] += f"\n{line}"
    if is_cut(recording):
        entries.pop()
    found = [_PRINTED.fullmatch(entry) for entry in entries]
    return [_printed(match) for match in found if match is not None]


def as_recorded(text: str) -> str:
    """What we printed, as the daemon prints it: control characters themselves instead of their numbers, and without
    what a terminal would not show, which the recordings have lost."""
    printed = re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)
    return re.sub(r"\0|\x1b\[\d*m", "", printed)


def own_printed(text: str) -> list[Printed]:
    """The same of what `local_exec` printed, which is nothing else but the summary at the end."""
    entries: list[str] = []
    told = text.partition("\n\nrun ")[0]
    for line in told.removesuffix("\n").split("\n") if told else ():
        if _PRINTED.fullmatch(line) is not None:
            entries.append(line)
        else:
            entries[-1] += f"\n{line}"
    return [_printed(match) for match in map(_PRINTED.fullmatch, entries) if match is not None]


def _printed(match: re.Match[str]) -> Printed:
    return Printed(float(match[1]), match[2], match[3], int(match[4]), match[5])


def is_cut(recording: str) -> bool:
    """Whether the recording ends in the middle of the run."""
    return len(recording) == _CUT_CHARACTERS


def recorded_failures(recording: str) -> int:
    """How many instances failed by the daemon's word; 0 where the run succeeded. For recordings that are whole."""
    failed = re.search(r'"error": "(\d+) nodes failed"', recording)
    succeeded = re.search(r"result default\[\w+\]: success", recording)
    assert (failed is None) != (succeeded is None)
    return 0 if failed is None else int(failed[1])
