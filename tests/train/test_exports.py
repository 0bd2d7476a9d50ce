"""What stmae-train exports is the same model when it is read again; what a form cannot hold is refused when it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from stmae_train.checkpoint import Weights, load_autoencoder
from stmae_train.classifier import Classifier
from stmae_train.config import ModelConfig
from stmae_train.convert import deflate, encoder_of, read_weights, write_weights
from stmae_train.errors import ModelError
from stmae_train.evaluate import load_classifier
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.recipes import recipe

torch.set_num_threads(1)
LINEAGES = ["mae_st", "pyslowfast", "videomae", "mae"]
DATA = {"set": "digest"}


def weights_with(model: Any, config: ModelConfig, *, pooling: str | None = None, **facts: str) -> Weights:
    """The weights of a run of ours: our names, the whole recipe, and what the run read."""
    base = recipe("mae-st-b16")
    data = replace(base.data, num_frames=config.clip_frames, crop_px=config.crop_px)
    tuned = replace(base.finetune, pooling=pooling or base.finetune.pooling)
    facts = {"kind": "pretrain", "lineage": config.lineage, "data": json.dumps(DATA)} | facts
    return Weights(model.state_dict(), replace(base, model=config, data=data, finetune=tuned), facts)


def pretrained(weights_of: Any, lineage: str, **options: Any) -> tuple[MaskedAutoencoder, Weights]:
    config = weights_of.tiny(lineage, **options)
    model = weights_of.shaken(MaskedAutoencoder(config))
    return model, weights_with(model, config)


def finetuned(weights_of: Any, lineage: str, pooling: str, *, drops: bool = False, **options: Any) -> Any:
    config = weights_of.tiny(lineage, **options)
    model = weights_of.shaken(Classifier(config, 5, pooling=pooling, drops_first_token=drops))
    facts = {"kind": "finetune", "num_classes": "5"} | ({"drops_first_token": "true"} if drops else {})
    return model, weights_with(model, config, pooling=pooling, **facts)


@pytest.mark.parametrize("lineage", LINEAGES)
@pytest.mark.parametrize("pooling", ["mean-norm", "mean-fresh-norm", "norm-mean", "norm-first"])
@pytest.mark.parametrize("has_class", [True, False])
def test_every_classifier_comes_back_with_its_own_logits(
    weights_of: Any, lineage: str, pooling: str, has_class: bool, tmp_path: Path
) -> None:
    """Poolings share names and shapes, so an export says which it is; mae_st's lost patch is no habit of ours."""
    model, weights = finetuned(weights_of, lineage, pooling, class_token=has_class)
    path = write_weights(weights, tmp_path / "theirs.safetensors", form="safetensors")
    copy, found = load_classifier(path)
    assert found == weights.recipe
    clips = weights_of.clips_for(model.config)
    assert torch.equal(copy.eval()(clips), model(clips))


def test_a_lost_first_patch_stays_lost(weights_of: Any, tmp_path: Path) -> None:
    model, weights = finetuned(weights_of, "mae_st", "mean-norm", drops=True, class_token=False)
    copy, _ = load_classifier(write_weights(weights, tmp_path / "theirs.safetensors", form="safetensors"))
    clips = weights_of.clips_for(model.config)
    assert copy.skipped == 1 and torch.equal(copy.eval()(clips), model(clips))


