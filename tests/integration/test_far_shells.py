"""Hosts as people have them: every login shell, talkative start-up files, another sh, mounts without exec."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.hosts import Keys, which
from tests.hosts_netns import Lan, NetnsHost
from tests.integration.runs import Machine, Plan, nothing_left, place_on
from tests.needs import need

# Everything that a start-up file of a shell may do to a session that is not interactive.
NOISE = {
    ".bashrc": "echo 'Welcome here!'; echo noise >&2; printf '\\0\\001 no line end'; alias tar=false cd=false\n",
    ".profile": "echo profile\n",
    ".zshenv": "echo 'zsh says hello'; echo noise >&2; setopt noclobber\n",
    ".cshrc": "echo 'csh says hello'; set noclobber; alias tar false\n",
    ".tcshrc": "echo 'tcsh says hello'; set noclobber; alias sh false\n",
    ".config/fish/config.fish": "echo 'fish says hello'; echo noise >&2; function tar; false; end\n",
}
APPLICATION = """
sleep 1000 &
mkdir "$TEST_OUTPUTS_PATH/a folder"
cat /proc/self/environ >"$TEST_OUTPUTS_PATH/a folder/environ"
echo on stderr >&2
ok
"""


def run_on(host: NetnsHost, directory: Path, machine: Machine) -> str:
    """An application with outputs, a variable and a child there, all as it should be; its directory there."""
    value = 'it\'s "quoted" $(here); `there` | & \\ *\n~ end'
    place = place_on(host, env={"SOME_VALUE": value})
    plan = Plan.of_script(directory / "plan", machine, APPLICATION, [place])

    outcome = plan.single().all_ok()

    (instance,) = outcome.instances
    environ = (instance.outputs / "a folder" / "environ").read_bytes().split(b"\0")
    assert b"SOME_VALUE=" + value.encode() in environ
    assert instance.record["stopped_processes"] == 1
    shown = outcome.ended.stderr
    assert "on stderr" in shown
    assert "hello" not in shown
    assert "noise" not in shown
    assert "Welcome" not in shown
    nothing_left(outcome.run, [place])
    return str(instance.record["far_directory"])


def make_noise(host: NetnsHost) -> None:
    for name, text in NOISE.items():
        file = host.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "dash", "busybox", "zsh", "fish", "tcsh"])
def test_login_shells_with_talkative_start_up_files(
    shell: str, lan: Lan, keys: Keys, tmp_path: Path, machine: Machine
) -> None:
    need(shell)
    login_shell = "busybox" if shell == "busybox" else which(shell)
    with NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys, login_shell=login_shell) as host:
        make_noise(host)
        if shell not in ("dash", "busybox"):
            assert host.ssh("true") != b"", "the start-up file says nothing, so this test shows nothing"
        run_on(host, tmp_path, machine)


@pytest.mark.parametrize("sh", ["bash", "dash", "busybox"])
def test_other_programs_as_sh(sh: str, lan: Lan, keys: Keys, tmp_path: Path, machine: Machine) -> None:
    need(sh)
    with NetnsHost.start(lan, tmp_path / "t1", name="t1", keys=keys, sh=sh) as host:
        run_on(host, tmp_path, machine)


@pytest.mark.parametrize(
    ("noexec", "base"),
    [
        (("/tmp",), "/root/.cache/remote-runner"),
        (("/root",), "/var/tmp/remote-runner-0"),
        (("/root", "/var/tmp"), "/tmp/remote-runner-0"),
        (("/root", "/var/tmp", "/tmp"), "/dev/shm/remote-runner-0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_mounts_without_exec(
    noexec: tuple[str, ...], base: str, netns_host: NetnsHost, tmp_path: Path, machine: Machine
) -> None:
    assert netns_host.server is not None
    for mount in noexec:
        inside = ["nsenter", "-t", str(netns_host.server.pid), "-m"]
        subprocess.run([*inside, "mount", "-o", "remount,bind,noexec", mount], check=True)
        probe = f"cp /bin/true {mount}/try; {mount}/try || echo refused; rm {mount}/try"
        assert netns_host.ssh(probe) == b"refused\n"

    where = run_on(netns_host, tmp_path, machine)

    assert where.startswith(f"{base}/runs/")
    assert list(netns_host.here(f"{base}/runs").iterdir()) == []
    assert len(list(netns_host.here(f"{base}/artifacts").iterdir())) == 1


def test_a_host_that_shows_no_processes(netns_host: NetnsHost, tmp_path: Path, machine: Machine) -> None:
    """Linux without /proc, as a login in a chroot may be."""
    assert netns_host.server is not None
    inside = ["nsenter", "-t", str(netns_host.server.pid), "-m"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "none", "/proc"], check=True)
    place = place_on(netns_host, grace_s=1, timeouts={"run_s": 3})
    script = 'echo precious >"$TEST_OUTPUTS_PATH/file"; sleep 1000 & ok\n'
    plan = Plan.of_script(tmp_path / "plan", machine, script, [place])
    outcome = plan.single().all_ok()
    assert outcome.instances[0].text("file") == "precious\n"
    nothing_left(outcome.run, [place])
    assert plan.fab("run", "--host", "t1", "--", "sleep", "4321").status != 0
    assert netns_host.processes() == []
