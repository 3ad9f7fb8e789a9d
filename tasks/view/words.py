"""Formatting numbers for the view: short, and of constant width."""

from __future__ import annotations

from remote_runner.sizes import size
from tasks.view.model import Transfer


def elapsed(seconds: float) -> str:
    """0:07, 12:34, 1:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def transfer_words(transfer: Transfer, *, short: bool) -> str:
    """What is done of it, how fast, and how long it still takes: `21.3 MiB of 60.0 MiB, 3.1 MiB/s, 0:12 left`."""
    done, rate = size(transfer.done_bytes), f"{size(int(transfer.bytes_per_s))}/s"
    left = "" if transfer.left_s is None else elapsed(transfer.left_s)
    if short:
        share = ""
        if transfer.total_bytes:
            share = f" {transfer.done_bytes / transfer.total_bytes:.0%}"
        return f"{done}{share}, {rate}" + (f", {left} left" if left else "")
    of = "" if transfer.total_bytes is None else f" of {size(transfer.total_bytes)}"
    return f"{done}{of}, {rate}" + (f", {left} left" if left else "")
