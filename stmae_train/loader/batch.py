"""One batch: planes or pictures of B clips with their global numbers, labels, crops, and the pixels that a model gets of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stmae_data.frames import Planes
from stmae_train.config import ModelConfig
from stmae_train.loader.cache import frame_bytes
from stmae_train.loader.source import ClipSource
from stmae_train.views import (
    Boxes,
    Jitter,
    center_boxes,
    jitter_clips,
    random_boxes,
    random_jitter,
    render,
    render_pictures,
)

__all__ = ["Batch", "BatchPlan", "CropRule", "Loaded", "assemble", "blank", "clips_of_planes", "weights_of"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CropRule:
    """How training crops are drawn: shares of the picture's area, aspect range, mirroring; and how colours are changed."""

    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool
    color_jitter: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """What a batch will hold: V videos, K clips of T frames each."""

    numbers: Ints  # [V * K] global clip numbers
    sets: Ints  # [V]
    positions: Ints  # [V], into the rows of the set
    frames: Ints  # [V, K, T]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of one video of a plan: planes [K, T, bytes of one picture], or one picture [H, W, 3]."""

    video: int
    block: Bytes
    height: int
    width: int


@dataclass(frozen=True, slots=True)
class Batch:
    """B clips in the order of their global numbers: planes on one canvas, or pictures of their own sizes.

    `planes` is uint8 [B, T, bytes of one picture of canvas size]; pictures smaller than the canvas stand at its top left. A batch of a set
    of pictures has `pictures` instead, uint8 RGB [H, W, 3] each: a clip of one is that picture `num_frames` times.
    `skipped` are the ids of damaged clips that are missing from it. Where that are all of them the batch is blank: black stand-ins for one
    video, without clip ids, so that a process still takes part in what processes do together. Nothing may be learned from them.
    """

    numbers: Ints
    clip_ids: tuple[str, ...]
    labels: Tensor
    planes: Tensor
    canvas: tuple[int, int]
    heights: Ints
    widths: Ints
    boxes: Boxes
    skipped: tuple[str, ...] = ()
    pictures: tuple[Tensor, ...] = ()
    num_frames: int = 1
    jitter: Jitter | None = None

    @property
    def is_blank(self) -> bool:
        """Whether it holds no clip that can be decoded."""
        return not self.clip_ids

    def __len__(self) -> int:
        return len(self.numbers)

    def pinned(self) -> Batch:
        """The same batch in page-locked memory, from which a GPU fetches while it computes."""
        return replace(
            self, planes=self.planes.pin_memory(), pictures=tuple(each.pin_memory() for each in self.pictures)
        )

    def clips(self, model: ModelConfig, *, device: torch.device, boxes: Boxes | None = None) -> Tensor:
        """Normalised pixels [B, 3, T, crop, crop] on a device, cut at the batch's own boxes or at others."""
        cut = boxes or self.boxes
        if self.pictures:
            clips = render_pictures(
                [each.to(device, non_blocking=True) for each in self.pictures],
                cut,
                crop_px=model.crop_px,
                mean=model.mean,
                std=model.std,
                resize=model.resize,
            )
        else:
            y, u, v = self._planes_on(device)
            clips = render(y, u, v, cut, crop_px=model.crop_px, mean=model.mean, std=model.std, resize=model.resize)
        if self.jitter is not None:
            clips = jitter_clips(clips, self.jitter, mean=model.mean, std=model.std)
        return clips.repeat(1, 1, self.num_frames, 1, 1) if self.pictures else clips

    def _planes_on(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        height, width = self.canvas
        half_height, half_width = -(-height // 2), -(-width // 2)
        luma, chroma = height * width, half_height * half_width
        planes = self.planes.to(device, non_blocking=True)
        y = planes[..., :luma].reshape(*planes.shape[:2], height, width)
        u = planes[..., luma : luma + chroma].reshape(*planes.shape[:2], half_height, half_width)
        v = planes[..., luma + chroma :].reshape(*planes.shape[:2], half_height, half_width)
        return y, u, v


def assemble(
    plan: BatchPlan,
    loaded: Sequence[Loaded],
    sources: Sequence[ClipSource],
    crop: CropRule | None,
    *,
    seed: int,
    skipped: tuple[str, ...] = (),
) -> Batch:
    """The batch of what was read of a plan; without a crop rule the boxes are the central test crops."""
    count, num_frames = plan.frames.shape[1:]
    videos = np.array([each.video for each in loaded])
    heights = np.repeat([each.height for each in loaded], count)
    widths = np.repeat([each.width for each in loaded], count)
    canvas = int(heights.max()), int(widths.max())
    if sources[0].is_of_pictures:
        stored = [torch.from_numpy(each.block) for each in loaded]
        pictures = tuple(stored[place // count] for place in range(len(heights)))
        planes = torch.empty(0, dtype=torch.uint8)
    else:
        pictures = ()
        planes = torch.from_numpy(_on_canvas(loaded, canvas, count=count, num_frames=num_frames))
    numbers = plan.numbers.reshape(-1, count)[videos].reshape(-1)
    rows = [(sources[plan.sets[video]], sources[plan.sets[video]].rows[plan.positions[video]]) for video in videos]
    labels = np.repeat([int(source.index.label_index[row]) for source, row in rows], count)
    jitter = None
    if crop is None:
        boxes = center_boxes(heights=heights, widths=widths)
    else:
        boxes = random_boxes(
            seed, numbers, heights=heights, widths=widths, area=crop.area, aspect=crop.aspect, flip=crop.flip
        )
        if any(crop.color_jitter):
            jitter = random_jitter(seed, numbers, strength=crop.color_jitter)
    return Batch(
        numbers=numbers,
        clip_ids=tuple(str(source.index.clip_ids[row]) for source, row in rows for _ in range(count)),
        labels=torch.from_numpy(labels),
        planes=planes,
        canvas=canvas,
        heights=heights,
        widths=widths,
        boxes=boxes,
        skipped=skipped,
        pictures=pictures,
        num_frames=num_frames,
        jitter=jitter,
    )


def weights_of(parts: Sequence[Batch]) -> list[float]:
    """What the loss of each micro-batch of a step is worth: nothing for a blank one, whose place the others take."""
    whole = sum(not part.is_blank for part in parts)
    return [0.0 if part.is_blank else len(parts) / whole for part in parts]


def blank(
    plan: BatchPlan, sources: Sequence[ClipSource], crop: CropRule | None, *, seed: int, skipped: tuple[str, ...]
) -> Batch:
    """The batch of a plan of which no clip can be decoded."""
    side = 16
    shape = (side, side, 3) if sources[0].is_of_pictures else (*plan.frames.shape[1:], frame_bytes(side, side))
    black = Loaded(0, np.zeros(shape, dtype=np.uint8), side, side)
    return replace(assemble(plan, [black], sources, crop, seed=seed, skipped=skipped), clip_ids=())


def clips_of_planes(planes: Planes, clips: Ints) -> Bytes:
    """The frames [K, T] of decoded planes as [K, T, bytes], every clip with its own copy."""
    indices = np.fromiter(planes.position, dtype=np.int64)  # rising, as rows were filled
    rows = np.searchsorted(indices, clips)
    parts = [each.reshape(len(each), -1) for each in (planes.y, planes.u, planes.v)]
    chosen = np.empty((*clips.shape, sum(part.shape[1] for part in parts)), dtype=np.uint8)
    start = 0
    for part in parts:
        chosen[..., start : start + part.shape[1]] = part[rows]
        start += part.shape[1]
    return chosen


def _on_canvas(loaded: Sequence[Loaded], canvas: tuple[int, int], *, count: int, num_frames: int) -> Bytes:
    planes = np.zeros((len(loaded) * count, num_frames, frame_bytes(*canvas)), dtype=np.uint8)
    for place, each in enumerate(loaded):
        target = planes[place * count : (place + 1) * count]
        _place(target, each.block, canvas=canvas, size=(each.height, each.width))
    return planes


def _place(target: Bytes, block: Bytes, *, canvas: tuple[int, int], size: tuple[int, int]) -> None:
    """Put pictures of one size at the top left of a larger canvas, plane by plane."""
    if canvas == size:
        target[:] = block
        return
    start_target = start_block = 0
    for divisor in (1, 2, 2):
        (wide_rows, wide_columns), (rows, columns) = (
            tuple(-(-side // divisor) for side in each) for each in (canvas, size)
        )
        into = target[..., start_target : start_target + wide_rows * wide_columns]
        into = into.reshape(*target.shape[:2], wide_rows, wide_columns)  # a view: only the last axis was cut
        into[..., :rows, :columns] = block[..., start_block : start_block + rows * columns].reshape(
            *block.shape[:2], rows, columns
        )
        start_target += wide_rows * wide_columns
        start_block += rows * columns
