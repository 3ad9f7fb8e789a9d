"""Nix's commands as a build needs them: each one's command line, and its result as a value.

Works with Nix 2.8 and later (the tests passed with 2.8.0, 2.26.3 and 2.34.8). What a verb says goes to a file of the
attempt (`evaluation.log`, …).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote_runner.artifact.attempt import Attempt
from remote_runner.artifact.nix.here import FLAKES, Nix
from remote_runner.errors import DeadlineError, EvaluationFailedError, RemoteRunnerError, build_failed
from remote_runner.machine.process import how_ended, last_lines

STORE_PATH = re.compile(r"/nix/store/[0-9a-z]{32}-[0-9A-Za-z+._?=-]+")

# nixpkgs' lib.getExe, without nixpkgs: the program is in the output `bin` where there is one, and is called as
# meta.mainProgram says, else as the package.
_APPLY = """\
package:
let
  outputs = package.outputs or [ "out" ];
  bin = if builtins.elem "bin" outputs && !(package.outputSpecified or false) then package.bin else package;
in
{
  drv = package.drvPath;
  out = bin.outPath;
  output = bin.outputName or "out";
  program = "bin/" + (package.meta.mainProgram or package.pname or (builtins.parseDrvName package.name).name);
}"""
# Debian's nix-bin by itself sets nothing up.
_NO_BUILD_USERS = "specified in 'build-users-group' does not exist"
_NAMES = "builtins.mapAttrs (system: builtins.attrNames)"
# Strings of the ATerm format escape quotes and backslashes by a backslash; lists and tuples hold strings only.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\](),]', re.DOTALL)


@dataclass(frozen=True)
class Package:
    """What an evaluation says of a package: its derivation, the output ("" for all) with its path, its program."""

    drv: str
    out: str
    output: str
    program: str

    @property
    def installable(self) -> str:
        """The output as `nix-store --realise` is told it."""
        return f"{self.drv}!{self.output}" if self.output else self.drv


@dataclass(frozen=True)
class NixConfig:
    """What this machine builds: itself (`system`, `extra_platforms`, unless `max_jobs` is 0) and by `builders`."""

    system: str
    extra_platforms: tuple[str, ...]
    max_jobs: int
    builders: str


def attribute(flake: str, system: str, app: str) -> str:
    """The package's full name: `REF#packages.SYSTEM.APP`."""
    return f"{flake}#packages.{system}.{app}" if "." not in app else f'{flake}#packages.{system}."{app}"'


# Evaluation


def evaluate_argv(nix: Nix, flake: str, system: str, app: str) -> tuple[str, ...]:
    return (nix.nix, *FLAKES, "eval", "--json", attribute(flake, system, app), "--apply", _APPLY)


def evaluate(nix: Nix, attempt: Attempt, flake: str, system: str, app: str) -> Package:
    """Evaluate a package, which writes its derivation to the store. Raises `EvaluationFailedError`."""
    package, log = attribute(flake, system, app), attempt.directory / "evaluation.log"

    def failed(reason: str, next_step: str = "") -> EvaluationFailedError:
        return EvaluationFailedError(package, reason, log=str(log), said=last_lines(log), next_step=next_step)

    try:
        said = _answer(nix, attempt, "evaluation", evaluate_argv(nix, flake, system, app))
    except DeadlineError as error:
        raise failed(
            f"its evaluation did not end within {error.seconds:g} s", "raise timeouts.build_s in inventory.yaml"
        ) from error
    if said is None:
        raise failed("cannot be evaluated")
    found = json.loads(said)
    if not all(STORE_PATH.fullmatch(found[name]) for name in ("drv", "out")):
        raise failed(f"its output is {found['out']}, whose path is not known before it is built")
    return Package(**found)


def packages_argv(nix: Nix, flake: str) -> tuple[str, ...]:
    return (nix.nix, *FLAKES, "eval", "--json", f"{flake}#packages", "--apply", _NAMES)


def packages(nix: Nix, attempt: Attempt, flake: str) -> Mapping[str, tuple[str, ...]] | None:
    """The names of a flake's packages, for each system; `None` when Nix cannot say them."""
    said = _answer(nix, attempt, "packages", packages_argv(nix, flake))
    return None if said is None else {system: tuple(names) for system, names in json.loads(said).items()}


# The store


def root_derivation_argv(nix: Nix, drv: str, root: Path) -> tuple[str, ...]:
    # `nix-store --add-root` realises a derivation; a package that evaluates to it is only rooted.
    package = f'{{ type = "derivation"; name = "package"; outputName = "out"; drvPath = "{drv}"; }}'
    return (nix.nix_instantiate, "--add-root", str(root), "--expr", package)


def root_derivation(nix: Nix, attempt: Attempt, drv: str, root: Path) -> bool:
    """Keep a derivation from garbage collection as long as `root` is there; says whether it is valid.

    A root of a derivation that has gone in between keeps it from the next evaluation on.
    """
    _answer(nix, attempt, "root", root_derivation_argv(nix, drv, root))
    return is_valid(nix, attempt, drv)


