"""What `leaks` counts, and that it never calls clean what it could not compare."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import pytest

from stmae_data import files
from stmae_data.dedup import count_leaks, dedup, leaks
from stmae_data.errors import SetError, SourceError
from stmae_data.records import SetRef


def test_an_evaluation_set_without_an_evaluation_split_is_no_clean_bill(
    workspace: Path, small_sets: ModuleType
) -> None:
    clips = [small_sets.clip("train", number, youtube=("aaaaaaaaaaa", number, number + 1)) for number in range(2)]
    small_sets.make(workspace, "one", clips)
    small_sets.make(workspace, "two", clips[:1])
    for compare in (leaks, dedup):
        with pytest.raises(SetError, match=r"Set two has no evaluation split \(it has train\); .* as two:SPLIT"):
            compare(workspace, ["one"], against=["two"])
    assert leaks(workspace, ["one"], ["two:train"]).has_findings
    small_sets.make(workspace, "three", [small_sets.clip("val", 0) | {"outcome": "failed", "reason": "truncated"}])
    with pytest.raises(SetError, match="three:val holds no clip, so nothing can be compared"):
        leaks(workspace, ["one"], ["three"])
    assert not dedup(workspace, ["one"], dry_run=True).would_act  # where none is named, none has to be there


def test_a_set_with_a_dot_in_its_name_stands_with_all_its_evaluation_splits(
    workspace: Path, small_sets: ModuleType
) -> None:
    small_sets.make(workspace, "one", [small_sets.clip("train", 0)])
    small_sets.make(workspace, "k600.v2", [small_sets.clip("test", 1), small_sets.clip("val", 2)])
    report = leaks(workspace, ["one"], ["k600.v2"])
    assert [pair.evaluation for pair in report.pairs] == ["k600.v2:test", "k600.v2:val"]


def test_a_table_without_rows_is_refused(workspace: Path, small_sets: ModuleType, tmp_path: Path) -> None:
    small_sets.make(workspace, "one", [small_sets.clip("train", 0, youtube=("aaaaaaaaaaa", 0, 1))])
    table = tmp_path / "val.csv"
    for text in ("", "youtube_id,time_start,time_end\n"):
        table.write_text(text)
        with pytest.raises(SourceError, match=r"val\.csv has no rows, so nothing can be compared"):
            leaks(workspace, ["one"], [str(table)])
        with pytest.raises(SourceError, match="has no rows"):
            leaks(workspace, [str(table)], ["one:train"])
    lost = tmp_path / "val.parquet"
    files.commit_table(lost, [], {"label": "VARCHAR"}, point="test")
    with pytest.raises(SourceError, match="no column youtube_id: found label"):
        leaks(workspace, ["one"], [str(lost)])


def test_a_table_of_something_something_meets_its_own_ids(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    clips = [small_sets.clip("train", number, platform="ssv2", platform_id=str(100 + number)) for number in range(4)]
    small_sets.make(workspace, "ssv2", clips)
    table = tmp_path / "validation.json"
    table.write_text(json.dumps([{"id": str(number), "template": "Holding [something]"} for number in range(102, 110)]))
    (pair,) = leaks(workspace, ["ssv2"], [str(table)]).as_json()["pairs"]
    assert pair["id"] == pair["video"] == {"train": 2, "eval": 2} and pair["overlap"] is None


def test_a_table_of_ava_meets_the_seconds_it_annotates(workspace: Path, shared_dir: Path, tmp_path: Path) -> None:
    train, table = tmp_path / "train.csv", shared_dir / "real" / "labels" / "ava_tiny_ava_sample.csv"
    train.write_text("youtube_id,time_start,time_end\n0f39OWEqJ24,0,10\n_-Z6wFjXtGQ,898,908\n_-Z6wFjXtGQ,900,904\n")
    (pair,) = leaks(workspace, [str(train)], [str(table)]).as_json()["pairs"]
    # The table has 0f39OWEqJ24 at 902 and 903 and _-Z6wFjXtGQ at 902, each with several boxes.
    assert pair["video"] == {"train": 3, "eval": 3}
    assert pair["overlap"] == {"train": 2, "eval": 1} and pair["id"] == {"train": 1, "eval": 1}


def test_a_set_without_fingerprints_is_unknown_by_content_not_clean(workspace: Path, small_sets: ModuleType) -> None:
    small_sets.make(workspace, "one", [small_sets.clip("train", number, look=number) for number in range(2)])
    folder = small_sets.make(workspace, "two", [small_sets.clip("val", number, look=number) for number in range(2)])
    (pair,) = leaks(workspace, ["one"], ["two"]).as_json()["pairs"]
    assert pair["content"] == {"train": 2, "eval": 2} and pair["not_comparable"] == 0
    (folder / "meta" / "fingerprints" / "val-000000.parquet").unlink()
    (pair,) = leaks(workspace, ["one"], ["two"]).as_json()["pairs"]
    assert pair["content"] is None and pair["bytes"] == {"train": 0, "eval": 0} and pair["not_comparable"] == 2
    assert "content" not in count_leaks(workspace, SetRef("one"), SetRef("two", "val"))


def test_what_could_not_be_compared_at_all_is_said(workspace: Path, small_sets: ModuleType, tmp_path: Path) -> None:
    small_sets.make(workspace, "web", [small_sets.clip("train", 0)])
    table = tmp_path / "val.csv"
    table.write_text("youtube_id,time_start,time_end\naaaaaaaaaaa,1,11\n")
    report = leaks(workspace, ["web"], [str(table)])
    assert report.closing_line() == "web:train and val.csv could not be compared at any level, which proves nothing."
    assert not report.has_findings
