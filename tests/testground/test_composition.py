"""Compositions: what their runs become, by the rules of testground v0.6.0."""

from __future__ import annotations

from pathlib import Path

import pytest

from testground.composition import Composition, Instances, Resources, plan_runs, run_ids, single
from testground.errors import CompositionError, ManifestError, TestgroundError
from testground.manifest import Manifest

_MANIFEST = Manifest.from_toml("""
name = "plan"
[defaults]
builder = "nix:generic"
runner = "local:exec"
[builders."nix:generic"]
attr = "node"
flake = "."
[runners."local:exec"]
bin_path = "/bin/node"
[[testcases]]
name = "case"
instances = { min = 2, max = 10, default = 4 }
  [testcases.params]
  one = { type = "string", default = "manifest" }
  two = { type = "string", default = "manifest" }
  three = { type = "string", default = "manifest" }
  four = { type = "string", default = "manifest" }
  five = { type = "int", default = 5 }
""")

_TEXT = """
[metadata]
name = "both"
author = "somebody"

[global]
plan = "plan"
case = "case"
total_instances = 4
builder = "nix:generic"
runner = "local:exec"
disable_metrics = true
[global.build_config]
attr = "other"
[global.run_config]
keep = true
[global.run]
test_params = { one = "global", two = "global", three = "global" }
profiles = { cpu = "", heap = "5s" }

[[groups]]
id = "servers"
instances = { count = 1 }
resources = { memory = "1Gi", cpu = "100m" }
[groups.build_config]
flake = "./servers"
[groups.run]
artifact = "made-before"
test_params = { two = "group", three = "group" }

[[groups]]
id = "clients"
instances = { percentage = 0.75 }
"""

_RUNS = """
[[runs]]
id = "first"
total_instances = 5
test_params = { two = "run", three = "run" }
[[runs.groups]]
id = "servers"
instances = { count = 1 }
test_params = { three = "run group" }
[[runs.groups]]
id = "clients"
instances = { count = 3 }
[[runs.groups]]
id = "more"
group_id = "servers"
instances = { count = 1 }
resources = { cpu = "200m" }
profiles = { heap = "1s" }
"""


def _composition(text: str = _TEXT) -> Composition:
    return Composition.from_toml(text, file="c.toml")


def test_a_composition_becomes_one_run_of_its_groups() -> None:
    (run,) = plan_runs(_composition(), _MANIFEST)
    assert (run.name, run.plan, run.case, run.runner, run.instances) == ("default", "plan", "case", "local:exec", 4)
    assert run.disable_metrics
    assert run.run_config == {"bin_path": "/bin/node", "keep": True}
    servers, clients = run.groups
    assert (servers.id, servers.instances, clients.id, clients.instances) == ("servers", 1, "clients", 3)
    assert servers.params == {"one": "global", "two": "group", "three": "group", "four": "manifest", "five": "5"}
    assert clients.params == {"one": "global", "two": "global", "three": "global", "four": "manifest", "five": "5"}
    assert servers.profiles == {"cpu": "", "heap": "5s"}
    assert servers.resources == Resources("1Gi", "100m")
    assert (servers.artifact, clients.artifact) == ("made-before", "")
    assert (servers.builder, servers.build_config) == ("nix:generic", {"attr": "other", "flake": "./servers"})
    assert clients.build_config == {"attr": "other", "flake": "."}


def test_a_run_overrides_its_groups() -> None:
    (run,) = plan_runs(_composition(_TEXT + _RUNS), _MANIFEST)
    servers, clients, more = run.groups
    assert run.name == "first"
    assert servers.params == {"one": "global", "two": "run", "three": "run group", "four": "manifest", "five": "5"}
    assert (clients.instances, clients.params["two"]) == (3, "run")
    assert (more.id, more.group_id, more.instances) == ("more", "servers", 1)
    assert more.resources == Resources("1Gi", "200m")
    assert more.profiles == {"cpu": "", "heap": "1s"}
    assert more.params["three"] == "run"


def _runs(*runs: tuple[str, int]) -> str:
    run = '[[runs]]\nid = "%s"\n[[runs.groups]]\nid = "servers"\ninstances = { count = %d }\n'
    return _TEXT + "".join(run % one for one in runs)


def test_runs_are_planned_by_sorted_id_or_as_they_are_picked() -> None:
    composition = _composition(_runs(("two", 3), ("B", 4), ("one", 2), ("é", 2)))
    assert [run.name for run in plan_runs(composition, _MANIFEST)] == ["B", "one", "two", "é"]
    picked = plan_runs(composition, _MANIFEST, only=run_ids(["two,B", "", "one"]))
    assert [(run.name, run.instances) for run in picked] == [("two", 3), ("B", 4), ("one", 2)]
    with pytest.raises(
        CompositionError, match=r"c.toml: runs: no run is called 'tow'; did you mean two\? known: B, one, two"
    ):
        plan_runs(composition, _MANIFEST, only=["tow"])


