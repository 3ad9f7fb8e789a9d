"""`remote-runner init`: makes a new plan that runs at once."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import invoke

import remote_runner
import testground
from remote_runner.typed import from_where_typed, typed
from tasks.command_line.task import Failed, task
from tasks.say import say, show

_TEMPLATES = Path(remote_runner.__file__).parent / "templates"
_SCHEMAS = (
    Path(remote_runner.__file__).parent / "inventory" / "inventory.schema.json",
    Path(testground.__file__).parent / "manifest.schema.json",
)
# Language -> how the artifact is made, the application's file, what its hosts need.
LANGUAGES = {
    "sh": ("cp @NAME@.sh {out}", "@NAME@.sh", ""),
    "python": ("cp @NAME@.py {out}", "@NAME@.py", "python3"),
    "go": ("env CGO_ENABLED=0 GOOS={goos} GOARCH={goarch} go build -o {out} .", "main.go", ""),
    "js": ("cp @NAME@.js {out}", "@NAME@.js", "node"),
    "rust": ("sh build.sh {system} {out}", "src/main.rs", ""),
}
# What the plan is used with wherever it goes; how `init` was typed holds for this moment only.
_PROGRAM = "remote-runner"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")
_SUFFIX = ".template"


@task(
    bare=("language", "name"),
    help={
        "language": f"what the application is written in: {' '.join(LANGUAGES)} (default: asked on a terminal)",
        "name": "the plan's name, and that of the new directory: a-z, 0-9 and - (default: hello)",
    },
)
def init(c: invoke.Context, language: str = "", name: str = "hello") -> None:
    """Make a plan that runs at once: remote-runner init [sh|python|go|js|rust] [NAME]."""
    language = language or _asked()
    if language not in LANGUAGES:
        raise Failed(f"init: {language!r} is none of {', '.join(LANGUAGES)}: {typed()} init go {name}")
    if not _NAME.fullmatch(name):
        raise Failed(f"init: {name!r} cannot be a plan's name; expected a-z, 0-9 and -, with a letter first")
    directory = Path(name)
    if directory.exists() and not (directory.is_dir() and not any(directory.iterdir())):
        raise Failed(f"init: {name} is there already; choose another name: {typed()} init {language} NAME")
    try:
        _write(directory, language, name)
    except OSError as error:
        raise Failed(f"init: {error.filename}: {error.strerror}; make room or access there, or go elsewhere") from error
    made = from_where_typed(name)
    # All in one stream: a log that takes two has them in any order.
    show(
        f"a plan in {made}/: manifest.toml (test cases), inventory.yaml (application, hosts), the application\nnext:\n"
        f"cd {shlex.quote(made)}\n{_PROGRAM} local.single --testcase greet"
    )


def _asked() -> str:
    if sys.stdin is None or not sys.stdin.isatty():
        raise Failed(f"init: say what the application is written in: {typed()} init {'|'.join(LANGUAGES)} [NAME]")
    say(f"What is the application written in? {', '.join(LANGUAGES)}")
    return sys.stdin.readline().strip()


def _write(directory: Path, language: str, name: str) -> None:
    command, file, needed = LANGUAGES[language]
    needs = f"\n\nIts hosts need `{needed}`." if needed else ""
    filled = {"@COMMAND@": command, "@FILE@": file, "@NEEDS@": needs, "@PROGRAM@": _PROGRAM, "@NAME@": name}
    for folder in (_TEMPLATES / "every", _TEMPLATES / language):
        for template in sorted(folder.rglob(f"*{_SUFFIX}")):
            text, inside = template.read_text(encoding="utf-8"), str(template.relative_to(folder))
            for word, value in filled.items():
                text, inside = text.replace(word, value), inside.replace(word, value)
            inside = inside.removesuffix(_SUFFIX)
            path = directory / (".gitignore" if inside == "gitignore" else inside)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
    for schema in _SCHEMAS:
        (directory / ".schema").mkdir(exist_ok=True)
        (directory / ".schema" / schema.name).write_bytes(schema.read_bytes())
