"""Scores: metrics from probabilities, views and crops merged, one row per video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from stmae_train.checkpoint import save_weights
from stmae_train.config import Recipe
from stmae_train.distributed import World
from stmae_train.errors import CheckpointError
from stmae_train.evaluate import EvaluateRequest, Scores, evaluate, score
from stmae_train.loader import open_sources
from stmae_train.model import MaskedAutoencoder


def test_metrics_are_those_of_the_probabilities() -> None:
    probabilities = np.array([[0.7, 0.2, 0.1], [0.3, 0.3, 0.4], [0.1, 0.8, 0.1], [0.5, 0.25, 0.25]])
    scores = Scores(("a", "b", "c", "d"), np.array([0, 0, 1, 2]), probabilities)
    metrics = scores.metrics()
    assert (
        metrics["top1"] == 0.5 and metrics["top5"] == 1.0 and metrics["num_clips"] == 4 and metrics["num_classes"] == 3
    )
    assert metrics["cross_entropy"] == pytest.approx(-np.log([0.7, 0.3, 0.8, 0.25]).mean())
    assert metrics["margin"] == pytest.approx(np.mean([0.5, -0.1, 0.7, -0.25]))
    assert (metrics["top1_low"], metrics["top1_high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)  # Wilson, 2 of 4
    rows = scores.rows(seed=3)
    assert rows[1] == {"clip_id": "b", "label": 0, "top5": [2, 0, 1], "p_label": 0.3, "seed": 3, "correct": False}


def test_soft_maxes_of_views_and_crops_are_summed(small_world: Path, small_recipe: Recipe) -> None:
    weight = torch.randn(4, 3 * 4 * 16 * 16, generator=torch.Generator().manual_seed(0)) * 0.1
    seen: list[Tensor] = []

    def logits(clips: Tensor) -> Tensor:
        seen.append(clips)
        return clips.flatten(1) @ weight.T

    sources = open_sources(small_world, ["tiny:val"])
    alone = World(0, 1, torch.device("cpu"))
    scores, loader = score(
        logits, small_world, sources, recipe=small_recipe, views=(2, 3), world=alone, batch_videos=12
    )
    assert len(loader) == 12 and [len(each) for each in seen] == [24, 24, 24]  # a crop at a time, 12 videos x 2 views
    stacked = torch.stack([logits(each).softmax(dim=-1) for each in seen[:3]])  # [crops, videos * views, C]
    wanted = stacked.view(3, 12, 2, 4).double().mean(dim=(0, 2))
    assert np.allclose(scores.probabilities, wanted.numpy(), atol=1e-6)
    assert scores.clip_ids[0] == "tinyval0000" and scores.labels.tolist() == [number % 4 for number in range(12)]


def test_weights_that_hold_no_classifier_are_refused(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_weights(path, MaskedAutoencoder(small_recipe.model), recipe=small_recipe, facts={"kind": "pretrain"})
    with pytest.raises(CheckpointError, match="holds pretrain weights, wanted a fine-tuned classifier"):
        evaluate(EvaluateRequest(small_world, str(path), "tiny:val", tmp_path / "run", device="cpu"))
