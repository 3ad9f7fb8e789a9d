"""What is said to those whose application cannot be told where the services are."""

from __future__ import annotations

import pytest

from remote_runner.instance.services import advice_for


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
