"""Fine-tuning: it learns, resumes bit for bit with everything switched on, and tests once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stmae_data.files import read_table
from stmae_train.checkpoint import load_weights, save_weights
from stmae_train.config import FinetuneConfig, Recipe, override
from stmae_train.errors import ConfigError
from stmae_train.evaluate import EvaluateRequest, evaluate
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.loader import open_sources
from stmae_train.model import MaskedAutoencoder
from stmae_train.runlog import StepRecord
from stmae_train.views import mix_clips, perturb_clips

EVERYTHING = ["finetune.mixup=0.8", "finetune.cutmix=1.0", "finetune.randaug_magnitude=7", "finetune.erasing_prob=0.5"]
EVERYTHING += [
    "finetune.drop_path=0.2",
    "finetune.head_dropout=0.3",
    "finetune.layer_decay=0.75",
    "finetune.smoothing=0.1",
]


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> FinetuneRequest:
    changes = ["finetune.batch_videos=6", "finetune.repeats=2", "finetune.epochs=2", "finetune.warmup_epochs=0.5"]
    recipe = override(small_recipe, [*changes, "finetune.views=[2, 3]"])
    return FinetuneRequest(
        small_world,
        "random",
        ("tiny",),
        "tiny:val",
        recipe,
        tmp_path / "finetune",
        checkpoint_every=1,
        log_every=1,
        device="cpu",
    )


def uninterrupted(request: FinetuneRequest) -> tuple[Path, dict[str, Any]]:
    """The same run in one go, made once: later calls find it done."""
    straight = replace(request, run_dir=request.workspace / "runs" / "straight-finetune", resume=True)
    return straight.run_dir, finetune(straight)


def test_fine_tuning_fits_what_it_sees(request_: FinetuneRequest) -> None:
    recipe = override(
        request_.recipe,
        ["finetune.epochs=40", "finetune.flip=false", "finetune.views=[1, 1]", "finetune.smoothing=0.0"],
    )
    metrics = finetune(replace(request_, recipe=recipe, eval_shards="tiny", checkpoint_every=1000))
    losses = [json.loads(line)["loss"] for line in (request_.run_dir / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 160 and np.mean(losses[-16:]) < 0.92 * losses[0]
    assert metrics["top1"] > 0.4  # chance is 0.25


def test_a_run_folder_holds_scores_and_the_classifier(request_: FinetuneRequest, tmp_path: Path) -> None:
    metrics = finetune(request_)
    names = {path.name for path in request_.run_dir.iterdir()}
    assert names >= {
        "run.json",
        "config.toml",
        "data.json",
        "log.jsonl",
        "scores.parquet",
        "metrics.json",
        "cost.json",
        "CARD.md",
    }
    assert metrics["kind"] == "finetune" and metrics["views"] == [2, 3] and metrics["num_clips"] == 12
    again = evaluate(
        EvaluateRequest(request_.workspace, str(request_.run_dir), "tiny:val", tmp_path / "evaluation", device="cpu")
    )
    assert again["top1"] == metrics["top1"] and again["cross_entropy"] == metrics["cross_entropy"]
    ours, theirs = (read_table(folder / "scores.parquet") for folder in (request_.run_dir, tmp_path / "evaluation"))
    assert ours == theirs


@pytest.mark.parametrize("step", [1, 3, 7])
def test_a_stopped_run_ends_with_the_same_bytes_with_everything_switched_on(
    request_: FinetuneRequest, step: int
) -> None:
    request = replace(request_, recipe=override(request_.recipe, EVERYTHING))
    straight, metrics = uninterrupted(request)

    def watch(record: StepRecord) -> None:
        if record.step == step:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        finetune(request, watch=watch)
    torch.rand(5)  # whatever else drew from the global generator
    assert finetune(replace(request, resume=True)) == metrics
    for name in ("weights.safetensors", "checkpoints/step-000000008/optimizer.safetensors"):
        assert (request.run_dir / name).read_bytes() == (straight / name).read_bytes()


def test_weights_are_taken_over_and_a_finished_run_is_not_done_again(request_: FinetuneRequest, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(
        path, MaskedAutoencoder(request_.recipe.model, seed=9), recipe=request_.recipe, facts={"data": {"k": "d"}}
    )
    request = replace(request_, init=str(path), recipe=override(request_.recipe, ["finetune.ema_decay=0.9"]))
    metrics = finetune(request)
    assert json.loads((request.run_dir / "run.json").read_text())["settings"]["init"]["data"] == {"k": "d"}
    # Whoever starts from these weights has read all that they have read.
    (source,) = open_sources(request.workspace, ["tiny"])
    for name in ("weights.safetensors", "weights-ema.safetensors"):
        read = json.loads(load_weights(request.run_dir / name).metadata["data"])
        assert read == {"k": "d", "tiny:train": source.index.digest}
    assert finetune(replace(request, resume=True)) == metrics


def test_sgd_on_segments_is_resumed_with_the_same_bytes(request_: FinetuneRequest) -> None:
    changes = ["finetune.optimizer=sgd", "finetune.frames=segments", "finetune.base_lr=0.01", "finetune.epochs=1"]
    request = replace(request_, recipe=override(request_.recipe, changes))
    straight = replace(request, run_dir=request.run_dir.with_name("straight"))
    metrics = finetune(straight)

    def watch(record: StepRecord) -> None:
        if record.step == 2:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        finetune(request, watch=watch)
    assert finetune(replace(request, resume=True)) == metrics
    assert (request.run_dir / "weights.safetensors").read_bytes() == (
        straight.run_dir / "weights.safetensors"
    ).read_bytes()
    assert load_weights(request.run_dir / "weights.safetensors").recipe.data.sampling == "segments"
    assert "one frame out of each of 4 equal parts" in (request.run_dir / "CARD.md").read_text()


def test_a_recipe_of_boxes_trains_no_classifier(request_: FinetuneRequest) -> None:
    recipe = override(request_.recipe, ["finetune.task=detection"])
    with pytest.raises(ConfigError, match="is for detection on boxes, and this trains classifiers"):
        finetune(replace(request_, recipe=recipe))


def test_an_odd_batch_cannot_be_mixed(request_: FinetuneRequest) -> None:
    recipe = override(request_.recipe, ["finetune.mixup=0.8", "finetune.batch_videos=3", "finetune.repeats=1"])
    with pytest.raises(ConfigError, match="Mixup and cutmix pair the clips of a batch"):
        finetune(replace(request_, recipe=recipe))


def test_mixed_targets_sum_to_one_and_mixing_is_keyed() -> None:
    config = FinetuneConfig()
    clips = torch.randn(4, 3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    state = torch.get_rng_state()
    first = mix_clips(clips.clone(), labels, config, num_classes=5, seed=11)
    torch.rand(3)
    second = mix_clips(clips.clone(), labels, config, num_classes=5, seed=11)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.allclose(first[1].sum(dim=1), torch.ones(4))
    assert not torch.equal(mix_clips(clips.clone(), labels, config, num_classes=5, seed=12)[0], first[0])
    torch.set_rng_state(state)


def test_smoothing_alone_is_the_published_formula() -> None:
    config = FinetuneConfig(mixup=0.0, cutmix=0.0, smoothing=0.1)
    _, targets = mix_clips(torch.zeros(1, 3, 1, 2, 2), torch.tensor([2]), config, num_classes=5, seed=0)
    assert torch.allclose(targets, torch.tensor([[0.02, 0.02, 0.92, 0.02, 0.02]]))


def test_a_clip_is_perturbed_alike_in_every_frame_and_apart_from_its_batch(small_recipe: Recipe) -> None:
    config = FinetuneConfig(erasing_prob=0.0, randaug_magnitude=9)
    frame = torch.rand(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    clips = frame.expand(3, 3, 4, 16, 16).clone()
    out = perturb_clips(clips, config, small_recipe.model, numbers=np.array([4, 5, 6]), seed=0)
    assert torch.equal(out[:, :, 0], out[:, :, 3])
    alone = perturb_clips(clips[1:2], config, small_recipe.model, numbers=np.array([5]), seed=0)
    assert torch.equal(alone[0], out[1])
    assert not torch.equal(out[0], out[2])
    config = FinetuneConfig(erasing_prob=1.0 - 1e-9, randaug_magnitude=0)
    erased = perturb_clips(clips[:1], config, small_recipe.model, numbers=np.array([4]), seed=0)
    is_changed = (erased != clips[:1])[0].any(dim=0)  # [T, S, S]
    assert is_changed.any() and torch.equal(is_changed[0], is_changed[3])
    assert not torch.equal(erased[0, :, 0], erased[0, :, 3])
