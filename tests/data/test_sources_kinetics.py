"""Kinetics trees with the traps of the real ones: names, layouts, splits, labels, clutter, replacements, and both sides counted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmae_data.errors import ManifestError, Reason, SourceError
from stmae_data.manifest import Manifest, load_manifest
from stmae_data.records import SourceRow, kinetics_clip_id
from stmae_data.sources import rows_for, source_path, source_uri
from stmae_data.sources.kinetics import parse_clip_name

TOML = """
name = "tiny"
release = "r1"
kind = "kinetics"
{extra}
[splits.train]
{train}
[splits.val]
words = ["validate"]
{val}
[splits.test]
"""
HEADER = "label,youtube_id,time_start,time_end,split\n"
A, B, C, D, E = "-abc_DEF-01", "__23456789a", "cccccccccc_", "dddddddddd-", "eeeeeeeeeee"


def manifest(folder: Path, *, extra: str = "", train: str = "", val: str = "") -> Manifest:
    path = folder / "tiny.toml"
    path.write_text(TOML.format(extra=extra, train=train, val=val))
    return load_manifest(path)


def clip(path: Path, data: bytes = b"video") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def by_clip(rows: list[SourceRow]) -> dict[str | None, SourceRow]:
    return {row.clip_id: row for row in rows}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files in three layouts, tables of both spellings of val, one clip missing and one without annotation."""
    root = tmp_path / "raw"
    clip(root / "train" / "zebra riding" / f"{A}_000084_000094.mp4")
    clip(root / "train" / "apple_eating" / f"{B}_000001_000011.mkv", b"longer")
    clip(root / "train" / f"{E}_000001_000011.mp4")
    clip(root / "val_256" / f"{C}.mp4")
    (root / "annotations").mkdir()
    (root / "annotations" / "train.csv").write_text(
        f'{HEADER}zebra riding,{A},84.0,94.0,train\n"apple eating",{B},1,11,train\nzebra riding,{D},5,15,train\n'
    )
    (root / "annotations" / "validate.csv").write_text(f"{HEADER}apple eating,{C},7,17,validate\n")
    return root


def test_files_of_any_layout_meet_their_annotations(tree: Path, tmp_path: Path, trap: Callable[..., None]) -> None:
    listing = rows_for(manifest(tmp_path), roots=[tree])
    rows = by_clip(listing.rows)
    assert set(rows) == {f"{A}_000084_000094", f"{B}_000001_000011", f"{E}_000001_000011", f"{C}_000007_000017"}
    first = rows[f"{A}_000084_000094"]
    assert (first.split, first.platform, first.platform_id) == ("train", "youtube", A)
    assert (first.start_ms, first.end_ms, first.is_cut, first.source_bytes) == (84_000, 94_000, False, 5)
    assert source_path(first.source_uri).read_bytes() == b"video"
    (annotation,) = first.annotations
    assert (annotation.dataset, annotation.release, annotation.split) == ("tiny", "r1", "train")
    assert (annotation.label_raw, annotation.label_slug, annotation.label_index) == ("zebra riding", "zebra_riding", 1)
    assert annotation.row_number == 1
    assert rows[f"{B}_000001_000011"].annotations[0].label_index == 0
    whole = rows[f"{C}_000007_000017"]
    assert (whole.split, whole.annotations[0].label_raw, whole.start_ms) == ("val", "apple eating", 7000)
    trap(
        "Kinetics tables",
        "rank among the sorted labels of train; val has the same",
        "class index counted from the training labels",
    )
    trap(
        "Kinetics folders",
        "three fields split from the right; the id is whole",
        "ids that begin with - or _ and contain both",
    )
    trap(
        "Kinetics folders",
        "times and label come from the table",
        "files named without their times (val lists of mmaction2)",
    )


def test_both_sides_are_counted(tree: Path, tmp_path: Path, trap: Callable[..., None]) -> None:
    listing = rows_for(manifest(tmp_path), roots=[tree])

    def line(split: str, label: str | None, *counts: int) -> dict[str, object]:
        names = ("annotated", "present", "missing", "unannotated")
        return {"split": split, "label": label, "replaced": 0, **dict(zip(names, counts, strict=True))}

    assert listing.reconciliation == [
        line("train", None, 0, 0, 0, 1),
        line("train", "apple eating", 1, 1, 0, 0),
        line("train", "zebra riding", 2, 1, 1, 0),
        line("val", "apple eating", 1, 1, 0, 0),
    ]
    extra = by_clip(listing.rows)[f"{E}_000001_000011"]
    assert (extra.split, extra.annotations[0].label_raw, extra.annotations[0].label_index) == ("train", None, None)
    trap("Kinetics folders", "counted as missing, by class", "annotated, file missing")
    trap("Kinetics folders", "kept without a label, counted as unannotated", "file there, not annotated")


