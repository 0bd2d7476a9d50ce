"""Folders of web videos: every file a row, hostile names and files included; sidecars read as untrusted text."""

from __future__ import annotations

import io
import json
import os
import socket
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmae_data import files
from stmae_data.errors import Reason, SourceError
from stmae_data.manifest import load_manifest
from stmae_data.records import PLAN_COLUMNS, SourceRow
from stmae_data.sources import SourceListing, rows_for, source_path
from stmae_data.sources.sidecar import MAX_SIDECAR_BYTES, hashtags, normalise_tag, read_sidecar, safe_url

INFO = {
    "id": "-abc_DEF-01",
    "extractor": "youtube",
    "webpage_url": "https://www.youtube.com/watch?v=-abc_DEF-01",
    "title": "Surfing #Waves",
    "description": "big one #waves #BIG_wave 🌊 see https://example.org/#part",
    "uploader": "Somebody",
    "uploader_id": "@some",
    "channel_id": "UC1",
    "upload_date": "20200229",
    "duration": 12,
    "age_limit": 0,
    "availability": "public",
    "language": "en",
    "view_count": 10,
    "like_count": 3.0,
    "license": "Creative Commons Attribution license (reuse allowed)",
    "tags": ["Surf", "＃Ｗａｖｅ", "surf", ""],
}


def listing(root: Path) -> SourceListing:
    return rows_for(load_manifest("web"), roots=[root])


def only(root: Path) -> SourceRow:
    (row,) = listing(root).rows
    return row


def with_sidecar(root: Path, value: Any) -> SourceRow:
    root.mkdir(exist_ok=True)
    (root / "a.mp4").write_bytes(b"video")
    (root / "a.info.json").write_text(value if isinstance(value, str) else json.dumps(value))
    return only(root)


