"""What is hidden of a text, and which variables' values those are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from remote_runner.errors import HostError, InventoryError, RunEnvironmentError
from remote_runner.instance.services import services_from
from remote_runner.inventory.inventory import Inventory
from remote_runner.secrets import Secrets

KEY = "-----BEGIN KEY-----\nMIIEpAIBAAKCAQEA7\n\tq2V0'\"\\x\n-----END KEY-----\n"


def secrets_of(text: str, **environ: str) -> Secrets:
    return Inventory.parse(text, Path("/plan/inventory.yaml")).secrets(environ)


@pytest.mark.parametrize("shown", [KEY, repr(KEY), json.dumps(KEY), str(HostError("dex", "no", stderr=KEY))])
def test_a_secret_of_several_lines_is_hidden_in_every_form(shown: str) -> None:
    hidden = Secrets.of([KEY]).hide(shown)
    assert "***" in hidden
    for line in KEY.splitlines():
        assert line.strip() not in hidden
    assert "MIIE" not in hidden


def test_the_longer_of_two_goes_first() -> None:
    assert Secrets.of(["token", "token-with-more"]).hide("token-with-more token") == "*** ***"


def test_nothing_to_hide_changes_nothing() -> None:
    assert Secrets.of(["", "x" * 5]).hide("text") == "text"
    values = {"a": [1, None, {"b": "xxxxx"}]}
    assert Secrets().hide_in(values) is values
    assert Secrets.of(["xxxxx"]).hide_in(values) == {"a": [1, None, {"b": "***"}]}


def test_the_values_of_all_hosts_are_hidden_wherever_they_are_set() -> None:
    text = """
defaults: {secret_env: [TOKEN], env: {TOKEN: }}
app: {env: {FROM_APP: from-app}}
hosts:
  dex: {secret_env: [PASSWORD, FROM_APP], env: {PASSWORD: from-file, TOKEN: of-dex}}
  eno:
"""
    secrets = secrets_of(text, TOKEN="from-here", OTHER="seen")
    assert secrets.hide("from-here from-file of-dex from-app seen") == "*** *** *** *** seen"


@pytest.mark.parametrize("name", ["REMOTE_RUNNER_NUMBER", "a b", "x=y"])
def test_a_name_that_no_variable_of_the_users_has_is_refused(name: str) -> None:
    with pytest.raises(InventoryError, match=r"defaults.secret_env\[0\].*expected a variable's name"):
        secrets_of(json.dumps({"defaults": {"secret_env": [name]}}))


def test_a_value_that_is_too_short_is_refused_and_not_shown() -> None:
    with pytest.raises(InventoryError, match="secret_env: found a value of 3 characters for TOKEN") as caught:
        secrets_of("defaults: {secret_env: [TOKEN]}", TOKEN="q7z")
    assert "q7z" not in str(caught.value)


@pytest.mark.parametrize("url", ["influx://me:passw0rd@db:8086", "http://me:passw0rd@db:port", "me:passw0rd@db"])
def test_the_password_of_a_url_that_is_none_is_not_shown(url: str) -> None:
    with pytest.raises(RunEnvironmentError, match="INFLUXDB_URL") as caught:
        services_from({"INFLUXDB_URL": url})
    assert "passw0rd" not in str(caught.value)
