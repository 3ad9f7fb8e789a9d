"""The end of a run that failed: the cause stands before what failed because of it, whoever has the lower number."""

from __future__ import annotations

from tests.tasks.fab import REPOSITORY, PlanDirectory
from tests.tasks.local_runs import write_plan

# All come to `started`; the last instance fails then, and the others wait for it in vain.
APPLICATION = f"""\
if [ "$REMOTE_RUNNER_NUMBER" = 3 ]; then
    event failure_event '"error":"no such file"'
    exit 1
fi
PYTHONPATH={REPOSITORY} python3 -c '
import os
from testground.errors import SyncTimeoutError
from testground.sync.client import SyncClient
with SyncClient.from_environ(os.environ) as client:
    try:
        client.signal_and_wait("dialled", 3, timeout_s=2)
    except SyncTimeoutError:
        pass
'
event failure_event '"error":"channel closed"'
exit 1
"""


def test_what_failed_first_stands_first_and_who_was_waited_for_is_named(plan: PlanDirectory) -> None:
    write_plan(plan, APPLICATION)
    ran = plan.fab("local.single", "--testcase", "greet", "--instances", "3")
    assert ran.status == 1
    text = ran.out[ran.out.index("group single: 0 of 3 ok") :].splitlines()
    cause = text[1].removesuffix(" failed: no such file")
    assert cause.startswith("single[00")
    assert text[2] == "2 instances on localhost failed: channel closed"
    assert text[4] == f"barrier dialled: 2 of 3 came; {cause} did not"
    assert text[5:7] == [f"the last lines of {cause}, the first that failed:", "  FAIL no such file"]
    assert f"/single/{int(cause[7:10])}/stdout" in text[7]


def test_a_warning_stands_again_at_the_end(plan: PlanDirectory) -> None:
    write_plan(plan, "ok\n")
    ran = plan.ok("local.single", "--testcase", "greet", "--test-param", "wrd=x")
    warning = "test case greet has no parameter 'wrd'; did you mean word? It is passed on"
    assert ran.words.startswith(f"{warning}\n")
    assert f"group single: 2 of 2 ok\nwarning: {warning}\n" in ran.out


def test_of_a_panic_its_reason_is_told_and_where_it_was_and_not_the_stack(plan: PlanDirectory) -> None:
    stack = r"goroutine 7 [running]:\\nmain.meet()\\n\\t/plan/main.go:7 +0x2\\n"
    write_plan(plan, f"""event crash_event '"error":"out of range","stacktrace":"{stack}"'\nexit 2\n""")
    ran = plan.fab("local.single", "--testcase", "greet")
    assert "2 instances on localhost crashed: out of range\n  single[000-001]\n" in ran.out
    assert ran.words.count("CRASH") == 1
    write_plan(plan, f"""printf 'panic: no\n\n{stack}' >&2\nexit 2\n""".replace("\\\\", "\\"))
    ran = plan.fab("local.single", "--testcase", "greet", "--instances", "1")
    assert "  stderr: panic: no\n  stderr: panicked in main.meet (main.go:7)\n" in ran.out
