"""`--encode copy --probe header`: files at their header's word; what decoding would have told is unknown, and hashes can be had later."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stmae_data import files, media
from stmae_data.build import BuildRequest, Job, build
from stmae_data.dedup import dedup
from stmae_data.encode import EncodedClip, Encoding, encode_clip
from stmae_data.encode.kept import header_reader, keep_clip
from stmae_data.errors import ClipRejected, Reason, SetError, UsageError
from stmae_data.manifest import load_manifest
from stmae_data.records import ClipSpan
from stmae_data.rehash import fingerprint_set
from stmae_data.verify import verify

HEADER = Encoding("copy", 64, "header")


def kept(path: Path, **options: Any) -> EncodedClip:
    with header_reader() as reader, media.open_source(path) as descriptor:
        return keep_clip(descriptor, reader, sha256=files.sha256_file(path), encoding=HEADER, **options)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory, video_writer: Any) -> Path:
    """Four videos of 60 frames; the pictures of the last are noise behind a whole header."""
    folder = tmp_path_factory.mktemp("undecoded") / "raw"
    for number in range(4):
        video_writer(folder / f"{number}.mp4", number=number, num_frames=60, width_px=96)
    data = bytearray((folder / "3.mp4").read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = hashlib.sha256(b"noise").digest() * (len(data[start:]) // 32) + bytes(len(data[start:]) % 32)
    (folder / "3.mp4").write_bytes(data)
    return folder


@pytest.fixture
def undecoded(raw: Path, tmp_path: Path) -> Path:
    """A workspace with the set `kept`."""
    report = build(BuildRequest(tmp_path, load_manifest("web"), (raw,), name="kept", encoding=HEADER))
    assert (report.counts["written"], report.counts["failed"]) == (4, 0)
    return tmp_path


def ledger(workspace: Path, name: str) -> list[dict[str, Any]]:
    books = sorted((workspace / "sets" / name / "meta" / "ledger").glob("*.parquet"))
    return files.read_table(books, "SELECT * FROM book ORDER BY source_uri")


def test_bytes_and_facts_are_those_of_a_decoding_copy(undecoded: Path, raw: Path) -> None:
    whole = undecoded / "whole"
    shutil.copytree(raw, whole, ignore=shutil.ignore_patterns("3.mp4"))
    build(BuildRequest(undecoded, load_manifest("web"), (whole,), name="full", encoding=Encoding("copy", 64)))
    same = ["clip_id", "source_sha256", "stored_sha256", "stored_bytes", "stored_num_frames", "stored_fps", "fps"]
    same += [
        "num_frames",
        "duration_seconds",
        "stored_seconds",
        "width_px",
        "height_px",
        "keyframe_interval",
        "encode_mode",
    ]
    for here, there in zip(ledger(undecoded, "kept"), ledger(undecoded, "full"), strict=False):
        assert [here[name] for name in same] == [there[name] for name in same]
        assert (here["probe_level"], there["probe_level"]) == ("header", "full") and here["flags"] == ["undecoded"]
        unknown = ("stream_sha256", "num_decode_errors", "rotation_degrees")
        assert all(here[name] is None for name in unknown) and not here["signals"]
    assert verify(undecoded, "kept").ok


def test_hashes_come_later_and_name_what_does_not_decode(undecoded: Path, raw: Path) -> None:
    before = {each.name: files.sha256_file(each) for each in (undecoded / "sets" / "kept").glob("*.tar")}
    made = fingerprint_set(undecoded, "kept")
    broken = next(row["clip_id"] for row in ledger(undecoded, "kept") if row["source_uri"].endswith("3.mp4"))
    assert (made.num_made, made.num_kept, made.undecodable) == (4, 0, (broken,))
    assert fingerprint_set(undecoded, "kept").num_made == 0  # looked at is looked at
    assert {each.name: files.sha256_file(each) for each in (undecoded / "sets" / "kept").glob("*.tar")} == before
    build(BuildRequest(undecoded, load_manifest("web"), (raw,), name="full", encoding=Encoding("copy", 64)))
    query = "SELECT * FROM book WHERE clip_id <> ? ORDER BY ALL"
    tables = [
        files.read_table(
            sorted((undecoded / "sets" / name / "meta" / "fingerprints").glob("*.parquet")), query, [broken]
        )
        for name in ("kept", "full")
    ]
    assert tables[0] == tables[1] and tables[0]
    assert dedup(undecoded, ["kept"], dry_run=True).not_comparable == {broken: "hardly a frame of quality 50 or more"}


def test_a_set_that_stands_keeps_its_probe_level(undecoded: Path, raw: Path) -> None:
    with pytest.raises(SetError, match="planned with probe_level 'header', this build wants 'full'"):
        build(BuildRequest(undecoded, load_manifest("web"), (raw,), name="kept", encoding=Encoding("copy", 64)))


def test_what_a_header_tells_is_refused_as_ever(raw: Path, tmp_path: Path, video_writer: Any) -> None:
    whole = (raw / "0.mp4").read_bytes()
    video_writer(tmp_path / "short.mp4", number=1, num_frames=9)
    cases = {"cut.mp4": (whole[: len(whole) // 2], Reason.TRUNCATED), "text.mp4": (b"no film " * 99, Reason.NOT_MEDIA)}
    for name, (data, _) in cases.items():
        (tmp_path / name).write_bytes(data)
    for name, reason in {
        **{name: reason for name, (_, reason) in cases.items()},
        "short.mp4": Reason.TOO_SHORT,
    }.items():
        with pytest.raises(ClipRejected) as caught:
            kept(tmp_path / name)
        assert caught.value.reason is reason, name
    (tmp_path / "tail.mp4").write_bytes(whole[: -len(whole) // 20])
    assert kept(tmp_path / "tail.mp4").flags == ("partial", "undecoded")
    with pytest.raises(UsageError, match="cannot cut a span"):
        kept(raw / "0.mp4", span=ClipSpan(0, 500))
    for mode, level, said in (("layered", "header", "goes with copy alone"), ("copy", "ends", "no probe level 'ends'")):
        with pytest.raises(UsageError, match=said):
            Encoding(mode, 64, level)


@pytest.mark.parametrize("mode", ["copy", "remux"])
@pytest.mark.parametrize("options", [{}, {"is_dry_run": True}, {"job": Job(1, 1)}])
def test_spans_of_files_that_are_kept_whole_are_refused_before_anything_is_planned(
    mode: str, options: dict[str, Any], raw: Path, tmp_path: Path
) -> None:
    (tmp_path / "spans.toml").write_text('name = "spans"\nrelease = "1"\nkind = "table"\n[splits.train]\n')
    (tmp_path / "spans.csv").write_text("path,start,end\n0.mp4,0,1\n1.mp4,0,1\n")
    wanted = BuildRequest(
        tmp_path, load_manifest(tmp_path / "spans.toml"), (raw,), annotations=(tmp_path / "spans.csv",), **options
    )
    with pytest.raises(UsageError, match=r"'(copy|remux)' keeps files whole .* as spans asks of \S*0.mp4 .* layered"):
        build(replace(wanted, encoding=Encoding(mode, 64)))
    assert not (tmp_path / "sets" / "spans" / "meta" / "plan.json").exists()
    if not options:  # what the message recommends can be done
        assert build(replace(wanted, encoding=Encoding("fast", 64))).counts["written"] == 2


def test_the_index_of_real_files_tells_what_decoding_tells(shared_dir: Path) -> None:
    compared = 0
    for path in sorted((shared_dir / "real").glob("*/*.*")):
        try:
            with media.open_source(path) as descriptor:
                full = encode_clip(descriptor, media.probe(descriptor), encoding=Encoding("copy", 64))
        except ClipRejected:
            continue
        here = kept(path)
        if full.source.num_decode_errors or {"frame_order_timing", "partial"} & set(full.flags):
            continue
        assert here.stored.stored_num_frames == full.stored.stored_num_frames, path.name
        assert here.stored.stored_seconds == pytest.approx(full.stored.stored_seconds, abs=0.034), path.name
        assert here.source.video_codec == full.source.video_codec and here.media == full.media
        compared += 1
    assert compared >= 40
