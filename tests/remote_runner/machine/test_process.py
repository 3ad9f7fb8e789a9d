"""The door to this machine's programs, where Ctrl-C comes at its worst moment."""

from __future__ import annotations

import signal
import subprocess
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from remote_runner.deadline import Deadline
from remote_runner.errors import LocalProgramError
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


@pytest.mark.parametrize(
    ("argv", "text", "reason", "next_step"),
    [
        ("exit 3", None, "No such file", "there is no shell; to have one: sh -c 'exit 3'"),
        ("./gone {out}", None, "No such file", "{dir}/gone is not there"),
        ("./file", "#!/bin/sh\n", "Permission denied", "chmod +x {dir}/file"),
        ("./program", "echo 1\n", "Exec format error", "in the first line of {dir}/program: #!/bin/sh"),
        ("./program", "#!/bin/sh\r\n", "Windows line ends", "save {dir}/program with Unix line ends"),
        ("./program", "#!/no/such/sh -e\n", "its first line names /no/such/sh -e", "another interpreter in {dir}/prog"),
    ],
)
def test_what_cannot_be_started_says_why_and_what_to_do(
    tmp_path: Path, argv: str, text: str | None, reason: str, next_step: str
) -> None:
    path = tmp_path / argv.split()[0]
    if text is not None:
        path.write_bytes(text.encode())
        path.chmod(0o755 if path.name == "program" else 0o644)
    with pytest.raises(LocalProgramError) as caught:
        process.run(argv.split(), deadline=Deadline.after(30.0), cwd=tmp_path)
    assert reason in caught.value.args[0]
    assert next_step.replace("{dir}", str(tmp_path)) in caught.value.next_step
