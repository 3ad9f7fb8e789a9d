from __future__ import annotations

from testground.tags import as_tag, tag_of


def test_an_instance_has_one_name_however_it_is_written() -> None:
    assert {as_tag(name) for name in ("a b[3]", "a b[003]", "a b/3")} == {tag_of("a b", 3)} == {"a b[003]"}
    assert as_tag("a[1]/12") == "a[1][012]"
    assert [as_tag(name) for name in ("single", "dex #1", "a[x]", "a[0000000003]")] == [""] * 4
