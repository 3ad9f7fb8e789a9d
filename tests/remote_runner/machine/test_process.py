"""The door to this machine's programs, where Ctrl-C comes at its worst moment."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remote_runner.deadline import Deadline
from remote_runner.machine import process


@pytest.mark.parametrize("logged", [True, False])
def test_ctrl_c_between_fork_and_its_end_loses_no_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, logged: bool
) -> None:
    """A process that nobody has a name for yet, as the signal finds it."""
    started: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    work = partial(process.run_logged, cwd=tmp_path, environ={}, log=tmp_path / "log") if logged else process.run
    try:
        with pytest.raises(KeyboardInterrupt):
            work(("sleep", "1000"), deadline=Deadline.after(30.0))
        assert started
        assert [one.returncode is None for one in started] == [False] * len(started)
    finally:
        for one in started:
            one.kill()
            one.wait()