@pytest.mark.parametrize(
    ("lineage", "options"),
    [
        ("mae_st", {"class_token": False, "positions": "sincos-3d", "decoder_positions": "sincos-3d"}),  # the demo's
        ("mae_st", {"decoder_attention": "cross"}),
        ("mae_st", {"dense_encoder": True}),
        ("mae_st", {"target_frames": "double"}),
        ("pyslowfast", {"decoder_attention": "cross"}),
        ("pyslowfast", {"positions": "sincos-3d", "decoder_positions": "separable"}),
        ("videomae", {"decoder_attention": "cross", "decoded_share": 0.5}),
        ("videomae", {"positions": "joint", "decoder_positions": "joint"}),
        ("mae", {"decoder_attention": "cross"}),
        ("mae", {"target": "hog", "mean": (0.5, 0.5, 0.5), "class_token": False}),
    ],
)
def test_every_autoencoder_comes_back_whole(
    weights_of: Any, lineage: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, weights = pretrained(weights_of, lineage, **options)
    found = read_weights(write_weights(weights, tmp_path / "theirs.safetensors", form="safetensors"))
    assert found.recipe == weights.recipe
    assert found.metadata["kind"] == "pretrain" and json.loads(found.metadata["data"]) == DATA
    copy = load_autoencoder(found, where="test").eval()
    clips, mask = weights_of.clips_for(model.config), draw_masks(model.config, seed=0, sample_numbers=[0, 1])
    noise = {"decode_noise": torch.rand(mask.shape)} if model.config.decoded_share < 1 else {}
    assert torch.equal(copy(clips, mask=mask, **noise).prediction, model(clips, mask=mask, **noise).prediction)


@pytest.mark.parametrize("lineage", LINEAGES)
def test_an_encoder_alone_comes_back_with_its_positions(weights_of: Any, lineage: str, tmp_path: Path) -> None:
    _, weights = pretrained(weights_of, lineage, positions="sincos-3d", class_token=False)
    alone = encoder_of(weights)
    found = read_weights(write_weights(alone, tmp_path / "theirs.safetensors", form="safetensors"))
    assert found.metadata["kind"] == "encoder" and found.model == weights.model
    assert found.tensors.keys() == alone.tensors.keys()


def test_an_export_that_its_recipe_does_not_fit_is_refused(weights_of: Any, tmp_path: Path) -> None:
    _, weights = finetuned(weights_of, "mae_st", "mean-norm")
    path = write_weights(weights, tmp_path / "theirs.safetensors", form="safetensors")
    with pytest.raises(ModelError, match="class_token is False by --set, but its own recipe says True"):
        read_weights(path, asked={"model.class_token": False})
    with pytest.raises(ModelError, match="pooling is 'norm-first' by --set, but its own recipe says 'mean-norm'"):
        read_weights(path, asked={"finetune.pooling": "norm-first"})
    assert read_weights(path, asked={"finetune.epochs": 7}).recipe.finetune.epochs == 7
    tensors, metadata = safetensors.torch.load_file(path), dict(safetensors.safe_open(path, "pt").metadata())
    for change, sentence in (
        ({"cls_token": None}, "missing cls_token"),
        ({"fc_norm.weight": torch.ones(32)}, r"unused fc_norm\.weight"),
        ({"norm.weight": torch.ones(16)}, r"'norm\.weight' has shape \[16\], the model wants \[32\]"),
    ):
        other = {name: each for name, each in (tensors | change).items() if each is not None}
        safetensors.torch.save_file(other, tmp_path / "other.safetensors", metadata)
        with pytest.raises(ModelError, match=sentence):
            read_weights(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("lineage", "options", "sentence"),
    [
        ("videomae", {"decoder_attention": "cross"}, "no model with decoder_attention 'cross'"),
        ("videomae", {"decoder_embed_bias": True}, "decoder_embed_bias true"),
        ("videomae", {"target": "normalized-pixels"}, "target 'normalized-pixels'"),  # would come back as per-color
        ("mae", {"decoder_attention": "cross"}, "decoder_attention 'cross'"),
        ("mae", {"decoder_positions": "separable"}, "decoder_positions 'separable'"),
        ("mae", {"decoder_class": "own"}, "decoder_class 'own'"),
        ("mae", {"target": "normalized-per-color"}, "target 'normalized-per-color'"),
        ("mae", {"encoder_norm": False}, "no norm after the encoder"),
        ("mae", {"qkv_bias": "qv"}, "biases on queries and values alone"),
        ("mae", {"last_norm_eps": 1e-5}, "a last norm of eps 1e-05"),
    ],
)
def test_a_model_that_transformers_lacks_is_refused_and_its_encoder_is_not(
    weights_of: Any, lineage: str, options: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    _, weights = pretrained(weights_of, lineage, **options)
    with pytest.raises(ModelError, match=f"{sentence}; write --to safetensors"):
        write_weights(weights, tmp_path / "whole", form="transformers")
    assert not (tmp_path / "whole").exists()
    if any(name.startswith(("decoder", "target", "last")) for name in options):
        alone = encoder_of(weights)
        found = read_weights(write_weights(alone, tmp_path / "encoder", form="transformers"))
        assert all(torch.equal(each, found.tensors[name]) for name, each in alone.tensors.items())


def in_timm(path: Path) -> VisionTransformer:
    """The timm model that an export says its weights are of."""
    arguments = json.loads(safetensors.safe_open(path, "pt").metadata()["timm"])
    del arguments["mean"], arguments["std"]
    norm = partial(nn.LayerNorm, eps=arguments.pop("norm_eps"))
    model = VisionTransformer(**arguments, norm_layer=norm)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval()


@pytest.mark.parametrize("lineage", ["mae", "mae_st"])
@pytest.mark.parametrize("pooling", ["mean-norm", "mean-fresh-norm", "norm-mean", "norm-first"])
@pytest.mark.parametrize(("has_class", "drops"), [(True, False), (False, False), (False, True)])
def test_timm_computes_the_same_logits_or_the_export_is_refused(
    weights_of: Any, lineage: str, pooling: str, has_class: bool, drops: bool, tmp_path: Path
) -> None:
    model, weights = finetuned(weights_of, lineage, pooling, drops=drops, class_token=has_class)
    wrong = "'norm-first' without a class token" if pooling == "norm-first" else "leaves out the first patch"
    if not has_class and (drops or pooling == "norm-first"):
        with pytest.raises(ModelError, match=f"timm's ViT has no .*{wrong}; write --to safetensors"):
            write_weights(weights, tmp_path / "timm.safetensors", form="timm")
        return
    path = write_weights(weights, tmp_path / "timm.safetensors", form="timm")
    images = weights_of.clips_for(replace(model.config, num_frames=1, tubelet_frames=1, target_frames="all"))
    if lineage == "mae_st":  # a video model goes there in its image form
        flat = deflate(weights)
        model = Classifier(flat.model, 5, pooling=pooling).eval()
        model.load_state_dict(flat.tensors)
    wanted = model(images)
    torch.testing.assert_close(in_timm(path)(images[:, :, 0]), wanted, rtol=0, atol=1e-5)
    copy, _ = load_classifier(path)
    torch.testing.assert_close(copy.eval()(images), wanted, rtol=0, atol=1e-5)


def test_an_encoder_that_timm_lacks_is_refused(weights_of: Any, tmp_path: Path) -> None:
    for weights, sentence in (
        (pretrained(weights_of, "mae", encoder_norm=False)[1], "no encoder without a norm at its end"),
        (finetuned(weights_of, "mae", "mean-fresh-norm", last_norm_eps=1e-5)[1], "no norm of eps 1e-05 beside"),
    ):
        with pytest.raises(ModelError, match=sentence):
            write_weights(weights, tmp_path / "timm.safetensors", form="timm")
