"""Compositions: a run's groups of instances and what each is given (testground v0.6.0, pkg/api/composition*.go).

A composition is read as it stands; `plan_runs` holds it against the manifest and says what will be run. What testground
refuses is refused, what it accepts is accepted, odd as it may be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from testground import plan_file
from testground.errors import CompositionError
from testground.manifest import Manifest, TestCase
from testground.plan_file import Table, known
from testground.runenv import pack_params

if TYPE_CHECKING:
    from testground.template import Templates

SINGLE = "single"
DEFAULT_RUN = "default"


@dataclass(frozen=True)
class Instances:
    """How many instances: `count`, or else `percentage`, a share of the run's `total_instances` (1.0 is all)."""

    count: int = 0
    percentage: float = 0.0


@dataclass(frozen=True)
class Resources:
    """What a group asks of the machines it runs on, in Kubernetes' words; "" asks nothing."""

    memory: str = ""
    cpu: str = ""


@dataclass(frozen=True)
class RunParams:
    """What instances are given: a built artifact, test parameters, profiles to capture with their frequencies."""

    artifact: str = ""
    test_params: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A group of a composition; `builder` "" means the composition's."""

    id: str
    instances: Instances = Instances()
    run: RunParams = RunParams()
    resources: Resources = Resources()
    builder: str = ""
    build_config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunGroup:
    """A group within one run, built as the group called `group_id` and overriding what that says."""

    id: str
    group_id: str
    instances: Instances = Instances()
    resources: Resources = Resources()
    test_params: Mapping[str, str] = field(default_factory=dict)
    profiles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One run of a composition."""

    id: str
    groups: tuple[RunGroup, ...]
    total_instances: int = 0
    test_params: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Composition:
    """A composition as it stands in its file, `file` being that one's name in messages."""

    plan: str
    case: str
    groups: tuple[Group, ...]
    runs: tuple[Run, ...] = ()
    total_instances: int = 0
    builder: str = ""
    runner: str = ""
    build_config: Mapping[str, Any] = field(default_factory=dict)
    run_config: Mapping[str, Any] = field(default_factory=dict)
    run: RunParams = RunParams()
    disable_metrics: bool = False
    name: str = ""
    author: str = ""
    file: str = "composition.toml"
    warnings: tuple[str, ...] = ()  # keys of the file that nobody reads

    @classmethod
    def load(cls, path: Path, templates: Templates | None = None) -> Composition:
        """Read the file; one with `{{` in it is filled in by `templates` before. Raises `CompositionError`."""
        file, text = plan_file.load(path, CompositionError, "name the composition: --file FILE")
        if "{{" in text and templates is not None:
            return cls._read(templates.fill_in(text, path), f"{file}, filled in")
        return cls.from_toml(text, file=file)

    @classmethod
    def from_toml(cls, text: str, *, file: str = "composition.toml") -> Composition:
        """Read the text of a composition; `file` is its name in messages. Raises `CompositionError`."""
        if "{{" in text:
            line = text[: text.index("{{")].count("\n") + 1
            raise CompositionError(
                file,
                f"line {line}",
                "is a template, {{…}}, which only testground itself fills in",
                next_step="write the values into a composition of its own",
            )
        return cls._read(text, file)

    @classmethod
    def _read(cls, text: str, file: str) -> Composition:
        root = plan_file.parse(text, file, CompositionError, ("metadata", "global", "groups", "runs"))
        metadata = root.table("metadata", ("name", "author"))
        global_ = root.table("global", _GLOBAL)
        groups = tuple(map(_group, root.tables("groups", _GROUP)))
        if not groups:
            raise root.missing("groups", "at least one [[groups]]")
        _all_different(root, "groups", (group.id for group in groups))
        runs = tuple(map(_run, root.tables("runs", _RUN)))
        _all_different(root, "runs", (run.id for run in runs))
        _check_build(global_)
        global_.whole("concurrent_builds")
        return cls(
            plan=global_.text("plan"),
            case=global_.text("case"),
            groups=groups,
            runs=runs,
            total_instances=global_.count("total_instances"),
            builder=global_.text("builder", ""),
            runner=global_.text("runner"),
            build_config=global_.free("build_config").values,
            run_config=global_.free("run_config").values,
            run=_run_params(global_.table("run", _RUN_PARAMS)),
            disable_metrics=global_.flag("disable_metrics"),
            name=metadata.text("name", ""),
            author=metadata.text("author", ""),
            file=file,
            warnings=tuple(root.warnings),
        )


