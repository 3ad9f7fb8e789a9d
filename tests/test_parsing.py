"""Files and parameters of users are data: no tag makes an object, nothing small grows large, no trace."""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_runner.errors import InventoryError, RemoteRunnerError
from remote_runner.inventory.inventory import Inventory
from remote_runner.inventory.placement import parse_entries
from testground.composition import Composition
from testground.errors import CompositionError, ManifestError, PlanFileError
from testground.manifest import Manifest
from testground.plan_file import parse

CANARY = Path("/tmp/remote-runner-parsing-canary")


def inventory(text: str) -> Inventory:
    return Inventory.parse(text, Path("/plan/inventory.yaml"))


@pytest.mark.parametrize(
    "value",
    [
        f"!!python/object/apply:os.system ['touch {CANARY}']",
        f"!!python/object/new:os.system ['touch {CANARY}']",
        "!!python/name:os.system",
        "!!python/module:os",
        "!unknown {a: b}",
        "!!binary aGVsbG8=",
    ],
)
def test_tags_make_nothing(value: str) -> None:
    try:
        found = inventory(f"defaults: {{env: {{A: {value}}}}}").hosts[0].env
    except InventoryError:
        pass  # no text stands there
    else:
        assert all(isinstance(text, str) for _, text in found)
    assert not CANARY.exists()


def laughs(count: int) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, count)]
    return "\n".join(lines)


NESTED = 100_000
HARMFUL: dict[str, tuple[Callable[[str], object], str, type[Exception]]] = {
    "yaml: anchors in anchors": (inventory, laughs(12), InventoryError),
    "yaml: merges in merges": (
        inventory,
        "\n".join(
            ["b0: &b0 {x: y}", *(f"b{n}: &b{n} {{<<: [{', '.join([f'*b{n - 1}'] * 9)}]}}" for n in range(1, 12))]
        ),
        InventoryError,
    ),
    "yaml: a value in itself": (inventory, "hosts: &a [*a]", InventoryError),
    "yaml: nested lists": (inventory, "a: " + "[" * NESTED, InventoryError),
    "yaml: nested mappings": (inventory, "{a: " * NESTED, InventoryError),
    "yaml: nested blocks": (inventory, "\n".join(" " * n + "a:" for n in range(2000)), InventoryError),
    "yaml: a large file": (inventory, "# " + "x" * (5 << 20), InventoryError),
    "toml: nested lists": (Manifest.from_toml, "a = " + "[" * NESTED, ManifestError),
    "toml: a long key": (Manifest.from_toml, "a" + ".a" * NESTED + " = 1", ManifestError),
    "toml: a long number": (Manifest.from_toml, "a = " + "1" * NESTED, ManifestError),
    "toml: a large file": (Manifest.from_toml, "# " + "x" * (5 << 20), ManifestError),
    "json: nested lists": (parse_entries, "[" * NESTED, RemoteRunnerError),
    "json: a long number": (parse_entries, "[" + "1" * NESTED + "]", RemoteRunnerError),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARMFUL)
def test_what_would_grow_or_never_end_is_refused_in_words(name: str) -> None:
    read, text, kind = HARMFUL[name]
    began_s = time.process_time()
    with pytest.raises(kind) as caught:
        read(text)
    assert time.process_time() - began_s < 20
    tracemalloc.start()  # which takes its time, ten times the reading's
    try:
        with pytest.raises(kind):
            read(text)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 400 << 20
    assert len(str(caught.value)) < 2000


def test_a_composition_is_read_the_same_way() -> None:
    with pytest.raises(PlanFileError):
        parse("a = " + "[" * NESTED, "composition.toml", CompositionError, ())
    assert Composition.load.__doc__


def test_ordinary_anchors_still_work() -> None:
    assert inventory("hosts:\n  a: &a {slots: 3}\n  b: {<<: *a}\n  c: *a\n").host("c").slots == 3