def test_rows_are_sorted_and_do_not_depend_on_the_order_of_roots(tree: Path, tmp_path: Path) -> None:
    release = manifest(tmp_path)
    whole = rows_for(release, roots=[tree]).rows
    assert whole == sorted(whole, key=lambda row: os.fsencode(source_path(row.source_uri)))
    parts = [tree / "val_256", tree / "train", tree / "annotations", tree]
    assert rows_for(release, roots=parts).rows == whole, "overlapping roots give every file once"


def test_splits_and_classes_choose(tree: Path, tmp_path: Path) -> None:
    release = manifest(tmp_path)
    only_val = rows_for(release, roots=[tree], splits=["validate"])
    assert [row.split for row in only_val.rows] == ["val"]
    assert only_val.rows[0].annotations[0].label_index == 0
    assert {line["split"] for line in only_val.reconciliation} == {"val"}
    assert only_val.skipped["other_split"] == 3
    zebras = rows_for(release, roots=[tree], classes=["Zebra_Riding"])
    assert [row.platform_id for row in zebras.rows] == [A]
    assert zebras.rows[0].annotations[0].label_index == 1, "the index does not move with the choice"
    assert [line["label"] for line in zebras.reconciliation] == ["zebra riding"]
    with pytest.raises(SourceError, match=r"tiny has no class 'zebra ridin' \(did you mean 'zebra riding'\?\)"):
        rows_for(release, roots=[tree], classes=["zebra ridin"])
    with pytest.raises(ManifestError, match="no split 'dev'"):
        rows_for(release, roots=[tree], splits=["dev"])


def test_limits_nest(tmp_path: Path) -> None:
    root = tmp_path / "raw" / "train"
    for number in range(40):
        clip(root / f"{number:011d}_000001_000011.mp4")
    release = manifest(tmp_path)
    draws = [{row.clip_id for row in rows_for(release, roots=[root], limit=size).rows} for size in (5, 20, 100)]
    assert [len(draw) for draw in draws] == [5, 20, 40]
    assert draws[0] < draws[1] < draws[2]
    assert draws[0] != {f"{number:011d}_000001_000011" for number in range(5)}, "a draw, not the first files"


def test_manifest_index_wins_over_the_rank(tree: Path, tmp_path: Path) -> None:
    text = '[labels]\nnames = ["walking", "Zebra Riding", "apple eating"]\n'
    (tmp_path / "tiny.toml").write_text(TOML.format(extra="", train="", val="") + text)
    rows = by_clip(rows_for(load_manifest(tmp_path / "tiny.toml"), roots=[tree]).rows)
    assert rows[f"{A}_000084_000094"].annotations[0].label_index == 1
    assert rows[f"{C}_000007_000017"].annotations[0].label_index == 2


def test_synonyms_are_one_class(tree: Path, tmp_path: Path) -> None:
    text = '[labels]\nnames = ["eating fruit", "zebra riding"]\n[labels.synonyms]\n"apple eating" = "eating fruit"\n'
    (tmp_path / "tiny.toml").write_text(TOML.format(extra="", train="", val="") + text)
    row = by_clip(rows_for(load_manifest(tmp_path / "tiny.toml"), roots=[tree]).rows)[f"{B}_000001_000011"]
    assert row.annotations[0].label_raw == "apple eating"
    assert (row.annotations[0].label_slug, row.annotations[0].label_index) == ("eating_fruit", 0)


def test_manifest_tables_and_folders_are_used_without_asking(tree: Path, tmp_path: Path) -> None:
    (tree / "annotations").rename(tmp_path / "tables")
    release = manifest(
        tmp_path,
        extra='from = ["raw"]',
        train='annotations = ["tables/train.csv"]',
        val='annotations = ["tables/validate.csv"]',
    )
    assert len(rows_for(release).rows) == 4
    other = tmp_path / "other.csv"
    other.write_text(f"youtube_id,time_start,time_end,split\n{A},84,94,test\n")
    moved = by_clip(rows_for(release, annotations=[other]).rows)[f"{A}_000084_000094"]
    assert (moved.split, moved.annotations[0].label_raw) == ("test", None), "tables given replace those of the manifest"


