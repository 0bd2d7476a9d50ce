"""A run that was stopped anywhere ends as if it had not been: weights, optimizer and losses to the last bit, killed or not, at every step."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stmae_train.checkpoint import newest_checkpoint
from stmae_train.config import Recipe, override, to_toml
from stmae_train.errors import CheckpointError
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.probe import ProbeRequest, probe
from stmae_train.runlog import StepRecord

STEPS = {"pretrain": 40, "finetune": 12}
# Instants to be killed at, as the n-th time a fault point is passed, and the step that is then found. A checkpoint passes `tensors` three
# times, then `checkpoint`, then `commit`; from the fourth on an old one is dropped (`prune`).
KILLS = [
    ("pretrain", "commit.rename:1", None),
    ("pretrain", "tensors.write:38", 12),
    ("pretrain", "checkpoint.fsync:21", 20),
    ("pretrain", "prune.remove:30", 33),
    ("finetune", "commit.rename:1", None),
    ("finetune", "tensors.write:14", 4),
    ("finetune", "checkpoint.fsync:8", 7),
    ("finetune", "prune.remove:6", 9),
]
EVERYTHING = [
    "finetune.mixup=0.8",
    "finetune.cutmix=1.0",
    "finetune.randaug_magnitude=7",
    "finetune.erasing_prob=0.5",
    "finetune.drop_path=0.2",
    "finetune.head_dropout=0.3",
]
# Forks a child per kill after the imports, which are what takes time.
KILLED = """
import json, os, sys, torch
from pathlib import Path
from stmae_train.config import read_recipe
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.pretrain import PretrainRequest, pretrain
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
workspace, recipe, jobs = json.loads(sys.argv[1])
for kind, folder, fault in jobs:
    child = os.fork()
    if not child:
        os.environ["STMAE_FAULT"] = fault
        options = dict(checkpoint_every=1, log_every=1, device="cpu")
        if kind == "pretrain":
            pretrain(PretrainRequest(Path(workspace), ("tiny",), read_recipe(Path(recipe)), Path(folder), pictures=0, **options))
        else:
            finetune(FinetuneRequest(Path(workspace), "random", ("tiny",), "tiny:val", read_recipe(Path(recipe)), Path(folder), **options))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == 9, (kind, fault, status)
"""


@pytest.fixture(autouse=True)
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def recipe(small_recipe: Recipe) -> Recipe:
    """Pre-training and fine-tuning with everything on that keeps a state."""
    changes = [
        f"optim.total_clips={8 * STEPS['pretrain']}",
        "optim.ema_decay=0.9",
        "optim.grad_clip=1.0",
    ]
    changes += [
        "finetune.batch_videos=6",
        "finetune.repeats=2",
        "finetune.epochs=3",
        *EVERYTHING,
    ]
    return override(small_recipe, [*changes, "finetune.ema_decay=0.9"])


@pytest.fixture(scope="module")
def straight(small_world: Path, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder `pretrain` and `finetune`: uninterrupted runs; `pretrain-7`: what a stop in step 8 leaves, and so on."""
    torch.use_deterministic_algorithms(True)
    root = tmp_path_factory.mktemp("straight")

    def keep(kind: str) -> Any:
        def watch(record: StepRecord) -> None:
            # The step is logged and not yet saved: the newest checkpoint is of the step before.
            if record.step > 1:
                shutil.copytree(root / kind, root / f"{kind}-{record.step - 1}")

        return watch

    pretrain(pretraining(small_world, recipe, root / "pretrain"), watch=keep("pretrain"))
    finetune(finetuning(small_world, recipe, root / "finetune"), watch=keep("finetune"))
    return root


def pretraining(workspace: Path, recipe: Recipe, folder: Path) -> PretrainRequest:
    return PretrainRequest(
        workspace,
        ("tiny",),
        recipe,
        folder,
        checkpoint_every=1,
        log_every=1,
        device="cpu",
        pictures=0,
    )


def finetuning(workspace: Path, recipe: Recipe, folder: Path) -> FinetuneRequest:
    return FinetuneRequest(
        workspace,
        "random",
        ("tiny",),
        "tiny:val",
        recipe,
        folder,
        checkpoint_every=1,
        log_every=1,
        device="cpu",
    )


def go_on(kind: str, workspace: Path, recipe: Recipe, folder: Path) -> None:
    """Resume, with the last checkpoint alone still to write."""
    if kind == "pretrain":
        pretrain(
            replace(
                pretraining(workspace, recipe, folder),
                resume=True,
                checkpoint_every=1000,
            )
        )
    else:
        finetune(
            replace(
                finetuning(workspace, recipe, folder),
                resume=True,
                checkpoint_every=1000,
            )
        )


