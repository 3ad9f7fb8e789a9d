"""Outputs: what real tars write arrives whole, and nothing is ever written elsewhere."""

from __future__ import annotations

import io
import os
import re
import stat
import subprocess
import tarfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_runner.errors import OutputsError
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


@pytest.mark.parametrize("stream", [b"", bytes(1024)])
def test_where_nothing_came_nothing_is_made(tmp_path: Path, stream: bytes) -> None:
    assert take(stream, tmp_path / "here") == OutputsReport()
    assert list(tmp_path.iterdir()) == []


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
    with pytest.raises(OutputsError, match=f"outputs: {re.escape(repr(entry))} .*; nothing after it was unpacked"):
        take(archive(("kept", b"k"), *members, ("never", b"n")), tmp_path / "here/outputs")
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
    with pytest.raises(OutputsError, match="'d' is a link or a file here"):
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

    with pytest.raises(OutputsError, match="leads out by"):
        take(linked("../outside"), tmp_path / "here")
    with pytest.raises(OutputsError, match="is an absolute name"):
        take(linked("/etc/passwd"), tmp_path / "here")
    (left,) = take(linked("missing"), tmp_path / "missing").left_out
    assert left.name == "h"
    assert take(linked("s"), tmp_path / "same depth").left_out == ()
    assert (tmp_path / "same depth/h").readlink() == Path("x")


