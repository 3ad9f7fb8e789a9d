from __future__ import annotations

from tasks.view.table import coloured, filled, table

HEADER = ("host", "system", "free", "outcome")
ROWS = (("dex", "x86_64-linux", "12", "ok"), ("a-long-name-of-a-host", "aarch64-darwin", "3.5", "failed"))


def test_all_columns_where_there_is_room() -> None:
    assert table(ROWS, header=HEADER).splitlines() == [
        "host                   system          free  outcome",
        "dex                    x86_64-linux      12  ok",
        "a-long-name-of-a-host  aarch64-darwin   3.5  failed",
    ]


def test_columns_of_least_worth_go_first_and_then_one_is_cut() -> None:
    least = ("system", "free")
    assert table(ROWS, header=HEADER, width=40, least=least, cut="host").splitlines()[0].split() == [
        *("host", "free", "outcome"),
    ]
    assert table(ROWS, header=HEADER, width=24, least=least, cut="host").splitlines() == [
        "host             outcome",
        "dex              ok",
        "a-long-name-of…  failed",
    ]


def test_what_is_a_result_is_not_cut() -> None:
    assert (
        table((("dex", "/a/long/path"),), header=("host", "directory"), width=10).splitlines()[1]
        == "dex   /a/long/path"
    )


def test_outcomes_have_colours_and_stay_words() -> None:
    text = "host  failed\ndex   ok\nrex   failed\nok dex is a name"
    assert coloured(text) == (
        "host  failed\ndex   \x1b[38;5;29mok\x1b[0m\nrex   \x1b[1;38;5;196mfailed\x1b[0m\nok dex is a name"
    )


def test_sentences_are_broken_between_words_and_indented() -> None:
    assert filled("one two three\n  next: four five", 9) == "one two\n  three\n  next:\n    four\n    five"
    assert filled("one two three", None) == "one two three"


def test_a_command_to_copy_stays_on_one_line() -> None:
    assert filled("  next: look, or try: ssh -i key host true", 24).splitlines() == [
        "  next: look, or try:",
        "    ssh -i key host true",
    ]
    assert filled("`fab build --arch x` does it", 12) == "`fab build --arch x`\n  does it"


def test_a_step_that_failed_stands_among_numbers() -> None:
    assert table((("dex", "0.05"), ("oak", "failed")), header=("host", "build")).splitlines()[1:] == [
        "dex     0.05",
        "oak   failed",
    ]
