"""Runs that may leave out damaged clips: nothing else of the run minds them, and all that was left out is counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stmae_data.errors import SetError
from stmae_data.frames import Planes
from stmae_train.config import Recipe, override, to_toml
from stmae_train.errors import DataMismatch
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.loader import Batch, ClipSource, CropRule, ReadOptions, SweepLoader, TrainLoader, open_sources, reader
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.runlog import StepRecord
from stmae_train.views import FrameRule

Damage = Callable[..., None]


@pytest.fixture
def damage(monkeypatch: pytest.MonkeyPatch) -> Damage:
    """Let some rows of every set be damaged."""
    honest = ClipSource.planes

    def install(*rows: int) -> None:
        def planes(self: ClipSource, row: int, clips: Sequence[Sequence[int]]) -> Planes:
            if row in rows:
                raise SetError("Frame 4 did not arrive.")
            return honest(self, row, clips)

        monkeypatch.setattr(ClipSource, "planes", planes)

    return install


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> PretrainRequest:
    """A run of 6 steps, which is every clip once."""
    return PretrainRequest(
        small_world,
        ("tiny",),
        small_recipe,
        tmp_path / "run",
        clips=48,
        checkpoint_every=1,
        log_every=1,
        device="cpu",
        skip_damaged=2,
        pictures=0,
        cache_bytes=0,
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def facts(folder: Path) -> tuple[str, list[str], int]:
    """How the run ended, what it says it left out, and the number of its card."""
    (line,) = (each for each in (folder / "CARD.md").read_text().splitlines() if "Skipped clips" in each)
    status = json.loads((folder / "run.json").read_text())["status"]
    return status, sorted(json.loads((folder / "skipped.json").read_text())), int(line.rpartition(":")[2])


def first_rows(workspace: Path, *, processes: int, accumulate: int = 2, seed: int = 0) -> list[list[int]]:
    """The rows of the first micro-batch of each process."""
    loaders = [
        TrainLoader(
            workspace,
            open_sources(workspace, ["tiny"]),
            rule=FrameRule(4, 4),
            crop=CropRule((0.5, 1.0), (3 / 4, 4 / 3), True),
            seed=seed,
            batch_videos=4,
            repeats=2,
            accumulate=accumulate,
            rank=rank,
            world_size=processes,
        )
        for rank in range(processes)
    ]
    return [next(each.plans(0, 1)).positions.tolist() for each in loaders]


def test_pictures_of_a_run_leave_out_what_the_run_may_leave_out(
    request_: PretrainRequest, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    damage(1)
    pretrain(replace(request_, pictures=3, pictures_every=4))
    for folder in ("pictures", "pictures/step-000000004"):
        names = [path.name for path in sorted((request_.run_dir / folder).glob("*.png"))]
        assert names == [f"tinytrain{number:04d}-75.png" for number in (0, 2)]
    assert facts(request_.run_dir) == ("done", ["tinytrain0001"], 1)
    assert "No pictures of damaged clips: tinytrain0001." in caplog.text


def test_pictures_of_a_run_that_may_leave_out_nothing_name_the_clip(request_: PretrainRequest, damage: Damage) -> None:
    seeds = (
        seed for seed in range(100) if 1 not in first_rows(request_.workspace, processes=1, accumulate=1, seed=seed)[0]
    )
    damage(1)
    shown = replace(request_, clips=8, skip_damaged=0, seed=next(seeds), pictures=3)
    with pytest.raises(DataMismatch, match=r"Clip tinytrain0001 of tiny:train cannot be decoded .*--skip-damaged 1"):
        pretrain(shown)
    assert (shown.run_dir / "weights.safetensors").is_file()  # training itself had not met it


def test_a_basis_is_fitted_to_the_clips_that_are_whole(request_: PretrainRequest, damage: Damage) -> None:
    damage(1)
    recipe = override(request_.recipe, ["model.target=pca", "model.target_values=6"])
    pretrain(replace(request_, recipe=recipe))
    assert facts(request_.run_dir) == ("done", ["tinytrain0001"], 1)


def stop_at(step: int) -> Callable[[StepRecord], None]:
    def watch(record: StepRecord) -> None:
        if record.step == step:
            raise RuntimeError("pulled the plug")

    return watch


def test_what_earlier_starts_left_out_is_counted_and_bounded_with_the_rest(
    request_: PretrainRequest, damage: Damage
) -> None:
    """Stopped after every step: one damaged clip is drawn in the first, every other one later."""
    ((first, *_),) = first_rows(request_.workspace, processes=1)
    damage(first, (first + 1) % 24)
    request = replace(request_, resume=True)
    for step in range(2, 7):
        with pytest.raises(RuntimeError, match="plug"):
            pretrain(request, watch=stop_at(step))
    state = json.loads((request.run_dir / "checkpoints/step-000000005/state.json").read_text())
    assert f"tinytrain{first:04d}" in state["skipped_clips"]
    with pytest.raises(DataMismatch, match=r"cannot be decoded.*--skip-damaged [12]\.$"):
        pretrain(replace(request, skip_damaged=0))
    with pytest.raises(DataMismatch, match=r"cannot be decoded.*--skip-damaged 2\.$"):
        pretrain(replace(request, skip_damaged=1))
    pretrain(request)
    wanted = sorted(f"tinytrain{row:04d}" for row in (first, (first + 1) % 24))
    assert facts(request.run_dir) == ("done", wanted, 2)


# Both processes leave out one clip in the first step, which is one too many for the two of them together.
TWO = """
import json, os, sys, torch
from pathlib import Path
from stmae_data.errors import SetError
from stmae_train.config import read_recipe
from stmae_train.errors import DataMismatch
from stmae_train.loader import ClipSource
from stmae_train.pretrain import PretrainRequest, pretrain
torch.set_num_threads(1)
workspace, recipe, folder, rows = sys.argv[1:]
honest = ClipSource.planes
def planes(self, row, clips):
    if row in json.loads(rows):
        raise SetError("Frame 4 did not arrive.")
    return honest(self, row, clips)