# What a composition may have where, by the names that testground gives it.
_GLOBAL = (
    "plan",
    "case",
    "total_instances",
    "concurrent_builds",
    "builder",
    "build_config",
    "build",
    "runner",
    "run_config",
    "run",
    "disable_metrics",
)
_GROUP = ("id", "builder", "build_config", "build", "resources", "instances", "run")
_RUN = ("id", "test_params", "total_instances", "groups")
_RUN_GROUP = ("id", "group_id", "resources", "instances", "test_params", "profiles")
_RUN_PARAMS = ("artifact", "test_params", "profiles")


def _group(table: Table) -> Group:
    _check_build(table)
    return Group(
        id=_group_name(table),
        instances=_instances(table),
        run=_run_params(table.table("run", _RUN_PARAMS)),
        resources=_resources(table),
        builder=table.text("builder", ""),
        build_config=table.free("build_config").values,
    )


def _check_build(table: Table) -> None:
    """Raises for a `build` that testground could not read; what it says is for its own builders."""
    build = table.table("build", ("selectors", "dependencies"))
    build.strings("selectors")
    for dependency in build.tables("dependencies", ("module", "target", "version")):
        for name in ("module", "target", "version"):
            dependency.text(name, "")


def _run(table: Table) -> Run:
    groups = tuple(map(_run_group, table.tables("groups", _RUN_GROUP)))
    _all_different(table, "groups", (group.id for group in groups))
    return Run(
        id=table.text("id", ""),
        groups=groups,
        total_instances=table.count("total_instances"),
        test_params=table.texts("test_params"),
    )


def _run_group(table: Table) -> RunGroup:
    name = _group_name(table)
    return RunGroup(
        id=name,
        group_id=table.text("group_id", "") or name,
        instances=_instances(table),
        resources=_resources(table),
        test_params=table.texts("test_params"),
        profiles=table.texts("profiles"),
    )


def _group_name(table: Table) -> str:
    name = table.text("id", "")
    if ".." in name.split("/") or "\0" in name:
        raise table.fail("id", f"is {name!r}; expected a name that a directory below the outputs can have")
    return name


def _instances(table: Table) -> Instances:
    found = table.table("instances", ("count", "percentage"))
    return Instances(found.count("count"), found.fraction("percentage"))


def _resources(table: Table) -> Resources:
    found = table.table("resources", ("memory", "cpu"))
    return Resources(found.text("memory", ""), found.text("cpu", ""))


def _run_params(table: Table) -> RunParams:
    return RunParams(table.text("artifact", ""), table.texts("test_params"), table.texts("profiles"))


def _all_different(table: Table, name: str, ids: Iterable[str]) -> None:
    seen: set[str] = set()
    for number, found in enumerate(ids):
        if found in seen:
            raise table.fail(f"{name}[{number}].id", f"is {found!r} for the second time")
        seen.add(found)


def single(
    manifest: Manifest,
    case: str,
    *,
    instances: int | None = None,
    test_params: Mapping[str, str] | None = None,
    builder: str = "",
    runner: str = "",
    build_config: Mapping[str, Any] | None = None,
    run_config: Mapping[str, Any] | None = None,
    disable_metrics: bool = False,
) -> Composition:
    """The composition that stands for a `run single`: one group, called `single`.

    Without `instances`, the test case's default; without `builder` or `runner`, the plan's default or the first that
    it has. Raises `ManifestError` for an unknown test case.
    """
    count = manifest.testcase(case).default_instances if instances is None else instances
    return Composition(
        plan=manifest.name,
        case=case,
        groups=(Group(SINGLE, Instances(count), RunParams(test_params=dict(test_params or {}))),),
        total_instances=count,
        builder=builder or manifest.builder or next(iter(manifest.builders), ""),
        runner=runner or manifest.runner or next(iter(manifest.runners), ""),
        build_config=build_config or {},
        run_config=run_config or {},
        disable_metrics=disable_metrics,
        file="",
    )


@dataclass(frozen=True)
class GroupPlan:
    """A group that will run: `group_id` is the group it is built as, `build_config` the builder's configuration."""

    id: str
    group_id: str
    instances: int
    params: Mapping[str, str]
    profiles: Mapping[str, str]
    resources: Resources
    artifact: str
    builder: str
    build_config: Mapping[str, Any]

    @property
    def directory(self) -> PurePath:
        """Where the group's outputs are below the run's; its id may be empty or have a `/`."""
        return PurePath(self.id.lstrip("/"))


