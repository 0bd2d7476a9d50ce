"""Weights travel to transformers and timm and back: equal outputs, equal bits. Random tiny models; nothing is fetched."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from stmae_train.checkpoint import load_autoencoder
from stmae_train.classifier import start_encoder
from stmae_train.convert import deflate, read_weights, write_weights
from stmae_train.errors import ModelError
from stmae_train.evaluate import load_classifier
from stmae_train.masks import draw_masks, noise_for
from stmae_train.model import Encoder, MaskedAutoencoder
from stmae_train.tokens import sincos_2d

torch.set_num_threads(1)
CLOSE = {"rtol": 0.0, "atol": 1e-5}
SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "image_size": 32,
    "patch_size": 8,
    "layer_norm_eps": 1e-6,
}
DECODER = {
    "decoder_num_attention_heads": 2,
    "decoder_hidden_size": 32,
    "decoder_num_hidden_layers": 2,
    "decoder_intermediate_size": 64,
}
VIDEO = {"num_frames": 8, "tubelet_size": 2}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[interop]'")


def shaken(model: nn.Module) -> Any:
    """Noise on every parameter, biases too, so that nothing that starts at zero can hide an error."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and "position" not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def same_bits(first: nn.Module, second: nn.Module) -> None:
    theirs = second.state_dict()
    assert first.state_dict().keys() == theirs.keys()
    assert [name for name, each in first.state_dict().items() if not torch.equal(each, theirs[name])] == []


def random_clips(*size: int) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("is_normalised", "has_mean_pooling"), [(True, False), (False, False), (True, True)])
def test_videomae_pretraining_goes_there_and_back(
    transformers: Any, is_normalised: bool, has_mean_pooling: bool, tmp_path: Path
) -> None:
    """Mean pooling, transformers' default that no published pre-training has, leaves out the encoder's last norm."""
    config = transformers.VideoMAEConfig(
        **SIZES, **DECODER, **VIDEO, use_mean_pooling=has_mean_pooling, norm_pix_loss=is_normalised
    )
    theirs = shaken(transformers.VideoMAEForPreTraining(config))
    theirs.save_pretrained(tmp_path / "in")
    weights = read_weights(tmp_path / "in" / "model.safetensors")
    assert weights.metadata["layout"] == "transformers-videomae" and weights.metadata["kind"] == "pretrain"
    ours = load_autoencoder(weights, where="test").eval()
    assert ours.config.target == ("normalized-per-color" if is_normalised else "pixels")
    assert ours.config.encoder_norm is not has_mean_pooling
    clips, mask = random_clips(2, 3, 8, 32, 32), draw_masks(ours.config, seed=0, sample_numbers=[0, 1])
    with torch.no_grad():
        wanted, found = theirs(clips.transpose(1, 2), bool_masked_pos=mask), ours(clips, mask=mask)
    torch.testing.assert_close(found.prediction, wanted.logits, **CLOSE)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-5, atol=0)
    write_weights(weights, tmp_path / "out", form="transformers")
    again = transformers.VideoMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    same_bits(theirs, again)
    with torch.no_grad():
        assert torch.equal(again(clips.transpose(1, 2), bool_masked_pos=mask).logits, wanted.logits)


@pytest.mark.parametrize("has_mean_pooling", [True, False])
def test_a_bare_videomae_encoder_gives_the_same_features(
    transformers: Any, has_mean_pooling: bool, tmp_path: Path
) -> None:
    config = transformers.VideoMAEConfig(**SIZES, **VIDEO, use_mean_pooling=has_mean_pooling)
    theirs = shaken(transformers.VideoMAEModel(config))
    theirs.save_pretrained(tmp_path)
    weights = read_weights(tmp_path / "model.safetensors")
    assert weights.metadata["kind"] == "encoder" and weights.model.encoder_norm is not has_mean_pooling
    ours = Encoder(weights.model, final_norm=weights.model.encoder_norm)
    start_encoder(ours, weights.tensors)
    clips = random_clips(2, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(clips), theirs(clips.transpose(1, 2)).last_hidden_state, **CLOSE)


