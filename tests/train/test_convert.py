"""stmae_train.convert: every layout is told by its keys, what weights do not say is never guessed silently."""

from __future__ import annotations

import argparse
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from stmae_cli.train import app
from stmae_train.checkpoint import load_autoencoder, load_weights
from stmae_train.convert import (
    deflate,
    inflate,
    inspect_weights,
    open_file,
    plain_names,
    read_weights,
    recognise,
    write_weights,
)
from stmae_train.errors import CheckpointError, ModelError
from stmae_train.evaluate import load_classifier
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder

torch.set_num_threads(1)
HEADS = {"model.heads": 4, "model.decoder_heads": 2}
LINEAGES = ["mae_st", "pyslowfast", "videomae", "mae"]


def saved(path: Path, weights: Any) -> Path:
    torch.save(weights, path)
    return path


def read(path: Path, **asked: Any) -> Any:
    return read_weights(path, asked=HEADS | {f"model.{key}": value for key, value in asked.items()})


@pytest.mark.parametrize("lineage", LINEAGES)
@pytest.mark.parametrize("container", ["model", "model_state", "module", "state_dict", None])
def test_every_layout_is_told_by_its_keys_and_gives_the_same_predictions(
    weights_of: Any, lineage: str, container: str | None, tmp_path: Path
) -> None:
    model, weights = weights_of.pretrained(lineage)
    holder = weights if container is None else {container: weights, "epoch": 3, "optimizer": {"state": {}}}
    asked = {"num_frames": 8, "crop_px": 32} if lineage == "videomae" else {}
    found = read(saved(tmp_path / "weights.pth", holder), **asked)
    assert found.metadata["layout"] == found.model.lineage == lineage
    copy = load_autoencoder(found, where="test").eval()
    clips, mask = weights_of.clips_for(model.config), draw_masks(model.config, seed=0, sample_numbers=[0, 1])
    assert torch.equal(copy(clips, mask=mask).prediction, model(clips, mask=mask).prediction)


@pytest.mark.parametrize(
    ("lineage", "pooling", "options"),
    [
        ("mae_st", "mean-norm", {}),
        ("mae_st", "mean-norm", {"class_token": False}),
        ("mae_st", "mean-norm", {"positions": "joint"}),
        ("pyslowfast", "mean-norm", {}),
        ("pyslowfast", "norm-mean", {"class_token": False}),
        ("videomae", "mean-fresh-norm", {}),
        ("videomae", "norm-first", {}),
        ("mae", "mean-fresh-norm", {}),
        ("mae", "norm-first", {}),
    ],
)
def test_classifiers_of_every_lineage_give_the_same_logits(
    weights_of: Any, lineage: str, pooling: str, options: dict[str, Any], tmp_path: Path
) -> None:
    model, weights = weights_of.finetuned(lineage, pooling=pooling, **options)
    asked: dict[str, Any] = {"heads": 4}
    if lineage == "videomae" or options.get("positions") == "joint":
        asked |= {"num_frames": 8, "crop_px": 32}
    found = read_weights(
        saved(tmp_path / "tuned.pth", {"model": weights}), asked={f"model.{key}": each for key, each in asked.items()}
    )
    written = write_weights(found, tmp_path / "ours.safetensors", form="stmae")
    classifier, recipe = load_classifier(written)
    assert recipe.finetune.pooling == pooling
    clips = weights_of.clips_for(model.config)
    assert torch.equal(classifier.eval()(clips), model(clips))


def test_published_sizes_need_no_statement_and_say_what_was_assumed(weights_of: Any, tmp_path: Path) -> None:
    """SPEC-models A1.4: released MAE-ST decoders have 8 heads, mae_st's 16."""
    sizes = {"width": 384, "depth": 1, "heads": 6, "decoder_width": 512, "num_frames": 16, "num_target_frames": 8}
    for lineage, heads in (("mae_st", 16), ("pyslowfast", 8)):
        _, weights = weights_of.pretrained(lineage, **sizes, decoder_heads=heads)
        found = read_weights(saved(tmp_path / f"{lineage}.pth", {"model": weights}))
        assert (found.model.heads, found.model.decoder_heads, found.model.layer_norm_eps) == (6, heads, 1e-6)
        notes = found.metadata["notes"]
        assert f"{heads} decoder_heads" in notes and "normalized-pixels" in notes
    other = read_weights(tmp_path / "mae_st.pth", asked={"model.heads": 12})
    assert (
        other.model.heads == 12
        and "12 heads, as stated; published models of width 384 have 6" in other.metadata["notes"]
    )


