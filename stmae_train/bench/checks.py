"""That what is timed is right: frames of both readers against a full decode, pixels of the device pipeline against float64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stmae_data.encode import Encoding, encode_clip
from stmae_data.frames import Planes, read_clips
from stmae_data.media import open_video, probe, source_of_bytes
from stmae_data.records import ClipSpan
from stmae_train.bench.readers import Stored
from stmae_train.views import Boxes, random_boxes, render

__all__ = ["exactness_cell", "pixels_cell"]

LENGTHS = (16, 17, 31, 32, 33, *range(61, 69), 127, 128, 129, 130)
STRIDES = (1, 2, 3, 4, 8)
_SIDE_PX = 64  # frame types do not depend on it, and encoding is quicker
_FPS = 30

Bytes = NDArray[np.uint8]


def exactness_cell(stored: Stored, *, lengths: Sequence[int] = LENGTHS) -> dict[str, Any]:
    """Frames that either way of reading gives and a full decode does not: of clips of many lengths, strides and starts."""
    different = compared = 0
    for length in lengths:
        if length > stored.num_frames:
            continue
        media = _layered(stored.media, length)
        whole = _all_frames(media)
        for stride in STRIDES:
            for start in (0, 1, 4 * (length // 8)):
                frames = list(range(start, len(whole), stride))
                planes = read_clips(
                    media, [frames], layout="layered-4"
                )  # aligned where it may be, else the general way
                general = read_clips(media, [frames], layout="original")
                for row, index in enumerate(frames):
                    compared += 2
                    different += sum(_packed(each, row) != whole[index] for each in (planes, general))
    return {
        "what": "exact: frames that differ from a full decode",
        "size": f"{min(lengths)} to {max(lengths)} frames, strides {', '.join(map(str, STRIDES))}",
        "dtype": "uint8",
        "unit": f"frames of {compared}",
        "ours": different,
        "compared": compared,
        "peers": {},
        "ratio_to_best_peer": None,
        "gate": 0,
    }


def _layered(media: bytes, length: int) -> bytes:
    with source_of_bytes(media) as descriptor:
        span = ClipSpan(0, round(1000 * (length - 0.5) / _FPS))
        return encode_clip(descriptor, probe(descriptor), encoding=Encoding(short_side_px=_SIDE_PX), span=span).media


def _all_frames(media: bytes) -> list[bytes]:
    """Every frame in order of presentation, by the plain way to decode; planes one after the other."""
    with open_video(media) as container:
        return [frame.to_ndarray().tobytes() for frame in container.decode(container.streams.video[0])]


def _packed(planes: Planes, row: int) -> bytes:
    return b"".join(np.ascontiguousarray(each[row]).tobytes() for each in (planes.y, planes.u, planes.v))


def pixels_cell(stored: Sequence[Stored], *, crop_px: int, device: str = "cpu") -> dict[str, Any]:
    """Mean error of the device's crops, in levels of 255, over the videos, against colouring and resizing in float64; its bias."""
    errors, clipped = [], []
    for number, each in enumerate(stored):
        planes = read_clips(each.media, [[0, 4 * (each.num_frames // 8)]], layout="layered-4")
        sizes = {"heights": np.array([each.height]), "widths": np.array([each.width])}
        boxes = random_boxes(1, [number], **sizes, area=(0.5, 1.0), aspect=(3 / 4, 4 / 3), flip=False)
        y, u, v = (torch.from_numpy(plane)[None].to(device) for plane in (planes.y, planes.u, planes.v))
        found = render(y, u, v, boxes, crop_px=crop_px, mean=(0.0,) * 3, std=(1.0,) * 3)[0].cpu().double() * 255
        errors.append(found - _reference(planes, boxes, crop_px).clamp(0, 255))
        clipped.append(found - _reference(planes, boxes, crop_px, is_clipped_first=True))
    return {
        "what": "pixels: mean error of device crops against float64",
        "size": f"{crop_px} px",
        "dtype": "fp32",
        "unit": "levels of 255",
        "ours": round(_mean([each.abs() for each in errors]), 4),
        "bias": round(_mean(errors), 4),
        "of_each_video": [round(float(each.abs().mean()), 4) for each in errors],
        # Readers that colour first cut off what lies outside of the colour cube before they resize.
        "against_colours_cut_first": round(_mean([each.abs() for each in clipped]), 4),
        "peers": {},
        "ratio_to_best_peer": None,
        "gate": 0.15,
    }


def _mean(values: Sequence[Tensor]) -> float:
    return sum(float(each.mean()) for each in values) / len(values)


def _reference(planes: Planes, boxes: Boxes, crop_px: int, *, is_clipped_first: bool = False) -> Tensor:
    """Levels [3, T, S, S] in float64: chroma brought to full size (sited left, linear), coloured, cropped, resized."""
    y, u, v = (torch.from_numpy(each).double() for each in (planes.y, planes.u, planes.v))
    luma, blue, red = (y - 16) * (255 / 219), *((_full(each) - 128) * (255 / 224) for each in (u, v))
    green = luma - 0.344136286 * blue - 0.714136286 * red
    rgb = torch.stack([luma + 1.402 * red, green, luma + 1.772 * blue], dim=1)  # [T, 3, H, W]
    top, left, height, width = (int(each[0]) for each in (boxes.top, boxes.left, boxes.height, boxes.width))
    cut = (rgb.clamp(0, 255) if is_clipped_first else rgb)[..., top : top + height, left : left + width]
    resized: Tensor = functional.interpolate(
        cut, size=(crop_px, crop_px), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.transpose(0, 1)


def _full(plane: Tensor) -> Tensor:
    """Chroma [T, h, w] to [T, 2h, 2w]: on the left of two columns, between two rows."""
    right = torch.cat([plane[..., 1:], plane[..., -1:]], dim=-1)
    wide = torch.stack([plane, (plane + right) / 2], dim=-1).flatten(-2)
    above, below = torch.cat([wide[:, :1], wide[:, :-1]], dim=1), torch.cat([wide[:, 1:], wide[:, -1:]], dim=1)
    return torch.stack([0.75 * wide + 0.25 * above, 0.75 * wide + 0.25 * below], dim=2).flatten(1, 2)
