"""An error as a value, and again as an error."""

from __future__ import annotations

import json

import pytest

from remote_runner.errors import DeadlineError, LocalProgramError, PortTakenError, RemoteRunnerError
from remote_runner.made_once import pack_failure, unpack_failure


@pytest.mark.parametrize(
    "error",
    [
        RemoteRunnerError("what", next_step="do"),
        DeadlineError("the build", 3.0),
        LocalProgramError(("make", "all"), "failed", stderr="why"),
        PortTakenError("dex", "port 1 is taken", next_step="find it"),
    ],
)
def test_it_is_of_its_kind_with_its_words_and_fields(error: RemoteRunnerError) -> None:
    again = unpack_failure(json.loads(json.dumps(pack_failure(error))))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_a_kind_that_is_not_known_is_the_root() -> None:
    packed = {**pack_failure(RemoteRunnerError("what")), "kind": "Later"}
    assert type(unpack_failure(packed)) is RemoteRunnerError
