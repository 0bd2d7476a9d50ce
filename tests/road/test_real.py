"""Real files all the way: every file of ../shared/real is built, each with an outcome, and what was accepted trains."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stmae_data import files
from stmae_data.build import BuildRequest, build
from stmae_data.manifest import load_manifest
from stmae_data.shards import open_set

TOO_SHORT = {
    "decord_unordered.mov",
    "decord_video_0.mov",
    "decord_video_90.mov",
    "decord_video_180.mov",
    "decord_video_270.mov",
    "h265_video.mp4",
    "test_non_zero_start.mp4",
    "testsrc2_mpeg4.mp4",
    "testsrc2_odd_height_and_width_mpeg2.mp4",
    "testsrc2_odd_width_mpeg2.mp4",
}
"""Fewer than 16 frames each (../shared/real/README.md gives their rates and durations)."""


@pytest.fixture(scope="module")
def built(shared_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workspace = tmp_path_factory.mktemp("real")
    roots = (shared_dir / "real" / "videos", shared_dir / "real" / "neardup")
    build(BuildRequest(workspace, load_manifest("web"), roots=roots, name="real", workers=1))
    return workspace


def test_every_real_file_has_the_outcome_a_person_would_give_it(built: Path, shared_dir: Path) -> None:
    rows = files.read_table(open_set(built, "real").ledgers())
    found = {row["source_uri"].rsplit("/", 1)[1]: row for row in rows}
    names = {path.name for folder in ("videos", "neardup") for path in (shared_dir / "real" / folder).iterdir()}
    assert set(found) == names
    assert {name for name, row in found.items() if row["reason"] == "not_media"} == {"clips.csv", "truth.csv"}
    assert {name for name, row in found.items() if row["reason"] == "too_short"} == TOO_SHORT
    twins = {name for name, row in found.items() if row["reason"] == "duplicate"}
    assert len(twins & {"dj_video1.mp4", "dj_video6.mp4"}) == len(twins & {"pool_part_0.mp4", "pool_part_1.mp4"}) == 1
    assert Counter(row["outcome"] for row in rows) == {"written": len(rows) - 14, "dropped": 12, "failed": 2}
    assert found["nasa_13013_rotated.mp4"]["flags"] == ["upright"]
    assert (found["nasa_13013_rotated.mp4"]["width_px"], found["nasa_13013_rotated.mp4"]["height_px"]) == (270, 480)
    for row in rows:
        if row["outcome"] == "written":
            assert min(row["stored_width_px"], row["stored_height_px"]) <= min(256, row["width_px"], row["height_px"])


def test_fifty_steps_on_them_bring_the_loss_down_and_leave_pictures(built: Path) -> None:
    from stmae_train.pretrain import PretrainRequest, clips_of, pretrain
    from stmae_train.recipes import recipe

    wanted = recipe("demo")
    clips = clips_of(built, ["real"], wanted, steps=50)
    losses: list[float] = []
    request = PretrainRequest(
        built, ("real",), wanted, built / "runs" / "fifty", clips=clips, log_every=1, device="cpu", pictures=4
    )
    result = pretrain(request, watch=lambda record: losses.append(record.loss))
    assert result.steps == 50 and len(losses) == 50
    assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5])
    assert len(list((built / "runs" / "fifty" / "pictures").glob("*.png"))) >= 4
