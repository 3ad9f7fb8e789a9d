"""Outputs: what real tars write arrives whole, and nothing is ever written elsewhere."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_runner.errors import DamagedOutputsError, UnsafeOutputsError, UnwritableOutputsError
from remote_runner.outputs import OutputsReport, unpack
from tests.needs import need

FAR = "/far/runs/r 1/outputs"
TARS = {
    "gnu": ["tar", "-cf", "-", "."],
    "ustar": ["tar", "--format=ustar", "-cf", "-", "."],
    "pax": ["tar", "--format=posix", "-cf", "-", "."],
    "busybox": ["busybox", "tar", "-cf", "-", "."],
    "bsdtar": ["bsdtar", "--format", "gnutar", "-cf", "-", "."],
    "bsdtar pax": ["bsdtar", "--format", "pax", "-cf", "-", "."],
}


def take(data: bytes, directory: Path, chunk_bytes: int = 4096) -> OutputsReport:
    chunks = (data[start : start + chunk_bytes] for start in range(0, len(data), chunk_bytes))
    return unpack(chunks, directory, host="h", far_outputs=FAR)


def archive(*members: tuple[str, bytes | str | None], kind: bytes = b"0") -> bytes:
    """A stream of files (bytes), links (str) and directories (None)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.mode = 0o644
            if isinstance(content, bytes):
                info.size = len(content)
                info.type = kind
                tar.addfile(info, io.BytesIO(content))
            elif content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            else:
                info.type, info.linkname = tarfile.SYMTYPE, content
                tar.addfile(info)
    return file.getvalue()


def tree(directory: Path) -> dict[bytes, tuple[str, bytes, int]]:
    """Name, kind, content and mode of everything below."""
    found = {}
    root = os.fsencode(directory)
    for place, directories, files in os.walk(root):
        for name in directories + files:
            path = os.path.join(place, name)  # noqa: PTH118 (bytes)
            status = os.lstat(path)
            kind, content = "directory", b""
            if stat.S_ISLNK(status.st_mode):
                kind, content = "link", os.readlink(path)  # noqa: PTH115 (bytes)
            elif stat.S_ISREG(status.st_mode):
                kind, content = "file", Path(os.fsdecode(path)).read_bytes()
            mode = 0 if kind == "link" else stat.S_IMODE(status.st_mode)
            found[os.path.relpath(path, root)] = (kind, content, mode)
    return found


def fill(directory: Path) -> None:
    directory.mkdir()
    (directory / "plain").write_bytes(b"x" * 1000)
    (directory / "empty").touch()
    (directory / "exactly a block").write_bytes(b"y" * 512)
    (directory / "two  spaces and\nnewline").write_bytes(os.urandom(70_000))
    (directory / "large").write_bytes(os.urandom(3_000_001))
    (directory / ".hidden").write_text("h")
    (directory / "-rf").write_text("minus")
    Path(os.fsdecode(os.fsencode(directory) + b"/no utf-8 \xff\xfe")).write_text("latin")
    deep = directory.joinpath(*[f"{number}" + "d" * 60 for number in range(3)])
    deep.mkdir(parents=True)
    (deep / "f").write_text("deep")
    (directory / "program").write_text("#!/bin/sh\n")
    (directory / "program").chmod(0o755)
    (directory / "secret").write_text("s")
    (directory / "secret").chmod(0o600)
    (directory / "soft").symlink_to("plain")
    (directory / "dangling").symlink_to("nothing/here")
    (deep / "up").symlink_to("../../../plain")
    (directory / "empty directory").mkdir()
    os.utime(directory / "plain", (1_600_000_000, 1_600_000_000))


@pytest.mark.parametrize("chunk_bytes", [1000, 512, 1 << 20])
@pytest.mark.parametrize("kind", TARS)
def test_what_a_real_tar_writes_arrives_as_it_was(kind: str, chunk_bytes: int, tmp_path: Path) -> None:
    if (program := TARS[kind][0]) != "tar":
        need(program)
    fill(tmp_path / "there")
    if kind != "ustar":
        (tmp_path / "there" / ("n" * 150)).write_text("a long name")
        (tmp_path / "there/long link").symlink_to("t" * 150)
    done = subprocess.run(TARS[kind], cwd=tmp_path / "there", check=True, capture_output=True)
    report = take(done.stdout, tmp_path / "here", chunk_bytes)
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    assert report.left_out == ()
    files = [entry for entry in tree(tmp_path / "there").values() if entry[0] == "file"]
    assert (report.files, report.size_bytes) == (len(files), sum(len(content) for _, content, _ in files))
    assert (tmp_path / "here/plain").stat().st_mtime == 1_600_000_000


