"""The run environment against the one that testground really handed over."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from testground.errors import ParamError, RunEnvError, TestgroundError
from testground.runenv import RunEnv, ServiceAddress, pack_params, unpack_params
from tests.recordings import RECORDINGS

_MINIMUM = {
    "TEST_PLAN": "plan",
    "TEST_CASE": "case",
    "TEST_RUN": "run",
    "TEST_GROUP_ID": "group",
    "TEST_INSTANCE_COUNT": "2",
    "TEST_GROUP_INSTANCE_COUNT": "1",
    "TEST_OUTPUTS_PATH": "/outputs",
    "TEST_TEMP_PATH": "/temp",
}


def _recorded() -> dict[str, str]:
    lines = (RECORDINGS / "environment.txt").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def _with_params(**params: str) -> RunEnv:
    return replace(RunEnv.from_environ(_MINIMUM), params=params)


def test_the_recorded_environment_is_read_and_handed_on_byte_for_byte() -> None:
    recorded = _recorded()
    runenv = RunEnv.from_environ(recorded)
    assert runenv.to_environ(path=recorded["PATH"]) == recorded
    assert runenv.params == {
        "remote-runners": '[{"name":"localhost"},{"arch":"x86_64-linux","name":"dex"}]',
        "server_ip": "10.0.0.1",
    }
    assert (runenv.plan, runenv.case, runenv.run) == ("remote-runner", "probe", "dc2evk5qmd2ua7ks4aug")
    assert (runenv.group_id, runenv.group_instance_count, runenv.instance_count) == ("single", 2, 2)
    assert runenv.sync_service == ServiceAddress("localhost", 5050)
    assert runenv.influxdb == ServiceAddress("localhost", 8086)
    assert runenv.started_at == datetime(2026, 11, 24, 2, 0, 53, tzinfo=UTC)


def test_another_port_of_the_sync_service_is_handed_on() -> None:
    runenv = RunEnv.from_environ(_recorded() | {"SYNC_SERVICE_PORT": "6061"})
    assert runenv.sync_service == ServiceAddress("localhost", 6061)
    assert runenv.to_environ(path="")["SYNC_SERVICE_PORT"] == "6061"


def test_the_least_environment_is_enough() -> None:
    runenv = RunEnv.from_environ(_MINIMUM)
    assert runenv.outputs_path == Path("/outputs")
    assert runenv.params == {}
    assert runenv.influxdb is None
    assert runenv.sync_service == ServiceAddress("testground-sync-service", 5050)


@pytest.mark.parametrize("variable", _MINIMUM)
def test_a_missing_variable_is_named_with_the_next_step(variable: str) -> None:
    environ = {name: value for name, value in _MINIMUM.items() if name != variable}
    with pytest.raises(RunEnvError, match=rf"{variable} is not set; expected (.|\n)*fab local.single") as caught:
        RunEnv.from_environ(environ)
    assert caught.value.variable == variable
    assert caught.value.found is None


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("TEST_INSTANCE_COUNT", "many"),
        ("TEST_INSTANCE_COUNT", "0"),
        ("TEST_GROUP_INSTANCE_COUNT", "-1"),
        ("TEST_SIDECAR", "perhaps"),
        ("TEST_INSTANCE_PARAMS", "garbage|a=b"),
        ("SYNC_SERVICE_PORT", "70000"),
        ("SYNC_SERVICE_PORT", "http"),
    ],
)
def test_an_unreadable_variable_is_named_with_what_it_holds(variable: str, value: str) -> None:
    with pytest.raises(RunEnvError) as caught:
        RunEnv.from_environ(_MINIMUM | {variable: value})
    assert f"{variable} is {value!r}; expected " in str(caught.value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://localhost:8086", ServiceAddress("localhost", 8086)),
        ("http://[::1]:9/db", ServiceAddress("::1", 9)),
        ("http://user:word@influx/", ServiceAddress("influx", 80)),
        ("https://influx", ServiceAddress("influx", 443)),
    ],
)
def test_influxdb_is_where_its_url_says(url: str, address: ServiceAddress) -> None:
    assert RunEnv.from_environ(_MINIMUM | {"INFLUXDB_URL": url}).influxdb == address


@pytest.mark.parametrize("url", ["localhost:8086", "http://", "http://h:port", "http://h:99999"])
def test_an_influxdb_url_that_is_none_is_named(url: str) -> None:
    with pytest.raises(RunEnvError, match="INFLUXDB_URL"):
        _ = RunEnv.from_environ(_MINIMUM | {"INFLUXDB_URL": url}).influxdb


@pytest.mark.parametrize(
    ("packed", "params"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=b=c|d=", {"a": "b=c", "d": ""}),
        ("a=x|y|z|b=2", {"a": "x|y|z", "b": "2"}),
        ("a=||b=2", {"a": "|", "b": "2"}),
    ],
)
def test_packed_params_are_read_tolerantly_and_packed_again(packed: str, params: dict[str, str]) -> None:
    assert unpack_params(packed) == params
    assert pack_params(params) == packed


def test_a_value_is_packed_as_it_is() -> None:
    assert pack_params({"a": "x|y=z", "b": "1"}) == "a=x|y=z|b=1"


@pytest.mark.parametrize("params", [{"": "1"}, {"a|b": "1", "a": "0"}, {"a": "1|", "b": "2", "c=d": "|"}])
def test_params_that_would_not_arrive_under_their_name_are_refused(params: dict[str, str]) -> None:
    with pytest.raises(TestgroundError, match="would not reach an instance under this name"):
        pack_params(params)


def test_params_are_read_by_kind() -> None:
    runenv = _with_params(
        text="x", whole="-12", number="1.5e3", yes="True", no="false", json='{"a":[1]}', names='["a","b"]', sizes="4KiB"
    )
    assert runenv.is_param_set("text")
    assert not runenv.is_param_set("other")
    assert runenv.string_param("text") == "x"
    assert runenv.int_param("whole") == -12
    assert runenv.float_param("number") == 1500.0
    assert runenv.bool_param("yes")
    assert not runenv.bool_param("no")
    assert not runenv.bool_param("not set")
    assert runenv.json_param("json") == {"a": [1]}
    assert runenv.string_array_param("names") == ("a", "b")
    assert runenv.size_param("sizes") == 4096


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512 B", 512),
        ("1k", 1000),
        ("10 MB", 10_000_000),
        ("1.5MiB", 1_572_864),
        ("2Gi", 2**31),
    ],
)
def test_a_size_is_read_as_people_write_it(text: str, size_bytes: int) -> None:
    assert _with_params(size=text).size_param("size") == size_bytes


@pytest.mark.parametrize(
    ("text", "span_s"), [("0", 0.0), ("300ms", 0.3), ("1m30s", 90.0), ("-1.5h", -5400.0), ("2us", 2e-6)]
)
def test_a_time_span_is_read_as_go_writes_it(text: str, span_s: float) -> None:
    assert _with_params(span=text).duration_s_param("span") == pytest.approx(span_s)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        ("string_param", None),
        ("int_param", "1.5"),
        ("int_param", None),
        ("float_param", "much"),
        ("bool_param", "yes"),
        ("json_param", "{"),
        ("string_array_param", '["a",1]'),
        ("size_param", "1 i"),
        ("size_param", "big"),
        ("duration_s_param", "5"),
        ("duration_s_param", "1s 2"),
    ],
)
def test_a_param_of_another_kind_is_named(reader: str, value: str | None) -> None:
    runenv = _with_params(**({} if value is None else {"it": value}))
    with pytest.raises(ParamError) as caught:
        getattr(runenv, reader)("it")
    found = "is not set" if value is None else f"is {value!r}"
    assert f"test parameter it {found}; expected " in str(caught.value)
    assert "--test-param it=" in str(caught.value)


def test_the_start_event_tells_what_the_sdks_tell() -> None:
    runenv = replace(RunEnv.from_environ(_MINIMUM), params={"b": "2", "a": "1"}, tag="v1")
    assert list(runenv.to_start_event().items()) == [
        ("plan", "plan"),
        ("case", "case"),
        ("run", "run"),
        ("params", {"a": "1", "b": "2"}),
        ("instances", 2),
        ("outputs_path", "/outputs"),
        ("temp_path", "/temp"),
        ("network", ""),
        ("group", "group"),
        ("group_instances", 1),
        ("tag", "v1"),
    ]


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 400])
def test_numbers_of_any_length_end_in_words(number: str) -> None:
    runenv = _with_params(whole=number, sizes=f"{number} EiB", span=f"{number}h", json=f"[{number}]", share=number)
    assert runenv.float_param("share") == float("inf")
    assert runenv.duration_s_param("span") == float("inf")
    with pytest.raises(ParamError, match=r"test parameter sizes is '9+…; expected .*less than 16 EiB"):
        runenv.size_param("sizes")
    if len(number) > 4300:
        for read, name in ((runenv.int_param, "whole"), (runenv.json_param, "json")):
            with pytest.raises(ParamError, match=f"test parameter {name} is "):
                read(name)
    for variable in ("TEST_INSTANCE_COUNT", "TEST_GROUP_INSTANCE_COUNT", "SYNC_SERVICE_PORT"):
        with pytest.raises(RunEnvError, match=rf"{variable} is '9+…; expected"):
            RunEnv.from_environ(_MINIMUM | {variable: number})