ClipSource.planes = planes
try:
    pretrain(PretrainRequest(Path(workspace), ("tiny",), read_recipe(Path(recipe)), Path(folder), clips=48, checkpoint_every=2,
                             device="cpu", pictures=0, cache_bytes=0, skip_damaged=1))
except DataMismatch as error:
    Path(folder + os.environ["RANK"]).write_text(str(error))
"""


@pytest.mark.slow
def test_what_several_processes_leave_out_is_counted_and_bounded_together(
    request_: PretrainRequest, damage: Damage, tmp_path: Path
) -> None:
    rows = [first for (first, *_) in first_rows(request_.workspace, processes=2)]
    recipe = override(request_.recipe, ["optim.accumulate=2"])
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    (tmp_path / "train.py").write_text(TWO)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    given = [request_.workspace, tmp_path / "recipe.toml", request_.run_dir, json.dumps(rows)]
    ended = subprocess.run(
        [*launch, str(tmp_path / "train.py"), *map(str, given)],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr.decode()
    for rank in range(2):
        said = request_.run_dir.with_name(f"run{rank}").read_text()
        assert said.startswith("2 of the clips drawn so far cannot be decoded") and said.endswith("--skip-damaged 2.")
    found = [path.name for path in (request_.run_dir / "checkpoints").iterdir()]
    assert found == ["step-000000002"]  # nothing that was done is lost
    damage(*rows)
    pretrain(replace(request_, recipe=recipe, resume=True))
    assert facts(request_.run_dir) == ("done", sorted(f"tinytrain{row:04d}" for row in rows), 2)


def test_a_micro_batch_of_damaged_clips_alone_teaches_nothing(
    request_: PretrainRequest, damage: Damage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Micro-batches of one video: what stands in for a damaged one leaves no trace, and the others take its place."""
    damage(*range(0, 24, 5))
    recipe = override(request_.recipe, ["optim.accumulate=4"])
    black = pretrain(replace(request_, recipe=recipe, skip_damaged=5, run_dir=request_.run_dir.with_name("black")))
    assert facts(black.run_dir)[::2] == ("done", 5)
    honest = reader.blank

    def white(*arguments: Any, **options: Any) -> Batch:
        batch = honest(*arguments, **options)
        return replace(batch, planes=torch.full_like(batch.planes, 255))

    monkeypatch.setattr(reader, "blank", white)
    other = pretrain(replace(request_, recipe=recipe, skip_damaged=5))
    assert other.weights.read_bytes() == black.weights.read_bytes()
    found, whole = losses(other.run_dir), losses(black.run_dir)
    together = pretrain(replace(request_, skip_damaged=5, run_dir=request_.run_dir.with_name("together")))
    assert found == whole == pytest.approx(losses(together.run_dir), rel=1e-4)


def test_fine_tuning_leaves_out_micro_batches_too(request_: PretrainRequest, damage: Damage) -> None:
    damage(17, 20)  # there are fewer clips to test on
    changes = ["finetune.batch_videos=4", "finetune.accumulate=4", "finetune.epochs=1", "finetune.warmup_epochs=0"]
    recipe = override(request_.recipe, changes)
    folder = request_.run_dir
    finetune(
        FinetuneRequest(
            request_.workspace,
            "random",
            ("tiny",),
            "tiny:val",
            recipe,
            folder,
            skip_damaged=2,
            device="cpu",
            cache_bytes=0,
        )
    )
    assert sorted(json.loads((folder / "skipped.json").read_text())) == ["tinytrain0017", "tinytrain0020"]


def test_a_sweep_has_no_batch_of_damaged_clips_alone(small_world: Path, damage: Damage) -> None:
    damage(*range(4, 8))
    options = ReadOptions(cache_bytes=0, skip_damaged=4)
    sources = open_sources(small_world, ["tiny"])
    sweep = SweepLoader(small_world, sources, rule=FrameRule(4, 4), views=1, batch_videos=4, options=options)
    assert [int(batch.numbers[0]) for batch in sweep.batches()] == [0, 8, 12, 16, 20]
    assert len(sweep.reader.skipped) == 4
