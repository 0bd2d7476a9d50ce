"""AVA Actions in its official layout: annotated seconds of whole films, with boxes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.errors import Reason, SourceError
from stmae_data.manifest import load_manifest
from stmae_data.records import PLAN_COLUMNS
from stmae_data.sources import rows_for
from stmae_data.sources.ava import read_action_list

A, B, C = "-5KQ66BBWC4", "_-Z6wFjXtGQ", "0f39OWEqJ24"
BOX = "0.031,0.162,0.670,0.995"
ACTIONS = """
label {
  name: "bend/bow (at the waist)"
  label_id: 1
  label_type: PERSON_MOVEMENT
}
label {
  name: "sit"
  label_id: 11
  label_type: PERSON_MOVEMENT
}
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Two of three train films, one test film, the zip of tables unpacked."""
    for name in (f"trainval/{A}.mkv", f"trainval/{B}.mp4", f"test/{C}.webm", "trainval/aaaaaaaaaaa.mp4"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"film")
    tables = tmp_path / "ava_v2.2"
    tables.mkdir()
    (tables / "ava_train_v2.2.csv").write_text(
        f"{A},0902,{BOX},11,0\n{A},0902,{BOX},1,0\n{A},0903,{BOX},11,1\n{A},0950,{BOX},11,1\nccccccccccc,0902,{BOX},11,0\n"
    )
    (tables / "ava_val_v2.2.csv").write_text(f"{B},1000,{BOX},11,0\n{B},1001\n")
    (tables / "ava_test_v2.2.txt").write_text(f"{C}\n")
    (tables / "ava_included_timestamps_v2.2.txt").write_text("0902\n0903\n")
    (tables / "ava_train_excluded_timestamps_v2.2.csv").write_text(f"{A},0950\n")
    (tables / "ava_action_list_v2.2.pbtxt").write_text(ACTIONS)
    (tables / "ava_val_predicted_boxes.csv").write_text(f"{B},1000,{BOX},,0.995\n{B},1500,{BOX},,0.5\n")
    return tmp_path


def test_annotated_seconds_become_clips_cut_from_the_film(tree: Path, trap: Callable[..., None]) -> None:
    listing = rows_for(load_manifest("ava"), roots=[tree])
    assert [(row.clip_id, row.split, row.start_ms, row.end_ms) for row in listing.rows] == [
        (f"ava_{C}_000900_000904", "test", 900_000, 904_000),
        (f"ava_{C}_000901_000905", "test", 901_000, 905_000),
        (f"ava_{A}_000900_000904", "train", 900_000, 904_000),
        (f"ava_{A}_000901_000905", "train", 901_000, 905_000),
        (f"ava_{A}_000948_000952", "train", 948_000, 952_000),
        (f"ava_{B}_000998_001002", "val", 998_000, 1_002_000),
        (f"ava_{B}_000999_001003", "val", 999_000, 1_003_000),
    ]
    assert {(row.is_cut, row.platform) for row in listing.rows} == {(True, "youtube")}
    assert [(row.clip_id, row.problem) for row in listing.rows if row.problem] == [
        (f"ava_{A}_000948_000952", (Reason.FILTERED, "the release excludes this second"))
    ]
    assert listing.skipped["not_annotated"] == 1
    assert {line["split"]: (line["annotated"], line["present"]) for line in listing.reconciliation} == {
        "train": (3, 2),
        "val": (2, 2),
        "test": (2, 2),
    }
    trap(
        "AVA v2.2",
        "second 902 is the clip 900 to 904 of the film",
        "eight columns without a header",
        "zero-padded seconds (0902)",
    )
    trap("AVA v2.2", "dropped: filtered", "excluded timestamps")
    trap("AVA v2.2", "clips of every included second, without boxes", "test films named without boxes")
    trap("AVA v2.2", "found by their id", "films as mp4, mkv or webm")
    trap("AVA v2.2", "counted on both sides", "films not annotated, annotations without a film")


def test_boxes_keep_actions_people_and_scores(tree: Path, trap: Callable[..., None]) -> None:
    rows = {row.clip_id: row for row in rows_for(load_manifest("ava"), roots=[tree]).rows}
    first = rows[f"ava_{A}_000900_000904"]
    boxes = first.annotations[0].boxes
    assert boxes is not None
    corners = {"x1": 0.031, "y1": 0.162, "x2": 0.670, "y2": 0.995}
    assert boxes[0] == {"second": 902.0, **corners, "action_id": 11, "person_id": 0, "score": None}
    assert [box["action_id"] for box in boxes] == [11, 1]
    assert first.web["title"] == "bend/bow (at the waist), sit"
    detected = rows[f"ava_{B}_000998_001002"].annotations[0].boxes
    assert detected is not None
    assert detected[1] == {"second": 1000.0, **corners, "action_id": None, "person_id": None, "score": 0.995}
    assert rows[f"ava_{B}_000999_001003"].annotations[0].boxes == (), "a second without a box is annotated too"
    trap("AVA v2.2", "one entry per action, person kept", "several rows for one box")
    trap("AVA v2.2", "an annotated clip without boxes", "a timestamp without a box")
    trap("AVA v2.2", "kept with its score, without an action", "person detections with an empty action")


def test_rows_fit_the_plan_table(tree: Path, tmp_path: Path) -> None:
    row = rows_for(load_manifest("ava"), roots=[tree]).rows[2]
    annotation = {"dataset": "ava", "boxes": list(row.annotations[0].boxes or ())}
    columns = {"annotations": PLAN_COLUMNS["annotations"]}
    files.commit_table(tmp_path / "t.parquet", [{"annotations": [annotation]}], columns, point="test")
    (read,) = files.read_table(tmp_path / "t.parquet")
    assert read["annotations"][0]["boxes"][0]["action_id"] == 11


def test_splits_choose_and_classes_are_refused(tree: Path) -> None:
    listing = rows_for(load_manifest("ava"), roots=[tree], splits=["val"])
    assert {row.split for row in listing.rows} == {"val"}
    assert [line["split"] for line in listing.reconciliation] == ["val"]
    with pytest.raises(SourceError, match="boxes have classes and clips have none"):
        rows_for(load_manifest("ava"), roots=[tree], classes=["sit"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{A},0902,0.1,0.1,1.5,0.9,1,0", "wanted 0 <= x1 <= x2 <= 1"),
        (f"{A},0902,0.1,0.1,x,0.9,1,0", "has a box"),
        (f"{A},0902,0.1", "Row 1 of"),
        (f"{A},noon", "Row 1 of"),
        (f"../etc,0902,{BOX},1,0", "Row 1 of"),
    ],
)
def test_damaged_rows_are_told(tree: Path, line: str, message: str) -> None:
    (tree / "ava_v2.2" / "ava_train_v2.2.csv").write_text(line + "\n")
    with pytest.raises(SourceError, match=message):
        rows_for(load_manifest("ava"), roots=[tree])


def test_missing_or_unknown_tables_say_which(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"ava has no tables here; unpack its annotation zip"):
        rows_for(load_manifest("ava"), roots=[tree / "trainval"])
    (tmp_path / "other.csv").write_text("")
    with pytest.raises(SourceError, match=r"other\.csv is no table of ava by its name"):
        rows_for(load_manifest("ava"), roots=[tree], annotations=[tmp_path / "other.csv"])
    given = [tree / "ava_v2.2" / "ava_val_v2.2.csv"]
    assert {row.split for row in rows_for(load_manifest("ava"), roots=[tree], annotations=given).rows} == {"val"}


def test_action_lists_of_both_grammars_are_read(tree: Path, shared_dir: Path, trap: Callable[..., None]) -> None:
    assert read_action_list(tree / "ava_v2.2" / "ava_action_list_v2.2.pbtxt") == {
        1: "bend/bow (at the waist)",
        11: "sit",
    }
    evaluated = read_action_list(shared_dir / "real" / "labels" / "ava_action_list_v2.1_60.pbtxt")
    lines = (shared_dir / "real" / "labels" / "label_map_ava.txt").read_text().splitlines()
    assert evaluated == {int(number): name for number, name in (line.split(": ", 1) for line in lines)}
    assert len(evaluated) == 60
    with pytest.raises(SourceError, match="names no action"):
        read_action_list(tree / "ava_v2.2" / "ava_train_v2.2.csv")
    trap("AVA v2.2", "both read", "two grammars of action lists")


def test_sample_of_the_official_table_is_read(tmp_path: Path, shared_dir: Path) -> None:
    labels = shared_dir / "real" / "labels"
    (tmp_path / "ava_val_v2.2.csv").write_bytes((labels / "ava_tiny_ava_sample.csv").read_bytes())
    excluded = (labels / "ava_tiny_ava_excluded_timestamps_sample.csv").read_bytes()
    (tmp_path / "ava_val_excluded_timestamps_v2.2.csv").write_bytes(excluded)
    (tmp_path / f"{C}.mp4").write_bytes(b"film")
    rows = rows_for(load_manifest("ava"), roots=[tmp_path]).rows
    assert rows
    excluded_ = [row.clip_id for row in rows if row.problem == (Reason.FILTERED, "the release excludes this second")]
    assert f"ava_{C}_000901_000905" in excluded_ and len(excluded_) == 1


def test_ava_kinetics_has_seven_columns_and_fractions_of_seconds(tree: Path, trap: Callable[..., None]) -> None:
    """Its times count in the original: a Kinetics clip is taken as it is, a whole video is cut."""
    inside, outside, whole = "kkkkkkkkkkk_000010_000020", "kkkkkkkkkkk_000050_000060", "wwwwwwwwwww"
    for name in (inside, outside, whole):
        (tree / f"{name}.mp4").write_bytes(b"clip")
    lines = [f"kkkkkkkkkkk,12.5,{BOX},11", f"kkkkkkkkkkk,12.5,{BOX},1", f"kkkkkkkkkkk,19.003,{BOX},1"]
    lines += [f"{whole},0.701,{BOX},11", f"{whole},30.25,{BOX},1"]
    (tree / "ava_v2.2" / "kinetics_train_v1.0.csv").write_text("\n".join(lines) + "\n")
    listing = rows_for(load_manifest("ava"), roots=[tree])
    found = {row.clip_id: row for row in listing.rows}
    piece = found[inside]
    assert (piece.start_ms, piece.end_ms, piece.is_cut, piece.platform_id) == (10_000, 20_000, False, "kkkkkkkkkkk")
    boxes = piece.annotations[0].boxes
    assert boxes is not None
    assert [(box["second"], box["action_id"], box["person_id"]) for box in boxes] == [
        (12.5, 11, None),
        (12.5, 1, None),
        (19.003, 1, None),
    ]
    assert outside not in found and listing.skipped["not_annotated"] == 2
    cuts = {name: (row.start_ms, row.end_ms) for name, row in found.items() if row.platform_id == whole}
    assert cuts == {
        f"ava_{whole}_000000000ms_000002701ms": (0, 2_701),
        f"ava_{whole}_000028250ms_000032250ms": (28_250, 32_250),
    }
    assert all(found[name].is_cut for name in cuts)
    trap(
        "AVA v2.2",
        "a Kinetics clip as it is, a whole video cut; person unknown",
        "AVA-Kinetics: seven columns, fractions of seconds",
    )
