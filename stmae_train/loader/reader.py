"""Plans turned into batches: planes from the cache where a set has one, else from the decoder, a few clips ahead of the batches."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stmae_data.frames import Planes
from stmae_data.shards import DEFAULT_RANGE_BYTES
from stmae_train.errors import ConfigError, DataMismatch
from stmae_train.loader.batch import Batch, BatchPlan, CropRule, Loaded, assemble, blank, clips_of_planes
from stmae_train.loader.cache import DEFAULT_CACHE_BYTES, open_cache
from stmae_train.loader.source import ClipSource
from stmae_train.loader.workers import Damaged, Decoded, Job, Spent, decode_in_order
from stmae_train.views import FrameRule

__all__ = ["ReadOptions", "Reader"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How samples are read; none of it changes a pixel."""

    workers: int = 0
    cache_bytes: int = DEFAULT_CACHE_BYTES  # decoded sets up to this size are cached; 0 = never
    skip_damaged: int = (
        0  # damaged samples that may be left out before the run stops, over all its processes and starts
    )
    prefetch: int = 4  # clips that a worker may have decoded ahead; each takes the memory of its frames
    store_cache_bytes: int = DEFAULT_RANGE_BYTES  # what may stand on this disk of shards that are read from a store
    pins_memory: bool = False  # batches stand in page-locked memory, one at a time

    def __post_init__(self) -> None:
        bounds = {"workers": 0, "cache_bytes": 0, "skip_damaged": 0, "prefetch": 1, "store_cache_bytes": 1}
        for name, least in bounds.items():
            if getattr(self, name) < least:
                raise ConfigError(f"ReadOptions.{name} is {getattr(self, name)}, wanted {least} or more; raise it.")


class Reader:
    """Turns plans into batches: planes from the cache where a set has one, else from the decoder."""

    def __init__(self, workspace: Path, sources: Sequence[ClipSource], rule: FrameRule, options: ReadOptions) -> None:
        if len({source.is_of_pictures for source in sources}) > 1:
            names = ", ".join(str(source.index.reference) for source in sources)
            raise DataMismatch(
                f"A batch cannot be mixed of pictures and videos ({names}); train on the pictures first, then start from those weights: --init."
            )
        self.sources, self.rule, self.options = sources, rule, options
        self.spent = Spent()
        for source in sources:
            source.keep_at_most(options.store_cache_bytes)
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

    def batches(
        self, plans: Callable[[], Iterator[BatchPlan]], crop: CropRule | None, *, seed: int
    ) -> Generator[Batch]:
        """A batch per plan; the plans are walked twice, a few jobs ahead of the batches for the workers."""
        is_direct = any(cache is None for cache in self.caches)
        jobs = (job for plan in plans() for job in self.jobs(plan)) if is_direct else iter(())
        workers = self.options.workers if is_direct else 0
        answers = decode_in_order(self.sources, jobs, workers=workers, prefetch=self.options.prefetch, spent=self.spent)
        try:
            for plan in plans():
                yield self._batch(plan, answers, crop, seed=seed)
        finally:
            answers.close()

    def jobs(self, plan: BatchPlan) -> Iterator[Job]:
        """What a plan asks the decoder for."""
        for number, position, frames in zip(plan.sets, plan.positions, plan.frames, strict=True):
            if self.caches[number] is None:
                yield Job(int(number), int(self.sources[number].rows[position]), frames)

    def _batch(self, plan: BatchPlan, answers: Generator[Decoded], crop: CropRule | None, *, seed: int) -> Batch:
        loaded: list[Loaded] = []
        skipped = []
        for video, (number, position) in enumerate(zip(plan.sets, plan.positions, strict=True)):
            cache = self.caches[number]
            if cache is not None:
                height, width = int(cache.heights[position]), int(cache.widths[position])
                loaded.append(Loaded(video, cache.gather(int(position), plan.frames[video]), height, width))
                continue
            answer = next(answers)
            source = self.sources[number]
            self.bytes_read += int(source.index.media_bytes[source.rows[position]])
            if isinstance(answer, Damaged):
                self._skip(answer, source)
                skipped.append(answer.clip_id)
            elif isinstance(answer, Planes):
                height, width = answer.y.shape[1:]
                loaded.append(Loaded(video, clips_of_planes(answer, plan.frames[video]), height, width))
            else:
                loaded.append(Loaded(video, answer, *answer.shape[:2]))
        if loaded:
            batch = assemble(plan, loaded, self.sources, crop, seed=seed, skipped=tuple(skipped))
        else:
            batch = blank(plan, self.sources, crop, seed=seed, skipped=tuple(skipped))
        return batch.pinned() if self.options.pins_memory else batch

    def learn(self, skipped: Mapping[str, str]) -> None:
        """Take up what other processes and earlier starts left out; the bound is of all of them together.

        Raises:
            DataMismatch: more samples are damaged than may be skipped.
        """
        self.skipped |= skipped
        if len(self.skipped) > self.options.skip_damaged:
            last = sorted(self.skipped)[-1]
            raise DataMismatch(
                f"{len(self.skipped)} of the clips drawn so far cannot be decoded, one of them {last} ({self.skipped[last].rstrip('.')}), and "
                f"{self.options.skip_damaged} may be left out; verify the sets: stmae-data verify, or resume without them: --skip-damaged "
                f"{len(self.skipped)}."
            )

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