def test_every_file_is_a_row_named_by_its_bytes(tmp_path: Path) -> None:
    for name in ("b.mp4", "a.webm", "sub/deep/c", "-i.mp4", "notes.txt", ".hidden.mp4", "pipe:0.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = listing(tmp_path)
    assert [str(source_path(row.source_uri).relative_to(tmp_path)) for row in found.rows] == sorted(
        ["b.mp4", "a.webm", "sub/deep/c", "-i.mp4", "notes.txt", ".hidden.mp4", "pipe:0.mp4"], key=os.fsencode
    )
    assert {row.clip_id for row in found.rows} == {None}
    assert {(row.split, row.platform, row.source_bytes, row.problem) for row in found.rows} == {
        ("train", "file", 1, None)
    }
    assert not found.skipped


def test_hostile_names_are_only_names(tmp_path: Path, trap: Callable[..., None]) -> None:
    names = [
        b"\xff\xfe.mp4",
        b"new\nline.mp4",
        b"a%2F..b.mp4",
        b"'; drop.mp4",
        b"\xe2\x80\xae4pm.mp4",
        b"n" * 251 + b".mp4",
    ]
    for name in names:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(b"x")
    rows = listing(tmp_path).rows
    assert [os.fsencode(source_path(row.source_uri).name) for row in rows] == sorted(names)
    assert all(row.source_uri.isascii() and row.source_uri.isprintable() for row in rows)
    trap("Web tables and lists", "percent-encoded; read back byte for byte", "names of any bytes")


def test_links_pipes_and_sockets_are_rows_that_say_so(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret.mp4").write_bytes(b"x")
    root = tmp_path / "root"
    root.mkdir()
    (root / "empty.mp4").touch()
    (root / "link.mp4").symlink_to(outside / "secret.mp4")
    (root / "dangling.mp4").symlink_to(root / "nothing")
    (root / "folder").symlink_to(outside)
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe.mp4")
    here = Path.cwd()
    os.chdir(root)  # the name of a socket is short by law
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind("socket.mp4")
    finally:
        os.chdir(here)
    problems = {source_path(row.source_uri).name: row.problem for row in listing(root).rows}
    assert {name: problem and problem[0] for name, problem in problems.items()} == {
        "empty.mp4": Reason.EMPTY,
        "link.mp4": Reason.SYMLINK,
        "dangling.mp4": Reason.SYMLINK,
        "folder": Reason.SYMLINK,
        "loop": Reason.SYMLINK,
        "pipe.mp4": Reason.SPECIAL_FILE,
        "socket.mp4": Reason.SPECIAL_FILE,
    }
    assert problems["pipe.mp4"] == (Reason.SPECIAL_FILE, "a fifo, not a regular file")


def test_what_has_not_come_whole_is_no_row(tmp_path: Path) -> None:
    for name in ("a.mp4", ".partial/b.part", "raw/.partial/deep/c.mp4", ".partial.mp4"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    found = listing(tmp_path)
    assert [source_path(row.source_uri).name for row in found.rows] == [".partial.mp4", "a.mp4"]
    assert found.skipped == {"unfinished": 2}
    assert len(listing(tmp_path / ".partial").rows) == 1, "a folder that is named itself is read"


def test_deep_folders_are_walked(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 300)
    deep.mkdir(parents=True)
    (deep / "a.mp4").write_bytes(b"x")
    assert len(listing(tmp_path).rows) == 1


def test_file_below_several_roots_is_one_row(tmp_path: Path) -> None:
    inner = tmp_path / "clips" / "inner"
    inner.mkdir(parents=True)
    for path in (tmp_path / "clips" / "a.mp4", inner / "b.mp4"):
        path.write_bytes(b"x")
    (inner / "b.info.json").write_text('{"title": "told"}')
    (tmp_path / "other").symlink_to(tmp_path / "clips")
    roots = [tmp_path / "clips", inner, inner / "b.mp4", tmp_path / "other", tmp_path / "clips"]
    for order in (roots, roots[::-1]):
        found = rows_for(load_manifest("web"), roots=order)
        assert [source_path(row.source_uri).name for row in found.rows] == ["a.mp4", "b.mp4"]
        assert found.rows[1].web["title"] == "told", "a file that is named itself keeps its sidecar"


def test_archive_named_beside_its_folder_is_opened(tmp_path: Path) -> None:
    archive = tmp_path / "clips" / "more.tar"
    archive.parent.mkdir()
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("c.mp4")
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    for order in ([archive.parent, archive], [archive, archive.parent]):
        (row,) = rows_for(load_manifest("web"), roots=order).rows
        assert row.source_member == "c.mp4"


def test_sidecars_are_told_from_clips_by_their_neighbours(tmp_path: Path) -> None:
    for name in (
        "a.mp4",
        "a.json",
        "a.en.vtt",
        "a.webp",
        "b.mkv",
        "b.mkv.json",
        "c.txt",
        "d.info.json",
        "e.json",
        "f.csv",
    ):
        (tmp_path / name).write_bytes(b"{}")
    found = listing(tmp_path)
    assert [source_path(row.source_uri).name for row in found.rows] == ["a.mp4", "b.mkv", "c.txt", "e.json", "f.csv"]
    assert found.skipped == {"sidecar": 5}


@pytest.mark.parametrize("name", ["a.info.json", "a.mp4.info.json", "a.json", "a.mp4.json"])
def test_sidecar_by_any_of_its_names_is_read(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / name).write_text('{"title": "T"}')
    assert only(tmp_path).web["title"] == "T"


def test_what_downloaders_write_becomes_columns(tmp_path: Path) -> None:
    row = with_sidecar(tmp_path, INFO)
    assert (row.platform, row.platform_id, row.clip_id, row.flags) == ("youtube", "-abc_DEF-01", None, ())
    web = dict(row.web)
    assert len(web.pop("info_sha256")) == 64
    assert web.pop("tags") == [
        {"tag": "surf", "origin": "tag"},
        {"tag": "wave", "origin": "tag"},
        {"tag": "waves", "origin": "title"},
        {"tag": "waves", "origin": "description"},
        {"tag": "big_wave", "origin": "description"},
    ]
    assert web == {
        "url": "https://youtu.be/-abc_DEF-01",
        "title": INFO["title"],
        "description": INFO["description"],
        "uploader_id": "@some",
        "channel_id": "UC1",
        "upload_date": "2020-02-29",
        "listed_duration_seconds": 12.0,
        "age_limit": 0,
        "availability": "public",
        "language": "en",
        "view_count": 10,
        "like_count": 3,
        "license": INFO["license"],
        "license_origin": "sidecar",
    }
    assert set(row.web) <= set(PLAN_COLUMNS)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"text"',
        "[" * 100_000,
        '{"duration": NaN}',
        '{"duration": Infinity}',
        '{"a": ' + "9" * 5000 + "}",
    ],
)
def test_bad_sidecar_flags_the_clip_and_keeps_it(tmp_path: Path, text: str) -> None:
    row = with_sidecar(tmp_path, text)
    assert (row.flags, row.web, row.problem) == (("bad_sidecar",), {}, None)


def test_huge_binary_and_linked_sidecars_are_not_used(tmp_path: Path, trap: Callable[..., None]) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    sidecar = tmp_path / "a.json"
    sidecar.write_bytes(b'{"title": "' + b"x" * MAX_SIDECAR_BYTES + b'"}')
    assert only(tmp_path).flags == ("bad_sidecar",)
    sidecar.write_bytes(b'{"title": "\xff"}')
    assert only(tmp_path).flags == ("bad_sidecar",)
    (tmp_path / "elsewhere").write_text('{"title": "T"}')
    sidecar.unlink()
    sidecar.symlink_to(tmp_path / "elsewhere")
    assert read_sidecar(os.fsencode(sidecar)).is_bad
    trap("Web tables and lists", "the clip is kept and flagged bad_sidecar", "a broken, huge or linked sidecar")


def test_values_of_the_wrong_kind_are_left_out(tmp_path: Path) -> None:
    row = with_sidecar(
        tmp_path,
        {
            "title": ["T"],
            "duration": True,
            "view_count": -1,
            "like_count": 2**70,
            "upload_date": "20230230",
            "webpage_url": "file:///etc/passwd",
            "tags": "surf",
            "id": "../../x",
            "extractor": "youtube",
            "age_limit": "18",
            "uploader_id": 17,
        },
    )
    assert row.flags == ()
    assert set(row.web) == {"info_sha256", "uploader_id"}
    assert row.web["uploader_id"] == "17"
    assert (row.platform, row.platform_id) == ("file", None)


def test_hostile_text_can_be_stored_in_a_table(tmp_path: Path) -> None:
    row = with_sidecar(
        tmp_path, r'{"title": "a\ud800b\u0000c", "description": "<script>alert(1)</script>", "tags": ["x\u202e\u0000"]}'
    )
    assert row.web["title"] == "a?b\N{REPLACEMENT CHARACTER}c"
    assert row.web["tags"] == [{"tag": "x", "origin": "tag"}]
    files.commit_table(tmp_path / "t.parquet", [row.web], {name: PLAN_COLUMNS[name] for name in row.web}, point="test")
    assert files.read_table(tmp_path / "t.parquet") == [row.web]


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://user:secret@example.org:8443/a/b?token=secret#x", "https://example.org:8443/a/b"),
        ("HTTP://Example.ORG/A", "http://example.org/A"),
        ("http://[::1]/a?b", "http://[::1]/a"),
        ("ftp://example.org/a", None),
        ("javascript:alert(1)", None),
        ("https://exa mple.org/", None),
        ("https://example.org:99999/", None),
        ("https://[::1/", None),
        ("https://example.org/" + "a" * 3000, None),
        ("", None),
    ],
)
def test_urls_keep_no_secrets(text: str, url: str | None) -> None:
    assert safe_url(text) == url


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("#Straße and #STRASSE", ["strasse", "strasse"]),
        ("a#b x/#c &#39; #1 #2nd ##twice", ["2nd", "twice"]),
        ("＃波 #café", ["波", "café"]),
        ("#one,#two.#three", ["one", "two", "three"]),
        ("", []),
    ],
)
def test_hashtags_are_read_from_text(text: str, tags: list[str], trap: Callable[..., None]) -> None:
    assert list(hashtags(text)) == tags
    trap("Web tables and lists", "tags: NFKC, casefolded, without #", "hashtags in titles and descriptions")


