"""The soak notices: an agent that does not see its broker's end leaves something behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
# By these an agent ends when its broker is gone, or was not heard for too long.
WATCH = ('s.finish("gone")', 's.finish("lost")')


# On the soak's third host, which has Nix: an instance, a look, and the same with a root of ours that nobody removes.
LEAK = """
import sys
from pathlib import Path
from tests.soak.ground import Ground
from tests.soak.trial import SoakFailedError

with Ground.made(Path(sys.argv[1]), 3) as ground:
    host = ground.hosts[2]
    trial = ground.start("soak0", host)
    trial.finish()
    trial.judge(hit=False)
    trial.held.close()
    ground.clean(host)
    host.as_root("nix-store --add-root /root/.cache/remote-runner/nix/left -r /nix/store/*-failing")
    try:
        ground.clean(host)
    except SoakFailedError as failure:
        print(failure)
"""


def soak(*words: str, seed: int = 1) -> subprocess.CompletedProcess[str]:
    few = ("--hosts", "1", "--at-once", "2", "--minutes", "2", "--seed", str(seed))
    return subprocess.run(
        [sys.executable, "-m", "tests.soak", *few, *words],
        cwd=ROOT,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def test_the_soak_passes_where_the_watch_is_on() -> None:
    need("ssh", "netns")
    done = soak("--pairs", "broker:run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 1" in done.stdout


def test_the_soak_fails_where_the_watch_is_off(tmp_path: Path) -> None:
    need("ssh", "netns", "go")
    for package in ("remote_runner", "testground", "agent"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    source = tmp_path / "agent/internal/wire/session.go"
    text = source.read_text(encoding="utf-8")
    for line in WATCH:
        assert text.count(line) == 1, line
        text = text.replace(line, "_ = s")
    source.write_text(text, encoding="utf-8")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", "remote_runner.connection.bootstrap.program"]
    subprocess.run(words, cwd=tmp_path, env=environ, check=True, capture_output=True)
    done = soak("--pairs", "broker:run", "--code", str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert ": leaked " in done.stdout, done.stdout + done.stderr


def test_the_soak_notices_a_root_that_stays_in_a_store(tmp_path: Path) -> None:
    need("nix")
    argv = [sys.executable, "-c", LEAK, str(tmp_path)]
    done = subprocess.run(
        argv, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "leaked GC root on s2: ['/root/.cache/remote-runner/nix/left -> /nix/store/" in done.stdout