def test_a_run_that_is_not_picked_may_not_be_wrong_either() -> None:
    with pytest.raises(CompositionError, match="runs two: 11 instances; test case case takes 2 to 10"):
        plan_runs(_composition(_runs(("one", 2), ("two", 11))), _MANIFEST, only=["one"])


def test_parameters_that_the_manifest_does_not_declare_reach_the_instances() -> None:
    given = {"remote-runners": '[{"name":"dex"}]', "thre": "x"}
    (run,) = plan_runs(single(_MANIFEST, "case", test_params=given), _MANIFEST)
    assert run.groups[0].params.items() >= given.items()
    assert run.warnings == ("test case case has no parameter 'thre'; did you mean three? It is passed on",)
    text = _TEXT.replace('two = "group"', 'new = "group"').replace('one = "global"', 'other = "global"')
    (run,) = plan_runs(_composition(text), _MANIFEST)
    assert (run.groups[0].params["new"], run.groups[1].params["other"]) == ("group", "global")


def test_a_value_that_arrives_as_several_parameters_is_handed_on_and_told() -> None:
    (run,) = plan_runs(single(_MANIFEST, "case", test_params={"one": "a|b=c", "two": "a|b", "three": "c=d"}), _MANIFEST)
    assert run.groups[0].params["one"] == "a|b=c"
    assert run.warnings == ("test parameter one='a|b=c' arrives as several: testground packs them as k=v|k=v",)


@pytest.mark.parametrize("name", ["a|b", "a=b", ""])
def test_a_name_that_no_parameter_could_arrive_under_is_refused(name: str) -> None:
    with pytest.raises(TestgroundError, match=r"would not reach an instance under this name.*\n  next: "):
        plan_runs(single(_MANIFEST, "case", test_params={name: "1"}), _MANIFEST)


def test_keys_are_read_in_any_case_and_unknown_ones_told() -> None:
    text = """
[Global]
Plan = "plan"
CASE = "case"
Builder = "nix:generic"
runner = "local:exec"
Disable_Metrics = true
bulder = "x"
[global.RUN]
Test_params = { one = "global" }
[[groups]]
Id = "single"
ID = "ignored"
Instances = { COUNT = 2, cuont = 3 }
[groups.build]
selectors = ["tag"]
[groups.Run.Test_params]
One = "kept as it is"
"""
    composition = _composition(text)
    (run,) = plan_runs(composition, _MANIFEST)
    assert run.disable_metrics
    assert (run.groups[0].id, run.groups[0].instances) == ("single", 2)
    assert (run.groups[0].params["one"], run.groups[0].params["One"]) == ("global", "kept as it is")
    told = [warning.split("; known")[0].split("? known")[0] for warning in composition.warnings]
    assert set(told) == {
        "c.toml:13: groups[0].ID: is unknown and changes nothing",
        "c.toml:14: groups[0].instances.cuont: is unknown and changes nothing; did you mean count",
        "c.toml:8: global.bulder: is unknown and changes nothing; did you mean builder",
    }
    assert run.warnings[: len(told)] == composition.warnings


def test_runs_are_read_in_any_case() -> None:
    text = _runs(("two", 2)).replace("[[runs]]\nid", "[[Runs]]\nID").replace("[[runs.groups]]", "[[Runs.Groups]]")
    (run,) = plan_runs(_composition(text), _MANIFEST)
    assert (run.name, [(group.id, group.instances) for group in run.groups]) == ("two", [("servers", 2)])


def test_a_group_of_no_instances_runs_beside_others() -> None:
    text = (
        _TEXT.replace("total_instances = 4", "")
        .replace("percentage = 0.75", "count = 0")
        .replace("count = 1", "count = 2")
    )
    (run,) = plan_runs(_composition(text), _MANIFEST)
    assert [group.instances for group in run.groups] == [2, 0]


def test_groups_of_a_run_inherit_their_instances_together() -> None:
    text = _TEXT.replace("total_instances = 4", "").replace("percentage = 0.75", "count = 3")
    run = '[[runs]]\n%s[[runs.groups]]\nid = "servers"\n%s[[runs.groups]]\nid = "clients"\n'
    (planned,) = plan_runs(_composition(text + run % ("", "")), _MANIFEST)
    assert (planned.name, [group.instances for group in planned.groups]) == ("", [1, 3])
    # testground's client counts what the run's groups say themselves, and its daemon holds the whole against that.
    for total, own, was in (("total_instances = 4\n", "", 4), ("", "instances = { count = 1 }\n", 1)):
        with pytest.raises(
            CompositionError, match=f"total_instances: is {was}, .* before they inherit them\n  next: give"
        ):
            plan_runs(_composition(text + run % (total, own)), _MANIFEST)