@pytest.mark.parametrize(
    ("lineage", "options", "asked"),
    [
        ("mae_st", {"tubelet_frames": 4, "num_target_frames": 4}, {}),  # two frames per token
        ("mae_st", {"tubelet_frames": 4, "num_target_frames": 2}, {}),  # one
        ("mae_st", {"num_target_frames": 8}, {"target_frames": "linspace"}),  # all, by linspace
        ("pyslowfast", {"dense_encoder": True}, {}),
        ("videomae", {"target_frames": "double"}, {"num_frames": 8, "crop_px": 32}),
    ],
)
def test_what_a_token_predicts_and_where_the_mask_token_enters_is_told_by_shapes(
    weights_of: Any, lineage: str, options: dict[str, Any], asked: dict[str, Any], tmp_path: Path
) -> None:
    model, weights = weights_of.pretrained(lineage, **options)
    found = read(saved(tmp_path / "w.pth", weights), **asked)
    assert found.recipe.data.num_frames == model.config.clip_frames
    copy = load_autoencoder(found, where="test").eval()
    clips, mask = weights_of.clips_for(model.config), draw_masks(model.config, seed=0, sample_numbers=[0, 1])
    wanted = model(clips, mask=mask)
    assert torch.equal(copy(clips, mask=mask).prediction, wanted.prediction)
    assert torch.equal(copy(clips, mask=mask).target, wanted.target)


