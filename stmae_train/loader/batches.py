"""Batches: planes of B clips with their global numbers, labels and crops, for training and for evaluation."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stmae_data.frames import Planes
from stmae_train.config import ModelConfig
from stmae_train.errors import ConfigError, DataMismatch
from stmae_train.loader.cache import DEFAULT_CACHE_BYTES, frame_bytes, open_cache
from stmae_train.loader.order import Mix
from stmae_train.loader.source import ClipSource
from stmae_train.loader.workers import Damaged, Decoded, Job, decode_in_order
from stmae_train.views import (
    START_STREAM,
    Boxes,
    FrameRule,
    center_boxes,
    clip_frames,
    eval_frames,
    random_boxes,
    render,
    uniforms,
)

__all__ = ["Batch", "CropRule", "ReadOptions", "SweepLoader", "TrainLoader", "dividing_sizes"]

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class CropRule:
    """How training crops are drawn: shares of the picture's area, aspect range, mirroring."""

    area: tuple[float, float]
    aspect: tuple[float, float]
    flip: bool


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How samples are read; none of it changes a pixel."""

    workers: int = 0
    cache_bytes: int = DEFAULT_CACHE_BYTES  # decoded sets up to this size are cached; 0 = never
    skip_damaged: int = 0  # damaged samples that may be left out before the run stops


@dataclass(frozen=True, slots=True)
class Batch:
    """B clips as planes on one canvas, in the order of their global numbers.

    `planes` is uint8 [B, T, bytes of one picture of canvas size]; pictures smaller than the canvas stand at its top left.
    `skipped` are the ids of damaged clips that are missing from it.
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

    def __len__(self) -> int:
        return len(self.numbers)

    def clips(self, model: ModelConfig, *, device: torch.device, boxes: Boxes | None = None) -> Tensor:
        """Normalised pixels [B, 3, T, crop, crop] on a device, cut at the batch's own boxes or at others."""
        height, width = self.canvas
        half_height, half_width = -(-height // 2), -(-width // 2)
        luma, chroma = height * width, half_height * half_width
        planes = self.planes.to(device, non_blocking=True)
        y = planes[..., :luma].reshape(*planes.shape[:2], height, width)
        u = planes[..., luma : luma + chroma].reshape(*planes.shape[:2], half_height, half_width)
        v = planes[..., luma + chroma :].reshape(*planes.shape[:2], half_height, half_width)
        return render(y, u, v, boxes or self.boxes, crop_px=model.crop_px, mean=model.mean, std=model.std)


def dividing_sizes(batch_videos: int, *, accumulate: int) -> list[int]:
    """World sizes that share the batch evenly."""
    return [size for size in range(1, batch_videos + 1) if batch_videos % (size * accumulate) == 0]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a batch will hold: V videos, K clips of T frames each."""

    numbers: Ints  # [V * K] global clip numbers
    sets: Ints  # [V]
    positions: Ints  # [V], into the rows of the set
    frames: Ints  # [V, K, T]


class _Reader:
    """Turns plans into batches: planes from the cache where a set has one, else from the decoder."""

    def __init__(self, workspace: Path, sources: Sequence[ClipSource], rule: FrameRule, options: ReadOptions) -> None:
        self.sources, self.rule, self.options = sources, rule, options
        self.caches = [
            open_cache(workspace, each, rule, limit_bytes=options.cache_bytes, workers=options.workers)
            for each in sources
        ]
        self.bytes_read = sum(
            int(source.index.media_bytes[source.rows].sum())
            for source, cache in zip(sources, self.caches, strict=True)
            if cache is not None and cache.was_made
        )
        self.skipped: dict[str, str] = {}

    def batches(self, plans: Callable[[], Iterator[_Plan]], crop: CropRule | None, *, seed: int) -> Generator[Batch]:
        """A batch per plan; the plans are walked twice, a few jobs ahead of the batches for the workers."""
        is_direct = any(cache is None for cache in self.caches)
        jobs = (job for plan in plans() for job in self._jobs(plan)) if is_direct else iter(())
        workers = self.options.workers if is_direct else 0
        answers = decode_in_order(self.sources, jobs, workers=workers)
        try:
            for plan in plans():
                yield self._batch(plan, answers, crop, seed=seed)
        finally:
            answers.close()

    def _jobs(self, plan: _Plan) -> Iterator[Job]:
        for number, position, frames in zip(plan.sets, plan.positions, plan.frames, strict=True):
            if self.caches[number] is None:
                yield Job(int(number), int(self.sources[number].rows[position]), frames)

    def _batch(self, plan: _Plan, answers: Generator[Decoded], crop: CropRule | None, *, seed: int) -> Batch:
        count = plan.frames.shape[1]
        pictures: list[tuple[int, Bytes, int, int]] = []  # video number in the plan, planes [K, T, bytes], size
        skipped = []
        for video, (number, position) in enumerate(zip(plan.sets, plan.positions, strict=True)):
            cache = self.caches[number]
            if cache is not None:
                height, width = int(cache.heights[position]), int(cache.widths[position])
                pictures.append((video, cache.gather(int(position), plan.frames[video]), height, width))
                continue
            answer = next(answers)
            source = self.sources[number]
            self.bytes_read += int(source.index.media_bytes[source.rows[position]])
            if isinstance(answer, Damaged):
                self._skip(answer, source)
                skipped.append(answer.clip_id)
            else:
                height, width = answer.y.shape[1:]
                pictures.append((video, _pictures(answer, plan.frames[video]), height, width))
        if not pictures:
            raise DataMismatch(
                f"No clip of a batch can be decoded, the last was {skipped[-1]}; verify the set: stmae-data verify."
            )
        return self._assemble(plan, pictures, count, crop, tuple(skipped), seed=seed)

    def _skip(self, answer: Damaged, source: ClipSource) -> None:
        """Count a damaged sample.

        Raises:
            DataMismatch: more samples are damaged than may be skipped.
        """
        self.skipped[answer.clip_id] = answer.reason
        if len(self.skipped) > self.options.skip_damaged:
            raise DataMismatch(
                f"Clip {answer.clip_id} of {source.index.reference} cannot be decoded ({answer.reason.rstrip('.')}); verify the set: "
                f"stmae-data verify {source.index.reference.set_name}, or go on without it: --skip-damaged {len(self.skipped)}."
            )

    def _assemble(
        self,
        plan: _Plan,
        pictures: list[tuple[int, Bytes, int, int]],
        count: int,
        crop: CropRule | None,
        skipped: tuple[str, ...],
        *,
        seed: int,
    ) -> Batch:
        videos = np.array([video for video, *_ in pictures])
        heights = np.repeat([height for _, _, height, _ in pictures], count)
        widths = np.repeat([width for *_, width in pictures], count)
        canvas = int(heights.max()), int(widths.max())
        planes = np.zeros((len(heights), plan.frames.shape[2], frame_bytes(*canvas)), dtype=np.uint8)
        for place, (_, block, height, width) in enumerate(pictures):
            _place(planes[place * count : (place + 1) * count], block, canvas=canvas, size=(height, width))
        numbers = plan.numbers.reshape(-1, count)[videos].reshape(-1)
        rows = [
            (self.sources[plan.sets[video]], self.sources[plan.sets[video]].rows[plan.positions[video]])
            for video in videos
        ]
        labels = np.repeat([int(source.index.label_index[row]) for source, row in rows], count)
        boxes = (
            center_boxes(heights=heights, widths=widths)
            if crop is None
            else random_boxes(
                seed, numbers, heights=heights, widths=widths, area=crop.area, aspect=crop.aspect, flip=crop.flip
            )
        )
        return Batch(
            numbers=numbers,
            clip_ids=tuple(str(source.index.clip_ids[row]) for source, row in rows for _ in range(count)),
            labels=torch.from_numpy(labels),
            planes=torch.from_numpy(planes),
            canvas=canvas,
            heights=heights,
            widths=widths,
            boxes=boxes,
            skipped=skipped,
        )


def _pictures(planes: Planes, clips: Ints) -> Bytes:
    """The frames [K, T] of decoded planes as [K, T, bytes], every clip with its own copy."""
    frames = len(planes.y)
    indices = np.fromiter(planes.position, dtype=np.int64)  # rising, as rows were filled
    flat = np.concatenate([each.reshape(frames, -1) for each in (planes.y, planes.u, planes.v)], axis=1)
    chosen: Bytes = flat[np.searchsorted(indices, clips)]
    return chosen


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


class TrainLoader:
    """Endless training batches in the keyed order; step n can be asked for at any time.

    Args:
        workspace: where the cache stands.
        sources: sets to draw from; several are mixed by the weights of their references.
        rule: frames of a clip.
        crop: crops of a clip.
        seed: of order, starts and crops.
        batch_videos: videos per step, over all processes.
        repeats: clips drawn from every video.
        accumulate: micro-batches per step.
        rank, world_size: this process's share; processes take neighbouring slices of one global batch.
        options: workers, cache and what happens to damaged samples.

    Raises:
        ConfigError: the batch does not divide by processes and micro-batches.
    """

    def __init__(
        self,
        workspace: Path,
        sources: Sequence[ClipSource],
        *,
        rule: FrameRule,
        crop: CropRule,
        seed: int,
        batch_videos: int,
        repeats: int,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        options: ReadOptions | None = None,
    ) -> None:
        if batch_videos % (world_size * accumulate):
            sizes = ", ".join(map(str, dividing_sizes(batch_videos, accumulate=accumulate)))
            raise ConfigError(
                f"A batch of {batch_videos} videos in {accumulate} micro-batches cannot be shared by {world_size} processes; "
                f"these numbers of processes work: {sizes or 'none'}."
            )
        self.sources, self.rule, self.crop, self.seed = sources, rule, crop, seed
        self.batch_videos, self.repeats, self.accumulate = batch_videos, repeats, accumulate
        self.rank, self.world_size = rank, world_size
        self.mix = Mix.of(
            [len(source) for source in sources],
            [source.index.reference.weight for source in sources],
            digests=[source.index.digest for source in sources],
            seed=seed,
        )
        self.reader = _Reader(workspace, sources, rule, options or ReadOptions())

    @property
    def clips_per_step(self) -> int:
        """Clips per step over all processes."""
        return self.batch_videos * self.repeats

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch]:
        """This process's batches of steps [start_step, stop_step): `accumulate` per step."""
        return self.reader.batches(lambda: self._plans(start_step, stop_step), self.crop, seed=self.seed)

    def _plans(self, start_step: int, stop_step: int) -> Iterator[_Plan]:
        share = self.batch_videos // (self.accumulate * self.world_size)
        for step in range(start_step, stop_step):
            for part in range(self.accumulate):
                first = step * self.batch_videos + (part * self.world_size + self.rank) * share
                yield self._plan(np.arange(first, first + share))

    def _plan(self, draws: Ints) -> _Plan:
        sets, positions = self.mix.locate(draws)
        numbers = (draws[:, None] * self.repeats + np.arange(self.repeats)).reshape(-1)
        starts = uniforms(self.seed, numbers, count=1, stream=START_STREAM).reshape(-1, self.repeats)
        frames = [
            _frames_of(self.sources[number], int(position), self.rule, starts[video])
            for video, (number, position) in enumerate(zip(sets, positions, strict=True))
        ]
        return _Plan(numbers, sets, positions, np.stack(frames))


def _frames_of(source: ClipSource, position: int, rule: FrameRule, starts: NDArray[np.float64]) -> Ints:
    row = source.rows[position]
    length, fps = int(source.index.num_frames[row]), float(source.index.fps[row])
    clips = [
        clip_frames(rule, length=length, fps=fps, is_layered=source.is_layered, start=float(each)) for each in starts
    ]
    return np.stack(clips)


class SweepLoader:
    """Every sample once, in stored order, with `views` clips each.

    With a crop rule the clips are random draws keyed by (seed, position * views + view); without one they are the test views:
    evenly spaced starts and the central test crop (others by `center_boxes`).
    """

    def __init__(
        self,
        workspace: Path,
        sources: Sequence[ClipSource],
        *,
        rule: FrameRule,
        views: int,
        crop: CropRule | None = None,
        seed: int = 0,
        batch_videos: int = 64,
        options: ReadOptions | None = None,
    ) -> None:
        self.sources, self.rule, self.views, self.crop, self.seed = sources, rule, views, crop, seed
        self.batch_videos = batch_videos
        self.sets = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self.positions = np.concatenate([np.arange(len(source)) for source in sources])
        self.reader = _Reader(workspace, sources, rule, options or ReadOptions())

    def __len__(self) -> int:
        return len(self.sets)

    def batches(self) -> Generator[Batch]:
        """Batches of `batch_videos` x views clips; the last one is smaller."""
        return self.reader.batches(self._plans, self.crop, seed=self.seed)

    def _plans(self) -> Iterator[_Plan]:
        for first in range(0, len(self), self.batch_videos):
            videos = np.arange(first, min(first + self.batch_videos, len(self)))
            numbers = (videos[:, None] * self.views + np.arange(self.views)).reshape(-1)
            starts = uniforms(self.seed, numbers, count=1, stream=START_STREAM).reshape(-1, self.views)
            frames = [self._frames(int(video), starts[place]) for place, video in enumerate(videos)]
            yield _Plan(numbers, self.sets[videos], self.positions[videos], np.stack(frames))

    def _frames(self, video: int, starts: NDArray[np.float64]) -> Ints:
        source, position = self.sources[self.sets[video]], int(self.positions[video])
        if self.crop is not None:
            return _frames_of(source, position, self.rule, starts)
        row = source.rows[position]
        length, fps = int(source.index.num_frames[row]), float(source.index.fps[row])
        return eval_frames(self.rule, length=length, fps=fps, is_layered=source.is_layered, views=self.views)