def test_odd_compositions_that_testground_accepts_are_accepted() -> None:
    text = _TEXT.replace("count = 1", "count = 1, percentage = 0.9").replace("percentage = 0.75", "percentage = 1.5")
    text = text.replace("total_instances = 4", "total_instances = 7").replace("count = 1, ", "")
    with pytest.raises(
        CompositionError, match="global: total_instances: is 7; the groups have 17 together\n  next: correct"
    ):
        plan_runs(_composition(text), _MANIFEST)
    text = _TEXT.replace("count = 1", "count = 2, percentage = 0.9").replace("percentage = 0.75", "percentage = 0.5")
    text = text.replace('id = "servers"\n', "").replace('id = "clients"', 'id = "/a/b"')
    (run,) = plan_runs(_composition(text), _MANIFEST)
    assert [(group.id, str(group.directory), group.instances) for group in run.groups] == [
        ("", ".", 2),
        ("/a/b", "a/b", 2),
    ]


def test_a_share_of_more_than_all_is_accepted() -> None:
    text = _TEXT.replace("total_instances = 4", "total_instances = 2").replace("percentage = 0.75", "percentage = 1.2")
    (run,) = plan_runs(_composition(text.replace("count = 1", "count = 0")), _MANIFEST)
    assert [group.instances for group in run.groups] == [0, 2]


def test_the_daemon_names_a_plan_without_slashes() -> None:
    manifest = Manifest.from_toml(
        'name = "a/b"\n[builders.x]\n[runners.y]\n[[testcases]]\nname = "c/d"\ninstances = { max = 1 }'
    )
    (run,) = plan_runs(single(manifest, "c/d", instances=1), manifest)
    assert (run.plan, run.case, run.runner, run.groups[0].builder) == ("a-b", "c-d", "y", "x")


def test_an_empty_parameter_counts_as_not_given() -> None:
    composition = single(_MANIFEST, "case", test_params={"one": "", "two": "x"})
    (run,) = plan_runs(composition, _MANIFEST)
    assert run.groups[0].params["one"] == "manifest"
    assert run.groups[0].params["two"] == "x"


@pytest.mark.parametrize(("percentage", "instances"), [("0.625", 3), ("0.5", 2), ("0.124999", 0)])
def test_shares_are_rounded_half_up(percentage: str, instances: int) -> None:
    text = _TEXT.replace("0.75", percentage).replace("count = 1", f"count = {4 - instances}")
    (run,) = plan_runs(_composition(text), _MANIFEST)
    assert [group.instances for group in run.groups] == [4 - instances, instances]


def test_a_single_run_is_a_composition_of_one_group() -> None:
    composition = single(_MANIFEST, "case", test_params={"one": "1"})
    assert [(group.id, group.instances) for group in composition.groups] == [("single", Instances(4))]
    (run,) = plan_runs(composition, _MANIFEST)
    assert (run.groups[0].id, run.instances, run.runner) == ("single", 4, "local:exec")
    assert run.groups[0].params["one"] == "1"


@pytest.mark.parametrize(
    ("instances", "params", "message"),
    [
        (1, {}, "^instances: 1 instance; test case case takes 2 to 10"),
        (11, {}, "^instances: 11 instances; test case case takes 2 to 10"),
        (0, {}, "^instances: 0 instances; test case case takes 2 to 10"),
    ],
)
def test_a_single_run_is_held_against_the_manifest(instances: int, params: dict[str, str], message: str) -> None:
    with pytest.raises(CompositionError, match=message):
        plan_runs(single(_MANIFEST, "case", instances=instances, test_params=params), _MANIFEST)


