"""What a task takes from its weights, and what `--set` changes all the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from stmae_cli.train import app
from stmae_train.checkpoint import load_weights, save_weights
from stmae_train.config import Recipe, from_toml, override
from stmae_train.convert import Start, read_weights
from stmae_train.errors import ConfigError, ModelError
from stmae_train.finetune import FinetuneRequest, finetune
from stmae_train.model import MaskedAutoencoder

torch.set_num_threads(1)
LARGER = ["model.crop_px=32", "data.crop_px=32", "model.num_frames=8", "data.num_frames=8"]
NAMES = tuple(change.partition("=")[0] for change in LARGER)


@pytest.fixture
def weights(small_recipe: Recipe, tmp_path: Path) -> Path:
    """Weights of 4 frames of 16 px, drawn 8 apart; a tenth of the tokens' frames are predicted."""
    recipe = override(
        small_recipe, ["data.frame_stride=8", "model.target_frames=linspace", "model.num_target_frames=2"]
    )
    save_weights(tmp_path / "weights.safetensors", MaskedAutoencoder(recipe.model, seed=5), recipe=recipe, facts={})
    return tmp_path / "weights.safetensors"


def start(weights: Path, recipe: Recipe, *changed: str) -> Start:
    return Start.of(str(weights), workspace=weights.parent, recipe=recipe, seed=0, changed=changed)


def test_another_crop_and_more_frames_hold_and_positions_are_interpolated(weights: Path, small_recipe: Recipe) -> None:
    found = start(weights, override(small_recipe, LARGER), *NAMES)
    model, data = found.recipe.model, found.recipe.data
    assert (model.crop_px, model.num_frames, model.num_target_frames) == (32, 8, 4)
    assert (data.crop_px, data.num_frames, data.frame_stride) == (32, 8, 8)  # what was not changed is the weights'
    encoder, small = found.autoencoder().encoder, load_weights(weights).tensors
    assert encoder.positions.spatial.shape == (1, 16, 32) and encoder.positions.temporal.shape == (1, 4, 32)
    assert torch.equal(encoder.embed.weight, small["encoder.embed.weight"])
    # Linear in time without aligned corners: the first and last slice stay.
    assert torch.equal(encoder.positions.temporal[:, [0, 3]], small["encoder.positions.temporal"])
    assert encoder(torch.zeros(1, 3, 8, 32, 32)).shape[1] == 4 * 16


def test_a_change_that_was_not_made_does_not_hold(weights: Path, small_recipe: Recipe) -> None:
    """Another recipe's sizes are no wish: the model and its clips are those of the weights."""
    found = start(weights, override(small_recipe, LARGER)).recipe
    assert (found.model.crop_px, found.model.num_frames, found.data.frame_stride) == (16, 4, 8)
    found = start(weights, override(small_recipe, ["data.frame_stride=2"]), "data.frame_stride").recipe
    assert (found.data.frame_stride, found.data.num_frames) == (2, 4)


def test_any_other_change_of_the_model_is_refused_with_the_reason(weights: Path, small_recipe: Recipe) -> None:
    with pytest.raises(ModelError, match=r"width is 64 by --set, but its own recipe says 32, .*leave the change out"):
        start(weights, override(small_recipe, ["model.width=64"]), "model.width")
    assert start(weights, override(small_recipe, ["model.width=32"]), "model.width").recipe.model.width == 32
    with pytest.raises(ConfigError, match="does not divide into tubelets"):
        start(
            weights, override(small_recipe, ["model.crop_px=20", "data.crop_px=20", "model.patch_px=4"]), "data.crop_px"
        )


def test_convert_leaves_no_change_of_our_own_weights_out_without_a_word(weights: Path) -> None:
    with pytest.raises(ModelError, match=r"finetune\.pooling by --set differs from its own recipe"):
        read_weights(weights, asked={"finetune.pooling": "norm-first"})
    same = load_weights(weights).recipe.finetune.pooling
    assert read_weights(weights, asked={"finetune.pooling": same}).recipe == load_weights(weights).recipe


def test_image_weights_do_not_become_a_video_model_by_a_change(small_recipe: Recipe, tmp_path: Path) -> None:
    changes = ["model.num_frames=1", "data.num_frames=1", "model.tubelet_frames=1", "model.target_frames=all"]
    image = override(small_recipe, changes)
    path = tmp_path / "image.safetensors"
    save_weights(path, MaskedAutoencoder(image.model), recipe=image, facts={})
    with pytest.raises(ModelError, match="of an image model, and 4 frames are asked for; inflate them first"):
        start(path, small_recipe, "model.num_frames", "data.num_frames")


def test_a_fine_tuning_at_another_size_says_so_in_its_folder(
    weights: Path, small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    quick = ["finetune.batch_videos=8", "finetune.repeats=1", "finetune.epochs=1", "finetune.warmup_epochs=0.0"]
    recipe = override(small_recipe, [*LARGER, *quick])
    request = FinetuneRequest(
        small_world, str(weights), ("tiny",), "tiny:val", recipe, tmp_path / "run", device="cpu", changed=NAMES
    )
    assert finetune(request)["num_clips"] == 12
    written = from_toml((tmp_path / "run" / "config.toml").read_text())
    assert (written.model.crop_px, written.data.num_frames) == (32, 8)
    assert load_weights(tmp_path / "run" / "weights.safetensors").model == written.model


def test_an_image_model_on_videos_says_that_it_sees_one_frame(
    small_world: Path, small_recipe: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image = ["model.num_frames=1", "data.num_frames=1", "model.tubelet_frames=1", "model.target_frames=all"]
    recipe = override(small_recipe, [*image, "finetune.batch_videos=8", "finetune.repeats=1", "finetune.epochs=1"])
    request = FinetuneRequest(small_world, "random", ("tiny",), "tiny:val", recipe, tmp_path / "run", device="cpu")
    finetune(request)
    assert "sees one frame of each video of tiny" in caplog.text and "--inflate divide" in caplog.text
    caplog.clear()
    finetune(replace(request, recipe=override(small_recipe, ["finetune.epochs=1"]), run_dir=tmp_path / "clips"))
    assert "one frame" not in caplog.text


@pytest.mark.parametrize("command", ["finetune", "probe", "embed"])
def test_commands_say_what_was_changed(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def stop(request: Any, **options: Any) -> None:
        seen.append(request)
        raise ConfigError("stopped")

    monkeypatch.setattr(f"stmae_train.{command}.{command}", stop)
    shards = ["x"] if command == "embed" else ["--shards", "x", "--eval-shards", "x:val"]
    arguments = [command, *shards, "--init", "w", "--recipe", "demo", "-w", str(tmp_path)]
    changes = ["--set", "model.crop_px=64", "--set", "data.crop_px=64", "--set", "mask_ratio=0.5"]
    ended = CliRunner().invoke(app, [*arguments, *changes])
    assert ended.exit_code == 1
    assert seen[0].changed == ("model.crop_px", "data.crop_px", "model.mask_ratio")
