"""The agent's program for this machine, built once for the session where the installation has not built it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_runner.connection.bootstrap.program import find_program, program_for
from remote_runner.controller import Controller
from remote_runner.inventory.systems import System
from tests.needs import need


@pytest.fixture(scope="session")
def built_agents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the program, for `Controller.cache`."""
    base = tmp_path_factory.getbasetemp()
    cache = (
        base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    ) / "agents"  # the session's, for all its workers
    cache.mkdir(exist_ok=True)  # the fixture has two names, one for each room that takes it
    if find_program(System.local(), cache) is None:
        need("go")
        program_for(System.local(), Controller(cache, cache), os.environ)
    return cache


@pytest.fixture
def agents(controller: Controller, built_agents: Path) -> Controller:
    """The controller's directories for this test, with the program in its cache."""
    (built_agents / "agents").mkdir(exist_ok=True)
    (controller.cache / "agents").symlink_to(built_agents / "agents")
    return controller
