"""Views: which frames and which part of the picture a draw takes from a video.

Every draw is keyed by (seed, global clip number) through a counter-based generator, so workers, processes and restarts change
nothing, and two runs with one seed share their starts, crops and flips whatever data they read (STUDY.md, common random numbers).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Boxes",
    "FrameRule",
    "center_boxes",
    "clip_frames",
    "eval_frames",
    "random_boxes",
    "uniforms",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

LAYER_STEP = 4
"""In a `layered-4` clip every 4th frame can be decoded without its neighbours (PERFORMANCE.md)."""

START_STREAM, CROP_STREAM = 16, 17
_CROP_TRIES = 10  # torchvision and both MAE-ST code bases try ten times, then fall back to the largest central crop


def uniforms(seed: int, numbers: Sequence[int] | Ints, *, count: int, stream: int) -> Floats:
    """Random numbers [B, count] in (0, 1), one row per global number, from Philox4x32-10 (Salmon et al. 2011).

    A row depends on (seed, number, stream) alone; numpy's generators promise no stable streams between versions.
    """
    blocks = -(-count // 4)
    low: Words = np.repeat(np.asarray(numbers, dtype=np.uint64)[:, None], blocks, axis=1)  # [B, blocks]
    block: Words = np.broadcast_to(np.arange(blocks, dtype=np.uint64), low.shape)
    counter: list[Words] = [low & _MASK, low >> _SHIFT, block, np.full_like(block, stream)]
    words = np.stack(philox(counter, key=seed), axis=-1).reshape(len(numbers), blocks * 4)[:, :count]
    return (words.astype(np.float64) + 0.5) * 2.0**-32


_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox(counter: Sequence[NDArray[np.uint64]], *, key: int) -> list[NDArray[np.uint64]]:
    """Philox4x32-10 over arrays: four arrays of counter words in, four arrays of 32-bit words (held as uint64) out."""
    first, second, third, fourth = counter
    low, high = key & 0xFFFFFFFF, (key >> 32) & 0xFFFFFFFF
    for _ in range(10):
        left, right = first * np.uint64(0xD2511F53), third * np.uint64(0xCD9E8D57)
        first, second, third, fourth = (
            (right >> _SHIFT) ^ second ^ np.uint64(low),
            right & _MASK,
            (left >> _SHIFT) ^ fourth ^ np.uint64(high),
            left & _MASK,
        )
        low, high = (low + 0x9E3779B9) & 0xFFFFFFFF, (high + 0xBB67AE85) & 0xFFFFFFFF
    return [first, second, third, fourth]


@dataclass(frozen=True, slots=True)
class FrameRule:
    """How a clip's frames are chosen: `num_frames` frames, `stride` apart, counted at `fps` frames per second.

    `sampling` is `aligned` (starts on multiples of 4 of a layered clip, exact spacing) or `published` (real-valued start, spacing
    (span - 1) / (frames - 1), as mae_st and PySlowFast draw; SPEC-models B1) or `segments` (one frame out of each of `num_frames` equal
    parts of the video, as SSv2 is drawn; stride and fps say nothing then; SPEC-models B2).
    """

    num_frames: int
    stride: int
    fps: float = 30.0
    sampling: str = "aligned"

    @property
    def draws(self) -> int:
        """Random numbers that a clip takes."""
        return self.num_frames if self.sampling == "segments" else 1

    def scale(self, fps: float) -> float:
        """Source frames per frame at `self.fps`; a source that does not say its rate is taken as it is."""
        return fps / self.fps if fps > 0 else 1.0


def clip_frames(rule: FrameRule, *, length: int, fps: float, is_layered: bool, start: float | Floats) -> Ints:
    """Frame numbers [T] of one clip; `start`, a number or [draws], in (0, 1) says where it begins, or which frame of each segment it takes.

    Clips longer than the video repeat the last frame that they may take.
    """
    places = np.atleast_1d(start)
    if rule.sampling == "segments":
        return _of_segments(rule.num_frames, length=length, places=places)
    return _frames(rule, length=length, fps=fps, is_layered=is_layered, start=float(places[0]))


def eval_frames(rule: FrameRule, *, length: int, fps: float, is_layered: bool, views: int) -> Ints:
    """Frame numbers [views, T] at fixed, evenly spaced starts; a single view stands in the middle, of each segment too."""
    if rule.sampling == "segments":
        places = [np.full(rule.num_frames, (view + 0.5) / views) for view in range(views)]
        return np.stack([_of_segments(rule.num_frames, length=length, places=each) for each in places])
    starts = [0.5] if views == 1 else [view / (views - 1) for view in range(views)]
    return np.stack([_frames(rule, length=length, fps=fps, is_layered=is_layered, start=start) for start in starts])


def _of_segments(count: int, *, length: int, places: Floats) -> Ints:
    """One frame [count] of each segment, `places` [count] of the way through it; borders are rounded and belong to both sides."""
    borders = np.rint((length - 1) / count * np.arange(count + 1))
    sizes = borders[1:] - borders[:-1] + 1
    return _clamped(borders[:-1] + np.ceil(places * sizes) - 1, length - 1)


def _frames(rule: FrameRule, *, length: int, fps: float, is_layered: bool, start: float) -> Ints:
    steps = np.arange(rule.num_frames)
    if rule.sampling == "published":
        span = rule.stride * rule.num_frames * rule.scale(fps)
        first = start * max(length - span, 0)
        # Published code truncates linspace(start, start + span - 1): the spacing is 64/15 * 63/64, not 4.
        exact = first + steps * ((span - 1) / max(rule.num_frames - 1, 1))
        return _clamped(exact, length - 1)
    if is_layered and rule.stride % LAYER_STEP == 0:
        last = (length - 1) // LAYER_STEP * LAYER_STEP
        room = max(last - (rule.num_frames - 1) * rule.stride, 0) // LAYER_STEP
        first_frame = LAYER_STEP * min(int(start * (room + 1)), room)
        return _clamped(first_frame + steps * rule.stride, last)
    spacing = rule.stride * rule.scale(fps)
    room_frames = max(length - 1 - (rule.num_frames - 1) * spacing, 0.0)
    exact = math.floor(start * (room_frames + 1)) + steps * spacing
    return _clamped(np.rint(exact), length - 1)


def _clamped(frames: NDArray[Any], last: int) -> Ints:
    """Frame numbers truncated to whole ones in [0, last]."""
    whole: Ints = np.clip(frames, 0, last).astype(np.int64)
    return whole


@dataclass(frozen=True, slots=True)
class Boxes:
    """Where each of B clips is cut out: whole pixels of the stored picture, and whether it is mirrored."""

    top: Ints
    left: Ints
    height: Ints
    width: Ints
    is_flipped: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.top)

    def of(self, number: int) -> Boxes:
        """The box of one clip, alone."""
        one = slice(number, number + 1)
        return Boxes(self.top[one], self.left[one], self.height[one], self.width[one], self.is_flipped[one])


def random_boxes(
    seed: int,
    numbers: Sequence[int] | Ints,
    *,
    heights: Ints,
    widths: Ints,
    area: tuple[float, float],
    aspect: tuple[float, float],
    flip: bool,
) -> Boxes:
    """Random-resized crops: area uniform, aspect log-uniform, ten tries, else the largest central crop of a fitting aspect."""
    draws = uniforms(seed, numbers, count=2 * _CROP_TRIES + 3, stream=CROP_STREAM)
    tries = draws[:, : 2 * _CROP_TRIES].reshape(-1, _CROP_TRIES, 2)
    full = (heights * widths)[:, None]
    areas = full * (area[0] + (area[1] - area[0]) * tries[..., 0])
    low, high = math.log(aspect[0]), math.log(aspect[1])
    aspects = np.exp(low + (high - low) * tries[..., 1])
    wide, tall = np.rint(np.sqrt(areas * aspects)), np.rint(np.sqrt(areas / aspects))
    fits = (wide >= 1) & (tall >= 1) & (wide <= widths[:, None]) & (tall <= heights[:, None])
    chosen = fits.argmax(axis=1)[:, None]
    has_fit = np.asarray(fits.any(axis=1))
    ratio = widths / heights
    fallback_width = np.where(ratio > aspect[1], np.rint(heights * aspect[1]), widths)
    fallback_height = np.where(ratio < aspect[0], np.rint(widths / aspect[0]), heights)
    width = np.where(has_fit, np.take_along_axis(wide, chosen, 1)[:, 0], fallback_width).astype(np.int64)
    height = np.where(has_fit, np.take_along_axis(tall, chosen, 1)[:, 0], fallback_height).astype(np.int64)
    free_rows, free_columns = heights - height, widths - width
    top = np.where(has_fit, (draws[:, -3] * (free_rows + 1)).astype(np.int64), free_rows // 2)
    left = np.where(has_fit, (draws[:, -2] * (free_columns + 1)).astype(np.int64), free_columns // 2)
    return Boxes(top, left, height, width, (draws[:, -1] < 0.5) & flip)


def center_boxes(*, heights: Ints, widths: Ints, crop: int = 0, crops: int = 1, side_share: float = 1.0) -> Boxes:
    """The test crop `crop` of `crops`: squares that span `side_share` of the short side, spread evenly along the long one."""
    side = np.maximum(np.rint(np.minimum(heights, widths) * side_share), 1).astype(np.int64)
    share = 0.5 if crops == 1 else crop / (crops - 1)
    top = np.rint((heights - side) * share).astype(np.int64)
    left = np.rint((widths - side) * share).astype(np.int64)
    return Boxes(top, left, side, side, np.zeros(len(side), dtype=bool))