def is_valid_argv(nix: Nix, path: str) -> tuple[str, ...]:
    return (nix.nix_store, "--check-validity", path)


def is_valid(nix: Nix, attempt: Attempt, path: str) -> bool:
    """Whether a path is valid in this machine's store; one that lies there half-copied is not."""
    return _answer(nix, attempt, "validity", is_valid_argv(nix, path)) is not None


def deriver_argv(nix: Nix, path: str) -> tuple[str, ...]:
    return (nix.nix_store, "--query", "--deriver", path)


def deriver(nix: Nix, attempt: Attempt, path: str) -> str:
    """The derivation that made a path, if it is in this machine's store; else ""."""
    drv = (_answer(nix, attempt, "deriver", deriver_argv(nix, path)) or "").strip()
    return drv if STORE_PATH.fullmatch(drv) and is_valid(nix, attempt, drv) else ""


def missing_argv(nix: Nix, package: Package) -> tuple[str, ...]:
    return (nix.nix_store, "--realise", "--dry-run", package.installable)


def missing(nix: Nix, attempt: Attempt, package: Package) -> tuple[str, ...]:
    """The derivations that have to be built for a package: not those whose outputs are here or can be fetched."""
    log = attempt.directory / "missing.log"
    if _answer(nix, attempt, "missing", missing_argv(nix, package)) is None:
        raise EvaluationFailedError(package.drv, "Nix cannot say what it needs", log=str(log), said=last_lines(log))
    return parse_missing(log.read_text(encoding="utf-8", errors="replace"))


def parse_missing(said: str) -> tuple[str, ...]:
    """The derivations in what a dry run says; what would be fetched is listed there as well, but is not one."""
    return tuple(re.findall(r"^\s+(/\S+\.drv)$", said, re.MULTILINE))


def realise_argv(nix: Nix, package: Package, root: Path) -> tuple[str, ...]:
    return (nix.nix_store, "--realise", "--add-root", str(root), package.installable)


def realise(nix: Nix, attempt: Attempt, package: Package, root: Path, *, app: str, system: str) -> None:
    """Build a package or fetch it, and root its output. Raises `RemoteRunnerError`."""
    log = attempt.log

    def failed(reason: str, next_step: str = "") -> RemoteRunnerError:
        return build_failed(app, system, reason, log=str(log), said=last_lines(log), next_step=next_step)

    try:
        status = attempt.run(realise_argv(nix, package, root), log=log, environ=nix.environ)
    except DeadlineError as error:
        raise failed(
            f"Nix did not end within {error.seconds:g} s", "raise timeouts.build_s in inventory.yaml"
        ) from error
    if status:
        next_step = f"`nix-store --realise {package.drv}` does the same by hand"
        if _NO_BUILD_USERS in last_lines(log):
            next_step = (
                "root alone uses Nix here? Then put `build-users-group =` into /etc/nix/nix.conf; else set up its "
                "nix-daemon (Debian: nix-setup-systemd)"
            )
        raise failed(f"Nix did not make {package.out} ({how_ended(status)})", next_step)


# The configuration


def config_argvs(nix: Nix) -> tuple[tuple[str, ...], ...]:
    """The command as Nix 2.8 has it, and as later versions have it (they still took the other at 2.28)."""
    return ((nix.nix, *FLAKES, "show-config", "--json"), (nix.nix, *FLAKES, "config", "show", "--json"))


def config(nix: Nix, attempt: Attempt) -> NixConfig:
    """What Nix is configured to build on this machine. Raises `EvaluationFailedError`."""
    log = attempt.directory / "config.log"
    for argv in config_argvs(nix):
        said = _answer(nix, attempt, "config", argv)
        if said is not None:
            return parse_config(json.loads(said))
    raise EvaluationFailedError("nix show-config", "Nix cannot say its settings", log=str(log), said=last_lines(log))


def parse_config(settings: Mapping[str, Mapping[str, Any]]) -> NixConfig:
    """The settings as `nix show-config --json` has them."""
    values = {name: settings[name]["value"] for name in ("system", "extra-platforms", "max-jobs", "builders")}
    return NixConfig(values["system"], tuple(values["extra-platforms"]), int(values["max-jobs"]), values["builders"])


def _answer(nix: Nix, attempt: Attempt, name: str, argv: tuple[str, ...]) -> str | None:
    """What a program prints, `None` when it ends with a status other than 0; its words go to `NAME.log`."""
    out = attempt.directory / f"{name}.out"
    if attempt.run(argv, log=attempt.directory / f"{name}.log", stdout=out, environ=nix.environ):
        return None
    return out.read_text(encoding="utf-8", errors="replace")


def derivation_system(text: str) -> str:
    """The system in a `.drv` file: `Derive(outputs, input derivations, input sources, SYSTEM, builder, …)`.

    Not by `nix show-derivation`, whose name and format change from version to version. Raises `ValueError`.
    """
    depth = commas = 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "[(":
            depth += 1
        elif token in "])":
            depth -= 1
        elif token == "," and depth == 1:
            commas += 1
        elif depth == 1 and commas == 3:
            return token[1:-1]
    raise ValueError("no derivation")
