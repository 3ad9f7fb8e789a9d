"""Manifests of plans that tests make."""

from __future__ import annotations


def manifest(
    name: str, case: str, *, most: int = 10, default: int = 1, exec_pkg: bool = False, params: str = ""
) -> str:
    """A plan for exec:go and local:exec with one case; `params` is TOML below it, of its parameters."""
    package = 'exec_pkg = "./exec-go"\n' if exec_pkg else ""
    return f"""\
name = "{name}"
[defaults]
builder = "exec:go"
runner = "local:exec"
[builders."exec:go"]
enabled = true
{package}[runners."local:exec"]
enabled = true
[[testcases]]
name = "{case}"
instances = {{ min = 1, max = {most}, default = {default} }}
{params}"""
