"""What others may have made where a directory of ours is to be."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.needs import need

OTHER_USER = 4242


def make_link(place: Path) -> None:
    target = place.with_name("target")
    target.mkdir(mode=0o700)
    place.symlink_to(target)


def make_dangling_link(place: Path) -> None:
    place.symlink_to(place.with_name("not there"))


def make_file(place: Path) -> None:
    place.write_text("a file", encoding="utf-8")


def make_others(place: Path) -> None:
    need("netns")  # only root gives something away
    place.mkdir(mode=0o700)
    os.chown(place, OTHER_USER, OTHER_USER)


def make_writable_by_all(place: Path) -> None:
    place.mkdir()
    place.chmod(0o777)


def make_writable_by_group(place: Path) -> None:
    place.mkdir()
    place.chmod(0o770)


def make_parent_writable_by_all(place: Path) -> None:
    place.mkdir(mode=0o700)
    place.parent.chmod(0o777)


HOSTILE: Mapping[str, Callable[[Path], None]] = {
    "a link to a directory of ours": make_link,
    "a link to nothing": make_dangling_link,
    "a file": make_file,
    "somebody else's": make_others,
    "writable by all": make_writable_by_all,
    "writable by its group": make_writable_by_group,
    "in a directory that all may write to": make_parent_writable_by_all,
}
