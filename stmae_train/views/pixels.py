"""Pixels out of decoded planes and pictures, on the device that they are on.

Crop, flip and antialiasing stand in two matrices per clip, so that a batch of unlike sizes is a few batched products (PERFORMANCE.md,
"Pixels"). Planes are brought to RGB after resizing, in one affine step.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stmae_train.views.draws import Boxes

__all__ = ["render", "render_pictures"]

Ints = NDArray[np.int64]
Singles = NDArray[np.float32]

_CUBIC = np.float32(-0.5)  # PIL's, which published image models were trained with


def render(
    y: Tensor,
    u: Tensor,
    v: Tensor,
    boxes: Boxes,
    *,
    crop_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: str = "bilinear",
) -> Tensor:
    """Cut, resize, mirror, colour and normalise a batch on the device its planes are on.

    Args:
        y: luma planes [B, T, H, W], uint8, limited-range BT.601; pictures smaller than H x W stand at the top left.
        u, v: chroma planes [B, T, ceil(H/2), ceil(W/2)], uint8, sited left.
        boxes: the B cuts, in luma pixels.
        crop_px: side of the square that comes out.
        mean, std: of the normalisation, per colour, in [0, 1].
        resize: "bilinear" or "bicubic", both antialiased as in PIL.

    Returns:
        Clips [B, 3, T, crop_px, crop_px], float32, RGB.
    """
    luma_rows, luma_columns = _axes(boxes, size=crop_px, shape=y.shape[2:], resize=resize)
    chroma_rows, chroma_columns = _axes(boxes, size=crop_px, shape=u.shape[2:], resize=resize, is_chroma=True)
    luma = _resize(y, luma_rows, luma_columns)
    red_blue = [_resize(plane, chroma_rows, chroma_columns) for plane in (v, u)]
    return _colour(luma, red_blue[0], red_blue[1], mean=mean, std=std)


def render_pictures(
    pictures: Sequence[Tensor],
    boxes: Boxes,
    *,
    crop_px: int,
    mean: Sequence[float],
    std: Sequence[float],
    resize: str = "bilinear",
) -> Tensor:
    """Cut, resize, mirror and normalise B pictures of any sizes, uint8 RGB [H, W, 3] each, on the device they are on.

    One after the other: a canvas that holds the largest of them could be a hundred times as large as all together.

    Returns:
        Clips of one frame [B, 3, 1, crop_px, crop_px], float32.
    """
    clips = torch.empty(len(pictures), 3, 1, crop_px, crop_px, device=pictures[0].device)
    for number, picture in enumerate(pictures):
        box = boxes.of(number)
        rows, columns = _axes(box, size=crop_px, shape=picture.shape[:2], resize=resize)
        # Only what the box holds is brought to float; weights outside of it are zero.
        inside = slice(int(box.top[0]), int(box.top[0] + box.height[0]))
        across = slice(int(box.left[0]), int(box.left[0] + box.width[0]))
        part = picture[inside, across].permute(2, 0, 1)[None]  # [1, 3, h, w]
        levels = _resize(part, rows[..., inside], columns[..., across])  # [1, S, 3, S]
        clips[number, :, 0] = levels[0].transpose(0, 1).clamp_(0, 255)
    middle, spread = (torch.tensor(each, device=clips.device)[:, None, None, None] for each in (mean, std))
    return clips.div_(255).sub_(middle).div_(spread)


def _axes(
    boxes: Boxes, *, size: int, shape: Sequence[int], resize: str, is_chroma: bool = False
) -> tuple[Singles, Singles]:
    """Weights of rows [B, size, H] and columns [B, size, W]; mirrored where the box is."""
    height, width = shape
    rows = _weights(boxes.top, boxes.height, size=size, length=height, resize=resize, is_chroma=is_chroma, shift=0.0)
    # Chroma is sited left: sample j stands on luma column 2j, a quarter of a chroma sample left of the pair's middle.
    shift = 0.25 if is_chroma else 0.0
    columns = _weights(
        boxes.left, boxes.width, size=size, length=width, resize=resize, is_chroma=is_chroma, shift=shift
    )
    flipped = np.asarray(boxes.is_flipped)[:, None, None]
    return rows, np.where(flipped, columns[:, ::-1], columns)


def _weights(
    start: Ints, extent: Ints, *, size: int, length: int, resize: str, is_chroma: bool, shift: float
) -> Singles:
    """Filter rows [B, size, length] that resize [start, start + extent) to `size` samples, as PIL does it."""
    step: Singles = (extent[:, None, None] / size).astype(np.float32)
    center: Singles = (
        start[:, None, None].astype(np.float32) + (np.arange(size, dtype=np.float32)[None, :, None] + 0.5) * step
    )
    first, last = start[:, None, None], (start + extent)[:, None, None]
    if is_chroma:
        center, step = center * np.float32(0.5) + np.float32(shift), step * np.float32(0.5)
        first, last = first // 2, (last + 1) // 2
    samples = np.arange(length, dtype=np.float32)[None, None, :]
    away: Singles = np.abs(samples + np.float32(0.5) - center) / np.maximum(step, np.float32(1.0))
    weights: Singles = _cubic(away) if resize == "bicubic" else np.maximum(1 - away, 0)
    weights *= (samples >= first) & (samples < last)
    weights /= weights.sum(axis=2, keepdims=True)
    return weights


def _cubic(away: Singles) -> Singles:
    """Keys' cubic kernel (1981) at distances from the centre."""
    near = ((_CUBIC + 2) * away - (_CUBIC + 3)) * away * away + 1
    far = (((away - 5) * away + 8) * away - 4) * _CUBIC
    kernel: Singles = np.where(away < 1, near, np.where(away < 2, far, np.float32(0)))
    return kernel


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