def test_a_single_run_of_an_unknown_case_is_refused() -> None:
    with pytest.raises(ManifestError, match="'cas'; did you mean case"):
        single(_MANIFEST, "cas")


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ("total_instances = 4", "total_instances = 2", "global: total_instances: is 2; the groups have 3 together"),
        ("total_instances = 4", "", "groups clients: instances: has a percentage; global needs total_instances"),
        (
            "percentage = 0.75",
            "percentage = 1",
            r"groups\[1\].instances.percentage: is a number, 1; .*\n  next: write 1.0",
        ),
        (
            "percentage = 0.75",
            "percentage = -0.5",
            r"groups\[1\].instances.percentage: is a number, -0.5; .* 0.0 or more",
        ),
        (
            "percentage = 0.75",
            "percentage = 1e300",
            r"groups\[1\].instances.percentage: is a number, 1e\+300; expected",
        ),
        ("percentage = 0.75", "percentage = inf", r"groups\[1\].instances.percentage: is a number, inf; expected"),
        (
            "count = 1",
            "count = -1",
            r"groups\[0\].instances.count: is a number, -1; expected a whole number, 0 or more",
        ),
        ("count = 1", "count = " + "9" * 30, "is not valid TOML: a whole number of 100 bits; 64 is the most"),
        ("count = 1", "count = 0x" + "f" * 5000, "is not valid TOML: a whole number of 20000 bits; 64 is the most"),
        ("count = 1", "count = " + "9" * 5000, "is not valid TOML: "),
        (
            "percentage = 0.75",
            'percentage = "75%"',
            r"groups\[1\].instances.percentage: is a string, '75%'; expected a number with a decimal point",
        ),
        (
            'two = "group"',
            "two = 2",
            r"groups\[0\].run.test_params.two: is a number, 2; expected a string\n  next: .*quotes",
        ),
        ('id = "clients"', 'id = "servers"', r"groups\[1\].id: is 'servers' for the second time"),
        ('id = "clients"', 'id = "../up"', r"groups\[1\].id: is '../up'; expected a name that a directory below"),
        ('runner = "local:exec"', 'runner = "local:exe"', "global.runner: .*'local:exe'; did you mean local:exec"),
        ("[[groups]]", "[[group]]", r"groups: is missing; expected at least one \[\[groups\]\] \(is it group\?\)"),
        ('runner = "local:exec"', "", "global.runner: is missing; expected a string"),
        ('\nbuilder = "nix:generic"', "", "global.builder: is missing, and group 'servers' has none of its own"),
        (
            '\nbuilder = "nix:generic"',
            '\nbuilder = "exec:go"',
            "global.builder: the plan does not support builder 'exec:go'",
        ),
        (
            "disable_metrics = true",
            "disable_metrics = 1",
            "global.disable_metrics: is a number, 1; expected true or false",
        ),
        ('author = "somebody"', 'author = "{{ .Env.USER }}"', "line 4: is a template"),
        ("[metadata]", "[metadata", "is not valid TOML: "),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(change: str, to: str, message: str) -> None:
    assert change in _TEXT
    text = _TEXT.replace(change, to)
    if change == "[[groups]]":
        text = text.replace("[groups.", "[group.")
    with pytest.raises(CompositionError, match=rf"^c\.toml: {message}"):
        plan_runs(_composition(text), _MANIFEST)


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        (
            'group_id = "servers"',
            'group_id = "sevrers"',
            "runs first: groups more: no group is called 'sevrers'; did you mean servers",
        ),
        (
            "total_instances = 5\ntest",
            "total_instances = 9\ntest",
            "runs first: total_instances: is 9; the groups have 5 together",
        ),
        ('id = "more"', 'id = "clients"', r"runs\[0\].groups\[2\].id: is 'clients' for the second time"),
    ],
)
def test_a_mistake_in_a_run_is_named(change: str, to: str, message: str) -> None:
    text = _TEXT + _RUNS
    assert change in text
    with pytest.raises(CompositionError, match=rf"^c\.toml: {message}"):
        plan_runs(_composition(text.replace(change, to)), _MANIFEST)


def test_a_composition_is_loaded_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(_TEXT)
    composition = Composition.load(tmp_path / "c.toml")
    assert (composition.name, composition.author) == ("both", "somebody")
    assert composition.file == str(tmp_path / "c.toml")
    with pytest.raises(CompositionError, match=r"nowhere\.toml: cannot be read"):
        Composition.load(tmp_path / "nowhere.toml")


def test_a_plan_without_builders_or_runners_is_refused() -> None:
    text = 'name = "plan"\n%s\n[[testcases]]\nname = "case"\ninstances = { max = 1 }'
    for sections, message in (
        ("[runners.r]", r"^builder: the plan has no builder\n  next: put \[builders."),
        ("[builders.b]", r"^runner: the plan has no runner\n  next: put \[runners."),
        (
            "[builders.b]\n[runners.r]\n[defaults]\nrunner = 'x'",
            "^runner: the plan does not support runner 'x'; known: r",
        ),
    ):
        manifest = Manifest.from_toml(text % sections)
        with pytest.raises(CompositionError, match=message):
            plan_runs(single(manifest, "case", instances=1), manifest)


def test_a_percentage_in_a_run_needs_the_total_of_that_run() -> None:
    text = _TEXT + _RUNS.replace("total_instances = 5\n", "").replace("count = 3", "percentage = 0.6")
    with pytest.raises(
        CompositionError, match="runs first: groups clients: instances: has a percentage; runs first needs"
    ):
        plan_runs(_composition(text), _MANIFEST)
