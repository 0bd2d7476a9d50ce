"""Near duplicates among real videos (DEDUP §5): every family found at its true offset, nothing invented."""

from __future__ import annotations

import csv
from pathlib import Path
from types import ModuleType

import pytest

from stmae_data import media
from stmae_data.dedup import DedupReport, dedup
from stmae_data.encode import Encoding, encode_clip

Truth = dict[frozenset[str], dict[str, str]]


@pytest.fixture(scope="module")
def truth(shared_dir: Path) -> Truth:
    with (shared_dir / "real" / "neardup" / "truth.csv").open() as stream:
        return {frozenset((row["file_a"], row["file_b"])): row for row in csv.DictReader(stream)}


@pytest.fixture(scope="module")
def found(
    shared_dir: Path, small_sets: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> tuple[DedupReport, dict[str, str]]:
    """The report of `dedup --dry-run --level content` over all files as one training split, and file names by clip id."""
    workspace, clips, names = tmp_path_factory.mktemp("real"), [], {}
    for number, path in enumerate(sorted((shared_dir / "real" / "neardup").glob("*.mp4"))):
        with media.open_source(path) as descriptor:
            encoded = encode_clip(descriptor, media.probe(descriptor), encoding=Encoding(mode="fast", short_side_px=64))
        clips.append(small_sets.clip("train", number, frames=encoded.hash_frames))
        names[clips[-1]["clip_id"]] = path.name
    small_sets.make(workspace, "real", clips, shard_size=100)
    return dedup(workspace, levels=["content"], dry_run=True), names


def test_every_pair_is_found_and_none_is_invented(found: tuple[DedupReport, dict[str, str]], truth: Truth) -> None:
    report, names = found
    pairs = {frozenset((names[pair.a], names[pair.b])) for pair in report.pairs}
    judged = {pair for pair in truth if truth[pair]["level"] not in ("ignore", "extreme")}
    assert pairs <= set(truth), "a false pair"
    missing = {tuple(sorted(pair)) for pair in judged - pairs}
    assert not {pair for pair in missing if truth[frozenset(pair)]["level"] != "hard"}
    hard = {pair for pair in judged if truth[pair]["level"] == "hard"}
    assert len(hard & pairs) >= 0.8 * len(hard)


def test_offsets_are_within_a_frame_of_the_truth(found: tuple[DedupReport, dict[str, str]], truth: Truth) -> None:
    report, names = found
    for pair in report.pairs:
        row = truth[frozenset((names[pair.a], names[pair.b]))]
        wanted = float(row["a_start"]) - float(row["b_start"])
        wanted = wanted if row["file_a"] == names[pair.a] else -wanted
        assert pair.offset_seconds == pytest.approx(wanted, abs=0.15), (names[pair.a], names[pair.b])
