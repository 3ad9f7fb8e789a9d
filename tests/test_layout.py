"""A module's tests are found by its name: where its directory is repeated, or where this table says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("remote_runner", "tasks", "testground")
# A module, or a directory for all in it -> the tests that exercise it.
ELSEWHERE: Mapping[str, str] = {
    "remote_runner/artifact/attempt": "remote_runner/artifact/test_build",
    "remote_runner/artifact/content": "remote_runner/artifact/test_build",
    "remote_runner/artifact/nix/artifact": "remote_runner/artifact/nix/test_build",
    "remote_runner/artifact/nix/build_machines": "remote_runner/artifact/nix/test_verbs",
    "remote_runner/artifact/nix/builder": "remote_runner/artifact/nix/test_build",
    "remote_runner/artifact/nix/progress": "remote_runner/artifact/nix/test_push",
    "remote_runner/artifact/nix/source": "remote_runner/artifact/nix/test_serve",
    "remote_runner/background": "tasks/command_line/test_executor",
    "remote_runner/broker/alone": "integration/test_launcher",
    "remote_runner/broker/handover": "integration/test_broker",
    "remote_runner/broker/in_process": "integration/test_contract",
    "remote_runner/broker/place": "remote_runner/broker/test_protocol",
    "remote_runner/broker/service": "integration/test_broker",
    "remote_runner/connection/transports/login": "tasks/test_hosts",
    "remote_runner/connection/transports/pipes": "remote_runner/connection/test_contract",
    "remote_runner/connection/transports/slurm": "remote_runner/inventory/test_slurm_words",
    "remote_runner/connection/transports/transport": "remote_runner/connection/test_contract",
    "remote_runner/connection/verbs/command": "remote_runner/connection/test_agent",
    "remote_runner/connection/verbs/far_artifact": "remote_runner/connection/test_agent",
    "remote_runner/connection/verbs/faults": "remote_runner/connection/test_agent",
    "remote_runner/connection/verbs/forwards": "remote_runner/connection/test_agent",
    "remote_runner/connection/verbs/job": "remote_runner/connection/verbs/test_run",
    "remote_runner/connection/verbs/fetch": "remote_runner/connection/verbs/test_run",
    "remote_runner/demo/sshd": "remote_runner/demo/test_server",
    "remote_runner/errors": "integration/test_failures_fab",
    "remote_runner/example": "test_flake",
    "remote_runner/instance/addresses": "integration/test_contract",
    "remote_runner/instance/environment": "integration/test_environment",
    "remote_runner/instance/forwarding": "integration/test_environment",
    "remote_runner/instance/instance": "integration/test_contract",
    "remote_runner/instance/reporter": "integration/test_contract",
    "remote_runner/instance/sbcasts": "integration/test_slurm",
    "remote_runner/instance/shared": "remote_runner/artifact/test_push",
    "remote_runner/instance/steps": "integration/test_contract",
    "remote_runner/inventory/command_template": "remote_runner/inventory/test_inventory",
    "remote_runner/inventory/endpoint": "remote_runner/inventory/test_inventory",
    "remote_runner/inventory/keys": "remote_runner/inventory/test_inventory",
    "remote_runner/inventory/kinds": "remote_runner/inventory/test_inventory",
    "remote_runner/inventory/known": "remote_runner/test_cut_files",
    "remote_runner/inventory/sources": "remote_runner/inventory/test_sources",
    "remote_runner/inventory/sources/allocation": "remote_runner/inventory/test_slurm_words",
    "remote_runner/inventory/sources/slurm": "remote_runner/inventory/test_slurm_words",
    "remote_runner/inventory/ssh_target": "remote_runner/connection/transports/test_openssh",
    "remote_runner/inventory/yaml_mistake": "remote_runner/inventory/test_inventory",
    "remote_runner/inventory/yaml_tree": "remote_runner/inventory/test_inventory",
    "remote_runner/leftovers_here": "tasks/test_clean",
    "remote_runner/plan_import": "tasks/test_plan_import",
    "remote_runner/progress": "tasks/view/test_model",
    "remote_runner/records/attending": "integration/test_daemon_records",
    "remote_runner/records/recorder": "remote_runner/records/test_places",
    "remote_runner/report/charts": "remote_runner/report/test_browser",
    "remote_runner/report/library": "tasks/runs/test_report",
    "remote_runner/report/metrics": "remote_runner/report/test_reading",
    "remote_runner/report/usage": "remote_runner/report/test_reading",
    "remote_runner/report/values": "remote_runner/report/test_reading",
    "remote_runner/report/views": "remote_runner/report/test_reading",
    "remote_runner/report/write": "remote_runner/report/test_browser",
    "remote_runner/runs": "remote_runner/test_cut_files",
    "remote_runner/truth/watch": "remote_runner/truth/test_observation",
    "tasks/artifacts": "tasks/test_build",
    "tasks/checks/between": "tasks/checks/test_findings",
    "tasks/checks/hosts": "tasks/checks/test_findings",
    "tasks/collection": "tasks/command_line/test_program",
    "tasks/command_line/input": "tasks/test_run_input",
    "tasks/command_line/task": "tasks/command_line/test_program",
    "tasks/command_line/terminal": "tasks/test_run_tty",
    "tasks/command_line/values": "tasks/test_choose",
    "tasks/connection": "tasks/command_line/test_executor",
    "tasks/demo": "remote_runner/demo/test_server",
    "tasks/instance": "tasks/command_line/test_program",
    "tasks/parallel": "tasks/test_run",
    "tasks/runs/failing": "tasks/test_local",
    "tasks/runs": "tasks/test_runs",
    "tasks/say": "tasks/command_line/test_program",
    "tasks/view": "integration/test_live_view",
    "tasks/view/lines": "tasks/test_run",
    "tasks/view/reports": "tasks/view/test_how",
    "testground/errors": "testground/test_manifest",
    "testground/go_json": "testground/test_manifest",
    "testground/influxdb": "testground/test_metrics",
    "testground/plan_file": "test_parsing",
    "testground/sync/client": "testground/test_sync_client",
    "testground/sync/core": "testground/test_sync_core",
    "testground/sync/journal": "testground/test_sync_journal",
    "testground/sync/link": "testground/test_sync_client",
    "testground/sync/peer": "testground/test_sync_service",
    "testground/sync/protocol": "testground/test_sync_protocol",
    "testground/sync/service": "testground/test_sync_service",
    "testground/sync/shared_client": "testground/test_shared_client",
    "testground/sync/websocket": "testground/test_sync_websocket",
}


def modules() -> list[str]:
    """All of them but doors (`__main__.py`) and packages, as `remote_runner/secrets`."""
    files = [path.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return sorted(str(path.with_suffix("")) for path in files if not path.stem.startswith("__"))


def is_tested_by_name(module: str) -> bool:
    path = Path("tests") / module
    return any((ROOT / path.parent).glob(f"test_{path.stem}*.py"))


def test_a_modules_tests_are_found_by_its_name() -> None:
    lost = [
        module
        for module in modules()
        if not is_tested_by_name(module) and not {module, str(Path(module).parent)} & {*ELSEWHERE}
    ]
    assert lost == [], "give it tests/…/test_NAME.py, or a line in ELSEWHERE"


def test_the_table_names_what_there_is_and_no_more_than_is_needed() -> None:
    known = {*modules()}
    for module, tests in ELSEWHERE.items():
        assert (ROOT / "tests" / f"{tests}.py").is_file(), tests
        if not (ROOT / module).is_dir():
            assert module in known, module
            assert not is_tested_by_name(module), f"{module} has tests of its name"
