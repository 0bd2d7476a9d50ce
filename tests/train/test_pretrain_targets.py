"""Runs with the targets and decoders of the ablations: they train, resume to the same bytes, and transfer."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from stmae_train.checkpoint import load_weights
from stmae_train.config import Recipe, override
from stmae_train.errors import ConfigError, ModelError
from stmae_train.pictures import PictureRequest, picture
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.probe import ProbeRequest, probe
from stmae_train.targets.teachers import Tokenizer

torch.set_num_threads(1)


def request(workspace: Path, recipe: Recipe, folder: Path, *changes: str, steps: int = 4) -> PretrainRequest:
    """A run of a few steps, without pictures."""
    made = override(recipe, changes)
    clips = steps * made.optim.batch_videos * made.data.repeats
    return PretrainRequest(
        workspace, ("tiny",), made, folder, clips=clips, log_every=1, checkpoint_every=2, device="cpu", pictures=0
    )


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "changes",
    [
        ["model.target=pca", "model.target_values=6"],
        ["model.decoded_share=0.5"],
        ["model.decoder_attention=cross", "model.loss=l1"],
        ["model.target_frames=center", "model.loss=smooth-l1"],
        ["model.mask=tube", "model.mask_ratio=0.5", "model.decoded_share=0.5"],
    ],
    ids=lambda changes: changes[0].removeprefix("model."),
)
def test_variants_train_and_resume_to_the_same_losses(
    changes: list[str], small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    straight = request(small_world, small_recipe, tmp_path / "straight", *changes)
    ended = pretrain(straight)
    assert len(losses(tmp_path / "straight")) == 4
    broken = replace(straight, run_dir=tmp_path / "broken")

    def stop(record: object) -> None:
        if len(losses(tmp_path / "broken")) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(broken, watch=stop)
    again = pretrain(replace(broken, resume=True))
    assert losses(tmp_path / "broken") == losses(tmp_path / "straight")
    assert again.weights.read_bytes() == ended.weights.read_bytes()


def test_a_fitted_basis_is_kept_in_the_run_and_in_no_weights(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    changes = ("model.target=pca", "model.target_values=6")
    made = pretrain(request(small_world, small_recipe, tmp_path / "run", *changes, steps=1))
    basis = safetensors.torch.load_file(tmp_path / "run" / "target.safetensors")
    assert basis["components"].shape[0] == 6
    weights = load_weights(made.weights)
    assert not set(basis) & set(weights.tensors) and weights.tensors["decoder.head.weight"].shape[0] == 6
    file = f"model.target_file={tmp_path / 'run' / 'target.safetensors'}"
    same = pretrain(request(small_world, small_recipe, tmp_path / "again", *changes, file, steps=1))
    assert same.loss == made.loss and not (tmp_path / "again" / "target.safetensors").exists()
    with pytest.raises(ModelError, match="has no pixels to show"):
        out = tmp_path / "out"
        picture(PictureRequest(small_world, str(made.weights), "tiny:val", out, count=1, ratios=(0.5,), device="cpu"))


def test_words_of_a_tokenizer_are_learned(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer, named = Tokenizer(4, blocks=1, words=7), {}
    for name, each in tokenizer.state_dict().items():
        parts = name.rpartition(".")[0].replace("straight", "id_path").split(".")
        last = "w" if name.endswith("weight") else "b"
        if parts[0] in ("first", "last"):
            theirs = {"first": "input", "last": "output.conv"}[parts[0]]
        else:
            inner = parts[3] if len(parts) == 4 else f"res_path.conv_{int(parts[4]) + 1}"
            theirs = f"group_{int(parts[1]) + 1}.block_{int(parts[2]) + 1}.{inner}"
        named[f"blocks.{theirs}.{last}"] = each + 0.1
    safetensors.torch.save_file(named, tmp_path / "dvae.safetensors")
    changes = ["model.target=tokens", "model.loss=cross-entropy", "model.target_values=7", "model.target_frames=first"]
    file = f"model.target_file={tmp_path / 'dvae.safetensors'}"
    made = pretrain(request(small_world, small_recipe, tmp_path / "run", *changes, file, steps=6))
    assert made.loss is not None and made.loss < losses(tmp_path / "run")[0]
    with pytest.raises(ConfigError, match=r"name it with --set model\.target_file=PATH"):
        pretrain(request(small_world, small_recipe, tmp_path / "none", *changes, steps=1))


def test_a_model_of_twice_the_frames_transfers_on_its_own_frames(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    changes = ("model.target_frames=double", "data.num_frames=8", "data.frame_stride=4")
    made = pretrain(request(small_world, small_recipe, tmp_path / "run", *changes, steps=2))
    quick = replace(small_recipe.probe, epochs=2, batch_videos=8, lr_grid=(1e-3,), weight_decay_grid=(0.0,))
    found = probe(
        ProbeRequest(
            small_world,
            str(made.weights),
            ("tiny",),
            "tiny:val",
            "linear",
            replace(small_recipe, probe=quick),
            tmp_path / "probe",
            device="cpu",
        )
    )
    assert found["num_clips"] == 12
    kept = (tmp_path / "probe" / "config.toml").read_text()
    assert "frame_stride = 8" in kept
    shown = picture(
        PictureRequest(
            small_world, str(made.weights), "tiny:val", tmp_path / "out", count=1, ratios=(0.5,), device="cpu"
        )
    )
    assert len(shown) == 1 and shown[0].is_file()
