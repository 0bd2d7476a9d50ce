"""Duplicates and leaks in small sets: every level found, nothing invented, decisions with evidence, the same bytes whatever happens."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from stmae_data import files
from stmae_data.dedup import DedupReport, Policy, count_leaks, dedup, leaks, load_policy
from stmae_data.dedup.decide import Edge, choose_within
from stmae_data.demo.scene import MOTIONS, Scene, draw
from stmae_data.errors import SelectionError, SetError, SourceError, UsageError
from stmae_data.records import LEVELS, SetRef
from stmae_data.report import render_review
from stmae_data.shards import open_set
from stmae_data.verify import verify


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, small_sets: ModuleType) -> tuple[Path, dict[str, dict[str, Any]]]:
    """`old` holds train and val, `new` a training split with a leak or copy of every kind, and four clips of its own."""
    workspace = tmp_path_factory.mktemp("dedup")
    clip, pictures = small_sets.clip, small_sets.pictures
    val = {
        "same_id": clip("val", 0, youtube=("aaaaaaaaaaa", 0, 10)),
        "other_interval": clip("val", 1, youtube=("bbbbbbbbbbb", 0, 10)),
        "overlapping": clip("val", 2, youtube=("-cccccccccc", 8, 18)),
        "encoded": clip("val", 3, look=77, youtube=("ddddddddddd", 0, 2)),
        "mirrored": clip("val", 4, look=88, youtube=("eeeeeeeeeee", 0, 2)),
        "bytes": clip("val", 5, source="twin", stream="twin", look=99),
        "lonely": clip("val", 6),
    }
    small_sets.make(workspace, "old", [*val.values(), *(clip("train", number) for number in range(5))])
    new = {
        "same_id": clip("train", 10, youtube=("aaaaaaaaaaa", 0, 10)),
        "other_interval": clip("train", 11, youtube=("bbbbbbbbbbb", 20, 30)),
        "overlapping": clip("train", 12, youtube=("-cccccccccc", 0, 10)),
        "encoded": clip("train", 13, frames=pictures(77, count=20, start=4), youtube=("fffffffffff", 5, 7)),
        "mirrored": clip("train", 14, frames=pictures(88)[:, :, ::-1].copy()),
        "bytes": clip("train", 15, source="twin", stream="twin", look=99),
        "long": clip("train", 20, frames=pictures(55, count=24)),
        "short": clip("train", 21, frames=pictures(55, count=16, start=3)),
        "big": clip("train", 22, look=56, side=480, stream="s"),
        "small": clip("train", 23, look=56, side=120, stream="s"),
        "one_half": clip("train", 24, youtube=("hhhhhhhhhhh", 0, 2)),
        "other_half": clip("train", 25, youtube=("hhhhhhhhhhh", 2, 4)),
        "own": clip("train", 26),
    }
    small_sets.make(workspace, "new", list(new.values()))
    return workspace, {"val": val, "new": new}


@pytest.fixture
def world(workspace: Path, made: tuple[Path, dict[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The two sets in a workspace of their own, and the clips they were made from."""
    shutil.copytree(made[0], workspace, dirs_exist_ok=True)
    return made[1]


GOES = {"same_id", "other_interval", "overlapping", "encoded", "mirrored", "bytes", "short", "small"}


def ids(clips: dict[str, Any], names: set[str]) -> set[str]:
    return {clips[name]["clip_id"] for name in names}


def standing(folder: Path) -> set[str]:
    books = sorted((folder / "meta" / "ledger").glob("*.parquet"))
    return {row["clip_id"] for row in files.read_table(books, "SELECT clip_id FROM book WHERE outcome = 'written'")}


