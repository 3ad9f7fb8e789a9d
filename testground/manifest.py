"""A plan's manifest: its test cases and what they take, its builders and runners (manifest.toml).

As testground v0.6.0 reads it (pkg/api/manifest.go): a value of the wrong kind anywhere refuses the file, a value that
makes no sense only the test case that has it, when that one is to run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

from testground import plan_file
from testground.errors import ManifestError
from testground.go_json import marshal, rfc3339
from testground.plan_file import Table, known

KEYS = {
    "": ("name", "defaults", "builders", "runners", "testcases", "extra_sources"),
    "defaults": ("builder", "runner"),
    "testcases": ("name", "instances", "params"),
    "testcases.instances": ("min", "max", "default"),
    "testcases.params": ("type", "desc", "unit", "default"),
}
"""The keys of each table, by its place; those of `testcases.params` are each parameter's."""


@dataclass(frozen=True)
class Param:
    """A parameter that a test case takes; `default` is what an instance gets when nobody gives another, as TOML has it.

    `where` is its place in the manifest, for messages.
    """

    name: str
    kind: str
    description: str
    unit: str
    default: Any
    where: str = ""

    def takes(self, value: str) -> bool:
        """Whether the SDK reads this text as the type that the manifest names; of types unknown here it says yes."""
        pattern = _TYPES.get(self.kind.lower())
        if self.kind.lower() == "json":
            import json

            try:
                json.loads(value)
            except (ValueError, RecursionError):
                return False
        return pattern is None or re.fullmatch(pattern, value) is not None


_INT, _FLOAT = r"[+-]?\d+", r"(?i:[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?inf(inity)?|nan)"
_DURATION = r"0|[+-]?((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+"
# What sdk-go's IntParam, FloatParam, BooleanParam and time.ParseDuration read.
_TYPES = {
    **dict.fromkeys(("int", "int64", "integer"), _INT),
    **dict.fromkeys(("uint", "uint64"), r"\d+"),
    **dict.fromkeys(("float", "float64", "number"), _FLOAT),
    **dict.fromkeys(("bool", "boolean"), "true|false"),
    "duration": _DURATION,
}


@dataclass(frozen=True)
class TestCase:
    """A test case, how many instances it takes, and its parameters by name.

    `instances_default` is what the manifest says, whatever that is; testground does not read it.
    """

    __test__ = False  # pytest collects classes called Test*

    name: str
    minimum: int
    maximum: int
    params: Mapping[str, Param]
    instances_default: Any = None
    where: str = ""
    file: str = "manifest.toml"

    @property
    def default_instances(self) -> int:
        """How many instances run when nobody says: what the manifest has, else its min. Raises `ManifestError`."""
        found = self.minimum if self.instances_default is None else self.instances_default
        if isinstance(found, bool) or not isinstance(found, int):
            where, problem = f"{self.where}.instances.default", f"is {found!r}; expected a whole number"
            raise ManifestError(self.file, where, problem, next_step="say how many instances to run")
        return found

    def default_params(self) -> dict[str, str]:
        """The default of every parameter, as instances get it. Raises `ManifestError`."""
        # One that is not a string is passed on as JSON, an absent one as null (defaultParameters).
        found = {}
        for name, param in self.params.items():
            try:
                found[name] = param.default if isinstance(param.default, str) else marshal(_as_go_has_it(param.default))
            except (TypeError, ValueError) as error:
                problem = f"cannot be passed to an instance: {error}"
                raise ManifestError(self.file, f"{param.where}.default", problem) from error
        return found


@dataclass(frozen=True)
class Manifest:
    """A plan: `builder` and `runner` are its defaults; `builders` and `runners` hold each one's configuration."""

    name: str
    testcases: tuple[TestCase, ...]
    builder: str = ""
    runner: str = ""
    builders: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    runners: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    file: str = "manifest.toml"
    warnings: tuple[str, ...] = ()  # keys of the file that nobody reads

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read the file. Raises `ManifestError`."""
        file, text = plan_file.load(path, ManifestError, "`fab init sh hello` makes a plan that has one")
        return cls.from_toml(text, file=file)

    @classmethod
    def from_toml(cls, text: str, *, file: str = "manifest.toml") -> Manifest:
        """Read the text of a manifest; `file` is its name in messages. Raises `ManifestError`."""
        root = plan_file.parse(text, file, ManifestError, KEYS[""])
        testcases = tuple(_testcase(table) for table in root.tables("testcases", KEYS["testcases"]))
        if not testcases:
            raise root.missing("testcases", "at least one [[testcases]]")
        defaults = root.table("defaults", KEYS["defaults"])
        extra_sources = root.free("extra_sources")
        for builder in extra_sources.values:
            extra_sources.strings(builder)
        return cls(
            name=root.text("name"),
            testcases=testcases,
            builder=defaults.text("builder", ""),
            runner=defaults.text("runner", ""),
            builders=_configurations(root.free("builders")),
            runners=_configurations(root.free("runners")),
            file=file,
            warnings=tuple(root.warnings),
        )

    def testcase(self, name: str) -> TestCase:
        """The test case of that name. Raises `ManifestError` with the nearest one known."""
        for testcase in self.testcases:
            if testcase.name == name:
                return testcase
        names = (testcase.name for testcase in self.testcases)
        raise ManifestError(self.file, "testcases", f"no test case is called {name!r}; {known(names, name)}")


def _configurations(table: Table) -> dict[str, Mapping[str, Any]]:
    return {name: table.free(name).values for name in table.values}


def _testcase(table: Table) -> TestCase:
    instances = table.table("instances", KEYS["testcases.instances"])
    params = table.free("params")
    return TestCase(
        name=table.text("name", ""),
        minimum=instances.whole("min"),
        maximum=instances.whole("max"),
        params={name: _param(name, params.table(name, KEYS["testcases.params"])) for name in params.values},
        instances_default=instances.values.get("default"),
        where=table.path,
        file=table.file,
    )


def _param(name: str, table: Table) -> Param:
    kind, description, unit = table.text("type", ""), table.text("desc", ""), table.text("unit", "")
    return Param(name, kind, description, unit, table.values.get("default"), table.path)


def _as_go_has_it(value: Any) -> Any:
    """The value with what BurntSushi/toml v0.4.1 makes of it: no list where one is empty, times with an offset."""
    if isinstance(value, dict):
        return {key: _as_go_has_it(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_go_has_it(item) for item in value] or None
    # A local time gets the offset that this machine has now, a date is its first moment, a time is in the year 0.
    if isinstance(value, datetime):
        return value if value.tzinfo else rfc3339(value) + _local_offset()
    if isinstance(value, date):
        return f"{rfc3339(value)}T00:00:00{_local_offset()}"
    if isinstance(value, time):
        return f"0000-01-01T{rfc3339(value)}{_local_offset()}"
    return value


def _local_offset() -> str:
    offset = datetime.now().astimezone().isoformat()[-6:]
    return "Z" if offset == "+00:00" else offset
