"""Views: which frames and which part of the picture a draw takes from a video, and the pixels that come out.

Every draw is keyed by (seed, global clip number) through a counter-based generator, so workers, processes and restarts change
nothing, and two runs with one seed share their starts, crops and flips whatever data they read (STUDY.md, common random numbers).
Pixels are made from uint8 planes by matrix products that hold crop, flip and antialiasing (PERFORMANCE.md, "Pixels").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = [
    "Boxes",
    "FrameRule",
    "center_boxes",
    "clip_frames",
    "eval_frames",
    "random_boxes",
    "render",
    "uniforms",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Singles = NDArray[np.float32]
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
    (span - 1) / (frames - 1), as mae_st and PySlowFast draw; SPEC-models B1).
    """

    num_frames: int
    stride: int
    fps: float = 30.0
    sampling: str = "aligned"

    def scale(self, fps: float) -> float:
        """Source frames per frame at `self.fps`; a source that does not say its rate is taken as it is."""
        return fps / self.fps if fps > 0 else 1.0


def clip_frames(rule: FrameRule, *, length: int, fps: float, is_layered: bool, start: float) -> Ints:
    """Frame numbers [T] of one clip; `start` in (0, 1) says where it begins.

    Clips longer than the video repeat the last frame that they may take.
    """
    return _frames(rule, length=length, fps=fps, is_layered=is_layered, start=start)


def eval_frames(rule: FrameRule, *, length: int, fps: float, is_layered: bool, views: int) -> Ints:
    """Frame numbers [views, T] at fixed, evenly spaced starts; a single view stands in the middle."""
    starts = [0.5] if views == 1 else [view / (views - 1) for view in range(views)]
    return np.stack([_frames(rule, length=length, fps=fps, is_layered=is_layered, start=start) for start in starts])


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


def center_boxes(*, heights: Ints, widths: Ints, crop: int = 0, crops: int = 1) -> Boxes:
    """The test crop `crop` of `crops`: squares as large as the short side, spread evenly along the long one."""
    side = np.minimum(heights, widths)
    share = 0.5 if crops == 1 else crop / (crops - 1)
    top = np.rint((heights - side) * share).astype(np.int64)
    left = np.rint((widths - side) * share).astype(np.int64)
    return Boxes(top, left, side, side, np.zeros(len(side), dtype=bool))


def render(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    boxes: Boxes,
    *,
    crop_px: int,
    mean: Sequence[float],
    std: Sequence[float],
) -> Tensor:
    """Cut, resize, mirror, colour and normalise a batch on the device its planes are on.

    Args:
        y: luma planes [B, T, H, W], uint8, limited-range BT.601; pictures smaller than H x W stand at the top left.
        u, v: chroma planes [B, T, ceil(H/2), ceil(W/2)], uint8, sited left.
        boxes: the B cuts, in luma pixels.
        crop_px: side of the square that comes out.
        mean, std: of the normalisation, per colour, in [0, 1].

    Returns:
        Clips [B, 3, T, crop_px, crop_px], float32, RGB.
    """
    luma_rows = _weights(boxes.top, boxes.height, size=crop_px, length=y.shape[2], is_chroma=False, shift=0.0)
    luma_columns = _weights(boxes.left, boxes.width, size=crop_px, length=y.shape[3], is_chroma=False, shift=0.0)
    chroma_rows = _weights(boxes.top, boxes.height, size=crop_px, length=u.shape[2], is_chroma=True, shift=0.0)
    # Chroma is sited left: sample j stands on luma column 2j, a quarter of a chroma sample left of the pair's middle.
    chroma_columns = _weights(boxes.left, boxes.width, size=crop_px, length=u.shape[3], is_chroma=True, shift=0.25)
    flipped = np.asarray(boxes.is_flipped)[:, None, None]
    luma_columns = np.where(flipped, luma_columns[:, ::-1], luma_columns)
    chroma_columns = np.where(flipped, chroma_columns[:, ::-1], chroma_columns)
    luma = _resize(y, luma_rows, luma_columns)
    red_blue = [_resize(plane, chroma_rows, chroma_columns) for plane in (v, u)]
    return _colour(luma, red_blue[0], red_blue[1], mean=mean, std=std)


def _weights(start: Ints, extent: Ints, *, size: int, length: int, is_chroma: bool, shift: float) -> Singles:
    """Triangle-filter rows [B, size, length] that resize [start, start + extent) to `size` samples, as PIL does it."""
    step: Singles = (extent[:, None, None] / size).astype(np.float32)
    center: Singles = (
        start[:, None, None].astype(np.float32) + (np.arange(size, dtype=np.float32)[None, :, None] + 0.5) * step
    )
    first, last = start[:, None, None], (start + extent)[:, None, None]
    if is_chroma:
        center, step = center * np.float32(0.5) + np.float32(shift), step * np.float32(0.5)
        first, last = first // 2, (last + 1) // 2
    samples = np.arange(length, dtype=np.float32)[None, None, :]
    weights: Singles = np.maximum(1 - np.abs(samples + np.float32(0.5) - center) / np.maximum(step, np.float32(1.0)), 0)
    weights *= (samples >= first) & (samples < last)
    weights /= weights.sum(axis=2, keepdims=True)
    return weights


def _resize(planes: Tensor, rows: NDArray[np.float32], columns: NDArray[np.float32]) -> Tensor:
    """rows @ plane @ columns^T for every frame: uint8 [B, T, H, W] to float [B, S, T, S], time behind the rows."""
    batch, frames, height, width = planes.shape
    size = rows.shape[1]
    # Time moves beside the columns, so each clip needs one product per axis, not one per frame.
    flat = planes.permute(0, 2, 1, 3).to(torch.float32, memory_format=torch.contiguous_format)  # [B, H, T, W]
    tall = torch.bmm(_to(rows, planes), flat.reshape(batch, height, frames * width))  # [B, S, T*W]
    wide = torch.bmm(tall.view(batch, size * frames, width), _to(columns, planes).transpose(1, 2))  # [B, S*T, S]
    return wide.view(batch, size, frames, size)


def _to(weights: NDArray[np.float32], planes: Tensor) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(weights)).to(planes.device, non_blocking=True)


def _colour(y: Tensor, v: Tensor, u: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Limited-range BT.601 to normalised RGB in one affine step: [B, S, T, S] each to [B, 3, T, S, S], gamut clamped."""
    batch, size, frames, _ = y.shape
    clips = torch.empty(batch, 3, frames, size, size, dtype=torch.float32, device=y.device)
    luma = 255 / 219
    red, blue = 255 / 224 * 1.402, 255 / 224 * 1.772
    green_red, green_blue = -red * 0.299 / 0.587, -blue * 0.114 / 0.587
    for colour, (from_v, from_u) in enumerate(((red, 0.0), (green_red, green_blue), (0.0, blue))):
        scale = 1 / (255 * std[colour])
        offset = -(16 * luma + 128 * (from_v + from_u)) * scale - mean[colour] / std[colour]
        plane = torch.add(y * (luma * scale), offset)
        for part, factor in ((v, from_v), (u, from_u)):
            if factor:
                plane.add_(part, alpha=factor * scale)
        plane.clamp_(-mean[colour] / std[colour], (1 - mean[colour]) / std[colour])
        clips[:, colour] = plane.permute(0, 2, 1, 3)  # rows and time change places: [B, T, S, S]
    return clips
