"""A plan for `fab local.*`, and what a run of it leaves here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema

from tests.integration.runs import EVENTS
from tests.manifests import manifest
from tests.tasks.fab import REPOSITORY, PlanDirectory

PARAMS = '[testcases.params]\nword = { type = "string", default = "hello" }\n'


def schema(name: str) -> Any:
    """One of the schemas of the documentation."""
    return json.loads((REPOSITORY / "docs/schema" / f"{name}.json").read_text(encoding="utf-8"))


def valid(path: Path, name: str) -> Any:
    """The JSON in a file, which follows the schema."""
    value = json.loads(path.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema(name)).validate(value)
    return value


def write_plan(plan: PlanDirectory, application: str, case: str = "greet") -> None:
    """Make it a plan of one case, whose application is this script behind the functions of `EVENTS`."""
    plan.write("manifest.toml", manifest("greeter", case, default=2, params=PARAMS))
    plan.write("greeter.sh", EVENTS + application)


def run_directory(plan: PlanDirectory) -> Path:
    """The directory of the one run."""
    (found,) = (plan.path / "outputs/local_exec/greeter").iterdir()
    return found
