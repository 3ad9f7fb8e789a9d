from __future__ import annotations

from tasks.view.failures import Failure, ranges, told_once

WORDS = "{}: the application ended with exit status 3 and told no reason\n  next: look at its outputs on {}"


def test_one_failure_is_told_as_it_is() -> None:
    assert told_once([Failure("single[003]", "dex", "failed", "no route")]) == ["single[003] failed: no route"]


def test_the_same_on_many_hosts_is_told_once_with_the_list() -> None:
    hosts = ("dex", "fir", "oak")
    same = [
        Failure(f"single[{n:03d}]", hosts[n % 3], "failed", WORDS.format(hosts[n % 3], hosts[n % 3])) for n in range(12)
    ]
    other = Failure("other[000]", "dex", "failed", WORDS.format("dex", "dex").replace("3", "4"))
    assert told_once([*same, other]) == [
        "12 instances on 3 hosts failed: the application ended with exit status 3 and told no reason\n"
        "  next: look at its outputs on each host\n"
        "  single[000-011] on dex, fir, oak",
        f"other[000] failed: {other.reason}",
    ]


def test_a_command_for_many_hosts_can_be_typed() -> None:
    reason = "{0}: not known\n  next: accept it: fab hosts.login --host {0}\n    or by ssh itself: ssh -o A=b {0} true"
    same = [Failure(f"single[{n:03d}]", host, "failed", reason.format(host)) for n, host in enumerate(("dex", "fir"))]
    assert told_once(same) == [
        "2 instances on 2 hosts failed: not known\n"
        "  next: accept it: fab hosts.login --host dex --host fir\n"
        "    or by ssh itself: ssh -o A=b dex true\n"
        "  single[000-001] on dex, fir"
    ]


def test_the_same_on_one_host_names_it() -> None:
    same = [Failure(f"a[{n:03d}]", "dex", "incomplete", f"dex: /far/x-a-{n} is not whole") for n in range(2)]
    assert told_once(same) == ["2 instances on dex incomplete: dex: /far/x-a-0 is not whole\n  a[000-001]"]


def test_a_word_that_only_begins_like_a_host_is_none() -> None:
    failures = [
        Failure("a[000]", "h1", "failed", "h1: h12 is away"),
        Failure("a[001]", "h2", "failed", "h2: h22 is away"),
    ]
    assert len(told_once(failures)) == 2


def test_ranges() -> None:
    assert ranges(["a[000]", "a[002]", "a[001]", "b[007]", "a[009]"]) == ["a[000-002,009]", "b[007]"]
    assert ranges([f"a[{2 * n:03d}]" for n in range(20)])[0].endswith(",022,…]")
