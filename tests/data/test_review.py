"""What a person is shown of a comparison: every clip that goes and the one it goes for, frames that face each other, tables too."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

from stmae_data.dedup import dedup
from stmae_data.report import render_review


def copies(small_sets: ModuleType, count: int) -> list[dict[str, Any]]:
    """Rows of one file, best first."""
    clips = [
        small_sets.clip("train", number, source="same", stream="same", side=240 - number) for number in range(count)
    ]
    return [each | {"clip_id": f"web_{at:032x}", "row_id": f"{at:032x}"} for at, each in enumerate(clips)]


def test_a_clip_that_goes_for_another_than_the_best_is_reported(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    clips = copies(small_sets, 3)
    best, second, third = (clip["clip_id"] for clip in clips)
    small_sets.make(workspace, "three", clips)
    policy = tmp_path / "policy.toml"
    policy.write_text(f'not_duplicates = [["{best}", "{second}"], ["{best}", "{third}"]]\n')
    report = dedup(workspace, ["three"], levels=["bytes", "stream"], policy=policy, dry_run=True)
    assert report.num_going == 1
    assert [(pair.a, pair.b, pair.level, pair.keep) for pair in report.pairs] == [
        (third, second, "bytes", second),
        (third, second, "stream", second),
    ]
    usual = dedup(workspace, ["three"], levels=["bytes"], dry_run=True)
    assert [(pair.a, pair.keep) for pair in usual.pairs] == [(second, best), (third, best)]


def test_a_copy_whose_stream_is_unknown_goes_too(workspace: Path, small_sets: ModuleType) -> None:
    clips = copies(small_sets, 3)
    clips[0]["stream_sha256"] = None
    small_sets.make(workspace, "one", clips)
    report = dedup(workspace, ["one"], levels=["bytes"], dry_run=True)
    assert {(pair.a, pair.keep) for pair in report.pairs} == {
        (each["clip_id"], clips[0]["clip_id"]) for each in clips[1:]
    }
    # Two pieces cut from one file are no copies of each other, and a third of unknown frames is one of neither.
    clips[2]["stream_sha256"] = "ab" * 32
    small_sets.make(workspace, "two", clips)
    assert not dedup(workspace, ["two"], levels=["bytes"], dry_run=True).would_act


def test_a_table_on_the_other_side_is_shown_as_what_it_is(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    small_sets.make(workspace, "one", [small_sets.clip("train", 0, youtube=("aaaaaaaaaaa", 0, 2))])
    table = tmp_path / "val.csv"
    table.write_text("youtube_id,time_start,time_end\naaaaaaaaaaa,1,11\n")
    report = dedup(workspace, ["one"], against=[str(table)], dry_run=True)
    page = render_review(workspace, report, tmp_path / "review.html").read_text()
    assert [pair.level for pair in report.pairs] == ["video", "overlap"] and page.count("val.csv") == 2
    assert page.count("A row of a table: it has no pictures.") == 2 and "lie over each other" not in page


def test_frames_in_one_column_show_one_moment_where_the_page_says_so(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    def clip(split: str, number: int, video: str, start: int) -> Any:
        return small_sets.clip(split, number, youtube=(video, start, start + 2))  # 2 s are stored

    train = [clip("train", 0, "aaaaaaaaaaa", 0), clip("train", 1, "bbbbbbbbbbb", 0)]
    val = [clip("val", 2, "aaaaaaaaaaa", 1), clip("val", 3, "bbbbbbbbbbb", 5)]
    small_sets.make(workspace, "one", train)
    small_sets.make(workspace, "two", val)
    shown = {}
    for level in ("overlap", "video"):
        report = dedup(workspace, ["one"], against=["two"], levels=[level], dry_run=True)
        page = render_review(workspace, report, tmp_path / "review.html").read_text()
        shown[level] = (re.findall(r"<figcaption>([\d.]+) s<", page), page.count("lie over each other in time"))
    assert shown["overlap"] == (["1.17", "1.50", "1.83", "0.17", "0.50", "0.83"], 1)
    assert shown["video"] == (["0.33", "1.00", "1.67"] * 4, 0)