def test_arguments_saved_by_a_training_script_are_read(weights_of: Any, tmp_path: Path) -> None:
    _, weights = weights_of.pretrained("mae_st")
    args = argparse.Namespace(decoder_num_heads=2, norm_pix_loss=False, pred_t_dim=4, input_size=32, lr=float("nan"))
    path = saved(tmp_path / "full.pth", {"model": weights, "args": args, "epoch": 99})
    found = read_weights(path, asked={"model.heads": 4})
    assert found.model.decoder_heads == 2 and found.model.target == "pixels" and found.model.num_target_frames == 4
    with pytest.raises(ModelError, match=r"decoder_heads=4, but the config beside the weights says 2"):
        read_weights(path, asked=HEADS | {"model.decoder_heads": 4})
    with pytest.raises(ModelError, match=r"target is normalized-pixels by --set, but pixels by the config beside"):
        read_weights(path, asked={"model.heads": 4, "model.target": "normalized-pixels"})


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "the number of heads of a model of width 32 cannot be read off its weights"),
        (HEADS | {"model.patch_px": 16}, "patch_px is 16 by --set, but 8 by the weights"),
        (HEADS | {"model.crop_px": 64}, "crop_px is 64 by --set, but 32 by the weights"),
        (HEADS | {"model.num_frames": 16}, "num_frames is 16 by --set, but 8 by the weights"),
        (HEADS | {"model.qkv": "fused"}, "qkv is fused by --set, but separate by the weights"),
        (HEADS | {"model.target": "hog"}, "'decoder_pred.weight' has shape"),
        (HEADS | {"model.target_frames": "all"}, "'decoder_pred.weight' has shape"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(
    weights_of: Any, asked: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    _, weights = weights_of.pretrained("mae_st")
    with pytest.raises(ModelError, match=sentence):
        read_weights(saved(tmp_path / "w.pth", weights), asked=asked)


def test_an_unknown_key_or_a_missing_one_is_named(weights_of: Any, tmp_path: Path) -> None:
    _, weights = weights_of.pretrained("mae")
    more = weights | {"blocks.0.ls1.gamma": torch.ones(32)}
    with pytest.raises(ModelError, match=r"unused blocks\.0\.ls1\.gamma"):
        read(saved(tmp_path / "more.pth", more))
    fewer = {name: each for name, each in weights.items() if name != "decoder_norm.bias"}
    with pytest.raises(ModelError, match=r"missing decoder_norm\.bias"):
        read(saved(tmp_path / "fewer.pth", fewer))
    with pytest.raises(ModelError, match="holds no model that is known here"):
        read(saved(tmp_path / "resnet.pth", {"conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}))


def test_a_file_that_could_run_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "owned"

    class Touches:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    path = tmp_path / "evil.pth"
    with path.open("wb") as stream:
        pickle.dump({"model": {"w": torch.ones(1)}, "x": (Path.touch, Touches())}, stream, protocol=2)
    with pytest.raises(CheckpointError, match="cannot be read as weights"):
        open_file(path)
    torch.save({"model": {"w": torch.ones(1)}, "args": Touches()}, path)
    with pytest.raises(CheckpointError, match="which reading could run"):
        open_file(path)
    assert not marker.exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "list", "missing"])
def test_damaged_files_end_in_one_sentence(damage: str, tmp_path: Path) -> None:
    path = saved(tmp_path / "w.pth", {"model": {"w": torch.ones(1000)}})
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:700])
    elif damage == "list":
        saved(path, [torch.ones(1)])
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(b"" if damage == "empty" else b"not weights")
    with pytest.raises(CheckpointError) as caught:
        open_file(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_wrappers_around_names_are_taken_off(weights_of: Any) -> None:
    _, weights = weights_of.pretrained("pyslowfast")
    wrapped = {f"module.{name}": each for name, each in weights.items()}
    assert plain_names(wrapped).keys() == weights.keys()
    assert recognise(plain_names(wrapped), where="test") == "pyslowfast"
    hog = weights | {"hogs.0.weight_x": torch.ones(3, 1, 3, 3)}
    assert plain_names(hog).keys() == weights.keys()


@pytest.mark.parametrize("lineage", LINEAGES)
@pytest.mark.parametrize("form", ["safetensors", "stmae"])
def test_what_was_written_is_read_back_bit_for_bit_without_a_statement(
    weights_of: Any, lineage: str, form: str, tmp_path: Path
) -> None:
    model, weights = weights_of.pretrained(
        lineage, target_frames="first" if lineage == "mae_st" else weights_of.tiny(lineage).target_frames
    )
    asked = {"num_frames": 8, "crop_px": 32} if lineage == "videomae" else {}
    frames = {"target_frames": "first"} if lineage == "mae_st" else {}
    found = read(saved(tmp_path / "w.pth", weights), **asked, **frames)
    again = read_weights(write_weights(found, tmp_path / "again.safetensors", form=form))
    assert again.model == found.model
    # What leaves no trace in weights and does not matter to them is the lineage's: it need not be this tiny model's.
    open_values = {"size": "", "mask_ratio": 0.0, "num_target_frames": 0}
    assert vars_of(again.model) | open_values == vars_of(model.config) | open_values
    assert all(torch.equal(each, again.tensors[name]) for name, each in model.state_dict().items())
    if form == "safetensors":
        stored = safetensors.torch.load_file(tmp_path / "again.safetensors")
        assert (
            all(torch.equal(stored[name], each) for name, each in weights.items()) and stored.keys() == weights.keys()
        )


def vars_of(config: Any) -> dict[str, Any]:
    return {name: getattr(config, name) for name in config.__dataclass_fields__}


@pytest.mark.parametrize("rule", ["divide", "repeat"])
def test_image_weights_inflate_by_either_published_rule(weights_of: Any, rule: str, tmp_path: Path) -> None:
    """SPEC-models A1.14: temporal positions start at zero, the class row becomes the class embedding, qkv is cut in thirds."""
    model, weights = weights_of.pretrained("mae")
    image = read(saved(tmp_path / "image.pth", {"model": weights}))
    video = inflate(image, rule=rule, num_frames=8)
    assert video.model.lineage == "mae_st" and video.model.num_frames == 8 and video.metadata["kind"] == "encoder"
    assert video.model.mean == image.model.mean  # the kernel was trained for these pixels
    kernel, flat = video.tensors["encoder.embed.weight"], weights["patch_embed.proj.weight"]
    assert torch.equal(kernel[:, :, 1], flat / 2 if rule == "divide" else flat)
    assert not video.tensors["encoder.positions.temporal"].any()
    assert torch.equal(video.tensors["encoder.positions.spatial"], weights["pos_embed"][:, 1:])
    thirds = [video.tensors[f"encoder.blocks.0.attn.{part}.weight"] for part in "qkv"]
    assert torch.equal(torch.cat(thirds), weights["blocks.0.attn.qkv.weight"])
    if rule == "divide":  # a still clip gives the image's tokens, so the first time slice its features
        written = write_weights(video, tmp_path / "video.safetensors", form="stmae")
        loaded = load_weights(written)
        clip = weights_of.clips_for(model.config, count=1)
        copy = MaskedAutoencoder(loaded.model)
        copy.load_state_dict(loaded.tensors, strict=False)
        still = clip.expand(-1, -1, 8, -1, -1)
        grid = copy.encoder.grid(still)
        wanted = model.encoder.embed(clip, model.encoder.grid(clip))
        assert torch.allclose(copy.encoder.embed(still, grid)[:, :16], wanted, atol=1e-6)


def test_only_images_inflate_and_only_separable_positions_deflate(weights_of: Any, tmp_path: Path) -> None:
    _, weights = weights_of.pretrained("mae_st")
    video = read(saved(tmp_path / "video.pth", weights))
    with pytest.raises(ModelError, match="already see 8 frames"):
        inflate(video, rule="divide")
    image = deflate(video)
    assert image.tensors["encoder.embed.weight"].shape[2] == 1
    assert torch.equal(image.tensors["encoder.embed.weight"][:, :, 0], weights["patch_embed.proj.weight"].sum(2))
    _, weights = weights_of.pretrained("videomae")
    fixed = read(saved(tmp_path / "fixed.pth", weights), num_frames=8, crop_px=32)
    with pytest.raises(ModelError, match="do not come apart into places and times"):
        deflate(fixed)
    _, weights = weights_of.pretrained("mae")
    with pytest.raises(ModelError, match="There is no inflation 'stretch'"):
        inflate(read(saved(tmp_path / "image.pth", weights)), rule="stretch")


def test_inspect_says_all_that_decides_how_weights_are_used(weights_of: Any, tmp_path: Path) -> None:
    model, weights = weights_of.pretrained("pyslowfast")
    found = inspect_weights(saved(tmp_path / "w.pth", weights), changes=("model.heads=4", "model.decoder_heads=2"))
    assert found["lineage"] == found["layout"] == "pyslowfast" and found["kind"] == "pretrain"
    assert found["decoder"]["heads"] == 2 and found["encoder"]["class_token"] is True
    assert found["encoder"]["positions"] == "separable" and found["decoder"]["positions"] == "joint"
    assert found["target"]["kind"] == "normalized-pixels" and found["target"]["frames"] == "first"
    assert found["normalisation"] == {"mean": [0.45] * 3, "std": [0.225] * 3}
    assert found["parameters"]["total"] == sum(each.numel() for each in model.parameters())
    assert found["trained_on"] == {} and found["clip"]["tokens"] == 64


def test_the_command_converts_and_inspects(weights_of: Any, tmp_path: Path) -> None:
    _, weights = weights_of.pretrained("mae")
    path = saved(tmp_path / "image.pth", {"model": weights})
    state = ["--set", "model.heads=4", "--set", "model.decoder_heads=2"]
    ended = CliRunner().invoke(app, ["convert", str(path), *state, "--inflate", "divide", "--frames", "8", "--json"])
    assert ended.exit_code == 0, ended.output
    made = json.loads(ended.stdout)
    assert made["layout"] == "mae" and Path(made["out"]).is_file() and "I3D" in ended.stderr
    shown = json.loads(CliRunner().invoke(app, ["inspect", made["out"], "--json"]).stdout)
    assert shown["lineage"] == "mae_st" and shown["kind"] == "encoder" and shown["layout"] == "mae"
    assert "mae_st" in CliRunner().invoke(app, ["inspect", made["out"]]).stdout
    for arguments, sentence in (
        (["convert", str(path)], "cannot be read off its weights"),
        (["convert", str(path), *state, "--to", "caffe"], "There is no form 'caffe'"),
        (["convert", str(path), *state, "--out", str(path)], "is the file that is read"),
        (["inspect", str(tmp_path / "nothing.pth")], "There are no weights at"),
    ):
        ended = CliRunner().invoke(app, arguments)
        assert ended.exit_code == 1 and sentence in ended.stderr and len(ended.stderr.strip().splitlines()) == 1
