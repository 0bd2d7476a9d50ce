"""Something-Something V2 in its official layout, both namings, pieces and all."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data.errors import SourceError
from stmae_data.manifest import load_manifest
from stmae_data.sources import open_member, rows_for

HOLDING, UNFOLDING = "Holding something", "Unfolding something"
TRAIN = [
    {"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]},
    {"id": "42", "label": "unfolding map", "template": "Unfolding [something]", "placeholders": ["map"]},
]
VALIDATION = [{"id": "7", "label": "holding cup", "template": "Holding [something]", "placeholders": ["cup"]}]


def labels(folder: Path, *, prefix: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (
        ("labels", {UNFOLDING: "0", HOLDING: "1"}),
        ("train", TRAIN),
        ("validation", VALIDATION),
        ("test", [{"id": "9"}, {"id": "10"}]),
    ):
        (folder / f"{prefix}{name}.json").write_text(json.dumps(value))


def videos(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(name.encode())


@pytest.mark.parametrize("prefix", ["", "something-something-v2-"])
def test_clips_meet_their_templates_under_both_namings(tmp_path: Path, prefix: str, trap: Callable[..., None]) -> None:
    labels(tmp_path / "labels", prefix=prefix)
    videos(tmp_path / "20bn-something-something-v2", "78687.webm", "7.webm", "9.webm", "555.webm", "readme.webm")
    listing = rows_for(load_manifest("ssv2"), roots=[tmp_path])
    rows = {row.platform_id: row for row in listing.rows}
    assert {name: (row.split, row.clip_id) for name, row in rows.items()} == {
        "78687": ("train", "ssv2_78687"),
        "7": ("val", "ssv2_7"),
        "9": ("test", "ssv2_9"),
    }
    (annotation,) = rows["78687"].annotations
    assert (annotation.label_raw, annotation.template) == (HOLDING, "Holding [something]")
    assert annotation.placeholders == ("potato",)
    assert annotation.label_index == 1, "the order of labels.json wins"
    assert rows["78687"].web == {"title": "holding potato"}
    assert rows["9"].annotations[0].label_raw is None
    assert listing.skipped["no_split"] == 1
    counts = {(line["split"], line["label"]): (line["annotated"], line["missing"]) for line in listing.reconciliation}
    assert counts[("train", UNFOLDING)] == (1, 1)
    assert counts[("val", HOLDING)] == (1, 0)
    assert counts[("test", None)] == (2, 1)
    trap("Something-Something V2", "same rows", "table names with and without their prefix")
    trap(
        "Something-Something V2",
        "met; the index is that of labels.json, objects and sentence are kept",
        "labels.json without brackets, templates with them",
    )
    trap("Something-Something V2", "planned, without a label", "test rows of an id alone")


def test_index_without_label_list_is_the_published_one(tmp_path: Path, trap: Callable[..., None]) -> None:
    labels(tmp_path)
    (tmp_path / "labels.json").unlink()
    videos(tmp_path, "78687.webm")
    manifest = load_manifest("ssv2")
    (row,) = rows_for(manifest, roots=[tmp_path]).rows
    assert row.annotations[0].label_index == manifest.labels.index(HOLDING)
    assert len(manifest.labels) == 174
    trap("Something-Something V2", "the published order of the 174 labels", "no labels.json")


def test_answers_complete_the_test_list(tmp_path: Path, trap: Callable[..., None]) -> None:
    labels(tmp_path)
    (tmp_path / "test-answers.csv").write_text(f"9;{UNFOLDING}\n10;{HOLDING}\n")
    videos(tmp_path, "9.webm")
    (row,) = rows_for(load_manifest("ssv2"), roots=[tmp_path], splits=["test"]).rows
    assert [each.label_raw for each in row.annotations] == [UNFOLDING]
    (tmp_path / "test-answers.csv").write_text("what?\n")
    with pytest.raises(SourceError, match=r"Line 1 of .*test-answers\.csv is 'what\?'; wanted `id;label`"):
        rows_for(load_manifest("ssv2"), roots=[tmp_path])
    trap("Something-Something V2", "they label the test clips", "answers of the test in a csv of their own")


def test_classes_choose_by_template_or_class(tmp_path: Path) -> None:
    labels(tmp_path)
    videos(tmp_path, "78687.webm", "42.webm")
    for text in ("Holding [something]", "holding something"):
        listing = rows_for(load_manifest("ssv2"), roots=[tmp_path], classes=[text])
        assert [row.platform_id for row in listing.rows] == ["78687"]
        assert {line["label"] for line in listing.reconciliation} == {HOLDING}


def test_pieces_are_read_without_joining_them(tmp_path: Path, trap: Callable[..., None]) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in ("78687", "42"):
            info = tarfile.TarInfo(f"20bn-something-something-v2/{name}.webm")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))
    data = gzip.compress(stream.getvalue())
    third = len(data) // 3
    for number, piece in enumerate((data[:third], data[third : 2 * third], data[2 * third :])):
        (tmp_path / f"20bn-something-something-v2-{number:02d}").write_bytes(piece)
    labels(tmp_path / "labels")
    rows = rows_for(load_manifest("ssv2"), roots=[tmp_path]).rows
    assert {row.platform_id: b"".join(open_member(row.source_uri, row.source_member or "")) for row in rows} == {
        "42": b"42",
        "78687": b"78687",
    }
    trap("Something-Something V2", "read as the one tar they are", "pieces of one tar, to be read without joining them")


def test_missing_tables_say_which(tmp_path: Path, trap: Callable[..., None]) -> None:
    videos(tmp_path, "1.webm")
    with pytest.raises(SourceError, match=r"ssv2 has no tables here; put train\.json and validation\.json"):
        rows_for(load_manifest("ssv2"), roots=[tmp_path])
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(SourceError, match=r"other\.json is no table of ssv2 by its name"):
        rows_for(load_manifest("ssv2"), roots=[tmp_path], annotations=[tmp_path / "other.json"])
    trap(
        "Something-Something V2",
        "refused in one sentence that names the tables",
        "no tables at all (labels come apart)",
    )


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("train.json", "{}", "is not a list of clips"),
        ("train.json", '[{"id": "x"}]', "Entry 1 of .* has no numeric `id`"),
        ("train.json", "[", "not readable JSON"),
        ("labels.json", '["a"]', "does not map labels to numbers"),
    ],
)
def test_damaged_tables_are_told(tmp_path: Path, name: str, text: str, message: str) -> None:
    labels(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        rows_for(load_manifest("ssv2"), roots=[tmp_path])