def test_hard_links_stay_hard(tmp_path: Path) -> None:
    there = tmp_path / "there"
    (there / "sub").mkdir(parents=True)
    (there / "a").write_text("once")
    (there / "sub/b").hardlink_to(there / "a")
    done = subprocess.run(TARS["gnu"], cwd=there, check=True, capture_output=True)
    take(done.stdout, tmp_path / "here")
    assert (tmp_path / "here/a").samefile(tmp_path / "here/sub/b")


def test_no_stream_at_all_is_an_empty_directory(tmp_path: Path) -> None:
    assert take(b"", tmp_path / "here") == OutputsReport()
    assert list((tmp_path / "here").iterdir()) == []


def test_pipes_sockets_and_devices_are_left_out(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    os.mkfifo(there / "pipe")
    (there / "f").write_text("f")
    done = subprocess.run(TARS["gnu"], cwd=there, check=True, capture_output=True)
    report = take(done.stdout, tmp_path / "here")
    assert [(left.name, left.reason) for left in report.left_out] == [("pipe", "is a named pipe")]
    device = archive(("null", b""), ("zero", b""), kind=tarfile.CHRTYPE)
    report = take(device, tmp_path / "here")
    assert [left.reason for left in report.left_out] == ["is a device"] * 2
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == ["f"]


@pytest.mark.parametrize(
    ("target", "becomes"),
    [
        ("f", "f"),
        ("../f", "../f"),
        ("./x/../f", None),  # x may be a link to anywhere inside, and .. goes up from there
        ("../../f", None),
        ("/etc/passwd", None),
        (f"{FAR}/a/f", "../a/f"),
        (FAR, ".."),
        (f"{FAR}/../x", None),
        (f"{FAR}x/f", None),
    ],
)
def test_links_stay_inside_or_are_left_out(tmp_path: Path, target: str, becomes: str | None) -> None:
    report = take(archive(("d", None), ("d/link", target), ("after", b"x")), tmp_path / "here")
    link = tmp_path / "here/d/link"
    assert (str(link.readlink()) if link.is_symlink() else None) == becomes
    assert [left.name for left in report.left_out] == ([] if becomes else ["d/link"])
    assert (tmp_path / "here/after").exists()


@pytest.mark.parametrize(
    ("members", "entry"),
    [
        ([("../escaped", b"x")], "../escaped"),
        ([("a/../../escaped", b"x")], "a/../../escaped"),
        ([("/escaped", b"x")], "/escaped"),
        ([("d", "."), ("d/escaped", b"x")], "d"),
        ([("d", "sub"), ("d/e/escaped", b"x")], "d"),
        ([("f", b""), ("f/escaped", b"x")], "f"),
    ],
)
def test_an_entry_that_leads_elsewhere_is_refused_by_name(
    tmp_path: Path, members: list[tuple[str, bytes | str | None]], entry: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeOutputsError) as caught:
        take(archive(("kept", b"k"), *members, ("never", b"n")), tmp_path / "here/outputs")
    assert caught.value.entry == entry
    assert repr(entry) in str(caught.value)
    assert (tmp_path / "here/outputs/kept").read_text() == "k"
    names = {path.name for path in tmp_path.rglob("*")} - {path.name for path in before}
    assert names <= {"here", "outputs", "kept", "d", "f"}


def test_a_link_that_was_here_before_is_not_written_through(tmp_path: Path) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    here.mkdir()
    other.mkdir()
    (other / "file").write_text("ours")
    (here / "d").symlink_to(other)
    (here / "file").symlink_to(other / "file")
    take(archive(("file", b"theirs")), here)
    assert not (here / "file").is_symlink()
    with pytest.raises(UnsafeOutputsError):
        take(archive(("d/file", b"theirs")), here)
    assert (other / "file").read_text() == "ours"


def test_hard_links_lead_nowhere_else(tmp_path: Path) -> None:
    def linked(target: str, name: str = "h") -> bytes:
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode="w") as tar:
            for made, kind, link in (("s", tarfile.SYMTYPE, "x"), (name, tarfile.LNKTYPE, target)):
                info = tarfile.TarInfo(made)
                info.type, info.linkname = kind, link
                tar.addfile(info)
        return file.getvalue()

    with pytest.raises(UnsafeOutputsError):
        take(linked("../outside"), tmp_path / "here")
    with pytest.raises(UnsafeOutputsError):
        take(linked("/etc/passwd"), tmp_path / "here")
    for target, name in (("missing", "h"), ("s", "d/h")):
        # A link's own .. leads elsewhere from another depth.
        (left,) = take(linked(target, name), tmp_path / target).left_out
        assert left.name == name
    assert take(linked("s"), tmp_path / "same depth").left_out == ()
    assert (tmp_path / "same depth/h").readlink() == Path("x")