@given(st.text(max_size=50))
def test_normalised_tags_stay_as_they_are(text: str) -> None:
    assert normalise_tag(normalise_tag(text)) == normalise_tag(text)


def test_folders_give_the_split_where_there_are_several(tmp_path: Path) -> None:
    path = tmp_path / "two.toml"
    path.write_text('name = "two"\nrelease = "1"\nkind = "folder"\n[splits.train]\n[splits.val]\n')
    root = tmp_path / "raw"
    for name in ("train/a.mp4", "val/x/b.mp4", "c.mp4"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    found = rows_for(load_manifest(path), roots=[root])
    assert [(source_path(row.source_uri).name, row.split) for row in found.rows] == [
        ("a.mp4", "train"),
        ("b.mp4", "val"),
    ]
    assert found.skipped == {"no_split": 1}
    assert "1 files stand in no folder that names a split (train, val)" in found.notes[0]
    assert [row.split for row in rows_for(load_manifest(path), roots=[root], splits=["val"]).rows] == ["val"]


def test_one_file_is_a_root_too(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    (tmp_path / "b.mp4").write_bytes(b"x")
    assert source_path(only(tmp_path / "a.mp4").source_uri) == tmp_path / "a.mp4"


def test_questions_a_folder_cannot_answer_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--classes means nothing here"):
        rows_for(load_manifest("web"), roots=[tmp_path], classes=["x"])
    with pytest.raises(SourceError, match="--annotations means nothing here"):
        rows_for(load_manifest("web"), roots=[tmp_path], annotations=[tmp_path / "a.csv"])


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may list any folder")
def test_folder_that_cannot_be_listed_is_told(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    try:
        with pytest.raises(SourceError, match="closed cannot be listed"):
            listing(tmp_path)
    finally:
        closed.chmod(0o700)