def test_every_planted_leak_and_copy_goes_and_nothing_else(workspace: Path, world: dict[str, Any]) -> None:
    before = open_set(workspace, "old").digest
    report = dedup(workspace)
    folder = workspace / "sets" / "new"
    assert standing(folder) == ids(world["new"], set(world["new"]) - GOES)
    assert open_set(workspace, "old").digest == before and report.is_applied
    assert verify(workspace, "new").ok
    levels = {(pair.a, pair.level) for pair in report.pairs if pair.b_label == "old:val"}
    new = world["new"]
    for name, level in [
        ("same_id", "id"),
        ("same_id", "overlap"),
        ("other_interval", "video"),
        ("overlapping", "overlap"),
    ]:
        assert (new[name]["clip_id"], level) in levels
    for name, level in [("encoded", "content"), ("mirrored", "content"), ("bytes", "bytes"), ("bytes", "stream")]:
        assert (new[name]["clip_id"], level) in levels
    assert (new["other_interval"]["clip_id"], "overlap") not in levels
    assert verify(workspace, "old").ok


def test_a_second_run_finds_nothing_more_and_changes_nothing(
    workspace: Path, world: dict[str, Any], small_sets: ModuleType
) -> None:
    dedup(workspace)
    once = small_sets.snapshot(workspace / "sets" / "new")
    again = dedup(workspace)
    assert not again.would_act and not again.pairs and "Nothing has to go" in again.closing_line()
    assert small_sets.snapshot(workspace / "sets" / "new") == once


def test_a_dry_run_reports_the_same_and_writes_nothing(
    workspace: Path, world: dict[str, Any], small_sets: ModuleType
) -> None:
    before = small_sets.snapshot(workspace / "sets" / "new")
    dry = dedup(workspace, dry_run=True)
    assert small_sets.snapshot(workspace / "sets" / "new") == before
    assert dry.would_act and not dry.is_applied and "would go" in dry.closing_line()
    assert dry.as_json()["pairs"] == dedup(workspace).as_json()["pairs"]


def test_the_json_has_the_shape_of_the_format(workspace: Path, world: dict[str, Any]) -> None:
    told = dedup(workspace, dry_run=True).as_json()
    assert set(told) == {"pairs", "groups", "not_comparable", "applied", "policy"}
    assert all(set(pair) == {"a", "b", "level", "offset_seconds", "distance", "keep"} for pair in told["pairs"])
    encoded = next(pair for pair in told["pairs"] if pair["level"] == "content" and pair["offset_seconds"] == -0.5)
    assert encoded["a"] == world["new"]["encoded"]["clip_id"] and encoded["keep"] == encoded["b"]
    json.dumps(told, allow_nan=False)


def test_a_decision_holds_what_is_needed_to_judge_it_again(workspace: Path, world: dict[str, Any]) -> None:
    dedup(workspace)
    (book,) = (workspace / "sets" / "new" / "meta" / "decisions").glob("*.parquet")
    rows = {(row["clip_id"], row["verb"]): row for row in files.read_table(book)}
    seen = rows[world["new"]["encoded"]["clip_id"], "drop"]
    assert (seen["reason"], seen["level"], seen["other_clip_id"], seen["other_split"]) == (
        "leak",
        "content",
        world["val"]["encoded"]["clip_id"],
        "val",
    )
    assert (
        seen["view"] == "full" and seen["distance_bits"] <= 31 and seen["offset_ms"] == -500 and seen["threshold"] == 64
    )
    assert len(seen["frames"]) == 3 and len(seen["frames"][0]["hash"]) == 64
    assert (seen["num_near_frames"], seen["num_skipped_frames"]) == (12, 0)
    assert seen["source_sha256"] and seen["other_source_sha256"] and seen["policy_version"].startswith("default/")
    assert "mirrored" in rows[world["new"]["mirrored"]["clip_id"], "drop"]["other_view"]
    overlap = rows[world["new"]["overlapping"]["clip_id"], "drop"]
    assert (
        overlap["levels"] == ["video", "overlap"]
        and overlap["overlap_ms"] == 2000
        and overlap["iou"] == pytest.approx(2 / 18)
    )
    short = rows[world["new"]["short"]["clip_id"], "drop"]
    assert (short["reason"], short["other_clip_id"]) == ("duplicate", world["new"]["long"]["clip_id"])
    assert short["offset_ms"] == 375 * -1 or short["offset_ms"] == 375
    ledgers = sorted((workspace / "sets" / "new" / "meta" / "ledger").glob("*.parquet"))
    named = files.read_table(ledgers, "SELECT decision_id FROM book WHERE outcome = 'dropped'")
    assert {row["decision_id"] for row in named} <= {row["decision_id"] for row in rows.values()}
    groups = files.read_table(workspace / "sets" / "new" / "meta" / "groups.parquet")
    assert {row["clip_id"] for row in groups if not row["is_keeper"]} == ids(world["new"], GOES)