@pytest.mark.parametrize(
    ("first", "target", "second", "becomes"),
    [
        ("s", "f", "d/h", "f"),
        ("d/s", "f", "h", "f"),
        ("d/e/s", "../f", "d/h", "../f"),
        ("d/s", "../f", "d/e/h", "../f"),
        ("d/s", "../f", "h", None),  # its .. leads out from there
        ("s", f"{FAR}/a/f", "d/h", "../a/f"),
        ("d/e/s", f"{FAR}/a/f", "h", "a/f"),
    ],
)
def test_hard_links_to_symlinks_lead_where_they_led(
    tmp_path: Path, first: str, target: str, second: str, becomes: str | None
) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, kind, link in ((first, tarfile.SYMTYPE, target), (second, tarfile.LNKTYPE, first)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    report = take(file.getvalue(), tmp_path / "here")
    link_here = tmp_path / "here" / second
    assert (str(link_here.readlink()) if link_here.is_symlink() else None) == becomes
    assert [left.name for left in report.left_out] == ([] if becomes else [second])


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
    with pytest.raises(OutputsError, match="the stream is damaged") as caught:
        take(data, tmp_path / "here")
    assert caught.value.host == "h"
    assert "fab fetch" in str(caught.value)


def test_headers_that_ask_for_much_are_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1 << 40
    with pytest.raises(OutputsError, match="header of"):
        take(info.tobuf(tarfile.GNU_FORMAT), tmp_path / "here")


def test_what_is_told_of_what_was_left_out_has_a_bound(tmp_path: Path) -> None:
    """A stream says which links lead out, in words of any length."""
    data = archive(*((f"link{number}", "/" + "x" * 4000) for number in range(200)), ("last", "/" + "x" * 100_000))
    left = take(data, tmp_path / "here").left_out
    assert sum(len(str(one)) for one in left) < 300_000
    assert left[-1].reason == f"and {201 - len(left) + 1} more"
    (name,) = take(archive(("d/" * 2050 + "f", b"x")), tmp_path / "name").left_out
    assert name.reason == "has a name of more than 4096 bytes"
    (long,) = take(archive(("long", "/" + "x" * 100_000)), tmp_path / "long").left_out
    assert str(long) == "long: has a name of more than 4096 bytes"


@pytest.mark.parametrize("longest", [99, 100, 101])
def test_a_long_name_is_a_files_wherever_its_slashes_are(tmp_path: Path, longest: int) -> None:
    """The header of a long name has its first 100 bytes, which may end in a slash."""
    name = "d" * (longest - 1) + "/" + "f" * 20
    assert take(archive((name, b"content")), tmp_path / "here").files == 1
    assert (tmp_path / "here" / name).read_bytes() == b"content"


def header(name: str, *, size: int = 0, kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header, with fields as they are to stand in it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    for at, field in ((124, fields.get("size_field")), (136, fields.get("mtime_field"))):
        if field:
            block[at : at + 12] = field
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(text: bytes) -> bytes:
    return header("p", size=len(text), kind=b"x") + text + bytes(-len(text) % 512) + header("f") + bytes(1024)


def test_directories_on_the_way_count_like_entries(tmp_path: Path) -> None:
    names = [f"{number:06}/" + "/".join("a" * 100) for number in range(400)]
    data = b"".join(header(name) for name in names) + bytes(1024)
    with pytest.raises(OutputsError, match="more than outputs_limit") as caught:
        unpack(iter([data]), tmp_path / "here", host="h", far_outputs=FAR, limit_bytes=1 << 20)
    made = sum(len(folders) for _, folders, _ in os.walk(tmp_path / "here"))
    assert 1900 < made <= 2048
    (entry,) = re.findall(r"with '(.*)' they", str(caught.value))
    assert any(name.startswith(entry) for name in names)


def test_a_long_extended_header_takes_no_longer_than_it_is_long(tmp_path: Path) -> None:
    began_s = time.process_time()
    assert take(pax(b"6 a=b\n" * ((1 << 20) // 6)), tmp_path / "here").files == 1
    assert time.process_time() - began_s < 2  # 0.1 s; 8 s when each record copied the rest


@pytest.mark.parametrize(
    "text",
    [
        b"9" * 5000 + b" a=b\n",
        b"5016 size=" + b"9" * 5005 + b"\n",
        b"19 size=-00000001\n",
        b"13 mtime=nan\n",
        b"15 mtime=1e999\n",
        b"0 a=b\n",
        b" 6 a=b\n",
        b"7 a=b\n",
        b"6",
    ],
)
def test_extended_headers_that_are_none_are_told_of(text: bytes, tmp_path: Path) -> None:
    with pytest.raises(OutputsError, match=r"invalid header|invalid extended header|negative"):
        take(pax(text), tmp_path / "here")


@pytest.mark.parametrize(
    ("size_field", "words"),
    [
        (b"\xff" * 12, "the stream is damaged"),  # -1
        (b"\x80" + b"\xff" * 11, "more than outputs_limit"),  # 2 to the 88th
        (b"\xbf" + b"\xff" * 11, "more than outputs_limit"),
        (b"-00000000001", "the stream is damaged"),
        (b"99999999999\0", "the stream is damaged"),
    ],
)
def test_sizes_of_any_length_end_in_words(size_field: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(OutputsError, match=words):
        take(header("f", size_field=size_field) + bytes(1024), tmp_path / "here")


@pytest.mark.parametrize("mtime_s", [-43200, -1, 0, 1, 4102444800, 2**33])
def test_times_before_1970_and_after_2242_stay(mtime_s: int, tmp_path: Path) -> None:
    field = bytes([0x80 | (mtime_s < 0) * 0x7F]) + mtime_s.to_bytes(11, "big", signed=True)
    take(header("f", mtime_field=field) + bytes(1024), tmp_path / "here")
    assert (tmp_path / "here/f").stat().st_mtime == mtime_s
    if mtime_s < 0:
        take(pax(b"16 mtime=-43200\n"), tmp_path / "pax")
        assert (tmp_path / "pax/f").stat().st_mtime == -43200


def test_a_time_that_no_file_can_have_is_not_set(tmp_path: Path) -> None:
    assert take(header("f", mtime_field=b"\x80" + b"\xff" * 11) + bytes(1024), tmp_path / "here").files == 1


def test_a_full_disk_here_is_told_of(tmp_path: Path) -> None:
    need("netns")  # root, who may mount
    here = tmp_path / "here"
    here.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", here], check=True)
    try:
        with pytest.raises(OutputsError, match=f"{here}/too large cannot be written .*No space left"):
            take(archive(("small", b"s"), ("too large", bytes(200_000))), here)
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
