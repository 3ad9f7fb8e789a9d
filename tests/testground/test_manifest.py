"""Manifests: what is read, and how mistakes are named."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from testground.composition import plan_runs, single
from testground.errors import CompositionError, ManifestError
from testground.go_json import marshal
from testground.manifest import Manifest, Param

TEXT = """
name = "example"

[defaults]
builder = "exec:go"
runner = "local:exec"

[builders."exec:go"]
enabled = true

[runners."local:exec"]
enabled = true
bin_path = "/bin/x"

[[testcases]]
name = "output"
instances = { min = 1, max = 200, default = 3 }

[[testcases]]
name = "params"
instances = { min = 2, max = 2 }

  [testcases.params]
  text = { type = "string", desc = "some text", unit = "words", default = "a\\"<b>" }
  number = { type = "int", default = 1 }
  flag = { type = "bool", default = true }
  share = { type = "float", default = 0.50 }
  whole = { type = "float", default = 2.0 }
  names = { type = "[]string", default = ["a", "<b>"] }
  hosts = { type = "json", default = { name = "x", arch = ["y"] } }
  none = { type = "string" }
"""


def test_a_manifest_is_read() -> None:
    manifest = Manifest.from_toml(TEXT)
    assert (manifest.name, manifest.builder, manifest.runner) == ("example", "exec:go", "local:exec")
    assert manifest.runners["local:exec"] == {"enabled": True, "bin_path": "/bin/x"}
    output, params = manifest.testcases
    assert (output.name, output.minimum, output.maximum, output.default_instances) == ("output", 1, 200, 3)
    assert (params.minimum, params.default_instances) == (2, 2)
    assert params.params["text"] == Param("text", "string", "some text", "words", 'a"<b>', "testcases[1].params.text")
    assert manifest.testcase("params") is params


def test_defaults_that_are_no_strings_are_passed_as_their_json() -> None:
    defaults = Manifest.from_toml(TEXT).testcase("params").default_params()
    assert defaults == {
        "text": 'a"<b>',
        "number": "1",
        "flag": "true",
        "share": "0.5",
        "whole": "2",
        "names": r'["a","\u003cb\u003e"]',
        "hosts": '{"arch":["y"],"name":"x"}',
        "none": "null",
    }


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0"),
        (-0.0, "-0"),
        (1e-6, "0.000001"),
        (1.5e-7, "1.5e-7"),
        (1e20, "100000000000000000000"),
        (1e21, "1e+21"),
        (-123456.75, "-123456.75"),
        (1e16, "10000000000000000"),
    ],
)
def test_numbers_are_written_as_go_writes_them(number: float, text: str) -> None:
    assert marshal(number) == text


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ('name = "example"', "", "m.toml: name: is missing; expected a string"),
        ('name = "example"', "name = 3", "m.toml: name: is a number, 3; expected a string"),
        ('name = "example"', 'name = "exam', "m.toml: is not valid TOML: .*line 2.*\n  next: close the quotes"),
        ('name = "example"', "name = example", 'm.toml: is not valid TOML: .*: name …\n  next: .*: key = "text"'),
        ('name = "example"', 'name "example"', "m.toml: is not valid TOML: .*\n  next: write `key = value`"),
        ("[[testcases]]", "[testcases]", "m.toml: is not valid TOML: .*\n  next: .*; one of several is"),
        (
            "max = 200",
            'max = "200"',
            r"m.toml: testcases\[0\].instances.max: is a string, '200'; expected a whole number",
        ),
        ("min = 1,", "min = true,", r"m.toml: testcases\[0\].instances.min: is a flag, true; expected a whole number"),
        ("flag = {", "flag = 1 #", r"m.toml: testcases\[1\].params.flag: is a number, 1; expected a table"),
        (
            "[defaults]",
            '[extra_sources]\n"exec:go" = ["../sdk", 1]\n[defaults]',
            "m.toml: extra_sources.exec:go: is not a",
        ),
        ("[defaults]", "[[defaults]]", "m.toml: defaults: is a list, .*; expected a table"),
        ("[[testcases]]", "[[testcase]]", r"m.toml: testcases: is missing; .* \(is it testcase in line 15\?\)"),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(change: str, to: str, message: str) -> None:
    assert change in TEXT
    text = TEXT.replace(change, to)
    if change == "[[testcases]]":
        text = text.split("  [testcases.params]")[0]
    with pytest.raises(ManifestError, match=message):
        Manifest.from_toml(text, file="m.toml")


def test_an_unknown_test_case_is_answered_with_the_nearest_known() -> None:
    with pytest.raises(ManifestError, match="'param'; did you mean params\\? known: output, params"):
        Manifest.from_toml(TEXT).testcase("param")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere.toml: cannot be read: No such file.*\n  next: `fab init"):
        Manifest.load(tmp_path / "nowhere.toml")
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe9"')
    with pytest.raises(ManifestError, match=r"latin.toml: is not UTF-8 text"):
        Manifest.load(tmp_path / "latin.toml")
    (tmp_path / "good.toml").write_text(TEXT)
    assert Manifest.load(tmp_path / "good.toml").file == str(tmp_path / "good.toml")


def test_keys_are_read_in_any_case_and_unknown_ones_told() -> None:
    text = TEXT.replace("default = 3 }", "Default = 3, defualt = 4 }").replace("[[testcases]]", "[[TestCases]]", 2)
    text = text.replace("[testcases.params]", "[TestCases.Params]").replace(
        'unit = "words", default', 'UNIT = "words", Default'
    )
    manifest = Manifest.from_toml(text, file="m.toml")
    assert manifest.testcase("output").default_instances == 3
    assert manifest.testcase("params").default_params()["text"] == 'a"<b>'
    assert manifest.testcase("params").params["text"].unit == "words"
    assert manifest.warnings == (
        "m.toml:17: testcases[0].instances.defualt: is unknown and changes nothing; "
        "did you mean default? known: min, max, default",
    )


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("min = 2, max = 2", "min = 201, max = 200"),
        ("min = 2, max = 2", 'min = 2, default = ["x"]'),
        ("min = 2, max = 2", "min = -2, max = -3"),
        ("default = 0.50", "default = inf"),
        ('name = "params"', ""),
        ('name = "params"', 'name = "output"'),
    ],
)
def test_an_odd_entry_does_not_refuse_the_others(change: str, to: str) -> None:
    assert change in TEXT
    manifest = Manifest.from_toml(TEXT.replace(change, to))
    (run,) = plan_runs(single(manifest, "output"), manifest)
    assert (run.case, run.instances) == ("output", 3)


def test_an_odd_entry_is_named_when_it_is_to_run() -> None:
    manifest = Manifest.from_toml(TEXT.replace("default = 0.50", "default = inf"), file="m.toml")
    with pytest.raises(ManifestError, match=r"m.toml: testcases\[1\].params.share.default: cannot be passed"):
        plan_runs(single(manifest, "params"), manifest)
    manifest = Manifest.from_toml(TEXT.replace("default = 3 }", "default = 'many' }"), file="m.toml")
    with pytest.raises(ManifestError, match=r"m.toml: testcases\[0\].instances.default: is 'many'; expected a whole"):
        single(manifest, "output")
    assert plan_runs(single(manifest, "output", instances=2), manifest)
    manifest = Manifest.from_toml(TEXT.replace("min = 2, max = 2", "min = 3, max = 2"))
    with pytest.raises(CompositionError, match="2 instances; test case params takes 3 to 2"):
        plan_runs(single(manifest, "params", instances=2), manifest)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("[]", "null"),
        ('{ a = [[], ["x", []]] }', '{"a":[null,["x",null]]}'),
        ("1979-05-27T07:32:00Z", '"1979-05-27T07:32:00Z"'),
        ("1979-05-27T07:32:00.120+02:00", '"1979-05-27T07:32:00.12+02:00"'),
        ("1979-05-27T07:32:00", '"1979-05-27T07:32:00+05:30"'),
        ("1979-05-27", '"1979-05-27T00:00:00+05:30"'),
        ("07:32:00.5", '"0000-01-01T07:32:00.5+05:30"'),
    ],
)
def test_lists_and_times_arrive_as_go_reads_them(value: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XXX-05:30")
    time.tzset()
    try:
        manifest = Manifest.from_toml(TEXT.replace("default = 0.50", f"default = {value}"))
        assert manifest.testcase("params").default_params()["share"] == text
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("kind", "taken", "refused"),
    [
        ("int", ["3", "-3"], ["many", "3.5", "", "3s"]),
        ("float", ["3", "0.5", "1e3", "-.5"], ["half", "1,5"]),
        ("bool", ["true", "false"], ["yes", "1"]),
        ("duration", ["3s", "1h30m", "1.5s", "0"], ["3", "3 s", "soon"]),
        ("json", ['{"a": [1]}', "3"], ["{a: 1}", "", "[" * 100_000]),
        ("string", ["", "anything"], []),
        ("of my own", ["anything"], []),
    ],
)
def test_a_parameter_takes_what_the_sdk_reads_as_its_type(kind: str, taken: list[str], refused: list[str]) -> None:
    param = Param("x", kind, "", "", None)
    assert [text for text in taken if not param.takes(text)] == []
    assert [text for text in refused if param.takes(text)] == []


def test_a_value_of_another_type_is_told_before_the_run() -> None:
    manifest = Manifest.from_toml(TEXT)
    (run,) = plan_runs(single(manifest, "params", test_params={"number": "many", "flag": "true"}), manifest)
    assert run.warnings == ("test parameter number is 'many'; the manifest has it of type int. It is passed on",)


def test_a_default_stands_for_not_given_whatever_its_type() -> None:
    manifest = Manifest.load(Path(__file__).parent.parent.parent / "manifest.toml")
    for case in manifest.testcases:
        (run,) = plan_runs(single(manifest, case.name), manifest)
        assert run.warnings == ()