def test_a_new_set_leaves_the_source_and_repeats_to_the_same_digest(
    workspace: Path, world: dict[str, Any], small_sets: ModuleType
) -> None:
    before = small_sets.snapshot(workspace / "sets" / "new")
    report = dedup(workspace, ["new"], against=["old:val"], to="clean")
    assert small_sets.snapshot(workspace / "sets" / "new") == before
    assert standing(workspace / "sets" / "clean") == ids(world["new"], set(world["new"]) - GOES)
    assert report.sets[0].set_name == "clean" and verify(workspace, "clean").ok
    again = dedup(workspace, ["new"], against=["old:val"], to="clean")
    assert again.sets[0].digest == report.sets[0].digest
    assert not leaks(workspace, ["clean"], ["old:val"]).has_findings
    with pytest.raises(UsageError, match="--to writes one new set"):
        dedup(workspace, to="everything")


def test_levels_named_are_the_only_ones_looked_at(workspace: Path, world: dict[str, Any]) -> None:
    report = dedup(workspace, levels=["id"], dry_run=True)
    assert {pair.level for pair in report.pairs} == {"id"}
    with pytest.raises(UsageError, match="'twin' is not a level"):
        dedup(workspace, levels=["twin"])


def test_training_sets_do_not_take_clips_from_one_another(workspace: Path, small_sets: ModuleType) -> None:
    for name in ("one", "two"):
        small_sets.make(
            workspace, name, [small_sets.clip("train", n, youtube=("kkkkkkkkkkk", n, n + 1)) for n in range(3)]
        )
    report = dedup(workspace)
    assert not report.would_act and report.across == (("one:train", "two:train", 3),)
    assert ["one:train", "two:train", "id (both stay)", "3", "3"] in report.as_table()[1]


def test_clips_without_a_usable_frame_are_named(workspace: Path, small_sets: ModuleType) -> None:
    black = np.full((16, 64, 64), 16, np.uint8)
    dark = [small_sets.clip("train", number, frames=black) for number in range(3)]
    small_sets.make(workspace, "dark", [*dark, small_sets.clip("train", 9), small_sets.clip("val", 1, frames=black)])
    report = dedup(workspace, levels=["content"])
    assert len(report.not_comparable) == 4 and not report.pairs


def test_a_pair_told_apart_by_a_person_stays(workspace: Path, world: dict[str, Any], tmp_path: Path) -> None:
    pair = [world["new"]["long"]["clip_id"], world["new"]["short"]["clip_id"]]
    policy = tmp_path / "looked.toml"
    policy.write_text(f"not_duplicates = [{json.dumps(pair)}]\n")
    report = dedup(workspace, policy=policy)
    assert pair[1] in standing(workspace / "sets" / "new") and report.policy.startswith("looked/")


