"""What ssh is started with, word by word, and what its own words are taken to mean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from remote_runner.errors import (
    ControllerError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    LoginDeniedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget
from remote_runner.ssh import SshSettings, explain_failure, master_argv, master_key, peer_address, ssh_environment

SETTINGS = SshSettings()
PLAIN = SshTarget.from_name("dex")
FULL = SshTarget(
    name="dex",
    host="192.0.2.7",
    user="me",
    port=2222,
    identity_file="/keys/50%",
    options=(("ServerAliveInterval", "3"), ("ProxyJump", "gate")),
)


def test_a_master_is_started_with_what_it_needs_and_the_users_configuration() -> None:
    argv = master_argv("/usr/bin/ssh", PLAIN, SETTINGS, Path("/run/r/k-0"), connect_s=30, log=Path("/run/r/k-0.log"))
    assert argv == [
        *("/usr/bin/ssh", "-S", "/run/r/k-0", "-o", "BatchMode=yes", "-E", "/run/r/k-0.log", "-N", "-T"),
        *("-o", "ControlMaster=yes", "-o", "ControlPersist=300", "-o", "ClearAllForwardings=yes"),
        *("-o", "RemoteCommand=none", "-o", "PermitLocalCommand=no", "-o", "Tunnel=no", "-o", "LogLevel=VERBOSE"),
        *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6", "-o", "ConnectTimeout=15", "--", "dex"),
    ]


def test_the_targets_own_options_come_before_ours_and_after_the_masters_needs() -> None:
    argv = master_argv("ssh", FULL, SETTINGS, Path("/r/k%d-0"), connect_s=30)
    words = " ".join(argv)
    assert words.startswith("ssh -S /r/k%%d-0 -o BatchMode=no -N -T ")
    assert words.index("ControlMaster") < words.index("ServerAliveInterval=3") < words.index("ServerAliveInterval=10")
    assert "-o ProxyJump=gate" in words
    assert words.endswith("-l me -p 2222 -i /keys/50%% -o ConnectTimeout=15 -- 192.0.2.7")
    assert "-E" not in argv


def test_a_socket_path_that_macos_would_cut_is_refused() -> None:
    fits = Path("/" + "x" * 85)
    master_argv("ssh", PLAIN, SETTINGS, fits, connect_s=1)
    with pytest.raises(ControllerError, match="REMOTE_RUNNER_RUNTIME_DIR"):
        master_argv("ssh", PLAIN, SETTINGS, Path(f"{fits}x"), connect_s=1)


def test_only_what_is_started_alike_shares_a_master() -> None:
    keys = {
        master_key(PLAIN, SETTINGS, "/root"),
        master_key(PLAIN, SETTINGS, "/home/me"),
        master_key(PLAIN, SshSettings(persist_s=1), "/root"),
        master_key(FULL, SETTINGS, "/root"),
        master_key(replace(FULL, options=()), SETTINGS, "/root"),
        master_key(replace(FULL, port=22), SETTINGS, "/root"),
    }
    assert len(keys) == 6
    assert master_key(replace(PLAIN, name="alias"), SETTINGS, "/root") == master_key(PLAIN, SETTINGS, "/root")


def test_ssh_gets_a_home_where_testground_gives_none() -> None:
    assert ssh_environment({"PATH": "/p", "TEST_RUN": "x"}, home="/root", user="root") == {
        "HOME": "/root",
        "USER": "root",
        "LOGNAME": "root",
        "PATH": "/p",
    }
    assert ssh_environment({"HOME": "/h", "SSH_AUTH_SOCK": "/a"}, home="/root", user="root")["SSH_AUTH_SOCK"] == "/a"
    assert ssh_environment({"HOME": "/h"}, home="/root", user="root")["HOME"] == "/h"


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ('Authenticated to 10.77.16.10 ([10.77.16.10]:22) using "publickey".\r\n', "10.77.16.10"),
        ('Authenticated to dex ([fe80::1%eth0]:2222) using "publickey".\n', "fe80::1%eth0"),
        ('Authenticated to gate ([192.0.2.1]:22) using "x".\nAuthenticated to dex (via proxy) using "x".\n', None),
        ("", None),
    ],
)
def test_the_address_is_read_from_the_masters_log(log: str, expected: str | None) -> None:
    assert peer_address(log) == expected


# Messages of OpenSSH's client, 9.2 unless said otherwise.
FAILURES: list[tuple[str, type[HostError]]] = [
    ("ssh: Could not resolve hostname dex: Name or service not known", HostUnresolvedError),
    ("ssh: connect to host dex port 22: Connection refused", HostRefusedError),
    ("ssh: connect to host dex port 22: No route to host", HostUnreachableError),
    ("ssh: connect to host dex port 22: Network is unreachable", HostUnreachableError),
    ("ssh: connect to host dex port 22: Connection timed out", HostUnreachableError),
    ("ssh: connect to host dex port 22: Operation timed out", HostUnreachableError),  # macOS
    (
        "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 192.0.2.7 port 22",
        HandshakeDroppedError,
    ),
    ("kex_exchange_identification: Connection closed by remote host", HandshakeDroppedError),
    ("ssh_exchange_identification: read: Connection reset by peer", HandshakeDroppedError),  # 7.4
    ("Connection closed by 192.0.2.7 port 22", HandshakeDroppedError),
    ("Connection timed out during banner exchange\nConnection to 192.0.2.7 port 22 timed out", HandshakeDroppedError),
    ("me@dex: Permission denied (publickey,password).", LoginDeniedError),
    ("Received disconnect from 192.0.2.7 port 22:2: Too many authentication failures", LoginDeniedError),
    ("Host key verification failed.", HostKeyUnknownError),
    (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending ED25519 key in /h/known_hosts:3\n"
        "Host key verification failed.",
        HostKeyChangedError,
    ),
    ("/root/.ssh/config: line 1: Bad configuration option: foo", SshFailedError),
    # a jump host's word counts, not the end of the connection that follows from it
    (
        "channel 0: open failed: connect failed: Connection refused\nstdio forwarding failed\n"
        "kex_exchange_identification: Connection closed by remote host",
        HostRefusedError,
    ),
    (
        "me@gate: Permission denied (publickey).\nkex_exchange_identification: Connection closed by remote host",
        LoginDeniedError,
    ),
]


@pytest.mark.parametrize(("log", "kind"), FAILURES)
def test_each_failure_has_its_error_with_the_host_and_a_next_step(log: str, kind: type[HostError]) -> None:
    error = explain_failure(PLAIN, 255, log + "\n", has_agent=True)
    assert type(error) is kind
    assert error.host == "dex"
    assert error.next_step
    assert log.splitlines()[-1] in str(error)


def test_a_deadline_is_an_unreachable_host() -> None:
    assert isinstance(explain_failure(PLAIN, None, "", has_agent=True), HostUnreachableError)


def test_the_methods_decide_on_the_next_step() -> None:
    password_only = explain_failure(PLAIN, 255, "me@dex: Permission denied (password).", has_agent=True)
    assert isinstance(password_only, LoginDeniedError)
    assert password_only.methods == ("password",)
    assert "fab hosts.login --host dex" in password_only.next_step
    assert "takes no keys" in password_only.next_step
    keys = explain_failure(PLAIN, 255, "me@dex: Permission denied (publickey).", has_agent=False)
    assert "SSH_AUTH_SOCK" in keys.next_step


def test_a_host_key_names_the_line_that_settles_it() -> None:
    unknown = explain_failure(FULL, 255, "Host key verification failed.", has_agent=True)
    assert "ssh -o StrictHostKeyChecking=ask -p 2222 -i /keys/50% me@192.0.2.7 true" in unknown.next_step
    changed = explain_failure(
        FULL, 255, "REMOTE HOST IDENTIFICATION HAS CHANGED\nOffending ED25519 key in /h/k:3\n", has_agent=True
    )
    assert "ssh-keygen -R '[192.0.2.7]:2222' -f /h/k" in changed.next_step


@pytest.mark.parametrize("tolerate_s", [0.5, 5, 7.5, 30, 60, 600])
def test_the_keepalives_give_up_soon_after_what_is_tolerated(tolerate_s: float) -> None:
    settings = SshSettings.tolerating(tolerate_s)
    silent_s = settings.alive_interval_s * settings.alive_count
    assert max(5, tolerate_s) <= silent_s
    assert silent_s + settings.alive_interval_s <= max(5, tolerate_s) + 15
