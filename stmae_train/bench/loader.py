"""Shards to batches with all workers, against bare decoding of the same clips on one core: what the loader costs on top.

The two run in turn within a round on the same steps, so what else the machine does meets both. 1 would mean that `workers` processes
bring `workers` times what one core decodes; reading tars, handing over and putting batches together is what is missing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stmae_data.frames import read_clips
from stmae_train.bench.machine import interleaved, machine, versions
from stmae_train.errors import ModelError
from stmae_train.loader import CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.views import FrameRule

__all__ = ["LoaderBench", "bench_loader"]

NUM_FRAMES, STRIDE = 16, 4


@dataclass(frozen=True, slots=True)
class LoaderBench:
    """What to time.

    Attributes:
        workspace, shards: set references, as in training.
        workers: decoding processes.
        batch_videos: of a step.
        repeats: clips per video, one cell each.
        steps: of a round.
        rounds: timed rounds after one that is not counted.
        prefetch: videos that each worker may have ready.
    """

    workspace: Path
    shards: tuple[str, ...]
    workers: int = 1
    batch_videos: int = 16
    repeats: tuple[int, ...] = (1, 4)
    steps: int = 4
    rounds: int = 7
    prefetch: int = 4

    def __post_init__(self) -> None:
        if min(self.workers, self.batch_videos, self.steps, self.rounds, *self.repeats) < 1:
            raise ModelError(
                "The loader cannot be timed without a worker, a video, a step and a round; ask for at least one of each."
            )


def bench_loader(wanted: LoaderBench, *, watch: Callable[[str, int, int], None] | None = None) -> dict[str, Any]:
    """Clips per second of the loader, and what they come to beside bare decoding.

    Raises:
        SetError, DataMismatch: a set cannot be read.
        ModelError: a set of pictures, which nothing is decoded of as of a video.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = []
        for number, repeats in enumerate(wanted.repeats):
            cells.append(_cell(wanted, repeats))
            if watch is not None:
                watch("timing", number + 1, len(wanted.repeats))
    finally:
        torch.set_num_threads(before)
    return {
        "machine": machine(threads=1),
        "versions": versions("torch", "av"),
        "settings": {
            "shards": list(wanted.shards),
            "workers": wanted.workers,
            "batch_videos": wanted.batch_videos,
            "steps": wanted.steps,
            "rounds": wanted.rounds,
            "prefetch": wanted.prefetch,
            "clip": f"{NUM_FRAMES} frames, stride {STRIDE}, planes of whole pictures on one canvas",
            "figure": "clips per second; median over interleaved rounds, workers started before the clock",
            "ratio": "loader / (workers x bare decoding of the same clips on one core); 1 means that nothing is lost on the way",
        },
        "cells": cells,
    }


def _cell(wanted: LoaderBench, repeats: int) -> dict[str, Any]:
    loader = TrainLoader(
        wanted.workspace,
        open_sources(wanted.workspace, wanted.shards),
        rule=FrameRule(NUM_FRAMES, STRIDE),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=0,
        batch_videos=wanted.batch_videos,
        repeats=repeats,
        options=ReadOptions(wanted.workers, cache_bytes=0, prefetch=wanted.prefetch),
    )
    if loader.sources[0].is_of_pictures:
        raise ModelError(f"{loader.sources[0].index.reference} is a set of pictures; name a set of videos to time.")
    clips = wanted.steps * loader.clips_per_step

    def through_the_loader(number: int) -> float:
        # The step before is not counted: in it the workers start and fill what they may have ready.
        first = 1 + number * (wanted.steps + 1)
        batches = loader.batches(first - 1, first + wanted.steps + 1)
        next(batches)
        started = time.perf_counter()
        for _ in range(wanted.steps):
            next(batches)
        seconds = time.perf_counter() - started
        batches.close()
        return seconds

    def bare(number: int) -> float:
        first = 1 + number * (wanted.steps + 1)
        jobs = [
            (loader.sources[job.source], job)
            for plan in loader.plans(first, first + wanted.steps)
            for job in loader.reader.jobs(plan)
        ]
        media = [source.media(job.row) for source, job in jobs]
        started = time.perf_counter()
        for (source, job), data in zip(jobs, media, strict=True):
            read_clips(data, job.clips.tolist(), layout=source.index.layout)
        return time.perf_counter() - started

    times = interleaved({"loader": through_the_loader, "bare": bare}, rounds=wanted.rounds)
    speed = {name: clips / statistics.median(each) for name, each in times.items()}
    shares = [alone / (through * wanted.workers) for through, alone in zip(times["loader"], times["bare"], strict=True)]
    return {
        "what": "loader: shards to batches, all workers",
        "size": f"K = {repeats}",
        "dtype": "uint8",
        "unit": "clips per second",
        "ours": round(speed["loader"], 2),
        "peers": {"bare decoding, one core": round(speed["bare"], 2)},
        "absent": [],
        "ratio_to_best_peer": round(statistics.median(shares), 4),
        "gate": 0.8,
    }