@pytest.mark.parametrize("has_mean_pooling", [True, False])
def test_videomae_classifiers_go_there_and_back(transformers: Any, has_mean_pooling: bool, tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(**SIZES, **VIDEO, use_mean_pooling=has_mean_pooling, num_labels=7)
    theirs = shaken(transformers.VideoMAEForVideoClassification(config))
    theirs.save_pretrained(tmp_path / "in")
    weights = read_weights(tmp_path / "in" / "model.safetensors")
    assert weights.recipe.finetune.pooling == ("mean-fresh-norm" if has_mean_pooling else "norm-first")
    ours, _ = load_classifier(tmp_path / "in" / "model.safetensors")
    clips = random_clips(2, 3, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(clips), theirs(clips.transpose(1, 2)).logits, **CLOSE)
    write_weights(weights, tmp_path / "out", form="transformers")
    again = transformers.VideoMAEForVideoClassification.from_pretrained(tmp_path / "out")
    assert again.config.num_labels == 7
    same_bits(theirs, again)


def test_vitmae_goes_there_and_back(transformers: Any, tmp_path: Path) -> None:
    config = transformers.ViTMAEConfig(**SIZES, **DECODER, norm_pix_loss=True, mask_ratio=0.75)
    theirs = shaken(transformers.ViTMAEForPreTraining(config))
    # A new model of some versions has tables of zeros; published ones hold image MAE's fixed tables.
    for table in (theirs.vit.embeddings.position_embeddings, theirs.decoder.decoder_pos_embed):
        table.data[0, 1:] = torch.from_numpy(sincos_2d(4, 4, width=table.shape[-1])).float()
    theirs.save_pretrained(tmp_path / "in")
    weights = read_weights(tmp_path / "in" / "model.safetensors")
    ours = load_autoencoder(weights, where="test").eval()
    assert ours.config.lineage == "mae"
    assert ours.config.positions == ours.config.decoder_positions == "sincos-2d"
    images, noise = random_clips(2, 3, 32, 32), noise_for(0, [0, 1], 16)
    with torch.no_grad():
        wanted = theirs(images, noise=noise)
        found = ours(images[:, :, None], noise=noise, predicts_all=True)
    torch.testing.assert_close(found.every_prediction, wanted.logits, **CLOSE)
    torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-5, atol=0)
    write_weights(weights, tmp_path / "out", form="transformers")
    again = transformers.ViTMAEForPreTraining.from_pretrained(tmp_path / "out").eval()
    same_bits(theirs, again)


def test_a_models_head_count_and_eps_are_those_of_its_config(transformers: Any, tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(**SIZES | {"hidden_size": 384, "num_attention_heads": 16}, **VIDEO)
    transformers.VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with pytest.raises(ModelError, match=r"16 heads by the config .* published models of width 384 have 6"):
        read_weights(path)
    assert read_weights(path, asked={"model.heads": 6}).model.heads == 6
    with pytest.raises(ModelError, match=r"layer_norm_eps is 0\.001 by --set, but 1e-06 by the config"):
        read_weights(path, asked={"model.heads": 6, "model.layer_norm_eps": 1e-3})
    settings = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | {"patch_size": 16}))
    with pytest.raises(ModelError, match="patch_px is 16 by the config beside the weights, but 8 by the weights"):
        read_weights(path, asked={"model.heads": 6})
    (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match=r"keeps head counts and LayerNorm eps in config\.json"):
        read_weights(path)


def test_biases_that_a_past_transformers_zeroed_are_told(transformers: Any, tmp_path: Path) -> None:
    config = transformers.VideoMAEConfig(**SIZES, **VIDEO)
    transformers.VideoMAEForVideoClassification(config).save_pretrained(tmp_path)
    assert (
        "Every query and value bias is exactly zero" in read_weights(tmp_path / "model.safetensors").metadata["notes"]
    )


@pytest.mark.parametrize(("has_class", "pool"), [(True, "token"), (False, "avg"), (True, "avg")])
def test_timm_vits_go_there_and_back(has_class: bool, pool: str, tmp_path: Path) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 4, "num_classes": 7}
    options = {"class_token": has_class, "global_pool": pool, "fc_norm": pool == "avg"}
    theirs = shaken(VisionTransformer(**shape, **options))
    path = tmp_path / "timm.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    asked = {"model.heads": 4}
    weights = read_weights(path, asked=asked)
    assert weights.metadata["layout"] == "timm" and weights.model.positions == "joint"
    written = write_weights(weights, tmp_path / "ours.safetensors", form="stmae")
    ours, _ = load_classifier(written)
    images = random_clips(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images[:, :, None]), theirs(images), **CLOSE)
    write_weights(weights, tmp_path / "back.safetensors", form="timm")
    again = VisionTransformer(**shape, **options)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "back.safetensors"))
    same_bits(theirs, again)


@pytest.mark.parametrize(
    ("has_class", "pool", "says", "pooling", "note"),
    [
        (True, "avg", "config", "norm-mean", ""),
        (True, "avg", "--set", "norm-mean", ""),
        (True, "token", "config", "norm-first", ""),
        (True, "token", "nothing", "norm-first", "needs --set finetune.pooling=norm-mean"),
        (False, "avg", "nothing", "norm-mean", "as timm's models without a class token have it"),
    ],
)
def test_a_timm_vit_without_fc_norm_pools_as_is_said_or_as_is_noted(
    has_class: bool, pool: str, says: str, pooling: str, note: str, tmp_path: Path
) -> None:
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 4, "num_classes": 7}
    theirs = shaken(VisionTransformer(**shape, class_token=has_class, global_pool=pool, fc_norm=False))
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(theirs.state_dict(), path)
    if says == "config":
        (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "global_pool": pool}))
    asked = {"model.heads": 4} | ({"finetune.pooling": pooling} if says == "--set" else {})
    weights = read_weights(path, asked=asked)
    notes = weights.metadata["notes"]
    assert weights.recipe.finetune.pooling == pooling and (note in notes if note else "Pooling" not in notes)
    ours, _ = load_classifier(write_weights(weights, tmp_path / "ours.safetensors", form="stmae"))
    images = random_clips(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images[:, :, None]), theirs(images), **CLOSE)
    with pytest.raises(ModelError, match=r"missing fc_norm\.bias"):
        read_weights(path, asked=asked | {"finetune.pooling": "mean-fresh-norm"})
    (tmp_path / "config.json").write_text(json.dumps({"global_pool": "max"}))
    with pytest.raises(ModelError, match="says global_pool 'max', wanted 'avg' or 'token'"):
        read_weights(path, asked={"model.heads": 4})


