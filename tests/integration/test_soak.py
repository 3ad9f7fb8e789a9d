"""The soak notices: where the far side does not watch its controller, a killed one leaves processes behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.needs import need

ROOT = Path(__file__).parent.parent.parent
# By these the host learns that nobody here listens any more: missed signs of life, and the end of its input.
WATCH = (
    '[ "$rr_missed" -ge 4 ] && { rr_has_job || [ $((rr_missed * rr_pause_s)) -ge "$rr_wait_s" ]; } && rr_ending=lost',
    "trap 'rr_ending=lost' HUP",
)


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
    done = soak("--pairs", "KILL:run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "seed 1" in done.stdout


def test_the_soak_fails_where_the_watch_is_off(tmp_path: Path) -> None:
    need("ssh", "netns")
    for package in ("remote_runner", "testground"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    script = tmp_path / "remote_runner/supervisor.sh"
    text = script.read_text(encoding="utf-8")
    for line in WATCH:
        assert line in text
        text = text.replace(line, ":" if line.startswith("[") else "trap '' HUP")
    script.write_text(text, encoding="utf-8")
    # A kill after the step's beginning and before the application's start leaves nothing, so it has several tries.
    said = []
    for seed in range(1, 13):
        done = soak("--pairs", "KILL:run", "--code", str(tmp_path), seed=seed)
        said.append(done.stdout + done.stderr)
        if done.returncode:
            break
    assert "FAILED: KILL at run: leaked process on s0" in said[-1], "\n".join(said)


def test_the_soak_notices_a_root_that_stays_in_a_store(tmp_path: Path) -> None:
    need("nix")
    argv = [sys.executable, "-c", LEAK, str(tmp_path)]
    done = subprocess.run(
        argv, cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "leaked GC root on s2: ['/root/.cache/remote-runner/nix/left -> /nix/store/" in done.stdout
