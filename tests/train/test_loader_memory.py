"""The loader's memory is flat: what it holds does not grow with the samples that went through it."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stmae_train.loader import Batch, CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.loader.workers import Job, decode_in_order
from stmae_train.views import FrameRule

BATCH_VIDEOS = 50
# Less than the planes of the samples of a quarter of the short test: one frame of each kept would show.
GROWTH_BYTES = 6 << 20


def own_bytes(pid: int) -> int:
    """Resident memory of a process that no file stands behind: what leaks would be in."""
    resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def family_bytes() -> int:
    """Of this process and its children together."""
    children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
    return own_bytes(os.getpid()) + sum(own_bytes(int(pid)) for pid in children)


def batches(workspace: Path, *, samples: int, workers: int) -> Iterator[Batch]:
    reading = TrainLoader(
        workspace,
        open_sources(workspace, ["tiny"]),
        rule=FrameRule(4, 4),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=0,
        batch_videos=BATCH_VIDEOS,
        repeats=1,
        options=ReadOptions(workers=workers, cache_bytes=0, prefetch=2),
    )
    return reading.batches(0, samples // BATCH_VIDEOS)


def growth(workspace: Path, *, samples: int, workers: int) -> int:
    """Bytes by which memory is larger in the last quarter of the samples than in the second, the least of each."""
    seen = []
    for _ in batches(workspace, samples=samples, workers=workers):
        gc.collect()
        seen.append(family_bytes())
    quarter = len(seen) // 4
    return min(seen[-quarter:]) - min(seen[quarter : 2 * quarter])


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_over_two_thousand_samples(small_world: Path, workers: int) -> None:
    assert growth(small_world, samples=2_000, workers=workers) < GROWTH_BYTES


@pytest.mark.battery
@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_flat_over_twenty_thousand_samples(small_world: Path, workers: int) -> None:
    assert growth(small_world, samples=20_000, workers=workers) < GROWTH_BYTES


def test_a_worker_holds_no_more_than_it_may_have_ahead(small_world: Path) -> None:
    (source,) = open_sources(small_world, ["even"])
    asked: list[int] = []

    def watched() -> Iterator[Job]:
        for number in range(40):
            asked.append(number)
            yield Job(0, number % len(source), np.array([[0, 4]]))

    answers = decode_in_order([source], watched(), workers=2, prefetch=3)
    for number in range(20):
        next(answers)
        assert len(asked) <= number + 1 + 2 * 3 + 1
    answers.close()
