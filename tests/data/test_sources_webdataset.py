"""Tars of other tools as a source: samples by key, metadata from their text members, and nothing that only code can read."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stmae_data import files
from stmae_data.build import BuildRequest, build
from stmae_data.errors import Reason, SourceError
from stmae_data.manifest import Manifest, load_manifest
from stmae_data.shards import open_set
from stmae_data.sources import open_member, rows_for
from stmae_data.sources.webdataset import expand_pattern, is_pattern
from stmae_data.verify import verify


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as written:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            written.addfile(info, io.BytesIO(data))
    return path


def as_json(**values: Any) -> bytes:
    return json.dumps(values).encode()


def manifest(folder: Path, more: str = "", splits: str = "[splits.train]\n") -> Manifest:
    path = folder / "foreign.toml"
    path.write_text(f'name = "foreign"\nrelease = "1"\nkind = "webdataset"\nshort_side_px = 64\n{more}{splits}')
    return load_manifest(str(path))


def test_members_of_a_key_are_one_sample(tmp_path: Path, trap: Callable[..., None]) -> None:
    info = as_json(id="aaaaaaaaaaa", extractor="youtube", title="From #above", tags=["Dance"], label="zumba")
    tar(
        tmp_path / "x-0.tar",
        [
            ("a.mp4", b"first"),
            ("a.json", info),
            ("deep.er/b.json", b"{broken"),
            ("deep.er/b.mp4", b"second"),
            ("deep.er/b.txt", b"a caption of its own\n"),
            ("c.v1.mp4", b"third"),
            ("c.v2.mp4", b"fourth"),
            ("c.cls", b"7"),
            ("d.json", as_json(status="failed_to_download")),
            ("e.pyd", b"cos\nsystem\n(S'echo'\ntR."),
            ("e.webm", b"fifth"),
            ("f.features.npz", b"PK"),
            ("._a.mp4", b"clutter"),
        ],
    )
    listing = rows_for(manifest(tmp_path), roots=[tmp_path / "x-0.tar"])
    found = {row.source_member: row for row in listing.rows}
    assert {name: row.problem and row.problem[0] for name, row in found.items()} == {
        "a.mp4": None,
        "deep.er/b.mp4": None,
        "c.v1.mp4": None,
        "c.v2.mp4": None,
        "d.json": Reason.NO_VIDEO,
        "e.webm": None,
        "f.features.npz": Reason.NO_VIDEO,
    }
    a, b, c = found["a.mp4"], found["deep.er/b.mp4"], found["c.v1.mp4"]
    assert (a.platform, a.platform_id, a.web["title"]) == ("youtube", "aaaaaaaaaaa", "From #above")
    assert {each["tag"] for each in a.web["tags"]} == {"dance", "above"}
    assert (a.annotations[0].label_raw, a.annotations[0].label_index) == ("zumba", 0)
    assert (b.flags, b.web["title"]) == (("bad_sidecar",), "a caption of its own")
    assert (c.annotations[0].label_raw, c.annotations[0].label_index) == ("7", 7)
    assert found["e.webm"].flags == found["f.features.npz"].flags == ("dropped_members",)
    assert found["d.json"].problem == (Reason.NO_VIDEO, "the sample holds json and no video")
    assert (listing.skipped["pickled"], listing.skipped["hidden"]) == (2, 1)
    assert "2 members that only code could read back" in listing.notes[0]
    assert b"".join(open_member(c.source_uri, c.source_member or "")) == b"third"
    trap("WebDataset", "the key ends at the first dot: one sample, its videos pieces of it", "dots in a key")
    trap("WebDataset", "only the name itself counts", "dots in a folder's name")
    trap("WebDataset", "counted as hidden, never a sample", "._ members")
    trap(
        "WebDataset",
        f"failed: {found['d.json'].problem[0] if found['d.json'].problem else None}",
        "json of a failed sample, no video",
    )
    trap(
        "WebDataset",
        "never opened; counted, the sample flagged dropped_members",
        "members that only code can read (pickle, npz)",
    )
    trap("WebDataset", "the class index", "labels as .cls")
    trap("WebDataset", "the clip is kept and flagged bad_sidecar", "broken json")


def test_members_of_a_key_need_not_stand_side_by_side(tmp_path: Path, trap: Callable[..., None]) -> None:
    members = [("a.mp4", b"first"), ("b.mp4", b"second"), ("b.cls", b"1"), ("a.txt", b"words"), ("a.cls", b"0")]
    listing = rows_for(manifest(tmp_path), roots=[tar(tmp_path / "x.tar", members)])
    found = {row.source_member: (row.web.get("title"), row.annotations[0].label_index) for row in listing.rows}
    assert found == {"a.mp4": ("words", 0), "b.mp4": (None, 1)}
    trap("WebDataset", "one whole sample all the same", "members of a key not side by side")


def test_patterns_name_every_file_or_say_which_is_missing(tmp_path: Path, trap: Callable[..., None]) -> None:
    for number in (8, 9, 10):
        tar(tmp_path / f"x-{number:03d}.tar", [(f"{number}.mp4", b"video")])
    assert is_pattern(tmp_path / "x-{008..010}.tar") and not is_pattern(tmp_path / "x-008.tar")
    names = [path.name for path in expand_pattern(tmp_path / "x-{008..010}.tar")]
    assert names == ["x-008.tar", "x-009.tar", "x-010.tar"]
    assert [path.name for path in expand_pattern(tmp_path / "x-{010,008}.tar")] == ["x-010.tar", "x-008.tar"]
    assert [path.name for path in expand_pattern(tmp_path / "x-*.tar")] == names
    with pytest.raises(SourceError, match=r"There is no .*x-011\.tar, which .*x-\{008\.\.011\}\.tar asks for"):
        expand_pattern(tmp_path / "x-{008..011}.tar")
    with pytest.raises(SourceError, match=r"There is no .*y-\*\.tar, which"):
        expand_pattern(tmp_path / "y-*.tar")
    listing = rows_for(load_manifest("web"), roots=[tmp_path / "x-{008..010}.tar"])
    assert [row.source_member for row in listing.rows] == ["8.mp4", "9.mp4", "10.mp4"]
    trap("WebDataset", "refused in one sentence that names it", "a range that names a missing tar")


def test_a_command_or_an_address_is_no_place(tmp_path: Path) -> None:
    for text in ("pipe:cat /etc/passwd", "https:/example.org/x.tar"):
        with pytest.raises(SourceError, match="is not a file here; fetch it first"):
            rows_for(manifest(tmp_path), roots=[Path(text)])
    tar(tmp_path / "x.tar", [("a.mp4", b"video")])
    with pytest.raises(SourceError, match="carry their own labels, so --annotations means nothing here"):
        rows_for(manifest(tmp_path), roots=[tmp_path / "x.tar"], annotations=[tmp_path / "x.csv"])


def test_splits_and_classes_choose_samples(tmp_path: Path) -> None:
    for split, labels in (("train", ("run", "walk")), ("val", ("run",))):
        members = [
            (f"{split}{n}.{kind}", data)
            for n, label in enumerate(labels)
            for kind, data in (("mp4", b"v" + label.encode()), ("cls", label.encode()))
        ]
        tar(tmp_path / f"web-{split}-000.tar", members)
    made = manifest(tmp_path, splits="[splits.train]\n[splits.val]\n")
    listing = rows_for(made, roots=[tmp_path])
    assert {(row.split, row.annotations[0].label_raw, row.annotations[0].label_index) for row in listing.rows} == {
        ("train", "run", 0),
        ("train", "walk", 1),
        ("val", "run", 0),
    }
    chosen = rows_for(made, roots=[tmp_path], splits=["train"], classes=["walk"])
    assert [row.source_member for row in chosen.rows] == ["train1.mp4"]


def test_a_foreign_set_becomes_one_of_ours(workspace: Path, tmp_path: Path, kinetics_tree: Path) -> None:
    video = next((kinetics_tree / "val").rglob("*.mp4")).read_bytes()
    members = [("a.mp4", video), ("a.txt", b"a dog"), ("a.pkl", b"\x80\x04."), ("b.json", b"{}")]
    tar(tmp_path / "x-000000.tar", members)
    report = build(BuildRequest(workspace, manifest(tmp_path), roots=(tmp_path / "x-{000000..000000}.tar",)))
    assert report.counts["reasons"] == {"no_video": 1} and report.counts["written"] == 1
    rows = files.read_table(open_set(workspace, "foreign").ledgers(), "SELECT * FROM book WHERE outcome = 'written'")
    assert (rows[0]["title"], rows[0]["flags"], rows[0]["source_member"]) == ("a dog", ["dropped_members"], "a.mp4")
    assert verify(workspace, "foreign").as_json()["damages"] == []


def test_pictures_are_taken_where_the_manifest_says_so(workspace: Path, tmp_path: Path) -> None:
    with io.BytesIO() as out:
        Image.new("RGB", (40, 30), (10, 200, 30)).save(out, "JPEG")
        picture = out.getvalue()
    tar(tmp_path / "x.tar", [("a.jpg", picture), ("a.cls", b"3"), ("b.mp4", b"video"), ("b.txt", b"words")])
    found = load_manifest(str(manifest(tmp_path, 'media_kind = "image"\n').path))
    report = build(BuildRequest(workspace, found, roots=(tmp_path / "x.tar",)))
    assert report.counts["reasons"] == {"not_media": 1}
    (row,) = files.read_table(open_set(workspace, "foreign").ledgers(), "SELECT * FROM book WHERE outcome = 'written'")
    assert (row["media_kind"], row["encode_mode"], row["annotations"][0]["label_index"]) == ("image", "copy", 3)
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "c.jpg").write_bytes(picture)
    (loose / "c.json").write_text('{"title": "green"}')
    (tmp_path / "pictures.toml").write_text(
        'name = "pictures"\nrelease = "1"\nkind = "folder"\nmedia_kind = "image"\n[splits.train]\n'
    )
    listing = rows_for(load_manifest(str(tmp_path / "pictures.toml")), roots=[loose])
    assert [(row.media_kind, row.web["title"]) for row in listing.rows] == [("image", "green")]
