"""Writing to descriptors that others share."""

from __future__ import annotations

import os
import threading

from remote_runner.machine.descriptors import write_all


def test_all_is_written_to_a_pipe_that_somebody_made_non_blocking() -> None:
    data = os.urandom(1 << 20)
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    read: list[bytes] = []

    def take() -> None:
        while piece := os.read(ours, 1 << 16):
            read.append(piece)

    reader = threading.Thread(target=take)
    reader.start()
    try:
        write_all(theirs, data)
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert b"".join(read) == data
