"""Which services a run has, and what is said to those whose application cannot be told where they are."""

from __future__ import annotations

import pytest

from remote_runner.instance.services import advice_for, services_from


@pytest.mark.parametrize(
    "last_words",
    [
        b'Error: Custom { kind: Uncategorized, error: "failed to lookup address information: Try again" }',
        b'Error: Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }\n',
    ],
)
def test_a_rust_program_that_finds_no_service_gets_the_two_settings(last_words: bytes) -> None:
    advice = advice_for(b"starting\n" + last_words, "dex")
    assert "`127.0.0.1 testground-sync-service` into the hosts file of dex" in advice
    assert "`service_ports: {sync: 5050}`" in advice


@pytest.mark.parametrize("last_words", [b"", b"curl: (7) Failed to connect: Connection refused\n"])
def test_other_words_get_none(last_words: bytes) -> None:
    assert advice_for(last_words, "dex") == ""


@pytest.mark.parametrize(
    ("environ", "services"),
    [
        ({}, []),
        ({"INFLUXDB_URL": "", "REDIS_HOST": "", "REDIS_PORT": "6379", "SYNC_SERVICE_PORT": "7"}, ["sync localhost:7"]),
        ({"REDIS_HOST": "here"}, ["redis here:6379"]),
        ({"INFLUXDB_URL": "http://u:p@here"}, ["influxdb here:8086"]),
    ],
)
def test_a_run_has_the_services_that_its_environment_names_and_no_others(
    environ: dict[str, str], services: list[str]
) -> None:
    assert [f"{service.name} {service.near}" for service in services_from(environ)] == services


@pytest.mark.parametrize(
    "last_words",
    [
        "/usr/bin/env: ‘bash\\r’: No such file or directory\n",
        "env: can't execute 'bash\r': No such file or directory\n",
    ],
)
def test_a_script_with_windows_line_ends_is_called_one(last_words: str) -> None:
    assert "Windows line ends (CRLF)" in advice_for(last_words.encode(), "dex")