def test_the_pixels_of_a_timm_vit_are_those_its_config_says_or_are_noted(tmp_path: Path) -> None:
    theirs = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=1, num_heads=4, num_classes=0)
    path, asked = tmp_path / "model.safetensors", {"model.heads": 4}
    safetensors.torch.save_file(theirs.state_dict(), path)
    weights = read_weights(path, asked=asked)
    assert weights.model.mean == (0.485, 0.456, 0.406) and "ImageNet's, for nothing beside" in weights.metadata["notes"]
    half = [0.5, 0.5, 0.5]
    told = read_weights(path, asked=asked | {"model.mean": half, "model.std": half})
    assert told.model.mean == told.model.std == tuple(half) and "ImageNet" not in told.metadata["notes"]
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": half, "std": half}}))
    stated = read_weights(path, asked=asked)
    assert stated.model == told.model and "ImageNet" not in stated.metadata["notes"]
    with pytest.raises(ModelError, match=r"mean is .* by --set, but .* by the config beside the weights"):
        read_weights(path, asked=asked | {"model.mean": [0.1, 0.1, 0.1]})
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"mean": 0.5, "std": half}}))
    with pytest.raises(ModelError, match=r"config\.json beside the weights has 0\.5 for the pixels, wanted three"):
        read_weights(path, asked=asked)


@pytest.mark.parametrize("lineage", ["videomae", "mae"])
def test_the_way_to_transformers_keeps_mean_and_deviation(
    transformers: Any, weights_of: Any, lineage: str, tmp_path: Path
) -> None:
    _, tensors = weights_of.pretrained(lineage)
    torch.save(tensors, tmp_path / "w.pth")
    asked = {"model.heads": 4, "model.decoder_heads": 2, "model.mean": [0.5, 0.4, 0.3], "model.std": [0.2, 0.3, 0.4]}
    asked |= {"model.num_frames": 8, "model.crop_px": 32} if lineage == "videomae" else {}
    weights = read_weights(tmp_path / "w.pth", asked=asked)
    path = write_weights(weights, tmp_path / "out", form="transformers")
    back = read_weights(path)
    assert (back.model.mean, back.model.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert "ImageNet" not in back.metadata["notes"]
    kind = transformers.VideoMAEImageProcessor if lineage == "videomae" else transformers.ViTImageProcessor
    processor = kind.from_pretrained(tmp_path / "out")
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4])
    (tmp_path / "out" / "preprocessor_config.json").unlink()
    bare = read_weights(path)
    assert bare.model.mean == (0.485, 0.456, 0.406) and "ImageNet's, for nothing beside" in bare.metadata["notes"]


def test_a_video_encoder_becomes_a_timm_image_model(weights_of: Any, tmp_path: Path) -> None:
    """SPEC-models A1.13: kernel summed over time, temporal positions dropped; a registered timm name takes the result."""
    options = {"width": 192, "heads": 3, "depth": 2, "patch_px": 16, "crop_px": 32, "decoder_heads": 2}
    model, weights = weights_of.pretrained("mae_st", **options)
    torch.save(weights, tmp_path / "video.pth")
    video = read_weights(tmp_path / "video.pth", asked={"model.decoder_heads": 2})
    write_weights(video, tmp_path / "image.safetensors", form="timm")
    theirs = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=0).eval()
    theirs.load_state_dict(safetensors.torch.load_file(tmp_path / "image.safetensors"))
    images = random_clips(2, 3, 32, 32)
    copy = MaskedAutoencoder(deflate(video).model)
    copy.load_state_dict(deflate(video).tensors, strict=False)
    with torch.no_grad():
        found = theirs.forward_features(images)
        torch.testing.assert_close(copy.eval().encode(images[:, :, None], with_class=True), found, **CLOSE)
    assert model.config.tubelet_frames == 2


def test_what_others_have_no_model_for_is_refused(weights_of: Any, tmp_path: Path) -> None:
    _, weights = weights_of.pretrained("mae_st")
    torch.save(weights, tmp_path / "w.pth")
    found = read_weights(tmp_path / "w.pth", asked={"model.heads": 4, "model.decoder_heads": 2})
    with pytest.raises(ModelError, match="transformers has no mae_st model"):
        write_weights(found, tmp_path / "out", form="transformers")
    _, weights = weights_of.pretrained("videomae")
    torch.save(weights, tmp_path / "v.pth")
    asked = {"model.heads": 4, "model.decoder_heads": 2, "model.num_frames": 8, "model.crop_px": 32}
    with pytest.raises(ModelError, match="do not come apart into places and times"):
        write_weights(read_weights(tmp_path / "v.pth", asked=asked), tmp_path / "out.safetensors", form="timm")