def test_a_filter_goes_first_and_its_clip_never_stays_for_a_copy(
    workspace: Path, world: dict[str, Any], tmp_path: Path
) -> None:
    long, short = world["new"]["long"], world["new"]["short"]
    policy = tmp_path / "strict.toml"
    policy.write_text(f"[filters]\nlengthy = \"clip_id = '{long['clip_id']}' -- the better copy of two\"\n")
    report = dedup(workspace, ["new"], against=["old:val"], policy=policy)
    rows = {row["clip_id"]: row for row in files.read_table(open_set(workspace, "new").ledgers())}
    gone = rows[long["clip_id"]]
    assert (gone["outcome"], gone["reason"], gone["reason_detail"]) == ("dropped", "filtered", "filter lengthy")
    assert rows[short["clip_id"]]["outcome"] == "written"
    assert dict(report.filtered) == {("new:train", "lengthy"): 1}
    decisions = files.read_table(sorted((workspace / "sets" / "new" / "meta" / "decisions").glob("*.parquet")))
    (decision,) = [row for row in decisions if row["reason"] == "filtered"]
    assert decision["decision_id"] == gone["decision_id"] and "the better copy of two" in decision["detail"]
    assert verify(workspace, "new").ok and not dedup(workspace, ["new"], policy=policy).would_act


def test_a_filter_that_is_no_condition_changes_nothing(workspace: Path, world: dict[str, Any], tmp_path: Path) -> None:
    policy = tmp_path / "bad.toml"
    before = open_set(workspace, "new").digest
    for text in ("no_such_column > 1", "true) OR (SELECT count(*) > 0 FROM read_csv('/etc/passwd')"):
        policy.write_text(f'[filters]\nwrong = "{text}"\n')
        with pytest.raises(SelectionError):
            dedup(workspace, ["new"], policy=policy)
    assert open_set(workspace, "new").digest == before and not (workspace / "sets/new/meta/decisions").exists()


def test_a_policy_with_an_unknown_key_or_a_wrong_value_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    for text, message in [
        ("gate_bit = 3", "unknown key 'gate_bit'; did you mean 'gate_bits'"),
        ("gate_bits = -1", "wanted a whole number from 0"),
        ("hash_cap = 0", "hash_cap = 0, so that no frames would be compared; wanted at least 1"),
        ("min_quality = 101", "wanted at most 100"),
        ("min_share_within = 2", "wanted a share from 0 to 1"),
        ("gate_bits = ", "cannot be read as TOML"),
        ('not_duplicates = ["a"]', "not_duplicates"),
        ('filters = ["still"]', r"wanted a table \[filters\]"),
    ]:
        path.write_text(text)
        with pytest.raises(UsageError, match=message):
            load_policy(path)
    path.write_text("gate_bits = 20\nmin_share_within = 1")
    assert load_policy(path).gate_bits == 20
    assert load_policy(None).version == Policy().version


def test_an_empty_workspace_is_told_in_one_sentence(workspace: Path) -> None:
    with pytest.raises(SetError, match="There is no sealed set"):
        dedup(workspace)


def test_nothing_goes_by_a_chain() -> None:
    edges = [Edge(0, 1, "content"), Edge(1, 2, "content"), Edge(2, 3, "content")]
    choices = choose_within(edges, is_told_apart=lambda a, b: False)
    assert [(choice.number, choice.other) for choice in choices] == [(1, 0), (3, 2)]


def test_copies_of_one_file_all_go_for_the_one_that_stays() -> None:
    edges = [Edge(1, 2, "bytes"), Edge(1, 3, "bytes"), Edge(0, 1, "content")]
    choices = choose_within(edges, is_told_apart=lambda a, b: False)
    assert [(choice.number, choice.other) for choice in choices] == [(1, 0), (3, 2)]


