"""Who is slow when a run waits for its data, and what to change: one sentence out of what the loader measured about itself."""

from __future__ import annotations

import math
import os

from stmae_train.loader.batches import TrainLoader
from stmae_train.loader.workers import Spent

__all__ = ["Advisor", "advice"]

WAIT_SHARE = 0.2  # below this nothing is said
_MARGIN = 1.25  # of workers over bare decoding: reading tars, handing over (PERFORMANCE.md)


class Advisor:
    """Says once what slows a run down, and again when that changes; the first interval, in which workers start, is not judged."""

    def __init__(self, loader: TrainLoader) -> None:
        self.loader = loader
        self._told, self._before, self._is_warm = "", Spent(), False

    def recent(self) -> Spent:
        """What decoding took in this process since it was asked last."""
        spent, before = self.loader.reader.spent, self._before
        self._before = Spent(spent.samples, spent.seconds)
        return Spent(spent.samples - before.samples, spent.seconds - before.seconds)

    def sentence(self, recent: Spent, *, rank: int, wait_share: float, clips_per_second: float) -> str | None:
        """What to say after an interval.

        Args:
            recent: what decoding took in the process that waited longest.
            rank: of that process.
            wait_share: the share of the interval that it waited.
            clips_per_second: over all processes.
        """
        if not self._is_warm:
            self._is_warm = True
            return None
        if wait_share <= WAIT_SHARE:
            return None
        loader = self.loader
        # What this process would ask for if it never waited.
        wanted = clips_per_second / (1 - min(wait_share, 0.99)) / loader.repeats / loader.world_size
        facts, step = advice(
            recent,
            wanted_per_second=wanted,
            repeats=loader.repeats,
            workers=loader.reader.options.workers,
            cores=max(1, len(os.sched_getaffinity(0)) // _processes_here(loader.world_size)),
            is_layered=all(source.is_layered or source.is_of_pictures for source in loader.sources),
            is_on_store=any(source.on_store for source in loader.sources),
        )
        if step == self._told:
            return None
        self._told = step
        who = f" by rank {rank} of {loader.world_size} processes" if loader.world_size > 1 else ""
        return f"Data slows this run down: {wait_share:.0%} of the time is spent waiting for it{who}; {facts}. {step}"


def _processes_here(world_size: int) -> int:
    """Processes of the run on this machine, among which its cores are shared; whoever starts them says so."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size))


def advice(
    spent: Spent,
    *,
    wanted_per_second: float,
    repeats: int,
    workers: int,
    cores: int,
    is_layered: bool,
    is_on_store: bool = False,
) -> tuple[str, str]:
    """What was measured, and what to change.

    Args:
        spent: samples decoded and the seconds that it took, summed over the workers.
        wanted_per_second: samples per second that would keep this process busy.
        repeats: clips drawn from a sample.
        workers: decoding processes; 0 decodes between the steps.
        cores: processor cores that this process may count on.
        is_layered: every set is layered, or of pictures.
        is_on_store: a set stands on a store.
    """
    if not spent.samples:
        return (
            "samples come from the decoded cache",
            "The disk it stands on or the main process is slow: put the workspace on a faster disk, or draw more clips per video "
            "(data.repeats).",
        )
    seconds = spent.seconds / spent.samples
    needed = max(1, math.ceil(_MARGIN * seconds * wanted_per_second))
    who = f"{workers} workers" if workers else "decoding between the steps"
    facts = f"{who}, {1000 * seconds / repeats:.1f} ms per clip to read and decode, {needed} workers would keep up"
    if needed <= workers and is_on_store:
        return facts, (
            "They are fast enough, so the store is slow: raise --store-cache-gb until the sets fit in, after which they are read once, or draw "
            "more clips per video (data.repeats)."
        )
    if needed <= workers:
        return facts, (
            "They are fast enough, so the main process or the link between them is slow: give the run a core of its own, or raise --prefetch."
        )
    if needed <= cores or workers < cores // 2:
        return facts, f"Ask for more: --workers {min(needed, cores)}."
    if not is_layered:
        return facts, (
            f"This machine has {cores} cores; build the set layered, which decodes several times faster: stmae-data build --encode layered."
        )
    return facts, (
        f"This machine has {cores} cores; draw more clips per video (data.repeats), build the set with --encode fast, or use more cores."
    )
