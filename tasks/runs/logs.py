"""`fab runs.logs`: prints what a run's instances said, in order."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import invoke

from remote_runner.instance.run_log import LOG_FILE
from remote_runner.records.places import FoundRun, is_written
from remote_runner.records.run import RUNNING, RunRecord
from tasks.command_line.task import Failed, task
from tasks.plan import Plan
from tasks.runs.find import run_meant
from tasks.say import say, show
from testground.tags import as_tag, tag_of

_LOOK_S = 0.2
# A run writes its record before its log.
_BEGINS_WITHIN_S = 10.0
_CHUNK_BYTES = 1 << 20


@task(
    help={
        "id": "the run's id, or its beginning (default: the last run)",
        "instance": "only this one, as single[003] or single/3",
        "follow": "go on until the run has ended",
    },
    bare="id",
    short={"follow": "f"},
)
def logs(c: invoke.Context, id: list[str] | None = None, instance: str = "", follow: bool = False) -> None:  # noqa: A002
    """Print what a run's instances said, with times: their lines, events in words, and remote-runner's own words."""
    found = run_meant(Plan.here(), id)
    wanted = instance_name(instance) if instance else ""
    if not follow and not (found.directory / LOG_FILE).is_file():
        raise Failed(f"{found.directory} has no {LOG_FILE}")
    count = 0
    try:
        for line in lines_of(found, follow=follow):
            shown = shown_line(line, wanted)
            if shown:
                show(shown)
                count += 1
    except KeyboardInterrupt:
        raise Failed(None, 130) from None
    if wanted and not count:
        names = [instance_of(one) for one in found.record.instances]
        raise Failed(
            f"{wanted} said nothing in run {found.run}; its instances are {', '.join(names[:20]) or 'not known'}"
        )
    if not follow and found.is_alive:
        say("the run is not over: --follow waits for more")


def instance_name(given: str) -> str:
    """An instance as it is named everywhere: `single[003]`, also for `single[3]` and `single/3`. Raises `Failed`."""
    name = as_tag(given)
    if not name:
        raise Failed(f"--instance is {given!r}; expected GROUP[INDEX], as single[003]")
    return name


def instance_of(one: Mapping[str, Any]) -> str:
    """The name of an instance of a record."""
    return str(one["group"]) if one["index"] is None else tag_of(one["group"], one["index"])


def shown_line(line: str, wanted: str = "") -> str:
    """A line of the log as it is printed, "" for another instance's than `wanted` and for what says nothing."""
    when, _, rest = line.partition(" ")
    # A group's name may have blanks.
    match = re.match(r"(.*?\[[^\]]*\]) (stdout|stderr|runner) ", rest)
    if match is None:
        return ""
    who = as_tag(match[1]) or match[1]
    if wanted and who != wanted:
        return ""
    text, stream = rest[match.end() :], match[2]
    if stream == "stderr":
        text = f"stderr: {text}"
    elif stream == "stdout":
        text = in_words(text)
    return f"{when[11:23]} {who} {text}" if text else ""


def in_words(text: str) -> str:
    """A line of an application's stdout, an event as words."""
    from testground.events import (
        CrashEvent,
        FailureEvent,
        MessageEvent,
        StageEndEvent,
        StageStartEvent,
        StartEvent,
        SuccessEvent,
        parse_line,
    )

    found = parse_line(text.encode())
    match found.event if found else None:
        case None:
            return text
        case MessageEvent(message):
            return message
        case SuccessEvent():
            return "OK"
        case FailureEvent(error=error):
            return f"FAIL {error}"
        case CrashEvent(error=error):
            return f"CRASH {error}"
        case StageStartEvent(name=name):
            return f"stage {name} begins"
        case StageEndEvent(name=name):
            return f"stage {name} ends"
        case StartEvent():
            return "START"
        case _:
            return text


def lines_of(found: FoundRun, *, follow: bool) -> Iterator[str]:
    """The log's lines; with `follow` also those that come until the run has ended."""
    path = found.directory / LOG_FILE
    position, held = 0, b""
    until_s = time.monotonic() + _BEGINS_WITHIN_S
    while True:
        goes_on = follow and _goes_on(found.directory, until_s)  # looked at first: what is read then is all
        while data := _read(path, position):
            position += len(data)
            *lines, held = (held + data).split(b"\n")
            yield from (line.decode("utf-8", "replace") for line in lines)
        if not goes_on:
            return
        time.sleep(_LOOK_S)


def _read(path: Path, position: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(position)
            return file.read(_CHUNK_BYTES)
    except FileNotFoundError:
        return b""


def _goes_on(directory: Path, until_s: float) -> bool:
    if is_written(directory):
        return True
    record = RunRecord.read(directory)
    is_to_begin = not (directory / LOG_FILE).exists() and time.monotonic() < until_s
    return record is not None and record.outcome == RUNNING and is_to_begin
