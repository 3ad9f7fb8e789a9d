"""Compositions that are templates, filled in by the program in Go."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from testground.composition import Composition, plan_runs
from testground.errors import CompositionError
from testground.manifest import Manifest
from testground.template import Templates
from tests.hosts import which
from tests.needs import need

_SOURCES = Path(__file__).parent.parent.parent / "testground" / "template-go"

_TEMPLATE = """
[global]
plan = "{{ .Env.PLAN }}"
case = "case"
builder = "exec:go"
runner = "local:exec"
{{ range split .Env.VERSIONS }}
[[groups]]
id = "{{ . }}"
instances = { count = {{ index $.Env "COUNT" | atoi }} }
{{ end }}
{{ with load_resource "more/resource.toml" }}{{ range .groups }}
[[groups]]
{{ pick . "id" | toml -}}
instances = { count = {{ .count }} }
{{ end }}{{ end }}
"""

_RESOURCE = """
[[groups]]
id = "from the resource"
count = 2
"""

_MANIFEST = Manifest.from_toml("""
name = "plan"
[builders."exec:go"]
[runners."local:exec"]
[[testcases]]
name = "case"
instances = { min = 1, max = 9 }
""")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with the program in it; one for all tests of this file, since to build takes some seconds."""
    need("go")
    cache = tmp_path_factory.mktemp("cache")
    composition = cache / "c.toml"
    composition.write_text("{{ fail }}")
    with pytest.raises(CompositionError) as caught:
        Composition.load(composition, Templates(os.environ, cache))
    if "module proxy" in str(caught.value):
        pytest.skip(f"Go's module proxy cannot be reached: {caught.value}")
    return cache


def no_go(environ: Mapping[str, str]) -> str | None:
    return None


def write(directory: Path, text: str) -> Path:
    path = directory / "c.toml"
    path.write_text(text)
    return path


def test_a_template_is_filled_in(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "resource.toml").write_text(_RESOURCE)
    environ = {"PLAN": "plan", "VERSIONS": "v1,v2", "COUNT": "3"}
    composition = Composition.load(write(tmp_path, _TEMPLATE), Templates(environ, cache, no_go))
    (run,) = plan_runs(composition, _MANIFEST)
    assert [(group.id, group.instances) for group in run.groups] == [("v1", 3), ("v2", 3), ("from the resource", 2)]


@pytest.mark.parametrize(
    ("change", "to", "message"),
    [
        ("{{ end }}", "", r"c\.toml: line \d+: is a template that cannot be filled in: unexpected EOF"),
        ("split .Env", "spilt .Env", r'c\.toml: line 7: is a template .*: function "spilt" not defined'),
        ("resource.toml", "nowhere.toml", r"c\.toml: line 12: .*more/nowhere.toml: no such file"),
        ("range split .Env.VERSIONS", "range .Env.COUNT", r"c\.toml: line 7: .*range can't iterate over 3"),
        ("split .Env.VERSIONS", "split .Env", r"c\.toml: line 7: .*map\[…\]$"),
        ("[global]", "[global", r"c\.toml, filled in: is not valid TOML: .*at line 2, .*: \[global …"),
        ('case = "case"', "", r"c\.toml, filled in: global.case: is missing; expected a string"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(cache: Path, tmp_path: Path, change: str, to: str, message: str) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "resource.toml").write_text(_RESOURCE)
    assert change in _TEMPLATE
    environ = {"PLAN": "plan", "VERSIONS": "v1,v2", "COUNT": "3"}
    with pytest.raises(CompositionError, match=message) as caught:
        Composition.load(write(tmp_path, _TEMPLATE.replace(change, to)), Templates(environ, cache, no_go))
    assert "VERSIONS:v1" not in str(caught.value)


def test_braces_that_a_template_gives_are_text(cache: Path, tmp_path: Path) -> None:
    text = '[global]\nplan = "p"\ncase = "{{ .Env.SHOWN }}"\nrunner = "r"\nbuilder = "b"\n[[groups]]\n'
    loaded = Composition.load(write(tmp_path, text), Templates({"SHOWN": "{{.Name}}"}, cache, no_go))
    assert loaded.case == "{{.Name}}"


def test_without_braces_nothing_is_started(tmp_path: Path) -> None:
    text = '[global]\nplan = "p"\ncase = "c"\nrunner = "r"\nbuilder = "b"\n[[groups]]\n'
    templates = Templates({}, tmp_path / "cache", no_go)
    assert Composition.load(write(tmp_path, text), templates).case == "c"
    assert not (tmp_path / "cache").exists()


def test_without_go_a_template_is_refused_with_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(CompositionError, match="needs Go to be filled in, and there is no Go here\n  next: install Go"):
        Composition.load(write(tmp_path, _TEMPLATE), Templates({}, tmp_path / "cache", no_go))
    with pytest.raises(CompositionError, match=r"c\.toml: line 3: is a template.*\n  next: write the values"):
        Composition.load(write(tmp_path, _TEMPLATE))


def test_a_go_that_reaches_no_proxy_is_told_with_the_next_step(tmp_path: Path) -> None:
    need("go")
    environ = {"PATH": os.environ["PATH"], "GOPROXY": "off", "GOENV": "off"}
    with pytest.raises(
        CompositionError, match=r"cannot be built with .*\n(.*\n)*  next: let Go reach its module proxy"
    ):
        Composition.load(write(tmp_path, _TEMPLATE), Templates(environ, tmp_path / "cache"))


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_program_that_was_cut_off_is_not_started(cache: Path, tmp_path: Path, keep: int) -> None:
    (built,) = (path for path in (cache / "template").iterdir() if not path.suffix)
    mine = tmp_path / "cache" / "template"
    mine.mkdir(parents=True)
    (mine / f"{built.name}.sha256").write_text(built.with_suffix(".sha256").read_text())
    (mine / built.name).write_bytes(built.read_bytes()[:keep])
    (mine / built.name).chmod(0o700)
    with pytest.raises(CompositionError, match="there is no Go here"):  # it would be built again
        Composition.load(write(tmp_path, _TEMPLATE), Templates({}, tmp_path / "cache", no_go))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CompositionError, match=r"cannot be kept in .*/cache/template: .*\n  next: make room"):
        Composition.load(write(tmp_path, _TEMPLATE), Templates({}, tmp_path / "cache"))


def test_the_program_is_formatted_and_its_own_tests_hold(cache: Path) -> None:
    gofmt = Path(which("go")).resolve().with_name("gofmt")
    assert subprocess.run([gofmt, "-l", "."], cwd=_SOURCES, capture_output=True, text=True, check=True).stdout == ""
    environ = {
        "PATH": os.environ["PATH"],
        "GOCACHE": os.environ["GOCACHE"],
        "GOMODCACHE": os.environ.get("GOMODCACHE") or str(cache / "go-modules"),
        "GOFLAGS": "-mod=readonly -modcacherw -trimpath",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "CGO_ENABLED": "0",
    }
    done = subprocess.run(
        [which("go"), "test", "-vet=off", "."], cwd=_SOURCES, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
