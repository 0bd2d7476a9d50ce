"""The run folder: one writer, honest ends, a log that resumes."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import numpy as np
import pytest

from stmae_data.errors import StorageError
from stmae_train.config import Recipe, override
from stmae_train.errors import ConfigError, RunBusy, RunInterrupted
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.recipes import recipe
from stmae_train.runlog import RunFolder, StepRecord, StopSignals, Stopwatch, Track, runs_status, train_flops


def open_run(path: Path, recipe: Recipe, *, resume: bool = False, **settings: object) -> RunFolder:
    return RunFolder.open(path, command="pretrain", recipe=recipe, seed=0, settings=settings, resume=resume)


def record(step: int) -> StepRecord:
    return StepRecord(step, 10, 8 * step, 0.5, 1e-3, 1.0, 100.0, 0.0, None, 1, 0.0)


def test_a_run_says_how_it_ended(tmp_path: Path, small_recipe: Recipe) -> None:
    assert runs_status(tmp_path / "a") is None
    with open_run(tmp_path / "a", small_recipe):
        assert runs_status(tmp_path / "a") == "running"
        assert (tmp_path / "a" / "config.toml").is_file()  # saved before step 0
    assert runs_status(tmp_path / "a") == "done"
    for error, status in ((RunInterrupted(15), "interrupted"), (ConfigError("no"), "failed")):
        path = tmp_path / status
        with pytest.raises(type(error)), open_run(path, small_recipe):
            raise error
        assert runs_status(path) == status and json.loads((path / "run.json").read_text())["error"]


def _try_open(path: Path, recipe: Recipe, answers: multiprocessing.SimpleQueue) -> None:
    try:
        open_run(path, recipe)
    except RunBusy as error:
        answers.put((str(error), error.exit_code))


def test_a_second_process_is_turned_away_with_the_first_ones_id(tmp_path: Path, small_recipe: Recipe) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    with open_run(tmp_path / "run", small_recipe):
        child = context.Process(target=_try_open, args=(tmp_path / "run", small_recipe, answers))
        child.start()
        child.join()
        text, code = answers.get()
    assert f"process {os.getpid()}" in text and code == 75
    with open_run(tmp_path / "run", small_recipe, resume=True) as again:
        assert again.was_done


def test_other_settings_are_refused_by_name(tmp_path: Path, small_recipe: Recipe) -> None:
    with open_run(tmp_path / "run", small_recipe, shards=["a"]):
        pass
    with pytest.raises(ConfigError, match=r"settings \(\{'shards': \['a'\]\}, now \{'shards': \['b'\]\}\)"):
        open_run(tmp_path / "run", small_recipe, resume=True, shards=["b"])
    with pytest.raises(ConfigError, match=r"mask_ratio = 0\.5 \(was mask_ratio = 0\.75\)"):
        open_run(tmp_path / "run", override(small_recipe, ["mask_ratio=0.5"]), resume=True, shards=["a"])


def test_a_torn_log_line_is_left_out_and_later_steps_are_forgotten(tmp_path: Path, small_recipe: Recipe) -> None:
    with open_run(tmp_path / "run", small_recipe) as run:
        for step in (1, 2, 3):
            run.log(record(step))
        with (tmp_path / "run" / "log.jsonl").open("a") as stream:
            stream.write('{"step": 4, "lo')
        assert [each["step"] for each in run.records()] == [1, 2, 3]
        run.forget_after(2)
        run.log(record(3))
        assert [each["step"] for each in run.records()] == [1, 2, 3]


def test_a_full_disk_ends_with_its_code(tmp_path: Path, small_recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="No space left") as caught, open_run(tmp_path / "run", small_recipe) as run:
        monkeypatch.setenv("STMAE_FAULT", "run.write:1:ENOSPC")
        run.write_json("cost.json", {})
    assert caught.value.exit_code == 74
    assert not (tmp_path / "run" / "cost.json").exists()


@pytest.mark.parametrize(
    ("number", "launcher"), [(signal.SIGTERM, False), (signal.SIGTERM, True), (signal.SIGINT, True)]
)
def test_a_signal_that_comes_again_leaves_the_time_for_a_checkpoint(
    number: signal.Signals, launcher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if launcher:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    before = signal.getsignal(number)
    with StopSignals() as signals:
        for _ in range(3):
            assert signal.getsignal(number) == signals._handle
            os.kill(os.getpid(), number)
        assert signals.received == number
    assert signal.getsignal(number) == before


def test_at_a_terminal_a_second_interrupt_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    before = signal.getsignal(signal.SIGINT)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT and signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize(("name", "teraflops"), [("mae-st-b16", 0.273), ("mae-st-l16", 0.485)])
def test_the_work_of_a_step_is_that_of_the_published_sizes(name: str, teraflops: float) -> None:
    assert train_flops(recipe(name).model) / 1e12 == pytest.approx(teraflops, rel=0.06)  # PERFORMANCE.md, "Limits"


def _work(pipe: Connection) -> None:
    while time.process_time() < 0.3:
        pass
    pipe.send(time.process_time())
    pipe.recv()


def test_processor_seconds_of_children_count_while_they_run_and_once() -> None:
    watch = Stopwatch()
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    child = context.Process(target=_work, args=(there,))
    child.start()
    spent = here.recv()
    running, ours = watch.cpu_seconds, time.process_time()
    assert running > spent - 0.05  # the system counts in hundredths
    here.send(None)
    child.join()
    assert running - 0.05 < watch.cpu_seconds < running + spent / 2 + time.process_time() - ours


class FakeWriter:
    """What torch.utils.tensorboard gives, without the package."""

    made: ClassVar[list[FakeWriter]] = []

    def __init__(self, *, log_dir: str, purge_step: int) -> None:
        self.log_dir, self.purge_step, self.is_closed = log_dir, purge_step, False
        self.scalars: dict[str, list[tuple[int, float]]] = {}
        self.pictures: list[tuple[str, int, tuple[int, ...]]] = []
        self.made.append(self)

    def add_scalar(self, name: str, value: float, *, global_step: int) -> None:
        self.scalars.setdefault(name, []).append((global_step, value))

    def add_image(self, name: str, pixels: np.ndarray, *, global_step: int, dataformats: str) -> None:
        assert dataformats == "HWC"
        self.pictures.append((name, global_step, pixels.shape))

    def close(self) -> None:
        self.is_closed = True


def test_a_tracker_shows_the_records_of_the_log_and_pictures_on_the_way_and_changes_nothing(
    small_world: Path, small_recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = FakeWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    monkeypatch.setattr(FakeWriter, "made", [])
    plain = PretrainRequest(
        small_world, ("tiny",), small_recipe, tmp_path / "plain", log_every=2, device="cpu", pictures=0
    )
    watched = replace(plain, run_dir=tmp_path / "watched", track="tensorboard", pictures_every=4, pictures=2)
    assert pretrain(watched).weights.read_bytes() == pretrain(plain).weights.read_bytes()
    (writer,) = FakeWriter.made
    log = [json.loads(line) for line in (watched.run_dir / "log.jsonl").read_text().splitlines()]
    assert writer.scalars["train/loss"] == [(each["step"], each["loss"]) for each in log]
    assert set(writer.scalars) == {
        f"train/{name}" for name in ("loss", "lr", "grad_norm", "clips_per_second", "wait_share", "memory_bytes")
    }  # no mfu: nobody knows what this processor could do
    assert writer.is_closed and Path(writer.log_dir) == watched.run_dir / "tensorboard" and writer.purge_step == 1
    assert sorted({step for _, step, _ in writer.pictures}) == [4, 8, 10]
    for step in (4, 8):
        names = sorted(path.name for path in (watched.run_dir / f"pictures/step-{step:09d}").glob("*-75.png"))
        assert names == ["tinytrain0000-75.png", "tinytrain0001-75.png"]
    card = (watched.run_dir / "CARD.md").read_text()
    assert "bytes read" in card and "processor" in card and "1 x fp32" in card
    again = pretrain(replace(watched, run_dir=tmp_path / "none", track=None, pictures_every=None))
    assert len(FakeWriter.made) == 1 and not (again.run_dir / "tensorboard").exists()


def test_a_tracker_that_is_not_installed_or_not_known_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"needs the package tensorboard.*pip install 'stmae\[track\]'"):
        Track("tensorboard", tmp_path, after=0)
    with pytest.raises(ConfigError, match="no tracker 'wandb'; choose one of tensorboard"):
        Track("wandb", tmp_path, after=0)


def test_tensorboard_itself_reads_what_was_shown(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Track("tensorboard", tmp_path, after=0) as track:
        for step in (1, 2):
            track.add(record(step))
    events = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(each.step, each.value) for each in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.5)]
