"""What the step loop says about itself, over all its processes and starts."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from stmae_train.checkpoint import StepLoop
from stmae_train.checkpoint import loop as room
from stmae_train.distributed import World
from stmae_train.loader import CropRule, ReadOptions, TrainLoader, open_sources
from stmae_train.runlog import Guard, RunFolder, StepRecord, Stopwatch
from stmae_train.views import FrameRule

GPU = torch.device("cuda", 0)  # by name alone: nothing is put there


class OnlyProcess(World):
    """A process that says it is one of several, and is alone."""

    def total(self, *values: float) -> list[float]:
        return list(values)

    def any(self, flag: int) -> int:
        return flag


@pytest.fixture
def reading(small_world: Path) -> TrainLoader:
    return TrainLoader(
        small_world,
        open_sources(small_world, ["tiny"]),
        rule=FrameRule(4, 4),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=0,
        batch_videos=8,
        repeats=2,
        options=ReadOptions(cache_bytes=0),
    )


def loop_of(world: World, reading: TrainLoader) -> StepLoop:
    trainee: Any = None  # nothing is trained here
    return StepLoop(None, world, trainee=trainee, loader=reading, steps=100, flops_per_clip=5.0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds that every stopwatch shows; a device can do 160 operations in one."""
    now = [0.0]
    monkeypatch.setattr(room, "peak_flops", lambda device: 160.0)
    monkeypatch.setattr(Stopwatch, "seconds", property(lambda self: now[0]))
    return now


class BesideASlowOne(OnlyProcess):
    """A process beside one that waits nine tenths of the time, for samples of 10 ms each."""

    def mean(self, value: torch.Tensor) -> torch.Tensor:
        return value

    def by_rank(self, *values: float) -> list[tuple[float, ...]]:
        return [values, (0.9, 100.0, 1.0)[: len(values)]]


def test_what_is_logged_and_advised_is_of_the_process_that_waits_longest(
    reading: TrainLoader, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    reading.world_size = 2
    loop = loop_of(BesideASlowOne(0, 2, torch.device("cpu")), reading)
    records: list[StepRecord] = []
    loop.run = cast(RunFolder, SimpleNamespace(log=records.append))
    loop.guard = cast(Guard, SimpleNamespace(take=lambda: (0.5, 1.0)))
    with caplog.at_level(logging.WARNING, logger="stmae.train"):
        for step in (1, 2):
            loop.step, clock[0] = step, step * 0.1
            loop._log(0.1, None)
    assert [(each.wait_share, each.wait_rank) for each in records] == [(0.9, 1)] * 2
    assert "wait 90% (rank 1)" in str(records[0])
    assert "90% of the time is spent waiting for it by rank 1 of 2 processes" in caplog.text
    assert "5.0 ms per clip" in caplog.text and len(caplog.records) == 1
    assert loop.cost()["stall_seconds"] == 0.9


def test_numbers_of_processes_stand_in_the_order_of_their_ranks() -> None:
    assert OnlyProcess(1, 3, GPU).by_rank(5.0, 6.0) == [(0.0, 0.0), (5.0, 6.0), (0.0, 0.0)]


@pytest.mark.parametrize("processes", [1, 8])
def test_the_share_of_the_peak_is_of_all_devices(processes: int, reading: TrainLoader, clock: list[float]) -> None:
    loop = loop_of(OnlyProcess(0, processes, GPU), reading)
    loop.meter.begin(0)
    clock[0] = 10 / processes  # 16 clips per second and device, of 5 operations each: half of what a device can do
    assert loop.meter.record(10, loss=0.5, lr=0.1, grad_norm=1.0).mfu == 0.5


def test_seconds_of_gpus_are_those_of_every_start_with_the_gpus_it_had(
    reading: TrainLoader, clock: list[float]
) -> None:
    before = loop_of(OnlyProcess(0, 8, GPU), reading)
    clock[0] = 10.0
    cost = before.cost()
    assert (cost["seconds"], cost["gpu_seconds"]) == (10.0, 80.0)
    alone = loop_of(OnlyProcess(0, 1, GPU), reading)
    alone.spent = {name: cost[name] for name in alone.spent}  # as a checkpoint hands it on
    clock[0] = 3.0
    cost = alone.cost()
    assert (cost["seconds"], cost["gpu_seconds"]) == (13.0, 83.0)
