"""`python -m remote_runner`: one instance, like `fab instance` but without Fabric; or the broker."""

from __future__ import annotations

import sys

# exec-go/broker.go says the same.
LOST = (
    "remote-runner: the broker that ran this instance ended: it was killed, or has crashed\n"
    "  next: run it again; the application ends on its host by itself, `fab fetch --run {run}` brings what it had "
    "written, `fab clean --run {run}` removes it"
)
# By which a launcher of before the broker started what took its instance.
OLD_VARIABLE = "REMOTE_RUNNER_WARM"


def main(typed: str = "") -> int:
    """Run the instance that the environment describes, of the plan in the current directory; its exit status.

    typed: the program for hints, where it is not `fab`. The broker runs the instance, unless `REMOTE_RUNNER_BROKER` is
    `off`. Started as the broker, this runs those of all launchers.
    """
    import os

    from remote_runner.broker.place import VARIABLE
    from remote_runner.typed import as_typed, set_typed

    if typed:
        set_typed(typed)

    environ = dict(os.environ)  # noqa: TID251 (the edge of the process)
    if OLD_VARIABLE in environ:
        print(as_typed("this launcher is of an older remote-runner: run `fab plan.import` again"))
        return 1
    place = environ.pop(VARIABLE, "")
    if place and place != "off":
        import gc

        gc.disable()  # until it is loaded: nothing of that is garbage, and looking for some was 7 % of the loading
        from remote_runner.broker import service

        return service.main(place, environ)
    return run(environ, os.getcwd(), _umask(), in_process=place == "off")  # noqa: PTH109, TID251 (as above)


def run(environ: dict[str, str], directory: str, umask: int, *, in_process: bool) -> int:
    """Run one instance: by the broker, or, without one, in this process by the same code."""
    from remote_runner.errors import ControllerError, RemoteRunnerError

    if not in_process:
        from remote_runner.broker.handover import NoBrokerError, hand_over
        from remote_runner.broker.protocol import Request

        try:
            status = hand_over(Request(umask, directory, environ))
        except (NoBrokerError, RemoteRunnerError) as error:
            words = f"start: no broker takes this instance, so it runs by itself: {error}"
            _tell("message_event", {"message": words}, environ)
        else:
            if status >= 0:
                return status
            return _fail(LOST.format(run=environ.get("TEST_RUN", "")), environ)
    from remote_runner.broker.alone import run_alone

    try:
        return run_alone(environ, directory)
    except ControllerError as error:
        return _fail(f"remote-runner: {error}", environ)


def _fail(words: str, environ: dict[str, str]) -> int:
    from remote_runner.typed import as_typed

    _tell("failure_event", {"group": environ.get("TEST_GROUP_ID", ""), "error": as_typed(words)}, environ)
    return 1


def _umask() -> int:
    import os

    found = os.umask(0o077)  # noqa: TID251 (there is no other way to ask)
    os.umask(found)  # noqa: TID251
    return found


def _tell(name: str, body: dict[str, str], environ: dict[str, str]) -> None:
    import json
    import time

    event = {
        "ts": time.time_ns(),
        "msg": "",
        "group_id": environ.get("TEST_GROUP_ID", ""),
        "run_id": environ.get("TEST_RUN", ""),
        "event": {name: body},
    }
    print(json.dumps(event), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