def test_leaks_counts_distinct_rows_of_both_sides(workspace: Path, world: dict[str, Any]) -> None:
    report = leaks(workspace, ["new"], ["old"])
    (pair,) = report.as_json()["pairs"]
    assert (pair["train"], pair["eval"]) == ("new:train", "old:val")
    counts = {level: pair[level] for level in LEVELS}
    assert counts["bytes"] == counts["id"] == {"train": 1, "eval": 1}
    assert counts["video"] == {"train": 3, "eval": 3} and counts["overlap"] == {"train": 2, "eval": 2}
    assert counts["content"] == {"train": 3, "eval": 3} and pair["not_comparable"] == 0
    assert report.closing_line() == "new:train has 3 clips duplicated in old:val: 3 of its 7 clips (level video)."
    assert report.has_findings
    assert count_leaks(workspace, SetRef("new"), SetRef("old", "val"), ["id", "video"]) == {
        "id": {"train": 1, "eval": 1},
        "video": {"train": 3, "eval": 3},
    }


def test_leaks_reads_only_and_fix_takes_only_leaks_out(
    workspace: Path, world: dict[str, Any], small_sets: ModuleType
) -> None:
    before = small_sets.snapshot(workspace / "sets" / "new")
    leaks(workspace, ["new"], ["old:val"])
    assert small_sets.snapshot(workspace / "sets" / "new") == before
    report = leaks(workspace, ["new"], ["old:val"], fix=True)
    assert report.fixed is not None and report.fixed.is_applied
    assert standing(workspace / "sets" / "new") == ids(world["new"], set(world["new"]) - (GOES - {"short", "small"}))


