"""Annotation tables in every layout they come in, and the sentence for those that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from stmae_data import files
from stmae_data.errors import SourceError
from stmae_data.sources import TableClip, read_table_clips

A, B = "-abc_DEF-01", "__23456789a"


def read(folder: Path, name: str, text: str, *, needs_times: bool = False) -> list[TableClip]:
    path = folder / name
    path.write_text(text)
    return read_table_clips(path, needs_times=needs_times)


@pytest.mark.parametrize(
    ("quirk", "text"),
    [
        (
            "six columns, with is_cc (K400)",
            f"label,youtube_id,time_start,time_end,split,is_cc\nplaying cards,{A},84,94,train,0\n",
        ),
        (
            "five columns (K600, K700)",
            f"label,youtube_id,time_start,time_end,split\nplaying cards,{A},84,94,train\n",
        ),
        (
            "columns in another order",
            f"youtube_id,split,time_end,time_start,label\n{A},training,94.0,84.0,playing cards\n",
        ),
        ("times written 84.0", f"label,youtube_id,time_start,time_end,split\nplaying cards,{A},84.0,94.0,train\n"),
        (
            "labels in quotes",
            f'"label","youtube_id","time_start","time_end","split"\n"playing cards","{A}","84","94","train"\n',
        ),
        (
            "labels in quotes",
            f'\ufefflabel,youtube_id,time_start,time_end,split\r\n"""playing cards""",{A},84,94,train\r\n\r\n',
        ),
        (None, f"label;YouTube-ID;Time Start;Time End;subset\nplaying cards;{A};84;94;train\n"),
        # an index column without a name, as pandas and one release of the bucket leave it
        (
            "an index column in front, with and without a name (K400 test)",
            f"label,youtube_id,time_start,time_end,split\n0,playing cards,{A},84,94,train\n",
        ),
        (
            "an index column in front, with and without a name (K400 test)",
            f",label,youtube_id,time_start,time_end,split\n0,playing cards,{A},84,94,train\n",
        ),
    ],
)
def test_csv_columns_are_found_by_name(tmp_path: Path, quirk: str | None, text: str, trap: Callable[..., None]) -> None:
    (clip,) = read(tmp_path, "train.csv", text, needs_times=True)
    assert (clip.platform_id, clip.start_ms, clip.end_ms) == (A, 84_000, 94_000)
    assert (clip.split, clip.label, clip.row_number) == ("train", "playing cards", 1)
    if quirk is not None:
        trap("Kinetics tables", "columns are found by their header; same row", quirk)


def test_csv_without_labels_has_none(tmp_path: Path, trap: Callable[..., None]) -> None:
    (clip,) = read(tmp_path, "test.csv", f"youtube_id,time_start,time_end,split\n{A},1,11,test\n")
    assert clip.label is None
    assert clip.is_cc is None
    first, second = read(tmp_path, "train.csv", f"label,youtube_id,time_start,time_end\nx,{A},1,11\n,{B},1.5,11\n")
    assert (first.label, first.split) == ("x", None)
    assert (second.label, second.start_ms) == (None, 1500)
    trap("Kinetics tables", "read; the label is unknown (NULL)", "four columns, without a label (K600 test)")


@pytest.mark.parametrize(
    ("word", "split"), [("validate", "val"), ("val", "val"), ("Validation", "val"), ("extra", "extra")]
)
def test_split_words_are_made_one(tmp_path: Path, word: str, split: str, trap: Callable[..., None]) -> None:
    (clip,) = read(tmp_path, "a.csv", f"youtube_id,time_start,time_end,split\n{A},1,11,{word}\n")
    assert clip.split == split
    if word == "validate":
        trap("Kinetics tables", "read as val", "split word validate")


@pytest.mark.parametrize(
    ("text", "label", "index", "split"),
    [
        (f"parasailing,{A},84,94,train,0\nparasailing,{B},84,94,train,1\n", "parasailing", None, "train"),
        (f"{A},84,94,riding a bike,train\n{B},84,94,riding a bike,train\n", "riding a bike", None, "train"),
        (f"{A}\t84\t94\tcurling (sport)\n{B}\t84\t94\tcurling (sport)\n", "curling (sport)", None, None),
        (f"riding a bike {A} 84 94 train\nriding a bike {B} 84 94 train\n", "riding a bike", None, "train"),
        (f"{A} 84 94\n{B} 84 94\n", None, None, None),
        (f"train/riding a bike/{A}_000084_000094.mp4\n{B}_000084_000094.mp4\n", "riding a bike", None, "train"),
        (f"riding_a_bike/{A}_000084_000094.mp4 12\n{B}_000084_000094.mp4 13\n", None, 12, None),
        (f"/data/val/{A}_000084_000094.mp4,riding a bike\n{B}_000084_000094.mp4,x\n", "riding a bike", None, "val"),
        (f"{A}_000084_000094\n{B}_000084_000094\n", None, None, None),
    ],
)
def test_table_without_header_is_read_by_its_content(
    tmp_path: Path, text: str, label: str | None, index: int | None, split: str | None, trap: Callable[..., None]
) -> None:
    first, second = read(tmp_path, "train.txt", text, needs_times=True)
    assert (first.platform_id, first.start_ms, first.end_ms) == (A, 84_000, 94_000)
    assert second.platform_id == B
    assert (first.label, first.label_index, first.split) == (label, index, split)
    trap("Kinetics tables", "columns told by what they hold", "a txt list of unknown layout (K600)")


def test_lists_of_whole_files_have_no_times(tmp_path: Path) -> None:
    first, _ = read(tmp_path, "val.txt", f"val/{A}.mp4 3\nval/{B}.mkv 4\n")
    assert (first.platform_id, first.start_ms, first.label_index, first.split) == (A, None, 3, "val")


def test_deepmind_json_is_read(tmp_path: Path, trap: Callable[..., None]) -> None:
    value = {
        A: {"annotations": {"label": "x", "segment": [84.0, 94.0]}, "duration": 10.0, "subset": "validate", "url": "u"},
        B: {"annotations": {"segment": [1.0, 11.0]}, "duration": 10.0, "subset": "test", "url": "u"},
    }
    first, second = read(tmp_path, "validate.json", json.dumps(value), needs_times=True)
    assert (first.platform_id, first.start_ms, first.label, first.split) == (A, 84_000, "x", "val")
    assert (second.platform_id, second.end_ms, second.label, second.split) == (B, 11_000, None, "test")
    wrapped = {"database": {A: {"annotations": [{"label": "x", "segment": [84, 94]}], "subset": "training"}}}
    (clip,) = read(tmp_path, "all.json", json.dumps(wrapped))
    assert (clip.label, clip.split, clip.end_ms) == ("x", "train", 94_000)
    trap("Kinetics tables", "same rows as the csv", "DeepMind json, keyed by id")


def test_rows_as_json_are_read(tmp_path: Path) -> None:
    lines = [{"youtube_id": A, "time_start": 1, "time_end": 11}, {"youtube_id": B, "label": "x"}]
    for name, text in (("a.json", json.dumps(lines)), ("a.jsonl", "\n".join(map(json.dumps, lines)))):
        first, second = read(tmp_path, name, text)
        assert (first.start_ms, second.start_ms, second.label) == (1000, None, "x")


def test_parquet_is_read(tmp_path: Path) -> None:
    path = tmp_path / "train.parquet"
    columns = {
        "youtube_id": "VARCHAR",
        "time_start": "INTEGER",
        "time_end": "DOUBLE",
        "label": "VARCHAR",
        "is_cc": "BOOLEAN",
    }
    row = {"youtube_id": A, "time_start": 1, "time_end": 11.5, "label": None, "is_cc": True}
    files.commit_table(path, [row], columns, point="test")
    assert read_table_clips(path) == [TableClip(A, 1000, 11_500, is_cc=True, row_number=1)]


def test_empty_table_has_no_rows(tmp_path: Path) -> None:
    assert read(tmp_path, "train.csv", "") == []
    assert read(tmp_path, "train.txt", "\n\n") == []
    assert read(tmp_path, "train.json", "{}") == []
    assert read(tmp_path, "train.csv", "youtube_id,time_start,time_end\n") == []


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        (
            "a.csv",
            b"label,time_start,time_end\nx,1,2\n",
            "no column youtube_id: found label, time_start, time_end, wanted you",
        ),
        ("a.csv", f"label,youtube_id\nx,{A}\n".encode(), "no column time_start or time_end"),
        ("a.txt", b"just some words\nand more\n", "no column youtube_id: found just some words"),
        ("a.txt", b"https://example.org/part_0.tar.gz\n", "no column youtube_id"),
        ("a.csv", f"youtube_id,time_start,time_end\n{A},11,1\n".encode(), "Row 1 of .* runs from '11' to '1'"),
        ("a.csv", f"youtube_id,time_start,time_end\n{A},x,1\n".encode(), "runs from 'x'"),
        ("a.csv", f"youtube_id,time_start,time_end\n{A},nan,1\n".encode(), "runs from 'nan'"),
        ("a.csv", b"youtube_id,time_start,time_end\n#NAME?,1,2\n", "Row 1 of .* has '#NAME.' for its YouTube id"),
        ("a.csv", b"youtube_id,time_start,time_end\n../../etc,1,2\n", "for its YouTube id"),
        ("a.csv", b"youtube_id\n\xff\xfe\n", "not UTF-8 text at byte 11"),
        ("a.json", b"{", "not readable JSON"),
        ("a.json", b"[" * 100_000, "not readable JSON"),
        ("a.json", b'{"a": 1}', "not a list of clips"),
        ("a.parquet", b"no parquet", "not readable parquet"),
    ],
)
def test_table_that_is_none_is_told_in_one_sentence(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message) as caught:
        read_table_clips(path, needs_times=True)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_table_is_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        read_table_clips(tmp_path / "none.csv")
    with pytest.raises(SourceError, match="parquet"):
        read_table_clips(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("name", "count", "labels"),
    [
        ("k400_val_2017", 19_906, 400),
        ("k600_val_2018", 30_000, 600),
        ("k600_test_2018", 72_924, 0),
        ("k400_train_minikinetics200_ids", 80_000, 0),
    ],
)
def test_official_tables_are_read_whole(shared_dir: Path, name: str, count: int, labels: int) -> None:
    clips = read_table_clips(shared_dir / "real" / "kinetics" / f"{name}.parquet")
    assert len(clips) == count
    assert len({clip.label for clip in clips} - {None}) == labels


def test_rows_of_something_something_are_ids_of_its_own(tmp_path: Path) -> None:
    rows = [{"id": "78687", "label": "holding potato", "template": "Holding [something]", "placeholders": ["potato"]}]
    for name, text in (
        ("train.json", json.dumps(rows)),
        ("test.json", json.dumps([{"id": 78687}])),
        ("test-answers.csv", "78687;Holding something\n"),
    ):
        (clip,) = read(tmp_path, name, text)
        assert (clip.platform, clip.platform_id, clip.start_ms) == ("ssv2", "78687", None)
    (clip,) = read(tmp_path, "train.csv", f"id\n{A}\n")
    assert clip.platform == "youtube"
    (clip,) = read(tmp_path, "train.csv", "youtube_id\n78687654321\n")
    assert clip.platform == "youtube"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "ava_val_v2.2.csv",
            f"{A},0902,0.031,0.162,0.670,0.995,12,0\n{A},0902,0.031,0.162,0.670,0.995,17,0\n{B},0001,0,0.2,1,1.000,79,0\n",
        ),
        ("ava_val_predicted_boxes.csv", f"{A},0902,0.031,0.162,0.670,0.995,,0.97\n{B},0001,0.1,0.2,0.5,0.9,,0.99\n"),
        ("ava_kinetics_val_v1.0.csv", f"{A},902.0,0.1,0.2,0.5,0.9,12\n{B},1.0\n"),
    ],
)
def test_boxes_are_seconds_of_a_film_with_what_is_around_them(tmp_path: Path, name: str, text: str) -> None:
    first, second = read(tmp_path, name, text)
    assert (first.platform_id, first.start_ms, first.end_ms, first.row_number) == (A, 900_000, 904_000, 1)
    assert (second.platform_id, second.start_ms, second.end_ms) == (B, 0, 3000)


def test_places_in_a_frame_are_no_times(tmp_path: Path) -> None:
    first, _ = read(tmp_path, "a.csv", f"{A},0.1,0.5,jump\n{B},0.2,1.0,jump\n")
    assert (first.start_ms, first.label) == (None, "jump")
    (clip,) = read(tmp_path, "a.csv", f"{A},0,1\n")
    assert (clip.start_ms, clip.end_ms) == (0, 1000)


def test_a_box_without_its_second_is_told(tmp_path: Path) -> None:
    lines = [f"{A},0902,0.031,0.162,0.670,0.995,12,0"] * 1000 + [f"{A},x,0.1,0.2,0.3,0.4,1,0"]
    with pytest.raises(SourceError, match=r"Row 1001 of .* wanted video id, second"):
        read(tmp_path, "ava_val_v2.2.csv", "\n".join(lines))


def test_a_bare_list_of_ids_is_read(tmp_path: Path) -> None:
    first, second = read(tmp_path, "ava_test_v2.2.txt", f"{A}\n{B}\n")
    assert (first.platform_id, first.start_ms, second.platform_id) == (A, None, B)
