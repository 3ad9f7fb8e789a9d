"""The application's environment, without what only the host knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

# What local:exec hands over (recordings/environment.txt), and what the services are named by. Nothing else of the
# environment here goes to a host: by hand it is the user's own, with everything that may be in it.
_PREFIXES = ("TEST_", "SYNC_SERVICE_", "REDIS_", "INFLUXDB_")


def run_environment(
    environ: Mapping[str, str], given: Mapping[str, str], pass_through: Iterable[str] = ()
) -> dict[str, str]:
    """The run environment byte for byte, `given` (services, placement, inventory) over it.

    `pass_through` names further variables of `environ` that go along where they are set.
    PATH, HOME, TMPDIR, HOSTNAME, TEST_OUTPUTS_PATH and TEST_TEMP_PATH are the host's to say, unless `given` does.
    """
    kept = {name: value for name, value in environ.items() if name.startswith(_PREFIXES)}
    kept |= {name: environ[name] for name in pass_through if name in environ}
    for name in ("TEST_OUTPUTS_PATH", "TEST_TEMP_PATH"):
        kept.pop(name, None)
    return kept | dict(given)


def around_instances(environ: Mapping[str, str]) -> dict[str, str]:
    """What of the user's environment is there for instances started by hand, as for any task: ssh's agent, the
    toolchains' settings, the variables that are passed on. What Testground says is the run's own.
    """
    return {name: value for name, value in environ.items() if not name.startswith(_PREFIXES)}
