"""Batches: planes of B clips with their global numbers, labels and crops, for training and for evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stmae_train.errors import ConfigError
from stmae_train.loader.batch import Batch, BatchPlan, CropRule
from stmae_train.loader.order import Mix
from stmae_train.loader.reader import Reader, ReadOptions
from stmae_train.loader.source import ClipSource
from stmae_train.views import START_STREAM, FrameRule, clip_frames, eval_frames, uniforms

__all__ = ["SweepLoader", "TrainLoader", "dividing_sizes"]

Ints = NDArray[np.int64]


def dividing_sizes(batch_videos: int, *, accumulate: int) -> list[int]:
    """World sizes that share the batch evenly."""
    return [size for size in range(1, batch_videos + 1) if batch_videos % (size * accumulate) == 0]


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
        self.reader = Reader(workspace, sources, rule, options or ReadOptions())

    @property
    def clips_per_step(self) -> int:
        """Clips per step over all processes."""
        return self.batch_videos * self.repeats

    def batches(self, start_step: int, stop_step: int) -> Generator[Batch]:
        """This process's batches of steps [start_step, stop_step): `accumulate` per step."""
        return self.reader.batches(lambda: self.plans(start_step, stop_step), self.crop, seed=self.seed)

    def plans(self, start_step: int, stop_step: int) -> Iterator[BatchPlan]:
        """What this process's batches of steps [start_step, stop_step) will hold."""
        share = self.batch_videos // (self.accumulate * self.world_size)
        for step in range(start_step, stop_step):
            for part in range(self.accumulate):
                first = step * self.batch_videos + (part * self.world_size + self.rank) * share
                yield self._plan(np.arange(first, first + share))

    def _plan(self, draws: Ints) -> BatchPlan:
        sets, positions = self.mix.locate(draws)
        numbers = (draws[:, None] * self.repeats + np.arange(self.repeats)).reshape(-1)
        starts = uniforms(self.seed, numbers, count=1, stream=START_STREAM).reshape(-1, self.repeats)
        frames = [
            _frames_of(self.sources[number], int(position), self.rule, starts[video])
            for video, (number, position) in enumerate(zip(sets, positions, strict=True))
        ]
        return BatchPlan(numbers, sets, positions, np.stack(frames))


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
    evenly spaced starts and the central test crop (others by `center_boxes`). Of `share` (k, n) processes, this one sweeps the samples
    k, k + n, k + 2n, …
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
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.sources, self.rule, self.views, self.crop, self.seed = sources, rule, views, crop, seed
        self.share = share
        self.batch_videos = batch_videos
        self.sets = np.repeat(np.arange(len(sources)), [len(source) for source in sources])
        self.positions = np.concatenate([np.arange(len(source)) for source in sources])
        self.reader = Reader(workspace, sources, rule, options or ReadOptions())

    def __len__(self) -> int:
        return len(self.sets)

    def batches(self) -> Generator[Batch]:
        """Batches of `batch_videos` x views clips; the last one is smaller, and those of damaged clips alone are left out."""
        with contextlib.closing(self.reader.batches(self._plans, self.crop, seed=self.seed)) as batches:
            yield from (batch for batch in batches if not batch.is_blank)

    def _plans(self) -> Iterator[BatchPlan]:
        mine = np.arange(self.share[0], len(self), self.share[1])
        for first in range(0, len(mine), self.batch_videos):
            videos = mine[first : first + self.batch_videos]
            numbers = (videos[:, None] * self.views + np.arange(self.views)).reshape(-1)
            starts = uniforms(self.seed, numbers, count=1, stream=START_STREAM).reshape(-1, self.views)
            frames = [self._frames(int(video), starts[place]) for place, video in enumerate(videos)]
            yield BatchPlan(numbers, self.sets[videos], self.positions[videos], np.stack(frames))

    def _frames(self, video: int, starts: NDArray[np.float64]) -> Ints:
        source, position = self.sources[self.sets[video]], int(self.positions[video])
        if self.crop is not None:
            return _frames_of(source, position, self.rule, starts)
        row = source.rows[position]
        length, fps = int(source.index.num_frames[row]), float(source.index.fps[row])
        return eval_frames(self.rule, length=length, fps=fps, is_layered=source.is_layered, views=self.views)