def test_outputs_join_what_is_here(tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "d").mkdir(parents=True)
    (here / "d/ours").write_text("ours")
    (here / "f").write_text("old")
    (here / "f").chmod(0o400)
    (here / "is directory").mkdir()
    report = take(archive(("d", None), ("d/theirs", b"t"), ("f", b"new"), ("is directory", b"x"), ("z", b"z")), here)
    assert (here / "d/ours").read_text() == "ours"
    assert (here / "d/theirs").read_text() == "t"
    assert (here / "f").read_text() == "new"
    assert [str(left) for left in report.left_out] == ["is directory: is a directory here"]
    assert (here / "z").exists()


def test_our_own_files_are_not_overwritten(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "remote-runner.json").write_text("ours")
    members = ("remote-runner.json", b"theirs"), ("sub/remote-runner.json", b"fine")
    report = take(archive(*members), here)
    assert (here / "remote-runner.json").read_text() == "ours"
    assert (here / "sub/remote-runner.json").read_text() == "fine"
    assert [left.name for left in report.left_out] == ["remote-runner.json"]


def test_set_user_id_is_dropped_and_we_can_always_read(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, mode in (("d", tarfile.DIRTYPE, 0o000), ("d/f", tarfile.REGTYPE, 0o6000), ("g", b"0", 0o4755)):
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, mode
            tar.addfile(info)
    take(file.getvalue(), tmp_path / "here")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "here").rglob("*")}
    assert modes == {"d": 0o700, "f": 0o600, "g": 0o755}


def damaged() -> dict[str, bytes]:
    whole = archive(("first", b"1" * 600), ("second", b"2" * 600))
    return {
        "in a header": whole[:1700],
        "in content": whole[:900],
        "without its end": whole[:3072],
        "words between": whole[:700] + b"garbage\n" + whole[700:],
        "no tar": b"tar: not found\n" * 100,
        "a changed header": whole[:1540] + b"\x01" + whole[1541:],
    }


@pytest.mark.parametrize("how", damaged())
def test_a_damaged_stream_is_told_of(how: str, tmp_path: Path) -> None:
    data = damaged()[how]
    with pytest.raises(DamagedOutputsError) as caught:
        take(data, tmp_path / "here")
    assert caught.value.host == "h"
    assert "fab fetch" in str(caught.value)


def test_headers_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(DamagedOutputsError, match="header of"):
        take(info.tobuf(tarfile.GNU_FORMAT), tmp_path / "here")


def test_a_full_disk_here_is_told_of(tmp_path: Path) -> None:
    need("netns")  # root, who may mount
    here = tmp_path / "here"
    here.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", here], check=True)
    try:
        with pytest.raises(UnwritableOutputsError, match="No space left") as caught:
            take(archive(("small", b"s"), ("too large", bytes(200_000))), here)
        assert caught.value.path == str(here / "too large")
        assert (here / "small").read_text() == "s"
    finally:
        subprocess.run(["umount", here], check=True)


def test_memory_stays_flat(tmp_path: Path) -> None:
    size_bytes = 60_000_000
    info = tarfile.TarInfo("large")
    info.size = size_bytes
    header = info.tobuf(tarfile.GNU_FORMAT)
    piece = bytes(1 << 16)

    def chunks() -> Iterator[bytes]:
        yield header
        for _ in range(-(-size_bytes // len(piece)) + 1):
            yield piece

    tracemalloc.start()
    try:
        unpack(chunks(), tmp_path / "here", host="h", far_outputs=FAR)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (tmp_path / "here/large").stat().st_size == size_bytes
    assert peak_bytes < 2_000_000
