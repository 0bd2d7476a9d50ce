"""Clips inside tars: as the buckets serve them, with their traps, and hostile ones."""

from __future__ import annotations

import gzip
import io
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data.errors import ClipRejected, Reason, SourceError
from stmae_data.manifest import load_manifest
from stmae_data.sources import archives, open_member, rows_for, source_uri
from stmae_data.sources.archives import list_members

A, B, C = "-abc_DEF-01", "__23456789a", "cccccccccc_"


def tar_bytes(members: dict[str, bytes], *, folders: tuple[str, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for folder in folders:
            info = tarfile.TarInfo(folder)
            info.type = tarfile.DIRTYPE
            tar.addfile(info)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def read(uri: str, member: str | None) -> bytes:
    assert member is not None
    return b"".join(open_member(uri, member))


@pytest.mark.parametrize("is_compressed", [True, False], ids=["gzip", "plain"])
def test_part_archives_are_read_whatever_their_compression(
    tmp_path: Path, is_compressed: bool, trap: Callable[..., None]
) -> None:
    """One official part was a plain tar named .gz."""
    data = tar_bytes(
        {
            f"./{A}_000001_000011.mp4": b"first",
            f"./._{A}_000001_000011.mp4": b"clutter",
            "./.DS_Store": b"clutter",
            f"./{B}_000001_000011.mp4": b"",
        },
        folders=("./",),
    )
    write(tmp_path / "train" / "part_0.tar.gz", gzip.compress(data) if is_compressed else data)
    listing = rows_for(load_manifest("k400"), roots=[tmp_path])
    assert [(row.clip_id, row.split, row.source_bytes) for row in listing.rows] == [
        (f"{A}_000001_000011", "train", 5),
        (f"{B}_000001_000011", "train", 0),
    ]
    assert [row.problem and row.problem[0] for row in listing.rows] == [None, Reason.EMPTY]
    assert listing.skipped["hidden"] == 2
    assert read(listing.rows[0].source_uri, listing.rows[0].source_member) == b"first"
    assert [path.name for path in tmp_path.rglob("*")] == ["train", "part_0.tar.gz"], "nothing is unpacked"
    if is_compressed:
        trap("CVDF archives", "clips are read in place; nothing is unpacked", "parts read as streams")
    else:
        trap(
            "CVDF archives", "compression is told by the bytes; read", "a plain tar named .tar.gz (K400 train part_120)"
        )
    trap("CVDF archives", "same clip ids", "members with ./ in front")
    trap("CVDF archives", "counted as hidden, never a row", "AppleDouble members")
    trap("CVDF archives", "passed over", "folders as members")
    trap("CVDF archives", f"failed: {Reason.EMPTY}", "a member of no bytes")


def test_class_archives_name_the_class(tmp_path: Path, trap: Callable[..., None]) -> None:
    flat = tar_bytes({f"{A}_000001_000011.mp4": b"a"})
    nested = tar_bytes(
        {f"mountain climber (exercise)/{B}_000001_000011.mp4": b"b", "._mountain climber (exercise)": b"x"}
    )
    write(tmp_path / "600" / "train" / "air drumming.tar.gz", gzip.compress(flat))
    write(tmp_path / "600" / "train" / "mountain climber (exercise).tar.gz", gzip.compress(nested))
    rows = rows_for(load_manifest("k600"), roots=[tmp_path]).rows
    assert {row.platform_id: row.annotations[0].label_raw for row in rows} == {
        A: "air drumming",
        B: "mountain climber (exercise)",
    }
    trap("CVDF archives", "the archive names the class", "an archive named by its class, flat (K600)")
    trap(
        "CVDF archives",
        "the same class, ._ left out",
        "a class folder and ._ inside (K600 mountain climber (exercise))",
    )


def test_replacement_archive_is_applied_last(tmp_path: Path, trap: Callable[..., None]) -> None:
    write(tmp_path / "train" / "part_0.tar.gz", gzip.compress(tar_bytes({f"{A}_000001_000011.mp4": b"broken"})))
    replacement = tar_bytes({f"replacement/{A}_000001_000011.mp4": b"good"})
    write(tmp_path / "replacement_for_corrupted_k400.tgz", gzip.compress(replacement))
    (tmp_path / "train.csv").write_text(f"label,youtube_id,time_start,time_end,split\nabseiling,{A},1,11,train\n")
    listing = rows_for(load_manifest("k400"), roots=[tmp_path])
    (row,) = listing.rows
    assert read(row.source_uri, row.source_member) == b"good"
    assert (row.split, listing.skipped["replaced"]) == ("train", 1)
    trap("CVDF archives", "its bytes win over the part's; counted as replaced", "the replacement archive")


def test_members_are_read_in_any_order_across_kept_states(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archives, "_STATE_BYTES", 200_000)
    draw = random.Random(0)
    members = {f"{number:05d}.mp4": draw.randbytes(draw.randrange(1, 60_000)) for number in range(60)}
    data = tar_bytes(members)
    half = len(data) // 2
    path = write(tmp_path / "a.tar.gz", gzip.compress(data[:half]) + gzip.compress(data[half:]) + bytes(1000))
    rows = rows_for(load_manifest("web"), roots=[path]).rows
    assert len(rows) == len(members)
    for row in draw.sample(rows, len(rows)):
        assert row.source_member is not None
        assert read(row.source_uri, row.source_member) == members[row.source_member]


@pytest.fixture
def two_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Path], dict[str, bytes]]:
    """Two compressed archives of which one may be open, with a state about every second block of input."""
    monkeypatch.setattr(archives, "_kept", archives._Kept())
    monkeypatch.setattr(archives, "_MAX_OPEN", 1)
    monkeypatch.setattr(archives, "_STATE_BYTES", 400_000)
    draw = random.Random(0)
    members = {f"{number:02d}.mp4": draw.randbytes(100_000) for number in range(40)}
    data = gzip.compress(tar_bytes(members), compresslevel=1)
    return [write(tmp_path / f"part_{number}.tar.gz", data) for number in range(2)], members


