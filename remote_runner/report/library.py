"""The drawing library: Vega, Vega-Lite and Vega-Embed in one script, from the package vl-convert-python.

Made once for each version of the package, which takes five seconds, and kept: at the installation of a checkout in
`build/report`, else when it is first needed, in the cache. A page then costs no import of the package.
"""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from remote_runner.errors import ControllerError
from remote_runner.machine.files import write_atomically

PACKAGE = "vl-convert-python"
_BUILT = Path(__file__).resolve().parents[2] / "build" / "report"


def is_installed() -> bool:
    """Whether pages can be drawn here."""
    return _version() is not None


def script(cache: Path) -> str:
    """The script, made now where it is not there. Raises `ControllerError` where the package is missing."""
    found = _version()
    if found is None:
        raise ControllerError(
            f"a report is drawn by the package {PACKAGE}, which is not installed",
            next_step=_installation(),
        )
    name = f"vega-{found}.js"
    for directory in (_BUILT, cache):
        try:
            return (directory / name).read_text(encoding="utf-8")
        except OSError:
            continue
    import vl_convert

    text: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    write_atomically(cache / name, text.encode(), optional=True)
    return text


def _installation() -> str:
    """The command that installs the package into this environment; those that pipx and uv make may have no pip."""
    if Path(sys.prefix, "pipx_metadata.json").exists():
        return f"pipx inject testground-remote-runner {PACKAGE}"
    python = shlex.quote(sys.executable)
    how = f"{python} -m pip install" if find_spec("pip") else f"uv pip install --python {python}"
    return f"{how} {PACKAGE}"


def _version() -> str | None:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return None


if __name__ == "__main__" and is_installed():
    script(_BUILT)  # the door for make
