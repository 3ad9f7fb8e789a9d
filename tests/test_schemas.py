"""The JSON schemas of inventory.yaml and manifest.toml say what their readers say, over all files of the tests."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from remote_runner.errors import InventoryError
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.yaml_tree import Mapping, Node, Scalar, parse_yaml
from testground.errors import ManifestError
from testground.manifest import Manifest
from tests.remote_runner.inventory import test_inventory
from tests.schemas import inventory_schema, manifest_schema
from tests.testground import test_manifest

ROOT = Path(__file__).parents[1]
INVENTORIES = [*ROOT.glob("inventory.yaml"), *ROOT.glob("tests/plans/*/inventory.yaml")]
MANIFESTS = [*ROOT.glob("manifest.toml"), *ROOT.glob("tests/plans/*/manifest.toml")]
MISTAKES = [case[0] for case in test_inventory.MISTAKES]
# What a schema cannot say: what a text means to its reader, and numbers written as texts that are too large.
BEYOND = re.compile(r"\{sistem\}|command: '(make;?|gen|id) |cc 'x|\\0|\\n|TiB|cache_limit: 9{300}")


def value_of(node: Node | None) -> Any:
    """The tree as an editor has it: scalars by the core schema of YAML 1.2."""
    if isinstance(node, Mapping):
        return {name: value_of(child) for name, child in node.items.items()}
    if isinstance(node, Scalar):
        if node.is_null:
            return None
        if node.text in ("true", "false"):
            return node.text == "true"
        if re.fullmatch(r"[-+]?[0-9]{1,4000}", node.text):
            return int(node.text)
        return float(node.text) if re.fullmatch(r"[-+]?[0-9]*\.?[0-9]+(e[0-9]+)?", node.text) else node.text
    return None if node is None else [value_of(item) for item in node.items]


def fits(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema.Draft202012Validator(schema).is_valid(value))


def test_both_are_schemas() -> None:
    for schema in (inventory_schema(), manifest_schema()):
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("path", INVENTORIES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_inventory_of_the_tests_fits(path: Path) -> None:
    Inventory.load(path.parent)
    assert fits(inventory_schema(), value_of(parse_yaml(path.read_text(), "inventory.yaml")))


@pytest.mark.parametrize(
    "text",
    [
        test_inventory.FULL,
        "hosts:\ndefaults:\napp:\n",
        "defaults: {store: user, substitute: false, secret_env: [TOKEN]}\nhosts: {a: {on_unreachable: next}}\n",
        "app: {command: [make, '{out}'], build_on: target, flake: ./x, builder: nix}\n",
        "hosts_from: [{ssh_config: 'lab-*'}, {ansible: hosts.ini}, {command: [./hosts, all]}]\n",
        "hosts: {localhost: {ssh: }, a: {connect: {command: docker exec -i}, ssh: {port: '22'}}}\n",
    ],
)
def test_what_the_reader_takes_fits(text: str) -> None:
    test_inventory.parse(text)
    assert fits(inventory_schema(), value_of(parse_yaml(text, "inventory.yaml")))


@pytest.mark.parametrize("text", MISTAKES)
def test_what_the_reader_refuses_does_not_fit(text: str) -> None:
    with pytest.raises(InventoryError):
        test_inventory.parse(text)
    try:
        value = value_of(parse_yaml(text, "inventory.yaml"))
    except InventoryError:
        return  # no YAML, or a key that stands twice: any editor says so
    assert fits(inventory_schema(), value) == bool(BEYOND.search(text))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_manifest_of_the_tests_fits(path: Path) -> None:
    assert not Manifest.load(path).warnings
    assert fits(manifest_schema(), tomllib.loads(path.read_text()))


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("", ""),
        ("max = 200", 'max = "200"'),
        ("min = 1,", "min = true,"),
        ('name = "example"', "name = 3"),
        ('name = "example"', "nam = 'x'"),
        ("[defaults]", "[default]"),
        ("[defaults]", "[[defaults]]"),
        ("flag = {", "flag = 1 #"),
        ("default = 3 }", "defualt = 4 }"),
        ('unit = "words"', 'unit = ["words"]'),
        ('unit = "words"', 'units = "words"'),
        ('[builders."exec:go"]\nenabled = true', "[builders]\nx = 3"),
    ],
)
def test_the_manifests_schema_takes_what_is_read_without_a_word(change: str, to: str) -> None:
    assert change in test_manifest.TEXT
    text = test_manifest.TEXT.replace(change, to)
    try:
        quiet = not Manifest.from_toml(text).warnings
    except ManifestError:
        quiet = False
    assert quiet == (not change)
    assert fits(manifest_schema(), tomllib.loads(text)) == quiet
