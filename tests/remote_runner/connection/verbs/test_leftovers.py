"""What runs left on a host, as values, and which artifacts go."""

from __future__ import annotations

from pathlib import PurePosixPath

import pytest

from remote_runner.connection.verbs.far_artifact import Store
from remote_runner.connection.verbs.leftovers import FarRun, LeftArtifact, Removal, choose_artifacts
from remote_runner.errors import FarShellError


def artifact(name: str, age_s: int, size_bytes: int = 10, *, used: bool = False) -> LeftArtifact:
    return LeftArtifact("dex", name, PurePosixPath(f"/b/artifacts/{name}"), used, age_s, size_bytes)


def test_what_is_unused_goes_the_longest_unused_first() -> None:
    kept = [artifact("new", 1), artifact("old", 30), artifact("used", 40, used=True), artifact("older", 35)]
    assert [one.name for one in choose_artifacts(kept, 0.0)] == ["older", "old", "new"]
    assert [one.name for one in choose_artifacts(kept, 32.0)] == ["older"]


@pytest.mark.parametrize(
    ("directory", "store", "is_partial"),
    [
        ("/b/artifacts/x", Store.CACHE, False),
        ("/b/artifacts/.tmp-x", Store.CACHE, True),
        ("/b/nix/roots/x", Store.NIX, False),
        ("/b/closures/x", Store.USER, False),
        ("/b/store/x", Store.CACHE, True),
    ],
)
def test_an_artifact_is_known_by_where_it_lies(directory: str, store: Store, is_partial: bool) -> None:
    found = LeftArtifact.from_said("dex", {"directory": directory, "age_s": 1, "size": 2})
    assert found is not None
    assert (found.store, found.is_partial) == (store, is_partial)


@pytest.mark.parametrize("directory", ["", "relative/x", "/", "/b/.."])
def test_what_is_no_directory_of_ours_is_passed_over(directory: str) -> None:
    assert FarRun.from_said("dex", {"directory": directory, "size": 1, "record": {}}) is None
    assert LeftArtifact.from_said("dex", {"directory": directory, "age_s": 1, "size": 1}) is None


def test_a_run_has_its_age_where_its_record_says_so() -> None:
    said = {"directory": "/b/runs/r", "size": 1, "record": {"age": "30", "id": "r\n"}, "alive": True}
    run = FarRun.from_said("dex", said)
    assert run is not None
    assert (run.run_id, run.age_s, run.is_alive, run.record["id"]) == ("r", 30.0, True, "r ")
    assert FarRun("dex", "r", PurePosixPath("/r"), False, 0, {"age": "9" * 13}).age_s is None
    with pytest.raises(FarShellError):
        FarRun.from_said("dex", {"directory": "/b/runs/r", "size": -1, "record": {}})


def test_what_became_of_a_removal_is_read_whatever_is_missing() -> None:
    assert Removal.from_said({}) == Removal()
    said = {"removed": ["/a"], "alive": "no list", "failed": [["/b", "why"], ["/c"]], "unknown": ["x", 3]}
    assert Removal.from_said(said) == Removal(("/a",), (), (("/b", "why"),), ("x",))