@dataclass(frozen=True)
class RunPlan:
    """One run as it will be: everything decided, nothing started. `name` is the run's in its composition.

    `warnings` are what the user may want to know before it starts.
    """

    name: str
    plan: str
    case: str
    runner: str
    run_config: Mapping[str, Any]
    disable_metrics: bool
    groups: tuple[GroupPlan, ...]
    warnings: tuple[str, ...] = ()

    @property
    def instances(self) -> int:
        """How many instances the run has in all."""
        return sum(group.instances for group in self.groups)


def run_ids(given: Iterable[str]) -> tuple[str, ...]:
    """The ids that `--run-ids a,b` names, in this order."""
    return tuple(name for names in given if names for name in names.split(","))


def plan_runs(composition: Composition, manifest: Manifest, *, only: Sequence[str] = ()) -> tuple[RunPlan, ...]:
    """What the composition's runs will be, sorted by id; `only` picks some, in its own order.

    The plan is the manifest's. Parameters come from the run's group, else the run, the group, `[global.run]`, the
    manifest's default, in this order. As in testground v0.6.0 an empty value counts as not given, and one mistake in a
    run refuses them all.
    Raises `CompositionError` for what the manifest does not allow, `ManifestError` for an unknown test case or what it
    has wrong, `TestgroundError` for parameters that no instance could read.
    """
    testcase = manifest.testcase(composition.case)
    _check_builders(composition, manifest)
    _check_supported(composition, "runner", composition.runner, manifest.runners, manifest)
    runs = sorted(composition.runs or (_default_run(composition),), key=lambda run: run.id)
    planned = {run.id: _plan_run(composition, manifest, testcase, run) for run in runs}
    for name in only:
        if name not in planned:
            raise CompositionError(composition.file, "runs", f"no run is called {name!r}; {known(planned, name)}")
    return tuple(planned[name] for name in only or planned)


def _default_run(composition: Composition) -> Run:
    groups = tuple(RunGroup(group.id, group.id, group.instances) for group in composition.groups)
    return Run(DEFAULT_RUN, groups, composition.total_instances)


def _check_builders(composition: Composition, manifest: Manifest) -> None:
    for group in composition.groups:
        builder = group.builder or composition.builder
        if not builder and composition.file:
            problem = "is missing, and group {group.id!r} has none of its own; expected the name of a builder"
            raise CompositionError(composition.file, "global.builder", problem.format(group=group))
        if not group.run.artifact:  # what is built already needs no builder
            _check_supported(composition, "builder", builder, manifest.builders, manifest)


def _check_supported(
    composition: Composition, kind: str, name: str, there: Mapping[str, object], manifest: Manifest
) -> None:
    if name not in there:
        problem = (
            f"the plan does not support {kind} {name!r}; {known(there, name)}" if name else f"the plan has no {kind}"
        )
        usual = {"builder": "exec:go", "runner": "local:exec"}[kind]
        next_step = f'put [{kind}s."{name or usual}"] with enabled = true into {manifest.file}'
        where = f"global.{kind}" if composition.file else kind
        raise CompositionError(composition.file, where, problem, next_step=next_step)


def _plan_run(composition: Composition, manifest: Manifest, testcase: TestCase, run: Run) -> RunPlan:
    where = f"runs {run.id}" if composition.runs else "global" if composition.file else ""
    built_as = tuple(_built_as(composition, run, group) for group in run.groups)
    counts = _counts(composition, run, built_as)
    total = sum(counts)
    if not testcase.minimum <= total <= testcase.maximum:
        problem = (
            f"{total} {'instance' if total == 1 else 'instances'}; "
            f"test case {testcase.name} takes {testcase.minimum} to {testcase.maximum}"
        )
        raise CompositionError(composition.file, where or "instances", problem)
    defaults = testcase.default_params()
    parts = zip(run.groups, built_as, counts, strict=True)
    groups = tuple(_plan_group(composition, manifest, defaults, run, *part) for part in parts)
    return RunPlan(
        name=run.id,
        plan=manifest.name.replace("/", "-"),  # as the daemon hands them on
        case=testcase.name.replace("/", "-"),
        runner=composition.runner,
        run_config={**manifest.runners[composition.runner], **composition.run_config},
        disable_metrics=composition.disable_metrics,
        groups=groups,
        warnings=(*manifest.warnings, *composition.warnings, *_doubts(testcase, groups)),
    )


def _built_as(composition: Composition, run: Run, run_group: RunGroup) -> Group:
    for group in composition.groups:
        if group.id == run_group.group_id:
            return group
    ids = [group.id for group in composition.groups]
    problem = f"no group is called {run_group.group_id!r}; {known(ids, run_group.group_id)}"
    raise CompositionError(composition.file, f"runs {run.id}: groups {run_group.id}", problem)