def test_closed_archive_is_not_unpacked_anew(
    two_parts: tuple[list[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, members = two_parts
    amounts: list[int] = []
    plain = archives._Joined.read_at

    def counted(self: archives._Joined, offset: int, size: int) -> bytes:
        data = plain(self, offset, size)
        amounts.append(len(data))
        return data

    monkeypatch.setattr(archives._Joined, "read_at", counted)
    for path in paths:
        read(source_uri(path), "00.mp4")
    amounts.clear()
    for path in paths * 2:
        assert read(source_uri(path), "39.mp4") == members["39.mp4"]
    assert len(archives._kept.open) == 1
    assert sum(amounts) < paths[0].stat().st_size, "four members from the end cost less than one archive"


def test_file_in_the_place_of_a_closed_archive_is_listed_anew(
    two_parts: tuple[list[Path], dict[str, bytes]], tmp_path: Path
) -> None:
    paths, _ = two_parts
    for path in paths:
        read(source_uri(path), "39.mp4")
    other = gzip.compress(tar_bytes({"new.mp4": b"new"}))
    write(tmp_path / "other", other).replace(paths[0])
    assert read(source_uri(paths[0]), "new.mp4") == b"new"
    with pytest.raises(ClipRejected, match="no such member"):
        read(source_uri(paths[0]), "39.mp4")


def test_what_is_kept_of_archives_is_bounded(
    two_parts: tuple[list[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, members = two_parts
    kept = archives._kept
    monkeypatch.setattr(archives, "_MAX_STATES", 4 * archives._STATE_WEIGHT)
    for name in sorted(members, reverse=True):
        for path in paths:
            assert read(source_uri(path), name) == members[name]
    assert kept.spacing > 1 and sum(each.weight for each in kept.known.values()) <= archives._MAX_STATES
    assert all(len(each.states) > 1 for each in kept.known.values()), "every archive keeps some"
    monkeypatch.setattr(archives, "_MAX_MEMBERS", 41)
    kept.bound_members()
    assert list(kept.known) == [os.fsencode(paths[1])], "the last one used stays"


def test_pieces_of_a_split_archive_are_one(tmp_path: Path) -> None:
    data = gzip.compress(tar_bytes({"20bn-something-something-v2/1.webm": random.Random(0).randbytes(5000)}))
    for number in range(3):
        write(tmp_path / f"20bn-something-something-v2-{number:02d}", data[number * 2000 : (number + 1) * 2000])
    (member,) = list_members(tmp_path / "20bn-something-something-v2-00")
    assert (member.name, member.size, member.kind) == (b"20bn-something-something-v2/1.webm", 5000, "file")


def test_tar_in_a_tar_is_read_through(tmp_path: Path) -> None:
    inner = {name: tar_bytes({f"{name}_{n}.JPEG": f"{name}{n}".encode() for n in range(2)}) for name in ("n01", "n02")}
    path = write(tmp_path / "train.tar", tar_bytes({f"{name}.tar": data for name, data in inner.items()}))
    assert [member.name for member in list_members(path)] == [
        b"n01.tar/n01_0.JPEG",
        b"n01.tar/n01_1.JPEG",
        b"n02.tar/n02_0.JPEG",
        b"n02.tar/n02_1.JPEG",
    ]
    rows = rows_for(load_manifest("web"), roots=[path]).rows
    assert [read(row.source_uri, row.source_member) for row in rows] == [b"n010", b"n011", b"n020", b"n021"]


@pytest.mark.parametrize("is_compressed", [True, False], ids=["gzip", "plain"])
def test_archive_that_breaks_off_says_where(tmp_path: Path, is_compressed: bool, trap: Callable[..., None]) -> None:
    names = [f"{each}_000001_000011.mp4" for each in (A, B)]
    data = tar_bytes({name: random.Random(name).randbytes(2000) for name in names})[: 512 + 2048 + 512 + 700]
    whole = gzip.compress(data)
    write(tmp_path / "train" / "part.tar.gz", whole[:-100] if is_compressed else data)
    listing = rows_for(load_manifest("k400"), roots=[tmp_path])
    first, second = listing.rows
    assert "part.tar.gz has no end" in listing.notes[0]
    assert first.problem is None
    assert len(read(first.source_uri, first.source_member)) == 2000
    assert second.problem == (Reason.TRUNCATED, "the archive breaks off in this member")
    with pytest.raises(ClipRejected, match="truncated"):
        read(second.source_uri, second.source_member)
    trap("CVDF archives", f"a note names it; its last member is {Reason.TRUNCATED}", "an archive that breaks off")


def test_archive_cut_between_members_is_noted(tmp_path: Path) -> None:
    """Such a tar reads without any error; only its closing blocks are missing."""
    data = tar_bytes({f"{each}_000001_000011.mp4": b"x" * 512 for each in (A, B)})
    write(tmp_path / "train" / "part_7.tar", data[:1024])
    listing = rows_for(load_manifest("k400"), roots=[tmp_path])
    assert len(listing.rows) == 1
    assert listing.notes == ["part_7.tar has no end: members behind its last one may be lost; fetch it again."]


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar at all" * 100, gzip.compress(b"no tar"), b"\x1f\x8b broken"],
    ids=["empty", "no tar", "gzip of no tar", "broken gzip"],
)
def test_file_that_is_no_tar_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    write(tmp_path / "part_7.tar.gz", data)
    with pytest.raises(SourceError, match=r"part_7\.tar\.gz cannot be read as a tar, plain or gzip .*; fetch it again"):
        rows_for(load_manifest("k400"), roots=[tmp_path])


def test_links_devices_and_paths_in_a_tar_are_only_names(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, kind, target in (
            ("link.mp4", tarfile.SYMTYPE, "/etc/passwd"),
            ("hard.mp4", tarfile.LNKTYPE, "../../x"),
            ("device.mp4", tarfile.CHRTYPE, ""),
            ("../../../outside.mp4", tarfile.REGTYPE, ""),
            ("/absolute.mp4", tarfile.REGTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 1 if kind == tarfile.REGTYPE else 0
            tar.addfile(info, io.BytesIO(b"x"))
    path = write(tmp_path / "a.tar", stream.getvalue())
    rows = rows_for(load_manifest("web"), roots=[path]).rows
    assert {row.source_member: row.problem and row.problem[0] for row in rows} == {
        "link.mp4": Reason.SYMLINK,
        "hard.mp4": Reason.SYMLINK,
        "device.mp4": Reason.SPECIAL_FILE,
        "../../../outside.mp4": None,
        "/absolute.mp4": None,
    }
    assert read(rows[0].source_uri, "/absolute.mp4") == b"x"
    with pytest.raises(ClipRejected, match="special_file"):
        read(rows[0].source_uri, "device.mp4")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.tar"]


def test_bombs_are_refused(tmp_path: Path) -> None:
    bomb = write(tmp_path / "bomb.tar.gz", gzip.compress(tar_bytes({"a.mp4": bytes(90 << 20), "b.mp4": b"x"})))
    # The bytes of the first member are zeros: the listing may pass over them only so far.
    with pytest.raises(SourceError, match="more than 200 times its size"):
        list_members(bomb)
    header = tarfile.TarInfo("huge")
    header.type, header.size = tarfile.XHDTYPE, 1 << 40
    lying = write(tmp_path / "lying.tar", header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(SourceError, match="a header of"):
        list_members(lying)


def test_opening_says_what_is_wrong(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", tar_bytes({"a.mp4": b"12345", "empty.mp4": b""}))
    (first, _) = rows_for(load_manifest("web"), roots=[path]).rows
    for member, kwargs, reason in (
        ("none", {}, "gone"),
        ("a.mp4", {"max_bytes": 4}, "too_large"),
        ("empty.mp4", {}, "empty"),
    ):
        with pytest.raises(ClipRejected) as caught:
            list(open_member(first.source_uri, member, **kwargs))
        assert caught.value.reason == reason
    with pytest.raises(ClipRejected, match="gone"):
        list(open_member(first.source_uri + "x", "a.mp4"))


def test_sidecars_in_a_tar_are_read(tmp_path: Path) -> None:
    name = b"t\xff\xc3\xa9.mp4"
    members = {
        os.fsdecode(name): b"video",
        os.fsdecode(b"t\xff\xc3\xa9.json"): b'{"title": "T"}',
        "sub/b.mp4": b"v",
        "sub/b.info.json": b"{",
    }
    path = write(tmp_path / "a.tar", tar_bytes(members))
    listing = rows_for(load_manifest("web"), roots=[path])
    assert [(row.source_member, row.web.get("title"), row.flags) for row in listing.rows] == [
        ("sub/b.mp4", None, ("bad_sidecar",)),
        ("t%FF%C3%A9.mp4", "T", ()),
    ]
    assert read(listing.rows[1].source_uri, listing.rows[1].source_member) == b"video"
    assert listing.skipped == {"sidecar": 2}


def test_archive_in_a_web_folder_is_a_file_like_any_other(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", tar_bytes({"a.mp4": b"x"}))
    (row,) = rows_for(load_manifest("web"), roots=[tmp_path]).rows
    assert row.source_member is None
