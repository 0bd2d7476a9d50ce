"""Probes: the folded heads are the modules, the pair is chosen away from the test set, and frozen features tell classes apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from stmae_data.files import read_table
from stmae_train.checkpoint import save_weights
from stmae_train.classifier import AttentiveProbe
from stmae_train.config import ProbeConfig, Recipe, override
from stmae_train.errors import CheckpointError, ConfigError
from stmae_train.model import MaskedAutoencoder
from stmae_train.probe import Fitting, ProbeRequest, attentive_logits, probe


@pytest.fixture
def request_(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> ProbeRequest:
    changes = [
        "probe.epochs=40",
        "probe.batch_videos=8",
        "probe.lr_grid=[0.02, 0.015]",
        "probe.weight_decay_grid=[0.05]",
    ]
    recipe = override(small_recipe, [*changes, "probe.train_views=3", "probe.select_share=0.2", "probe.views=[2, 1]"])
    return ProbeRequest(
        small_world, "random", ("tiny",), "tiny:val", "attentive", recipe, tmp_path / "probe", device="cpu"
    )


def test_folded_heads_are_the_modules_they_stand_for() -> None:
    probes = [AttentiveProbe(32, 5, heads=4, seed=seed) for seed in range(3)]
    generator = torch.Generator().manual_seed(0)
    for each in probes:
        for parameter in each.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    tokens = torch.randn(6, 10, 32, generator=generator) * 2 + 1
    wanted = torch.stack([each(tokens) for each in probes])
    found = attentive_logits(probes, F.layer_norm(tokens, (32,)))
    assert torch.allclose(found, wanted, atol=2e-4)
    wanted.square().sum().backward()
    gradients = [parameter.grad.clone() for each in probes for parameter in each.parameters()]
    for each in probes:
        each.zero_grad()
    found.square().sum().backward()
    for ours, theirs in zip((p.grad for each in probes for p in each.parameters()), gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("kind", ["attentive", "linear"])
def test_heads_trained_together_are_the_heads_trained_alone(small_recipe: Recipe, kind: str) -> None:
    config = override(small_recipe, ["probe.epochs=3", "probe.batch_videos=8"]).probe
    generator = torch.Generator().manual_seed(0)
    shape = (24, 2, 5, 32) if kind == "attentive" else (24, 2, 32)
    features, labels = torch.randn(shape, generator=generator), torch.arange(24) % 4
    fitting = Fitting(kind, config, features, labels, num_classes=4, seed=0)
    pairs, rows = [(1e-2, 0.0), (1e-3, 0.1), (1e9, 0.0)], torch.arange(24)
    together = fitting.train(pairs, rows, log=lambda record: None)
    alone = fitting.train(pairs[1:2], rows, log=lambda record: None)
    for ours, theirs in zip(together[1].parameters(), alone[0].parameters(), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("kind", ["attentive", "linear", "knn"])
def test_a_probe_leaves_scores_and_metrics(request_: ProbeRequest, kind: str) -> None:
    metrics = probe(replace(request_, kind=kind))
    assert metrics["num_clips"] == 12 and metrics["kind"] == kind and 0 <= metrics["top1"] <= 1
    assert metrics["top1_low"] <= metrics["top1"] <= metrics["top1_high"]
    folder = request_.run_dir
    assert json.loads((folder / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    rows = read_table(folder / "scores.parquet")
    assert [row["clip_id"] for row in rows] == [f"tinyval{number:04d}" for number in range(12)]
    assert set(rows[0]) == {"clip_id", "label", "top5", "p_label", "seed", "correct"}
    assert sum(row["correct"] for row in rows) / 12 == metrics["top1"]
    assert all((row["top5"][0] == row["label"]) == row["correct"] for row in rows)
    roles = [entry["role"] for entry in json.loads((folder / "data.json").read_text())["sets"]]
    assert roles == ["train", "eval"]
    assert json.loads((folder / "cost.json").read_text())["clips"] == 24 * 3 + 12 * 2
    names = {path.name for path in folder.iterdir()}
    assert {"run.json", "config.toml", "CARD.md"} <= names and ("log.jsonl" in names) == (kind != "knn")
    assert ("head.safetensors" in names) == (kind != "knn")


@pytest.mark.parametrize("feature", ["class", "mean"])
def test_a_linear_probe_reads_the_feature_that_was_asked_for(
    request_: ProbeRequest, feature: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = override(request_.recipe, ["model.class_token=true", f"probe.feature={feature}", "probe.epochs=1"])
    seen = []

    class Seen(Fitting):
        def __init__(self, kind: str, config: ProbeConfig, features: torch.Tensor, *rest: Any, **options: Any) -> None:
            seen.append(features)
            super().__init__(kind, config, features, *rest, **options)

    def told(self: MaskedAutoencoder, clips: torch.Tensor, *, with_class: bool = False) -> torch.Tensor:
        """The class token is 7, patch tokens count from 0."""
        rows = torch.cat([torch.full((1,), 7.0), torch.arange(8.0)])[int(not with_class) :]
        return rows[None, :, None].expand(len(clips), -1, 32) + torch.rand(len(clips), 1, 32) * 1e-3

    monkeypatch.setattr("stmae_train.probe.Fitting", Seen)
    monkeypatch.setattr(MaskedAutoencoder, "encode", told)
    probe(replace(request_, kind="linear", recipe=recipe))
    assert float(seen[0].mean()) == pytest.approx(7.0 if feature == "class" else 3.5, abs=0.01)
    bare = override(request_.recipe, ["probe.feature=class"])
    with pytest.raises(ConfigError, match=r"no class token for probe\.feature 'class'"):
        probe(replace(request_, kind="linear", recipe=bare, run_dir=request_.run_dir.with_name("bare")))


def test_a_probe_learns_what_it_is_shown_and_repeats(request_: ProbeRequest) -> None:
    shown = replace(request_, eval_shards="tiny")
    first = probe(shown)
    again = probe(replace(shown, run_dir=request_.run_dir.with_name("again")))
    assert first == again and first["top1"] > 0.5
    assert first["select_videos"] == 5 and len(first["grid"]) == 2 and first["lr"] in (0.02, 0.015)


def test_the_model_is_that_of_the_weights(request_: ProbeRequest, small_recipe: Recipe, tmp_path: Path) -> None:
    wide = override(small_recipe, ["model.width=64", "data.frame_stride=8"])
    path = tmp_path / "weights.safetensors"
    save_weights(path, MaskedAutoencoder(wide.model, seed=5), recipe=wide, facts={"data": {"tiny:train": "abc"}})
    metrics = probe(replace(request_, init=str(path)))
    assert metrics["init"] == str(path)
    run = json.loads((request_.run_dir / "run.json").read_text())
    assert run["settings"]["init"]["data"] == {"tiny:train": "abc"}
    config = (request_.run_dir / "config.toml").read_text()
    assert "width = 64" in config and "frame_stride = 8" in config and "train_views = 3" in config


def test_gpu_seconds_are_those_of_the_device_that_was_used(
    request_: ProbeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)  # as where a GPU stands by while the processor works
    probe(replace(request_, kind="knn", device="cpu"))
    assert json.loads((request_.run_dir / "cost.json").read_text())["gpu_seconds"] == 0.0


def test_a_finished_probe_is_not_done_again(request_: ProbeRequest) -> None:
    first = probe(request_)
    before = (request_.run_dir / "scores.parquet").stat().st_mtime_ns
    assert probe(replace(request_, resume=True)) == first
    assert (request_.run_dir / "scores.parquet").stat().st_mtime_ns == before


def test_what_cannot_be_probed_is_one_sentence(request_: ProbeRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no probe 'magic'; choose one of attentive, linear, knn"):
        probe(replace(request_, kind="magic"))
    with pytest.raises(CheckpointError, match="no weights at 'absent'"):
        probe(replace(request_, init="absent"))
    monkeypatch.setattr("stmae_train.probe.FEATURE_BYTES", 1000)
    with pytest.raises(ConfigError, match=r"lower probe\.train_views"):
        probe(request_)