def same_end(kind: str, ours: Path, theirs: Path) -> None:
    last = f"checkpoints/step-{STEPS[kind]:09d}/optimizer.safetensors"
    names = ["weights.safetensors", "weights-ema.safetensors", last]
    for name in names + (["metrics.json", "scores.parquet"] if kind == "finetune" else []):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes(), name
    assert losses(ours) == losses(theirs) and len(losses(ours)) == STEPS[kind]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_stopped_at_any_step_a_run_ends_to_the_bit_as_if_it_had_not_been(
    kind: str, straight: Path, small_world: Path, recipe: Recipe
) -> None:
    for step in range(1, STEPS[kind]):
        folder = straight / f"{kind}-{step}"
        found = newest_checkpoint(folder / "checkpoints")
        assert found is not None and found.step == step
        go_on(kind, small_world, recipe, folder)
        same_end(kind, folder, straight / kind)


def test_killed_outright_a_run_ends_to_the_bit_as_if_it_had_not_been(
    straight: Path, small_world: Path, recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text(to_toml(recipe))
    jobs = [(kind, str(tmp_path / f"{kind}-{fault}"), fault) for kind, fault, _ in KILLS]
    given = json.dumps([str(small_world), str(tmp_path / "recipe.toml"), jobs])
    subprocess.run([sys.executable, "-c", KILLED, given], check=True)
    for (kind, folder, _), (*_, step) in zip(jobs, KILLS, strict=True):
        found = newest_checkpoint(Path(folder) / "checkpoints")
        assert (found.step if found else None) == step
        go_on(kind, small_world, recipe, Path(folder))
        same_end(kind, Path(folder), straight / kind)


@pytest.mark.parametrize("lost", ["step-000000001/COMMIT.json", "."])
def test_a_run_whose_only_checkpoint_is_lost_does_not_begin_again_without_a_word(
    lost: str, small_world: Path, recipe: Recipe, tmp_path: Path
) -> None:
    request = pretraining(small_world, recipe, tmp_path / "run")

    def watch(record: StepRecord) -> None:
        if record.step == 2:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        pretrain(request, watch=watch)
    checkpoints, log = request.run_dir / "checkpoints", (request.run_dir / "log.jsonl").read_bytes()
    (checkpoints / lost).rename(tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"no committed checkpoint, but run\.json says that step 1 was saved"):
            pretrain(replace(request, resume=True))
    assert (request.run_dir / "log.jsonl").read_bytes() == log


def test_a_run_that_was_killed_after_its_last_step_still_tells_its_last_loss(
    small_world: Path, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(pretraining(small_world, recipe, tmp_path / "run"), clips=16)

    def pull(*_: Any, **__: Any) -> None:
        raise RuntimeError("pulled the plug")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="plug"):
        patch.setattr("stmae_train.pretrain.write_card", pull)
        pretrain(request)
    result = pretrain(replace(request, resume=True))
    assert result.loss == losses(request.run_dir)[-1]
    assert f"{result.loss:.4f}" in (request.run_dir / "CARD.md").read_text()


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_a_probe_that_was_killed_begins_again_and_finds_the_same(
    kind: str, small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    changes = [
        "probe.epochs=6",
        "probe.batch_videos=8",
        "probe.lr_grid=[0.02, 0.01]",
        "probe.weight_decay_grid=[0.05]",
    ]
    request = ProbeRequest(
        small_world,
        "random",
        ("tiny",),
        "tiny:val",
        kind,
        override(small_recipe, changes),
        tmp_path / "a",
        device="cpu",
    )
    metrics = probe(request)
    for number, last in enumerate((1, 7, 12), start=1):  # in the grid, in the chosen head, after it
        seen = 0

        def watch(record: StepRecord, last: int = last) -> None:
            nonlocal seen
            seen += 1
            if seen == last:
                raise RuntimeError("pulled the plug")

        stopped = replace(request, run_dir=tmp_path / f"stopped-{number}")
        with pytest.raises(RuntimeError, match="plug"):
            probe(stopped, watch=watch)
        assert probe(replace(stopped, resume=True)) == metrics
        for name in ("head.safetensors", "scores.parquet"):
            assert (stopped.run_dir / name).read_bytes() == (request.run_dir / name).read_bytes()
        assert losses(stopped.run_dir) == losses(request.run_dir)
