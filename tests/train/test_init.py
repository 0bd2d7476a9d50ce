"""Every task starts from weights of another codebase, or says why it cannot."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from stmae_train.checkpoint import load_weights
from stmae_train.config import Recipe
from stmae_train.convert import Start, encoder_of, read_weights, start_model, write_weights
from stmae_train.errors import ModelError
from stmae_train.evaluate import EvaluateRequest, evaluate
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.model import MaskedAutoencoder
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.probe import ProbeRequest, probe
from stmae_train.tokens import Grid, interpolate_positions

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def foreign(weights_of: Any, small_recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recipe]:
    """A file in mae_st's own names that stands for itself, and a recipe of the small world that fits it."""
    folder = tmp_path_factory.mktemp("foreign")
    shape = small_recipe.model
    names = ["width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads"]
    names += ["num_frames", "crop_px", "patch_px"]
    options = {name: getattr(shape, name) for name in names}
    options |= {"positions": "joint", "decoder_positions": "joint", "target_frames": "first"}
    _, weights = weights_of.pretrained("mae_st", **options)
    torch.save({"model": weights}, folder / "foreign.pth")
    asked = {"model.heads": 4, "model.decoder_heads": 2, "model.num_frames": 4, "model.target_frames": "first"}
    found = read_weights(folder / "foreign.pth", asked=asked)
    path = write_weights(found, folder / "foreign.safetensors", form="safetensors")
    return path, replace(small_recipe, model=replace(found.model, mask_ratio=0.75))


def test_pretraining_goes_on_from_foreign_weights(
    foreign: tuple[Path, Recipe], small_world: Path, tmp_path: Path
) -> None:
    path, recipe = foreign
    request = PretrainRequest(
        small_world, ("tiny",), recipe, tmp_path / "run", clips=8, device="cpu", init=str(path), pictures=0
    )
    result = pretrain(request)
    metadata = load_weights(result.weights).metadata
    assert json.loads(metadata["init"])["parts"] == "all"
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert settings["init"] == str(path)
    assert pretrain(replace(request, resume=True)).steps == result.steps


def test_an_encoder_alone_starts_the_encoder(foreign: tuple[Path, Recipe], small_world: Path, tmp_path: Path) -> None:
    path, recipe = foreign
    alone = write_weights(encoder_of(read_weights(path)), tmp_path / "encoder.safetensors", form="stmae")
    other = replace(recipe, model=replace(recipe.model, decoder_depth=2, target="pixels"))
    request = PretrainRequest(
        small_world, ("tiny",), other, tmp_path / "run", clips=8, device="cpu", init=str(alone), pictures=0
    )
    metadata = load_weights(pretrain(request).weights).metadata
    assert json.loads(metadata["init"])["parts"] == "encoder"


def test_joint_positions_start_other_clips_by_the_grid_they_were_trained_on(
    weights_of: Any, small_recipe: Recipe, tmp_path: Path
) -> None:
    """16 frames of 4 x 4 places have as many rows as 4 frames of 8 x 8."""
    model, weights = weights_of.pretrained("pyslowfast", positions="joint", num_frames=16)
    torch.save(weights, tmp_path / "w.pth")
    asked = {"model.heads": 4, "model.decoder_heads": 2, "model.num_frames": 16}
    encoder = encoder_of(read_weights(tmp_path / "w.pth", asked=asked))
    path = write_weights(encoder, tmp_path / "encoder.safetensors", form="stmae")
    rows = model.encoder.positions.joint.detach()
    for crop_px in (32, 64):
        config = replace(encoder.model, num_frames=4, crop_px=crop_px)
        side = crop_px // 8
        wanted = interpolate_positions(rows[:, 1:], source=Grid(8, 4, 4), target=Grid(2, side, side))
        started = MaskedAutoencoder(config)
        start_model(started, str(path), workspace=tmp_path)
        start = Start.of(str(path), workspace=tmp_path, recipe=small_recipe, seed=0)
        data = replace(start.recipe.data, num_frames=4, crop_px=crop_px)
        frozen = replace(start, recipe=replace(start.recipe, model=config, data=data)).autoencoder()
        for copy in (started, frozen):
            assert torch.equal(copy.encoder.positions.joint[:, 1:], wanted)
            assert torch.equal(copy.encoder.positions.joint[:, :1], rows[:, :1])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"heads": 2}, "has heads 4, the recipe 2; set model.heads=4"),
        ({"layer_norm_eps": 1e-5}, "has layer_norm_eps 1e-06, the recipe 1e-05"),
        ({"decoder_heads": 1}, "leave the decoder behind"),
        ({"target": "pixels"}, "has target normalized-pixels, the recipe pixels"),
        ({"mean": (0.5, 0.5, 0.5)}, r"set model\.mean=\[0\.45,0\.45,0\.45\]"),
    ],
)
def test_a_recipe_that_differs_is_refused_with_the_reason(
    changes: dict[str, Any], sentence: str, foreign: tuple[Path, Recipe], small_world: Path, tmp_path: Path
) -> None:
    path, recipe = foreign
    other = replace(recipe, model=replace(recipe.model, **changes))
    request = PretrainRequest(small_world, ("tiny",), other, tmp_path / "run", clips=8, device="cpu", init=str(path))
    with pytest.raises(ModelError, match=sentence):
        pretrain(request)


def test_probe_finetune_and_evaluate_take_foreign_weights(
    foreign: tuple[Path, Recipe], small_world: Path, tmp_path: Path
) -> None:
    path, recipe = foreign
    quick = replace(
        recipe,
        probe=replace(recipe.probe, epochs=2, batch_videos=8, lr_grid=(1e-3,), weight_decay_grid=(0.0,), train_views=1),
        finetune=replace(recipe.finetune, epochs=1, batch_videos=8, repeats=1, warmup_epochs=0.0),
    )
    found = probe(
        ProbeRequest(small_world, str(path), ("tiny",), "tiny:val", "linear", quick, tmp_path / "probe", device="cpu")
    )
    assert found["num_clips"] == 12
    assert json.loads((tmp_path / "probe" / "run.json").read_text())["settings"]["init"]["layout"] == "mae_st"
    tuned = finetune(
        FinetuneRequest(small_world, str(path), ("tiny",), "tiny:val", quick, tmp_path / "tuned", device="cpu")
    )
    ours = read_weights(tmp_path / "tuned" / "weights.safetensors")
    theirs = write_weights(ours, tmp_path / "theirs.safetensors", form="safetensors")
    scored = evaluate(EvaluateRequest(small_world, str(theirs), "tiny:val", tmp_path / "scored", device="cpu"))
    assert scored["top1"] == tuned["top1"] and scored["cross_entropy"] == pytest.approx(
        tuned["cross_entropy"], rel=1e-5
    )