def test_unlabelled_rows_of_a_table_are_planned(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / "x" / f"{A}_000001_000011.mp4")
    (root / "train.csv").write_text(f"{HEADER},{A},1,11,train\nx,{B},1,11,train\n")
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert [(row.split, row.annotations[0].label_raw) for row in listing.rows] == [("train", None)]
    assert listing.reconciliation[0] == {
        "split": "train",
        "label": None,
        "annotated": 1,
        "present": 1,
        "missing": 0,
        "replaced": 0,
        "unannotated": 0,
    }
    trap("Kinetics tables", "planned, without a label", "a row without its label")


def test_table_overrules_the_folder(tmp_path: Path, trap: Callable[..., None]) -> None:
    """The train archives of K600 hold clips of the test split: in the set they must be test clips."""
    root = tmp_path / "raw"
    clip(root / "train" / "x" / f"{A}_000001_000011.mp4")
    clip(root / "test" / f"{A}_000001_000011.mp4")
    (root / "test.csv").write_text(f"youtube_id,time_start,time_end,split\n{A},1,11,test\n")
    assert [row.split for row in rows_for(manifest(tmp_path), roots=[root]).rows] == ["test", "test"]
    trap("Kinetics folders", "the split of the table wins over the folder", "training files in the test folder (K600)")


def test_clip_of_two_splits_carries_both_and_stands_in_its_folder(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / "val" / f"{A}_000001_000011.mp4")
    (root / "all.csv").write_text(f"{HEADER}x,{A},1,11,train\nx,{A},1,11,val\n")
    release = manifest(tmp_path)
    (row,) = rows_for(release, roots=[root], annotations=[root / "all.csv"]).rows
    assert row.split == "val"
    assert [each.split for each in row.annotations] == ["val", "train"]
    trap("Kinetics tables", "stands once, in its folder's split; both annotations kept", "one clip in two splits")


def test_full_list_and_incomplete_table_are_joined(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / f"{A}_000001_000011.mp4")
    clip(root / f"{B}_000001_000011.mp4")
    (root / "train.csv").write_text(f"{HEADER}x,{A},1,11,train\n")
    (root / "train.txt").write_text(f"x,{A},1,11,train\ny,{B},1,11,train\n")
    (root / "train.json").write_text(f'{{"{A}": {{"annotations": {{"segment": [1, 11]}}, "subset": "train"}}}}')
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert [[each.label_raw for each in row.annotations] for row in listing.rows] == [["x"], ["y"]]
    trap(
        "Kinetics tables", "joined: every row once, with its label", "an incomplete csv beside the full txt list (K600)"
    )


def test_same_clip_with_two_labels_keeps_both(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / f"{A}_000001_000011.mp4")
    (root / "val.csv").write_text(f"{HEADER}sewing,{A},1,11,val\nthreading needle,{A},1,11,val\n")
    (row,) = rows_for(manifest(tmp_path), roots=[root]).rows
    assert [each.label_raw for each in row.annotations] == ["sewing", "threading needle"]
    trap("Kinetics tables", "one clip, both labels kept", "one clip under two labels")


def test_other_interval_of_an_annotated_video_is_not_that_clip(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / "val" / f"{A}_000050_000060.mp4")
    (root / "val.csv").write_text(f"{HEADER}x,{A},1,11,val\n")
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert [(row.clip_id, row.annotations[0].label_raw) for row in listing.rows] == [(f"{A}_000050_000060", None)]
    assert [(line["missing"], line["unannotated"]) for line in listing.reconciliation] == [(0, 1), (1, 0)]
    trap(
        "Kinetics folders",
        "another clip: unannotated; the annotated one is missing",
        "another interval of an annotated video",
    )


