"""The small world: the same bytes from a seed, official layouts, and a truth that holds."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data.demo import MOTIONS, WorldSummary, render_world
from stmae_data.demo.film import encode_film
from stmae_data.demo.plan import Shot, plan_world
from stmae_data.demo.scene import JUNK, Scene, draw, letterbox, mirror
from stmae_data.errors import Reason, UsageError
from stmae_data.files import sha256_file
from stmae_data.fingerprint import hash_luma
from stmae_data.manifest import load_manifest
from stmae_data.media import open_video
from stmae_data.records import KEY_PATTERN, web_clip_id
from stmae_data.sources import rows_for

SCALE = 0.01


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> WorldSummary:
    return render_world(tmp_path_factory.mktemp("demo") / "world", seed=3, scale=SCALE, workers=2)


@pytest.fixture(scope="module")
def truth(world: WorldSummary) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((world.directory / "truth.json").read_text())
    return value


def digests(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(world: WorldSummary, tmp_path: Path) -> None:
    render_world(tmp_path / "again", seed=3, scale=SCALE, workers=1)
    assert digests(tmp_path / "again") == digests(world.directory)


def test_a_standing_world_is_reused_and_another_seed_replaces_it(world: WorldSummary, tmp_path: Path) -> None:
    copy = tmp_path / "world"
    shutil.copytree(world.directory, copy)
    seen: list[tuple[str, int, int]] = []
    again = render_world(copy, seed=3, scale=SCALE, progress=lambda *told: seen.append(told))
    assert (again.is_reused, seen, again.counts) == (True, [], world.counts)
    other = render_world(copy, seed=4, scale=SCALE, progress=lambda *told: seen.append(told))
    assert not other.is_reused
    assert seen[-1] == ("render", other.files, other.files)
    found = {path.relative_to(copy).as_posix() for path in copy.rglob("*") if path.is_file()}
    plan = plan_world(seed=4, scale=SCALE)
    manifests = {f"{name}.toml" for name in world.counts}
    assert found == {*(shot.path for shot in plan.shots), *plan.texts, *manifests, "truth.json", "raw/demo.json"}


def test_a_render_that_was_stopped_starts_again_and_foreign_folders_stay(world: WorldSummary, tmp_path: Path) -> None:
    copy = tmp_path / "world"
    shutil.copytree(world.directory, copy)
    (copy / "truth.json").unlink()
    (copy / "raw" / "demo-web" / "half.mp4").write_bytes(b"half")
    render_world(copy, seed=3, scale=SCALE)
    assert digests(copy) == digests(world.directory)
    (copy / "raw" / "demo.json").unlink()
    (copy / "truth.json").unlink()
    with pytest.raises(UsageError, match="was not written by stmae-data demo"):
        render_world(copy, seed=3, scale=SCALE)


def test_a_scale_outside_its_range_is_a_usage_error(tmp_path: Path) -> None:
    for scale in (0.0, 1.5):
        with pytest.raises(UsageError, match=r"wanted a share in \(0, 1\]"):
            render_world(tmp_path / "world", scale=scale)
    assert not (tmp_path / "world").exists()


def test_the_full_world_has_the_counts_of_the_budget() -> None:
    plan = plan_world(seed=0, scale=1.0)
    assert plan.counts["demo-k400"] == {"train": 2480, "val": 400}
    assert 3000 <= sum(plan.counts["demo-k700"].values()) <= 3400
    assert 2200 <= plan.counts["demo-web"]["train"] <= 2600
    rows = list(csv.DictReader(plan.texts["raw/demo-k400/annotations/train.csv"].splitlines()))
    assert sum(not row["label"] for row in rows) == 2000
    labels = [row["label"] for row in rows if row["label"]]
    assert {labels.count(motion) for motion in MOTIONS} == {60}
    paths = [shot.path for shot in plan.shots]
    assert len(set(paths)) == len(paths)
    ids = {row["youtube_id"] for row in rows}
    assert all(len(each) == 11 and KEY_PATTERN.fullmatch(each) for each in ids)
    assert sum(each.startswith(("-", "_")) for each in ids) > 50
    assert {each["kind"] for each in plan.leaks} >= {"same_id", "same_video", "overlapping", "mirrored", "letterboxed"}


def test_tables_are_official_and_every_row_has_its_file(world: WorldSummary) -> None:
    for name, split, header in (
        ("demo-k400", "val", "label,youtube_id,time_start,time_end,split,is_cc"),
        ("demo-k700", "validate", "label,youtube_id,time_start,time_end,split"),
    ):
        lines = (world.directory / "raw" / name / "annotations" / f"{split}.csv").read_text().splitlines()
        assert lines[0] == header
        assert lines[1].startswith('"')
    for name in ("demo-k400", "demo-k700"):
        manifest = load_manifest(world.directory / f"{name}.toml")
        listing = rows_for(manifest)
        found = {split: sum(row.split == split for row in listing.rows) for split in ("train", "val")}
        assert found == dict(world.counts[name])
        assert all(row.problem is None and row.annotations for row in listing.rows)
        labels = {each.label_raw for row in listing.rows for each in row.annotations if each.label_raw}
        assert labels == set(MOTIONS)


def test_demo_k700_holds_all_training_clips_of_demo_k400(world: WorldSummary) -> None:
    ours, theirs = (
        {path.name: sha256_file(path) for path in (world.directory / "raw" / name / "train").rglob("*.mp4")}
        for name in ("demo-k400", "demo-k700")
    )
    assert ours.items() < theirs.items()


def test_leaks_of_the_truth_stand_on_disk_at_the_levels_it_says(world: WorldSummary, truth: dict[str, Any]) -> None:
    raw = world.directory / "raw"
    train = {path.stem: path for path in (raw / "demo-k700" / "train").rglob("*.mp4")}
    val = {path.stem: path for path in (raw / "demo-k400" / "val").rglob("*.mp4")}
    assert len({leak["eval_clip"] for leak in truth["leaks"]}) == len(truth["leaks"]) == world.leaks
    for leak in truth["leaks"]:
        one, other = leak["train_clip"], leak["eval_clip"]
        (id_a, start_a, end_a), (id_b, start_b, end_b) = one.rsplit("_", 2), other.rsplit("_", 2)
        overlaps = id_a == id_b and int(start_a) < int(end_b) and int(start_b) < int(end_a)
        assert ("id" in leak["levels"]) == (one == other), leak
        assert ("video" in leak["levels"]) == (id_a == id_b), leak
        assert ("overlap" in leak["levels"]) == overlaps, leak
        assert ("bytes" in leak["levels"]) == (sha256_file(train[one]) == sha256_file(val[other])), leak
        assert leak["level"] == leak["levels"][0]
    known = {leak["train_clip"].rsplit("_", 2)[0] for leak in truth["leaks"] if "video" in leak["levels"]}
    assert {name.rsplit("_", 2)[0] for name in train} & {name.rsplit("_", 2)[0] for name in val} == known


def test_duplicates_and_broken_files_of_the_truth_stand_in_the_web_folder(
    world: WorldSummary, truth: dict[str, Any]
) -> None:
    for pair in truth["duplicates"]:
        one, other = (sha256_file(world.directory / pair[name]) for name in ("file", "of_file"))
        assert (pair["clip"], pair["of_clip"]) == (web_clip_id(one), web_clip_id(other))
        assert (one == other) == (pair["level"] == "bytes")
    assert {each["reason"] for each in truth["broken"]} == {
        Reason.EMPTY,
        Reason.NOT_MEDIA,
        Reason.TRUNCATED,
        Reason.NO_VIDEO,
        Reason.TOO_SHORT,
    }
    assert all((world.directory / each["file"]).is_file() for each in truth["broken"])
    assert (truth["schema_version"], truth["seed"], truth["scale"]) == (1, 3, SCALE)


def test_sidecars_name_the_class_in_tags_and_some_are_hostile(world: WorldSummary) -> None:
    manifest = load_manifest(world.directory / "demo-web.toml")
    rows = rows_for(manifest).rows
    assert len(rows) == world.counts["demo-web"]["train"]
    tags = {each["tag"].replace("_", "").replace(" ", "") for row in rows for each in row.web.get("tags", ())}
    assert tags > {motion.replace(" ", "") for motion in MOTIONS}
    titles = {json.loads(text)["title"] for path, text in plan_world(seed=0, scale=0.1).texts.items() if "web" in path}
    assert any("<script>" in title for title in titles)
    assert any(title.startswith("=") for title in titles)


@pytest.mark.parametrize("container", ["mp4", "webm"])
@pytest.mark.parametrize("kind", [MOTIONS[0], *JUNK])
def test_files_decode_to_the_frames_that_were_drawn(kind: str, container: str) -> None:
    frames = draw(Scene(kind, (5,), num_frames=20, width_px=86))
    data = encode_film(frames, fps=30, container=container, crf=15)
    with open_video(data) as video:
        luma = np.stack([frame.to_ndarray(format="gray") for frame in video.decode(video=0)])
    assert luma.shape == (20, 64, 86)
    # `gray` is full range, the files hold 16 to 235.
    wanted = (frames[..., 0].astype(float) - 16) * 255 / 219
    assert np.abs(luma - wanted).mean() < (12 if kind == "noise" else 4)


def test_every_clip_fits_sixteen_frames_four_apart(world: WorldSummary) -> None:
    for shot in plan_world(seed=0, scale=0.05).shots:
        if shot.scene is not None and not shot.edit and "demo-k400" in shot.path:
            assert shot.scene.num_frames / shot.scene.fps * 30 >= 61
    path = next((world.directory / "raw" / "demo-k400" / "val").rglob("*.mp4"))
    with open_video(path.read_bytes()) as video:
        assert sum(1 for _ in video.decode(video=0)) in (55, 66)


def test_a_single_frame_does_not_tell_the_class() -> None:
    """At any instant every class shows the same distribution of pictures: at time zero even the same picture."""
    for number in range(3):
        first = draw(Scene(MOTIONS[0], (number,), num_frames=1))
        for motion in MOTIONS[1:]:
            np.testing.assert_array_equal(draw(Scene(motion, (number,), num_frames=1)), first)


def test_motions_move_and_stills_do_not() -> None:
    for kind in (*MOTIONS, *JUNK):
        frames = draw(Scene(kind, (1,))).astype(int)
        moved = np.abs(frames[::16] - frames[:1]).max(axis=(1, 2, 3))[1:]
        assert (moved == 0).all() if kind == "still" else (moved > 20).all(), kind


def test_a_piece_of_a_scene_is_the_same_scene() -> None:
    whole = Scene("drifting up", (8,))
    later = replace(whole, start_seconds=1.0, num_frames=30)
    np.testing.assert_array_equal(draw(later), draw(whole)[30:60])
    frames = draw(later)
    assert letterbox(frames, bar_px=12).shape == (30, 88, 64, 3)
    np.testing.assert_array_equal(mirror(mirror(frames)), frames)


def test_no_two_scenes_look_alike_to_the_frame_hashes() -> None:
    def middle(shot: Shot) -> NDArray[np.uint8]:
        assert shot.scene is not None
        return draw(replace(shot.scene, start_seconds=1.0, num_frames=1, width_px=64))[0, :, :, 0]

    shots = [
        shot
        for shot in plan_world(seed=0, scale=0.05).shots
        if shot.scene is not None and "demo-k400" in shot.path and shot.scene.kind in MOTIONS
    ]
    hashes, quality = hash_luma(np.stack([middle(shot) for shot in shots]))
    assert quality.min() >= 50
    distance = np.bitwise_count(hashes[:, None] ^ hashes[None]).sum(axis=-1).astype(int)
    assert distance[~np.eye(len(hashes), dtype=bool)].min() > 64
