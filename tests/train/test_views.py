"""Views: draws keyed by clip number, frames, boxes, pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stmae_data.frames import Planes
from stmae_train.views import (
    START_STREAM,
    Boxes,
    FrameRule,
    center_boxes,
    clip_frames,
    eval_frames,
    philox,
    random_boxes,
    render,
    uniforms,
)

MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.2, 0.25)


def test_philox_meets_the_known_answers_of_its_authors() -> None:
    def words(counter: int, key: int) -> list[int]:
        return [int(each[0]) for each in philox([np.full(1, counter, dtype=np.uint64)] * 4, key=key)]

    assert words(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert words(0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_a_clips_draws_do_not_depend_on_its_batch() -> None:
    together = uniforms(3, [5, 2**40 + 1, 7], count=9, stream=1)
    alone = uniforms(3, [2**40 + 1], count=9, stream=1)
    assert np.array_equal(together[1], alone[0])
    assert together.min() > 0 and together.max() < 1
    assert not np.allclose(uniforms(3, [5], count=9, stream=2), together[0])
    assert not np.allclose(uniforms(4, [5], count=9, stream=1), together[0])


@pytest.mark.parametrize("length", [16, 22, 61, 64, 300])
@pytest.mark.parametrize("start", [1e-9, 0.3, 1 - 1e-9])
def test_aligned_clips_of_layered_sets_ask_for_every_fourth_frame_alone(length: int, start: float) -> None:
    rule = FrameRule(16, 4)
    frames = clip_frames(rule, length=length, fps=30, is_layered=True, start=start)
    assert frames.shape == (16,) and (frames % 4 == 0).all() and frames.min() >= 0 and frames.max() < length
    steps = np.diff(frames)
    # Shorter clips than 61 frames repeat their last wanted frame.
    assert set(steps) <= ({4} if length >= 61 else {4, 0}) and (np.sort(steps)[::-1] == steps).all()


def test_aligned_starts_reach_the_first_and_the_last_possible_frame() -> None:
    rule = FrameRule(4, 4)
    starts = {
        int(clip_frames(rule, length=64, fps=30, is_layered=True, start=start)[0])
        for start in np.linspace(0, 0.999, 99)
    }
    assert min(starts) == 0 and max(starts) == 48 and all(start % 4 == 0 for start in starts)


def test_published_sampling_spaces_frames_as_the_published_code_does() -> None:
    frames = clip_frames(FrameRule(16, 4, sampling="published"), length=300, fps=30, is_layered=True, start=0.5)
    first = 0.5 * (300 - 64)
    wanted = np.clip(np.linspace(first, first + 63, 16), 0, 299).astype(np.int64)
    assert np.array_equal(frames, wanted)
    short = clip_frames(FrameRule(16, 4, sampling="published"), length=20, fps=30, is_layered=True, start=0.5)
    assert np.array_equal(short, np.clip(np.linspace(0, 63, 16), 0, 19).astype(np.int64))


def test_foreign_sets_are_sampled_by_time() -> None:
    frames = clip_frames(FrameRule(8, 4), length=200, fps=15, is_layered=False, start=1e-9)
    assert np.array_equal(frames, np.arange(8) * 2)


def test_segments_give_one_frame_each_and_their_middle_in_a_test() -> None:
    """SPEC-models B2, SSv2: 16 segments with rounded borders, random inside in training, the middle in a test."""
    rule = FrameRule(16, 2, sampling="segments")
    assert rule.draws == 16 and FrameRule(16, 2).draws == 1
    borders = np.rint(48 / 16 * np.arange(17))
    drawn = np.stack(
        [
            clip_frames(rule, length=49, fps=12, is_layered=True, start=each)
            for each in uniforms(0, range(400), count=16, stream=START_STREAM)
        ]
    )
    assert (drawn.min(axis=0) == borders[:-1]).all() and (drawn.max(axis=0) == borders[1:]).all()
    assert abs(np.corrcoef(drawn[:, 0], drawn[:, 1])[0, 1]) < 0.2  # segments are drawn on their own
    one = eval_frames(rule, length=49, fps=12, is_layered=True, views=1)
    assert (one[0] == (borders[:-1] + borders[1:]) // 2).all()
    two = eval_frames(rule, length=97, fps=12, is_layered=True, views=2)
    assert two.shape == (2, 16) and (two[0] < two[1]).all() and (two[1, :-1] <= two[0, 1:]).all()
    short = eval_frames(rule, length=5, fps=12, is_layered=False, views=3)
    assert short.min() >= 0 and short.max() <= 4 and (np.diff(short, axis=1) >= 0).all()


def test_test_views_spread_evenly_and_one_view_stands_in_the_middle() -> None:
    views = eval_frames(FrameRule(4, 4), length=64, fps=30, is_layered=True, views=3)
    assert [int(view[0]) for view in views] == [0, 24, 48]
    assert int(eval_frames(FrameRule(4, 4), length=64, fps=30, is_layered=True, views=1)[0, 0]) == 24


def test_random_boxes_stay_inside_and_keep_their_share() -> None:
    heights, widths = np.full(2000, 48), np.full(2000, 64)
    boxes = random_boxes(
        0, np.arange(2000), heights=heights, widths=widths, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3), flip=True
    )
    assert (boxes.top >= 0).all() and (boxes.left >= 0).all()
    assert (boxes.top + boxes.height <= 48).all() and (boxes.left + boxes.width <= 64).all()
    share = boxes.height * boxes.width / (48 * 64)
    assert share.min() > 0.47 and share.max() <= 1
    assert 0.45 < boxes.is_flipped.mean() < 0.55
    assert boxes.left.min() == 0 and (boxes.left + boxes.width).max() == 64


def test_a_picture_too_narrow_for_any_aspect_gets_the_largest_central_box() -> None:
    boxes = random_boxes(
        0, [0], heights=np.array([8]), widths=np.array([80]), area=(0.9, 1.0), aspect=(3 / 4, 4 / 3), flip=False
    )
    assert (boxes.height[0], boxes.width[0], boxes.left[0]) == (8, 11, 34)


def test_test_crops_are_squares_along_the_long_side() -> None:
    heights, widths = np.array([48]), np.array([64])
    lefts = [int(center_boxes(heights=heights, widths=widths, crop=crop, crops=3).left[0]) for crop in range(3)]
    assert lefts == [0, 8, 16]


def smooth_planes(generator: np.random.Generator, *, frames: int, height: int, width: int) -> Planes:
    def plane(rows: int, columns: int, low: float, high: float) -> np.ndarray:
        coarse = torch.from_numpy(generator.uniform(low, high, (frames, 1, 4, 5)))
        return (
            F.interpolate(coarse, size=(rows, columns), mode="bicubic")
            .clamp(low, high)[:, 0]
            .round()
            .numpy()
            .astype(np.uint8)
        )

    y = plane(height, width, 60, 200)
    u, v = (plane(height // 2, width // 2, 110, 146) for _ in range(2))
    return Planes(y, u, v, {})


def as_batch(planes: Planes) -> tuple[torch.Tensor, ...]:
    return tuple(torch.from_numpy(each)[None] for each in (planes.y, planes.u, planes.v))


def one_box(top: int, left: int, height: int, width: int, *, flip: bool = False) -> Boxes:
    return Boxes(*(np.array([each]) for each in (top, left, height, width)), np.array([flip]))


@pytest.mark.parametrize("box", [(0, 0, 48, 64), (3, 5, 40, 40), (10, 11, 24, 30)])
def test_pixels_are_those_of_colouring_first_and_resizing_after(box: tuple[int, int, int, int]) -> None:
    planes = smooth_planes(np.random.default_rng(0), frames=2, height=48, width=64)
    clips = render(*as_batch(planes), one_box(*box), crop_px=32, mean=MEAN, std=STD)
    assert clips.shape == (1, 3, 2, 32, 32)
    top, left, height, width = box
    rgb = torch.from_numpy(planes.to_rgb(dtype=np.float32))[:, top : top + height, left : left + width]
    wanted = F.interpolate(
        rgb.permute(0, 3, 1, 2).double(), size=(32, 32), mode="bilinear", antialias=True, align_corners=False
    )
    levels = (
        clips[0].transpose(0, 1).double() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    ) * 255
    error = levels - wanted
    assert error.abs().mean() < 0.15 and error.mean().abs() < 0.05  # PERFORMANCE.md, bench_pixels


def test_a_mirrored_box_gives_the_mirrored_pixels() -> None:
    planes = as_batch(smooth_planes(np.random.default_rng(1), frames=2, height=48, width=64))
    plain = render(*planes, one_box(4, 6, 30, 40), crop_px=16, mean=MEAN, std=STD)
    mirrored = render(*planes, one_box(4, 6, 30, 40, flip=True), crop_px=16, mean=MEAN, std=STD)
    assert torch.allclose(plain.flip(-1), mirrored, atol=1e-5)


def test_a_larger_canvas_changes_no_pixel() -> None:
    planes = as_batch(smooth_planes(np.random.default_rng(2), frames=2, height=48, width=64))
    padded = tuple(F.pad(each, (0, 16, 0, 8)) for each in planes)
    args = {"crop_px": 16, "mean": MEAN, "std": STD}
    assert torch.allclose(
        render(*planes, one_box(0, 0, 48, 64), **args), render(*padded, one_box(0, 0, 48, 64), **args), atol=1e-5
    )