def test_bare_tables_compare_by_id_alone(workspace: Path, world: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "val.csv"
    table.write_text(
        "label,youtube_id,time_start,time_end,split\nrunning,aaaaaaaaaaa,0,10,val\nrunning,bbbbbbbbbbb,25,35,val\n"
    )
    (pair,) = leaks(workspace, ["new"], [str(table)]).as_json()["pairs"]
    assert pair["content"] is None and pair["bytes"] is None and pair["stream"] is None
    assert pair["video"] == {"train": 2, "eval": 2} and pair["overlap"] == {"train": 2, "eval": 2}
    bare = tmp_path / "ids.csv"
    bare.write_text("youtube_id\naaaaaaaaaaa\n")
    (pair,) = leaks(workspace, ["new"], [str(bare)]).as_json()["pairs"]
    assert pair["id"] is None and pair["overlap"] is None and pair["video"] == {"train": 1, "eval": 1}
    with pytest.raises(UsageError, match="is no set that clips could be taken out of"):
        leaks(workspace, [str(table)], [str(table)], fix=True)
    with pytest.raises(SourceError, match="There is no table"):
        leaks(workspace, [str(tmp_path / "none.csv")], ["old"])


def kill(workspace: Path, fault: str) -> int:
    script = "import sys; from pathlib import Path; from stmae_data.dedup import dedup; dedup(Path(sys.argv[1]))"
    environment = {**os.environ, "STMAE_FAULT": fault}
    command = [sys.executable, "-c", script, str(workspace)]
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


STEPS = [
    f"{point}.{step}:1"
    for point in ("decisions", "groups", "intent", "shard", "ledger", "seal")
    for step in ("rename", "done")
]


@pytest.mark.parametrize(
    "steps", [["groups.rename:1", "ledger.done:2", "seal.rename:2"], pytest.param(STEPS, marks=pytest.mark.battery)]
)
def test_killed_anywhere_a_rerun_ends_with_the_same_bytes(
    workspace: Path, world: dict[str, Any], small_sets: ModuleType, tmp_path: Path, steps: list[str]
) -> None:
    small_sets.make(
        workspace, "zoo", [small_sets.clip("train", 1, youtube=("aaaaaaaaaaa", 0, 10)), small_sets.clip("train", 2)]
    )
    clean = tmp_path / "clean"
    shutil.copytree(workspace, clean)
    dedup(clean)
    for step in steps:
        killed = tmp_path / step.replace(":", "-")
        shutil.copytree(workspace, killed)
        assert kill(killed, step) == -9, step
        dedup(killed)
        for name in ("old", "new", "zoo"):
            assert small_sets.snapshot(killed / "sets" / name) == small_sets.snapshot(clean / "sets" / name), (
                step,
                name,
            )


def test_the_review_page_shows_every_pair_while_both_clips_stand(
    workspace: Path, world: dict[str, Any], tmp_path: Path
) -> None:
    told = []
    page = tmp_path / "review.html"

    def look(report: DedupReport) -> None:
        told.append((report.is_applied, report.num_going))
        render_review(workspace, report, page)

    done = dedup(workspace, ["new"], against=["old:val"], show=look)
    assert told == [(False, done.num_going)]
    text = page.read_text()
    for pair in done.pairs:
        assert text.count(pair.a) >= 1 and text.count(pair.b) >= 1
    assert "<script" not in text
    assert text.count(" · goes</small>") == len(done.pairs)
    assert "not_duplicates = [\n  [" in text.replace("&#34;", '"')
    rows = [int(cell) for row in done.as_histogram()[1] for cell in row[1:2]]
    assert sum(rows) == sum(pair.distance is not None for pair in done.pairs)


def test_pictures_are_compared_by_their_one_frame(workspace: Path, small_sets: ModuleType, tmp_path: Path) -> None:
    def shot(split: str, number: int, frames: Any) -> dict[str, Any]:
        made: dict[str, Any] = small_sets.clip(split, number, frames=frames, media_kind="image")
        return made

    noise = np.random.default_rng(0)
    first, second, third = (small_sets.pictures(seed, count=1) for seed in (1, 2, 3))
    saved_anew = (first + noise.integers(-10, 11, first.shape)).astype(np.uint8)
    clips = {
        "anew": shot("train", 0, saved_anew),
        "mirrored": shot("train", 1, second[:, :, ::-1].copy()),
        "own": shot("train", 2, third),
        "flat": shot("train", 3, np.full((1, 64, 64), 90, np.uint8)),
        "copy of own": shot("train", 4, third),
        "still": small_sets.clip("train", 5, frames=np.repeat(small_sets.pictures(4, count=1), 16, axis=0)),
    }
    evaluation = [shot("val", 6, first), shot("val", 7, second), shot("val", 8, small_sets.pictures(4, count=1))]
    small_sets.make(workspace, "pictures", [*clips.values(), *evaluation])
    report = dedup(workspace, levels=["content"], dry_run=True)
    named = {clip["clip_id"]: name for name, clip in clips.items()}
    leaking = {named[pair.a] for pair in report.pairs if pair.b not in named}
    assert leaking == {"anew", "mirrored", "still"}
    assert {frozenset((named[p.a], named[p.b])) for p in report.pairs if p.b in named} == {
        frozenset(("own", "copy of own"))
    }
    assert report.not_comparable == {clips["flat"]["clip_id"]: "a picture of quality below 80"}
    strict = tmp_path / "strict.toml"
    strict.write_text("picture_bits = 0\n")
    missed = dedup(workspace, levels=["content"], policy=strict, dry_run=True)
    assert clips["anew"]["clip_id"] in {pair.a for pair in missed.near_misses}
    assert clips["anew"]["clip_id"] not in {pair.a for pair in missed.pairs}


def test_what_cannot_be_compared_is_told_with_its_reason_though_nothing_goes(
    workspace: Path, small_sets: ModuleType
) -> None:
    clip, black = small_sets.clip, np.full((16, 64, 64), 16, np.uint8)
    seen = np.concatenate([black, small_sets.pictures(5, count=3)])
    clips = {
        "brief": clip("train", 0, frames=small_sets.pictures(1, count=6)),
        "brief copy": clip("val", 1, frames=small_sets.pictures(1, count=6)),
        "black": clip("train", 2, frames=black),
        "nearly black": clip("train", 3, frames=seen),
        "still": clip("train", 4, frames=np.repeat(small_sets.pictures(6, count=1), 16, axis=0)),
        "plain": clip("train", 5),
    }
    folder = small_sets.make(workspace, "mixed", list(clips.values()), shard_size=100)
    report = dedup(workspace)
    told = {name: report.not_comparable.get(each["clip_id"]) for name, each in clips.items()}
    dark = "hardly a frame of quality 50 or more"
    assert told == {
        "brief": "shorter than 0.8 s",
        "brief copy": "shorter than 0.8 s",
        "black": dark,
        "nearly black": dark,
        "still": None,
        "plain": None,
    }
    assert (
        not report.would_act and ["not comparable: shorter than 0.8 s", "", "content", "2", ""] in report.as_table()[1]
    )
    (table,) = (folder / "meta" / "decisions").glob("*.parquet")
    rows = files.read_table(table)
    assert {row["clip_id"]: row["detail"] for row in rows} == {
        clips[name]["clip_id"]: told[name] for name in ("brief", "black", "nearly black")
    }
    before = small_sets.snapshot(folder)
    assert open_set(workspace, "mixed").version == 1 and not dedup(workspace).would_act
    assert small_sets.snapshot(folder) == before
    (folder / "meta" / "fingerprints" / "train-000000.parquet").unlink()
    without = dedup(workspace, levels=["content"], dry_run=True).not_comparable
    assert without[clips["plain"]["clip_id"]].startswith("no frame hashes of") and len(without) == 6


def test_a_frame_that_too_many_clips_share_still_finds_every_copy(
    workspace: Path, small_sets: ModuleType, tmp_path: Path
) -> None:
    shown = small_sets.pictures(7)
    copies = [small_sets.clip("train", number, frames=shown) for number in range(12)]
    small_sets.make(workspace, "crowd", [*copies, small_sets.clip("val", 20, frames=shown)], shard_size=100)
    policy = tmp_path / "few.toml"
    policy.write_text("hash_cap = 3\n")
    report = dedup(workspace, ["crowd:train"], against=["crowd:val"], policy=policy, dry_run=True, levels=["content"])
    assert {pair.a for pair in report.pairs} == {clip["clip_id"] for clip in copies}
    (workspace / "sets" / "crowd" / "meta" / "set.json").rename(tmp_path / "aside.json")
    small_sets.make(workspace, "alone", copies, shard_size=100)
    assert len(dedup(workspace, ["alone"], policy=policy, dry_run=True, levels=["content"]).pairs) >= 11
    assert dedup(workspace, ["alone"], policy=policy, levels=["content"]).num_going == 11


def test_a_still_background_does_not_pull_the_offset(workspace: Path, small_sets: ModuleType) -> None:
    def film(number: int, start_seconds: float) -> Any:
        motion = MOTIONS[number % len(MOTIONS)]
        return draw(Scene(motion, (number,), start_seconds=start_seconds, num_frames=17, fps=8))[..., 0]

    clips = [small_sets.clip("train", number, frames=film(number, 0.75)) for number in range(8)]
    whole = [small_sets.clip("val", 20 + number, frames=film(number, 0.0)) for number in range(8)]
    small_sets.make(workspace, "moving", [*clips, *whole], shard_size=100)
    pairs = dedup(workspace, levels=["content"], dry_run=True).pairs
    twin = {a["clip_id"]: b["clip_id"] for a, b in zip(clips, whole, strict=True)}
    assert {pair.a: pair.b for pair in pairs} == twin
    assert all(pair.offset_seconds == pytest.approx(-0.75, abs=0.13) for pair in pairs)


def test_a_split_that_is_cleaned_is_not_compared_with_itself(workspace: Path, world: dict[str, Any]) -> None:
    assert not dedup(workspace, ["old:val"], dry_run=True).would_act
    with pytest.raises(UsageError, match="old:val and old:val hold the same clips, every one would go"):
        dedup(workspace, ["old:val"], against=["old:val"])
    with pytest.raises(UsageError, match="hold the same clips"):
        leaks(workspace, ["old:val"], ["old:val"], fix=True)
    assert standing(workspace / "sets" / "old") >= {clip["clip_id"] for clip in world["val"].values()}