def test_clutter_is_counted_and_never_a_row(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw" / "train"
    clip(root / "x" / f"._{A}_000001_000011.mp4")
    clip(root / "x" / ".DS_Store")
    clip(root / "x" / f"{A}_000001_000011.mp4.part")
    clip(root / "x" / f"{A}_000001_000011.info.json", b"{}")
    clip(root / "README")
    clip(root / "x" / f"{B}_000001_000011.mp4")
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert [row.platform_id for row in listing.rows] == [B]
    assert listing.skipped == {"hidden": 2, "unfinished": 1, "other_file": 2}
    trap("Kinetics folders", "counted as hidden, never a row", "._ files and .DS_Store")


def test_unusable_files_become_rows_with_their_reason(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw" / "train"
    clip(root / f"{A}_000001_000011.mp4", b"")
    good = clip(root / f"{B}_000001_000011.mp4")
    (root / f"{C}_000001_000011.mp4").symlink_to(good)
    os.mkfifo(root / f"{D}_000001_000011.mp4")
    (root / "loop").symlink_to(root)
    listing = rows_for(manifest(tmp_path), roots=[root])
    problems = {source_path(row.source_uri).name: row.problem and row.problem[0] for row in listing.rows}
    assert problems == {
        f"{A}_000001_000011.mp4": Reason.EMPTY,
        f"{B}_000001_000011.mp4": None,
        f"{C}_000001_000011.mp4": Reason.SYMLINK,
        f"{D}_000001_000011.mp4": Reason.SPECIAL_FILE,
        "loop": Reason.SYMLINK,
    }
    assert any("loop links to a folder" in note for note in listing.notes)
    trap("Kinetics folders", f"failed: {Reason.EMPTY}", "a file of no bytes")


def test_replacements_take_the_place_of_broken_files(tmp_path: Path, trap: Callable[..., None]) -> None:
    root = tmp_path / "raw"
    clip(root / "train" / f"{A}_000001_000011.mp4", b"")
    clip(root / "train" / f"{B}_000001_000011.mp4")
    clip(root / "replacement_for_corrupted_k400" / f"{A}_000001_000011.mp4", b"good")
    (root / "train.csv").write_text(f"{HEADER}x,{A},1,11,train\nx,{B},1,11,train\n")
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert {row.platform_id: row.source_bytes for row in listing.rows} == {A: 4, B: 5}
    assert listing.skipped["replaced"] == 1
    assert [(line["present"], line["replaced"]) for line in listing.reconciliation] == [(2, 1)]
    assert all(row.problem is None and row.split == "train" for row in listing.rows)
    trap(
        "Kinetics folders",
        "the replacement is read, the broken file counted as replaced",
        "a replacement beside the broken file",
    )


def test_piece_that_may_be_either_of_two_is_named_by_its_bytes(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    clip(root / "val" / f"{A}.mp4")
    (root / "val.csv").write_text(f"{HEADER}x,{A},1,11,val\ny,{A},50,60,val\n")
    (row,) = rows_for(manifest(tmp_path), roots=[root]).rows
    assert (row.clip_id, row.platform_id, row.annotations[0].label_raw) == (None, A, None)


def test_folders_name_the_class_where_there_is_no_table(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    clip(root / "val" / "petting_animal_(not_cat)" / f"{A}_000001_000011.mp4")
    clip(root / "val" / "abseiling" / f"{B}.webm")
    clip(root / "val" / "no class" / f"{C}_000001_000011.mp4")
    listing = rows_for(load_manifest("k400"), roots=[root])
    labels = {row.platform_id: (row.annotations[0].label_raw, row.annotations[0].label_index) for row in listing.rows}
    published = load_manifest("k400").labels
    assert labels == {
        A: ("petting animal (not cat)", published.index("petting animal (not cat)")),
        B: ("abseiling", 0),
        C: (None, None),
    }
    assert by_clip(listing.rows)[None].platform_id == B, "without times the bytes name the clip"


@pytest.mark.parametrize(
    "label", ["massaging person's head", "petting animal (not cat)", "passing American football (not in game)"]
)
def test_a_label_in_any_of_three_spellings_is_one_class(tmp_path: Path, label: str, trap: Callable[..., None]) -> None:
    """Raw as in the tables, of mmaction2 (no quotes, underscores), of torchvision (also no brackets and apostrophes)."""
    as_torchvision = label.replace(" ", "_").translate(str.maketrans("", "", "'()"))
    for number, folder in enumerate((label, label.replace(" ", "_"), as_torchvision)):
        clip(tmp_path / "raw" / "val" / folder / f"{number:011d}_000001_000011.mp4")
    found = rows_for(load_manifest("k400"), roots=[tmp_path / "raw"]).rows
    notes = {(row.annotations[0].label_raw, row.annotations[0].label_index) for row in found}
    assert notes == {(label, load_manifest("k400").labels.index(label))} and len(found) == 3
    trap("Kinetics tables", "one class, one index", "labels spelled raw, as mmaction2 and as torchvision do")


def test_files_no_split_can_be_told_for_are_refused_when_that_is_all(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    clip(root / f"{A}_000001_000011.mp4")
    with pytest.raises(SourceError, match=r"1 files of tiny .* give the tables with --annotations"):
        rows_for(manifest(tmp_path), roots=[root])
    (root / "train.csv").write_text(f"{HEADER}x,{B},1,11,train\n")
    clip(root / f"{B}_000001_000011.mp4")
    listing = rows_for(manifest(tmp_path), roots=[root])
    assert len(listing.rows) == 1
    assert listing.skipped["no_split"] == 1


def test_unknown_split_word_says_how_to_teach_it(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    clip(root / f"{A}_000001_000011.mp4")
    table = root / "all.csv"
    table.write_text(f"{HEADER}x,{A},1,11,secret\n")
    with pytest.raises(SourceError, match=r"Row 1 of .*all\.csv belongs to split 'secret', .* `words`"):
        rows_for(manifest(tmp_path), roots=[root], annotations=[table])


def test_table_that_does_not_read_is_noted_when_found_and_refused_when_given(tree: Path, tmp_path: Path) -> None:
    lists = tree / "k400_train_path.txt"
    lists.write_text("https://example.org/part_0.tar.gz\n")
    listing = rows_for(manifest(tmp_path), roots=[tree])
    assert listing.skipped["table_not_used"] == 1
    assert "k400_train_path.txt" in listing.notes[0]
    with pytest.raises(SourceError, match="no column youtube_id"):
        rows_for(manifest(tmp_path), roots=[tree], annotations=[lists])


def test_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"There is no .*nowhere; give the folder that holds the files with --from\."):
        rows_for(manifest(tmp_path), roots=[tmp_path / "nowhere"])
    with pytest.raises(SourceError, match=r"Where are the files of tiny\? Give their folder with --from\."):
        rows_for(manifest(tmp_path))


@given(
    platform_id=st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True),
    start=st.integers(0, 99_999_000),
    length=st.integers(1, 20_000),
)
def test_name_of_any_clip_reads_back(platform_id: str, start: int, length: int) -> None:
    name = parse_clip_name(kinetics_clip_id(platform_id, start, start + length) + ".mp4")
    assert name is not None
    assert (name.platform_id, name.start_ms, name.end_ms) == (platform_id, start, start + length)


@pytest.mark.parametrize(
    "name", ["README", "a.mp4", "x_000011_000001.mp4", ".mp4", "no_times_here.mp4", "é_000001_000011.mp4"]
)
def test_other_names_name_no_clip(name: str) -> None:
    assert parse_clip_name(name) is None


def test_uri_of_any_name_reads_back(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/a b%#?\xff\xc3\xa9\n.mp4"
    uri = source_uri(raw)
    assert uri.isascii()
    assert os.fsencode(source_path(uri)) == raw
    with pytest.raises(SourceError, match="does not name a local file"):
        source_path("https://example.org/a.mp4")


def test_official_val_tables_of_two_releases_give_one_split(shared_dir: Path, tmp_path: Path) -> None:
    tables = [shared_dir / "real" / "kinetics" / f"k400_val_{name}.parquet" for name in ("2017", "refreshed")]
    clip(tmp_path / "raw" / "val" / "0wR5jVB-WPk_000417_000427.mp4")
    listing = rows_for(load_manifest("k400"), roots=[tmp_path / "raw"], annotations=tables, splits=["val"])
    assert len(listing.reconciliation) == 400
    assert sum(line["annotated"] for line in listing.reconciliation) == 19_906
    assert sum(line["present"] for line in listing.reconciliation) == 1
    assert listing.rows[0].annotations[0].label_index == 0


@pytest.mark.parametrize(
    ("folder", "split"),
    [
        ("train_256/x", "train"),
        ("x/validate", "val"),
        ("k400-val", "val"),
        ("training", "train"),
        ("training dog", "test"),
    ],
)
def test_folders_name_splits_by_whole_words(tmp_path: Path, folder: str, split: str | None) -> None:
    root = tmp_path / "test"  # the user's own name, which says nothing while folders below do
    clip(root / folder / f"{A}_000001_000011.mp4")
    clip(root / "train" / f"{B}_000001_000011.mp4")
    rows = {row.platform_id: row.split for row in rows_for(manifest(tmp_path), roots=[root]).rows}
    assert rows.get(A) == split