def _plan_group(
    composition: Composition,
    manifest: Manifest,
    defaults: Mapping[str, str],
    run: Run,
    run_group: RunGroup,
    group: Group,
    instances: int,
) -> GroupPlan:
    builder = group.builder or composition.builder
    params = _first_given(
        run_group.test_params, run.test_params, group.run.test_params, composition.run.test_params, defaults
    )
    profiles = _first_given(run_group.profiles, group.run.profiles, composition.run.profiles)
    for packed in (params, profiles):
        pack_params(packed)
    return GroupPlan(
        id=run_group.id,
        group_id=group.id,
        instances=instances,
        params=params,
        profiles=profiles,
        resources=Resources(
            run_group.resources.memory or group.resources.memory, run_group.resources.cpu or group.resources.cpu
        ),
        artifact=group.run.artifact or composition.run.artifact,
        builder=builder,
        build_config={**manifest.builders.get(builder, {}), **composition.build_config, **group.build_config},
    )


def _counts(composition: Composition, run: Run, built_as: Sequence[Group]) -> list[int]:
    """How many instances each of the run's groups has.

    testground counts twice: its client what stands in the run's groups themselves, which becomes the run's total where
    that is not given, and its daemon, against this total, what they are once they have inherited from their groups.
    """
    own = [group.instances for group in run.groups]
    # Field by field, as testground merges them: a count of the group wins over a percentage of the run's group.
    merged = [
        Instances(mine.count or group.instances.count, mine.percentage or group.instances.percentage)
        for mine, group in zip(own, built_as, strict=True)
    ]
    owner = f"runs {run.id}" if composition.runs else "global"
    where = f"{owner}: total_instances" if composition.file else "total_instances"
    total = run.total_instances
    for instances in (own, merged):
        for group, share in zip(run.groups, instances, strict=True):
            if share.percentage and not total:
                place = f"runs {run.id}: groups {group.id}" if composition.runs else f"groups {group.id}"
                problem = f"has a percentage; {owner} needs total_instances for it"
                raise CompositionError(composition.file, f"{place}: instances", problem)
        counts = [share.count or _rounded(share.percentage * total) for share in instances]
        if total and sum(counts) != total:
            if any(mine == Instances() != other for mine, other in zip(own, merged, strict=True)):
                problem = (
                    f"is {total}, the groups have {sum(counts)} together; testground counts those that have no "
                    "instances of their own as 0 before they inherit them"
                )
                next_step = "give each group of the run its instances, or none of them, and then no total_instances"
                raise CompositionError(composition.file, where, problem, next_step=next_step)
            problem, next_step = f"is {total}; the groups have {sum(counts)} together", "correct one of them"
            if not sum(counts):
                next_step = "give each group its share: instances = { count = 2 }, or { percentage = 0.5 }"
            raise CompositionError(composition.file, where, problem, next_step=next_step)
        total = total or sum(counts)
    return counts


def _rounded(number: float) -> int:
    # Half away from zero, as Go rounds; Python's round() goes to the even number.
    whole = math.floor(number)
    return whole + (number - whole >= 0.5)


def _doubts(testcase: TestCase, groups: Iterable[GroupPlan]) -> Iterator[str]:
    """What is passed on as it is, and may not be what its writer meant."""
    import difflib

    told: set[str] = set()
    defaults = testcase.default_params()
    for group in groups:
        for name, value in group.params.items():
            nearest = difflib.get_close_matches(name, testcase.params, 1)
            if name not in testcase.params and nearest and name not in told:
                yield f"test case {testcase.name} has no parameter {name!r}; did you mean {nearest[0]}? It is passed on"
            parameter = testcase.params.get(name)
            # A default is what the plan's author chose to stand for "not given", as "" does for a number.
            if parameter and name not in told and value != defaults.get(name) and not parameter.takes(value):
                kind = parameter.kind
                yield f"test parameter {name} is {value!r}; the manifest has it of type {kind}. It is passed on"
            if "=" in value.partition("|")[2] and name not in told:
                yield f"test parameter {name}={value!r} arrives as several: testground packs them as k=v|k=v"
            told.add(name)


def _first_given(*layers: Mapping[str, str]) -> dict[str, str]:
    """The layers' values by name, the first layer's before the next one's; an empty value gives way."""
    merged: dict[str, str] = {}
    for layer in layers:
        for name, value in layer.items():
            merged[name] = merged.get(name) or value
    return merged
