"""A run that waits for data says who is slow and what to change, once."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator
from pathlib import Path

import pytest

from stmae_train.config import Recipe
from stmae_train.loader import Advisor, CropRule, ReadOptions, TrainLoader, advice, open_sources
from stmae_train.loader.workers import Spent
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.runlog import Stopwatch
from stmae_train.views import FrameRule


def said(*, samples: int = 100, seconds: float = 2.0, wanted: float = 200, workers: int = 2, cores: int = 16) -> str:
    facts, step = advice(
        Spent(samples, seconds), wanted_per_second=wanted, repeats=4, workers=workers, cores=cores, is_layered=True
    )
    return f"{facts}. {step}"


def test_the_sentence_names_who_is_slow_and_the_next_step() -> None:
    # 20 ms per sample, 200 samples wanted: four seconds of work in every one, and a quarter on top.
    assert (
        said() == "2 workers, 5.0 ms per clip to read and decode, 5 workers would keep up. Ask for more: --workers 5."
    )
    assert "decoding between the steps" in said(workers=0) and "--workers 5" in said(workers=0)
    assert "They are fast enough" in said(workers=6) and "--prefetch" in said(workers=6)
    assert "has 4 cores; draw more clips per video" in said(workers=4, cores=4)
    assert "decoded cache" in said(samples=0)
    foreign = advice(Spent(100, 9.0), wanted_per_second=200, repeats=1, workers=4, cores=4, is_layered=False)
    assert "build the set layered" in foreign[1]
    stored = advice(
        Spent(100, 2.0), wanted_per_second=200, repeats=4, workers=6, cores=16, is_layered=True, is_on_store=True
    )
    assert "the store is slow: raise --store-cache-gb" in stored[1]


def loader(workspace: Path, *, world_size: int = 1) -> TrainLoader:
    return TrainLoader(
        workspace,
        open_sources(workspace, ["tiny"]),
        rule=FrameRule(4, 4),
        crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
        seed=0,
        batch_videos=8,
        repeats=2,
        world_size=world_size,
        options=ReadOptions(workers=1, cache_bytes=0),
    )


def test_it_is_said_once_and_only_where_the_wait_is_long(small_world: Path) -> None:
    reading = loader(small_world)
    advisor = Advisor(reading)
    steps: Generator[object] = reading.batches(0, 8)
    heard = []
    for wait_share in (0.9, 0.1, 0.5, 0.6):
        next(steps)
        reading.reader.spent.seconds = reading.reader.spent.samples * 0.01  # 10 ms each, whatever the clock says
        heard.append(advisor.sentence(advisor.recent(), rank=0, wait_share=wait_share, clips_per_second=100.0))
    steps.close()
    assert reading.reader.spent.samples >= 32
    first, short, long, again = heard
    assert first is None and short is None and again is None
    assert long is not None and long.startswith(
        "Data slows this run down: 50% of the time is spent waiting for it; 1 workers, 5.0 ms"
    )


def test_the_cores_of_a_machine_are_shared_by_the_processes_on_it_alone(
    small_world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    reading = loader(small_world, world_size=4)
    for here, cores in (("2", 4), (None, 2)):  # two machines; or nobody says so
        if here:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
        else:
            monkeypatch.delenv("LOCAL_WORLD_SIZE")
        advisor = Advisor(reading)
        said = [advisor.sentence(Spent(100, 1.0), rank=3, wait_share=0.5, clips_per_second=10_000) for _ in range(2)][1]
        assert said is not None
        assert "50% of the time is spent waiting for it by rank 3 of 4 processes; 1 workers" in said
        assert said.endswith("--workers 4.") if cores == 4 else "This machine has 2 cores" in said


def test_a_run_logs_it(
    small_world: Path,
    small_recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    waited = property(lambda self: self.seconds * 0.9, lambda self, value: None)
    monkeypatch.setattr(Stopwatch, "waited", waited, raising=False)
    request = PretrainRequest(
        small_world, ("tiny",), small_recipe, tmp_path / "run", clips=32, device="cpu", log_every=1, pictures=0
    )
    with caplog.at_level(logging.WARNING, logger="stmae.train"):
        pretrain(request)
    lines = [record.getMessage() for record in caplog.records if "Data slows this run down" in record.getMessage()]
    assert len(lines) == 1 and "90% of the time" in lines[0] and "decoded cache" in lines[0]
