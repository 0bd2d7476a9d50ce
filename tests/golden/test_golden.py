"""Parity with the published codebases: one case per file of the golden folder, one checker per kind of file.

The folder is STMAE_GOLDEN_DIR, by default ../shared/golden beside the checkout. Kinds are told by the metadata key
`system`; file names mean nothing, so a further file of a known kind needs no change here.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from stmae_train.classifier import Classifier, LinearProbe
from stmae_train.config import ModelConfig
from stmae_train.convert import read_weights
from stmae_train.detector import RoiHead
from stmae_train.masks import block_mask, block_mask_2d, generator_for, hidden_count
from stmae_train.model import MaskedAutoencoder, deflate_kernel, inflate_kernel, load_upstream, upstream_names
from stmae_train.optim import Lars, decays, parameter_groups
from stmae_train.recipes import lineage_options
from stmae_train.schedule import cosine_lr, per_step_table
from stmae_train.targets import (
    hog,
    normalise_all_colours,
    target_frame_index,
    target_size,
    target_vectors,
)
from stmae_train.tokens import Grid, Positions

ROOT = Path(__file__).resolve().parents[2]
ASKED = os.environ.get("STMAE_GOLDEN_DIR")
FOLDER = Path(ASKED) if ASKED else ROOT.parent / "shared" / "golden"
FILES = sorted(FOLDER.glob("*.safetensors"))

# "How the numbers were obtained" in the folder's README.
CLOSE = {"rtol": 0.0, "atol": 2e-5}
LOSS = {"rtol": 1e-5, "atol": 0.0}
GRADIENT = {"rtol": 1e-3, "atol": 1e-6}


class Golden:
    """One file: its settings and tensors; it knows which tensors nobody compared."""

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.settings = {key: _literal(text) for key, text in (file.metadata() or {}).items()}
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        self.unseen = set(self.tensors)
        self.differences: dict[str, float] = {}  # largest, by kind: pred, loss, grad, weight_decay, …

    def __getitem__(self, name: str) -> Tensor:
        self.unseen.discard(name)
        return self.tensors[name]

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The tensors below a prefix, by their name without it."""
        return {name.removeprefix(prefix): self[name] for name in self.tensors if name.startswith(prefix)}

    def has(self, name: str) -> bool:
        return name in self.tensors


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def compare(golden: Golden, found: dict[str, Tensor | float], **tolerance: float) -> None:
    """Compare every tensor of the file that `found` names; exact for integers and where no tolerance is given."""
    for name, value in found.items():
        if golden.has(name):
            wanted = golden[name]
            mine = torch.as_tensor(value).to(wanted.dtype)
            exact = not tolerance or not wanted.is_floating_point()
            if not exact and wanted.numel() and mine.shape == wanted.shape:
                kind = name.removeprefix("out/").split("/")[0]
                golden.differences[kind] = max(
                    golden.differences.get(kind, 0.0), float((mine - wanted).detach().abs().max())
                )
            torch.testing.assert_close(
                mine,
                wanted,
                **({"rtol": 0, "atol": 0} if exact else tolerance),
                msg=lambda text, n=name: f"{n}: {text}",
            )


def shape_options(weights: dict[str, Tensor], *, encoder: str, decoder: str) -> dict[str, Any]:
    """Options told by names and shapes of the weights: mlp ratio, block counts, layout and biases of q, k, v."""

    def count(beginning: str) -> int:
        return len({name.removeprefix(beginning).split(".")[0] for name in weights if name.startswith(beginning)})

    def layout(beginning: str) -> str:
        return "fused" if f"{beginning}0.attn.qkv.weight" in weights else "separate"

    first = f"{encoder}0."
    wide, narrow = weights[f"{first}mlp.fc1.weight"].shape
    if f"{first}attn.q_bias" in weights:
        bias = "qv"
    else:
        key = "qkv" if layout(encoder) == "fused" else "k"
        bias = "all" if f"{first}attn.{key}.bias" in weights else "none"
    options = {"depth": count(encoder), "qkv": layout(encoder), "qkv_bias": bias, "mlp_ratio": wide / narrow}
    if any(name.startswith(decoder) for name in weights):
        blocks = [name for name in weights if name.startswith(decoder) and name.endswith("norm1.weight")]
        options |= {"decoder_depth": len(blocks), "decoder_qkv": layout(decoder)}
    return options


def loaded(model: Any, golden: Golden) -> Any:
    """The model with the file's weights; a missing or unused key fails."""
    load_upstream(model, model.config, golden.under("weights/"))
    return model.eval()


def check_gradients(golden: Golden, model: nn.Module, config: ModelConfig, loss: Tensor) -> None:
    loss.backward()
    theirs = upstream_names(model, config)
    found = {f"grad/{theirs[name]}": each.grad for name, each in model.named_parameters() if each.grad is not None}
    compare(golden, found, **GRADIENT)


def check_groups(golden: Golden, model: nn.Module, config: ModelConfig) -> None:
    """Layer decay and weight decay of every parameter of a classifier, where the file has them."""
    if not golden.under("lr_scale/"):
        return
    base, layer_decay = golden.settings["base_weight_decay"], golden.settings["layer_decay"]
    theirs = upstream_names(model, config)
    groups = parameter_groups(
        model, weight_decay=base, decay_rule="not-1d-nor-tokens", layer_decay=layer_decay, depth=config.depth
    )
    for group in groups:
        for name in group["names"]:
            compare(golden, {f"lr_scale/{theirs[name]}": group["lr_scale"]}, rtol=1e-6, atol=0.0)
            compare(golden, {f"weight_decay/{theirs[name]}": group["weight_decay"]}, rtol=1e-6, atol=0.0)
    assert sum(len(group["names"]) for group in groups) == len(golden.under("lr_scale/"))


def restore_order(visible: Tensor, hidden: Tensor) -> Tensor:
    return torch.argsort(torch.cat([visible, hidden], dim=1), dim=1)


def in_token_order(hidden: Tensor, values: Tensor) -> Tensor:
    """Values [B, M, U] of hidden tokens sorted by token number."""
    order = torch.argsort(hidden, dim=1)
    return values.gather(1, order[..., None].expand_as(values))


def mae_st_config(golden: Golden, **options: Any) -> ModelConfig:
    settings = golden.settings
    values = lineage_options("mae_st") | {
        "width": settings["embed_dim"],
        "heads": settings["num_heads"],
        "layer_norm_eps": settings.get("ln_eps", 1e-6),
        "num_frames": settings["num_frames"],
        "crop_px": settings["img_size"],
        "tubelet_frames": settings.get("t_patch_size", 2),
        "patch_px": settings["patch_size"],
        "class_token": settings.get("cls_embed", True),
        "positions": "separable" if settings.get("sep_pos_embed", True) else "joint",
        "decoder_positions": "separable" if settings.get("sep_pos_embed", True) else "joint",
        **shape_options(golden.under("weights/"), encoder="blocks.", decoder="decoder_blocks."),
    }
    return ModelConfig(**(values | options))


def check_mae_st_pretrain(golden: Golden) -> None:
    settings = golden.settings
    config = mae_st_config(
        golden,
        decoder_width=settings["decoder_embed_dim"],
        decoder_heads=settings["decoder_num_heads"],
        mask_ratio=settings["mask_ratio"],
        target="normalized-pixels" if settings.get("norm_pix_loss", False) else "pixels",
        num_target_frames=settings["pred_t_dim"],
    )
    assert (config.qkv_bias == "none") == settings.get("no_qkv_bias", False)
    model, clips = loaded(MaskedAutoencoder(config), golden), golden["input/clip"]
    result = model(clips, noise=golden["input/noise"], predicts_all=True)
    patches = model.encoder.embed(clips, model.encoder.grid(clips))
    raw = target_vectors(clips, replace(config, target="pixels"))[:, :8]
    first = int(config.class_token)
    compare(
        golden,
        {
            "out/mask": result.mask,
            "out/ids_restore": restore_order(result.visible, result.hidden),
            "out/target_frame_index": torch.tensor(target_frame_index(config)),
        },
    )
    compare(
        golden,
        {
            "out/latent": result.latent[:, first:],
            "out/pred": result.every_prediction,
            "out/target_raw_first8": raw,
            "out/target_norm_first8": normalise_all_colours(raw),
        },
        **CLOSE,
    )
    # The file itself is up to 1.6e-5 from float64 here, our matrix product 3e-6: values of 7 need a relative part.
    compare(golden, {"out/patch_tokens": patches.unflatten(1, (config.grid_shape[0], -1))}, rtol=1e-5, atol=2e-5)
    compare(golden, {"out/loss": result.loss}, **LOSS)
    check_gradients(golden, model, config, result.loss)
    # The loop's own way, without the prediction of visible tokens, gives the same.
    torch.testing.assert_close(model(clips, noise=golden["input/noise"]).loss, result.loss, **LOSS)


def check_mae_st_finetune(golden: Golden) -> None:
    config = mae_st_config(golden)
    model = loaded(Classifier(config, golden.settings["num_classes"], drops_first_token=True), golden)
    clips = golden["input/clip"]
    compare(golden, {"out/logits": model(clips), "out/features": model.features(clips)}, **CLOSE)
    check_groups(golden, model, config)


def check_mae_st_weight_decay(golden: Golden) -> None:
    """No configuration in the file: the block counts come from its names."""
    names = golden.under("weight_decay/")
    counts = {
        depth: len({name.split(".")[1] for name in names if name.startswith(beginning)})
        for depth, beginning in (("depth", "blocks."), ("decoder_depth", "decoder_blocks."))
    }
    kind = "separable" if "pos_embed_spatial" in names else "joint"
    options = {"class_token": "cls_token" in names, "positions": kind, "decoder_positions": kind}
    sizes = {"width": 64, "heads": 4, "decoder_width": 32, "decoder_heads": 4, "crop_px": 32, "patch_px": 8}
    model = MaskedAutoencoder(ModelConfig(**lineage_options("mae_st"), **sizes, **counts, **options))
    theirs = upstream_names(model, model.config)
    found = {theirs[name]: 0.05 * decays(name, each) for name, each in model.named_parameters()}
    assert sorted(found) == sorted(names)
    compare(golden, {f"weight_decay/{name}": value for name, value in found.items()}, rtol=1e-6, atol=0.0)


def check_mae_pretrain(golden: Golden) -> None:
    settings = golden.settings
    config = mae_config(
        golden,
        decoder_width=settings["decoder_embed_dim"],
        decoder_heads=settings["decoder_num_heads"],
        mask_ratio=settings["mask_ratio"],
        target="normalized-pixels" if settings.get("norm_pix_loss", False) else "pixels",
    )
    model, clips = loaded(MaskedAutoencoder(config), golden), golden["input/image"][:, :, None]
    result = model(clips, noise=golden["input/noise"], predicts_all=True)
    compare(golden, {"out/mask": result.mask, "out/ids_restore": restore_order(result.visible, result.hidden)})
    found = {
        "out/latent_with_cls": result.latent,
        "out/pred": result.every_prediction,
        "out/target_raw": target_vectors(clips, replace(config, target="pixels")),
    }
    compare(golden, found, **CLOSE)
    compare(golden, {"out/loss": result.loss}, **LOSS)
    check_gradients(golden, model, config, result.loss)


def mae_config(golden: Golden, **options: Any) -> ModelConfig:
    settings = golden.settings
    values = lineage_options("mae") | {
        "width": settings["embed_dim"],
        "heads": settings["num_heads"],
        "layer_norm_eps": settings.get("ln_eps", 1e-6),
        "crop_px": settings["img_size"],
        "patch_px": settings["patch_size"],
        **shape_options(golden.under("weights/"), encoder="blocks.", decoder="decoder_blocks."),
    }
    return ModelConfig(**(values | options))


def check_mae_finetune(golden: Golden) -> None:
    config = mae_config(golden)
    pooling = "mean-fresh-norm" if golden.settings["global_pool"] else "norm-first"
    model = loaded(Classifier(config, golden.settings["num_classes"], pooling=pooling), golden)
    images = golden["input/image"][:, :, None]
    compare(golden, {"out/logits": model(images), "out/features": model.features(images)}, **CLOSE)
    check_groups(golden, model, config)


def check_mae_sincos(golden: Golden) -> None:
    grid, width = golden.settings["grid"], golden.settings["embed_dim"]
    positions = Positions("sincos-2d", width=width, grid=Grid(1, grid, grid), class_token=True)
    compare(golden, {"pos_embed_cls": positions.joint[0]}, **CLOSE)


def check_mae_linear_probe(golden: Golden) -> None:
    """Replays the training steps of the file."""
    settings = golden.settings
    probe = LinearProbe(settings["dim"], settings["classes"])
    probe.norm.eps, probe.norm.momentum = settings["bn_eps"], settings["bn_momentum"]
    probe.linear.load_state_dict(golden.under("init/linear."))
    optimizer = Lars(
        probe.parameters(),
        lr=settings["lr"],
        weight_decay=settings["weight_decay"],
        momentum=settings["momentum"],
        trust=settings["trust_coefficient"],
    )
    for step in range(settings["steps"]):
        features, labels = golden[f"step{step}/features"], golden[f"step{step}/labels"]
        logits = probe(features)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        compare(golden, {f"step{step}/loss": loss}, **LOSS)
        found = {"logits": logits, "linear.weight_after": probe.linear.weight, "linear.bias_after": probe.linear.bias}
        compare(golden, {f"step{step}/{name}": each for name, each in found.items()}, **CLOSE)
    logits = probe.eval()(features)
    found = {"bn.running_mean": probe.norm.running_mean, "bn.running_var": probe.norm.running_var}
    found["eval_logits_on_last_features"] = logits
    compare(golden, {f"final/{name}": each for name, each in found.items()}, **CLOSE)


def check_videomae_pretrain(golden: Golden) -> None:
    settings, weights = golden.settings, golden.under("weights/")
    config = ModelConfig(
        **lineage_options("videomae")
        | {
            "width": settings["encoder_embed_dim"],
            "heads": settings["encoder_num_heads"],
            "decoder_width": settings["decoder_embed_dim"],
            "decoder_heads": settings["decoder_num_heads"],
            "layer_norm_eps": settings.get("ln_eps", 1e-6),
            "num_frames": settings["frames"],
            "crop_px": settings["img_size"],
            "tubelet_frames": settings["tubelet_size"],
            "patch_px": settings["patch_size"],
            "mask_ratio": settings["tube_mask_ratio"],
            "target": "normalized-per-color" if settings["norm_target"] else "pixels",
            **shape_options(weights, encoder="encoder.blocks.", decoder="decoder.blocks."),
        }
    )
    model = loaded(MaskedAutoencoder(config), golden)
    mask = golden["input/bool_masked_pos"]
    result = model(golden["input/clip"], mask=mask)
    assert target_size(config) == settings["decoder_num_classes"]
    assert hidden_count(config) == settings["masked_per_frame"] * config.grid_shape[0] == int(mask[0].sum())
    found = {
        "out/encoder_visible_tokens": result.latent,
        "out/pred_masked_only": result.prediction,
        "out/labels_masked_only": result.target,
        "buffers/encoder_pos_embed": model.encoder.positions.joint,
        "buffers/decoder_pos_embed": model.decoder.positions.joint,
    }
    compare(golden, found, **CLOSE)
    compare(golden, {"out/loss": result.loss}, **LOSS)
    check_gradients(golden, model, config, result.loss)


def check_videomae_finetune(golden: Golden) -> None:
    settings = golden.settings
    config = ModelConfig(
        **lineage_options("videomae")
        | {
            "width": settings["embed_dim"],
            "heads": settings["num_heads"],
            "layer_norm_eps": settings.get("ln_eps", 1e-6),
            "num_frames": settings["all_frames"],
            "crop_px": settings["img_size"],
            "tubelet_frames": settings["tubelet_size"],
            "patch_px": settings["patch_size"],
            **shape_options(golden.under("weights/"), encoder="blocks.", decoder="decoder.blocks."),
        }
    )
    pooling = "mean-fresh-norm" if settings["use_mean_pooling"] else "norm-first"
    model = loaded(Classifier(config, settings["num_classes"], pooling=pooling), golden)
    clips = golden["input/clip"]
    found = {
        "out/logits": model(clips),
        "out/features": model.features(clips),
        "buffers/pos_embed": model.encoder.positions.joint,
    }
    compare(golden, found, **CLOSE)
    check_groups(golden, model, config)


def pyslowfast_config(golden: Golden, **options: Any) -> ModelConfig:
    settings = golden.settings
    tubelet_frames, patch_px, _ = (int(each) for each in settings["patch"].split("x"))
    positions = {"weights/pos_embed_spatial": "separable", "weights/pos_embed": "joint"}
    values = lineage_options("pyslowfast") | {
        "width": settings["embed_dim"],
        "heads": settings["num_heads"],
        "layer_norm_eps": settings.get("ln_eps", 1e-6),
        "num_frames": settings["num_frames"],
        "crop_px": settings["img_size"],
        "tubelet_frames": tubelet_frames,
        "patch_px": patch_px,
        "class_token": settings.get("cls_embed", True),
        "positions": next((kind for name, kind in positions.items() if golden.has(name)), "sincos-3d"),
        **shape_options(golden.under("weights/"), encoder="blocks.", decoder="pred_head.transforms.0."),
    }
    return ModelConfig(**(values | options))


def check_pyslowfast_pretrain(golden: Golden) -> None:
    settings, target = golden.settings, golden.settings["target"]
    pixels = "normalized-pixels" if settings["norm_target"] else "pixels"
    config = pyslowfast_config(
        golden,
        decoder_width=settings["decoder_embed_dim"],
        decoder_heads=settings["decoder_num_heads"],
        decoder_positions=settings["decoder_pos_embed"],
        decoder_input="projected" if golden.has("weights/decoder_embed.weight") else "plain",
        dense_encoder=not settings["sparse_encoder"],
        mask_ratio=settings["mask_ratio"],
        target="hog" if target.startswith("hog") else pixels,
        target_frames="all" if "all frames" in target else "first",
    )
    model = MaskedAutoencoder(config)
    sobel = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    constants = {"hogs.0.weight_x": sobel, "hogs.0.weight_y": sobel.T}
    compare(golden, {f"weights/{name}": each.expand(3, 1, 3, 3) for name, each in constants.items()})
    weights = {name: each for name, each in golden.under("weights/").items() if name not in constants}
    load_upstream(model, config, weights)
    t, h, w = config.grid_shape
    noise = golden["input/noise"]
    if noise.shape[1] == h * w:  # tube masking drew one value per place
        noise = noise.repeat(1, t)
    result = model.eval()(golden["input/clip"], noise=noise)
    compare(golden, {"out/mask": result.mask, "out/ids_restore": restore_order(result.visible, result.hidden)})
    found = {
        "out/latent_with_cls": result.latent,
        "out/pred_masked_only": in_token_order(result.hidden, result.prediction).flatten(0, 1),
        "out/labels_masked_only": in_token_order(result.hidden, result.target).flatten(0, 1),
    }
    compare(golden, found, **CLOSE)
    compare(golden, {"out/loss_mean_over_masked": result.loss}, **LOSS)
    check_gradients(golden, model, config, result.loss)


def check_pyslowfast_finetune(golden: Golden) -> None:
    config = pyslowfast_config(golden)
    without_mean = "norm-first" if config.class_token else "norm-mean"
    pooling = "mean-norm" if golden.settings["use_mean_pooling"] else without_mean
    model = loaded(Classifier(config, golden.settings["num_classes"], pooling=pooling), golden)
    compare(golden, {"out/logits_before_softmax": model(golden["input/clip"])}, **CLOSE)


def check_hog(golden: Golden) -> None:
    found = hog(golden["input/image"], bins=golden.settings["nbins"], cell_px=golden.settings["cell"])
    compare(golden, {"out/hog_B_C_bins_H_W": found}, **CLOSE)


def check_roi_head(golden: Golden) -> None:
    """Only outputs of the aligned variant are in the files; the legacy one is the metadata's `aligned` False."""
    settings = golden.settings
    numerator, _, denominator = settings["scale"].partition("/")
    head = RoiHead(
        settings["embed_dim"],
        settings["classes"],
        patch_px=int(denominator) // int(numerator),
        is_aligned=settings["aligned"],
        sampling_ratio=int(str(settings["sampling_ratio"]).split()[0]),
    )
    head.load_state_dict(golden.under("weights/"))
    grid = Grid(settings["T"], settings["grid"], settings["grid"])
    tokens, boxes = golden["input/tokens_B_TGG_D"], golden["input/boxes_batchidx_x1y1x2y2_pixels"]
    regions = head.eval().regions(tokens, boxes, grid)
    found = {
        "out/roi_7x7": regions,
        "out/max_pooled": regions.amax(dim=(2, 3)),
        "out/probabilities": head(tokens, boxes, grid).sigmoid(),
    }
    compare(golden, found, **CLOSE)


def check_block_masks(golden: Golden) -> None:
    """Draws are compared by what they have in common: their counts, and how often neighbours are both hidden."""
    for name in golden.tensors:
        published = golden[name].bool()
        if name.startswith("block2d"):
            *shape, hidden = (int(each) for each in re.findall(r"_(\d+)x(\d+)_(\d+)of", name)[0])
            draws = [block_mask_2d(*shape, hidden=hidden, generator=generator_for(0, n)) for n in range(200)]
        else:
            ratio = float(re.findall(r"ratio([\d.]+)", name)[0])
            shape = t, h, w = [int(each) for each in re.findall(r"window(\d+)x(\d+)x(\d+)", name)[0]]
            hidden, grid = round(t * h * w * ratio), Grid(t, h, w)
            draws = [
                block_mask(grid, ratio=ratio, generator=generator_for(0, n), window=(t, h, w), even=False)
                for n in range(200)
            ]
        ours = torch.stack(draws).reshape(-1, *shape)
        assert published.shape[1:] == ours.shape[1:], name
        counts = [each.flatten(1).sum(1).float() for each in (published, ours)]
        assert max(float(each.max()) for each in counts) <= hidden, name
        assert abs(float(counts[0].mean() - counts[1].mean())) < 0.01 * hidden, name
        for axis in range(1, ours.ndim):
            shares = [neighbours(each, axis) for each in (published, ours)]
            assert abs(shares[0] - shares[1]) < 0.03, f"{name}, axis {axis}: {shares}"


def neighbours(masks: Tensor, axis: int) -> float:
    """Share of hidden cells whose next cell along an axis is hidden too."""
    size = masks.shape[axis]
    both = masks.narrow(axis, 0, size - 1) & masks.narrow(axis, 1, size - 1)
    return float(both.sum() / masks.sum())


def check_schedules(golden: Golden) -> None:
    settings = golden.settings
    epochs, warmup = settings["epochs"], settings["warmup_epochs"]
    peak, end = settings["peak_lr"], settings["min_lr"]
    rates = [cosine_lr(float(e), total=epochs, warmup=warmup, peak=peak, end=end) for e in golden["mae/epoch_fraction"]]
    table = per_step_table(
        epochs=epochs, steps_per_epoch=settings["videomae_steps_per_epoch"], warmup_epochs=warmup, peak=peak, end=end
    )
    found = {"mae/lr": torch.tensor(rates, dtype=torch.float64), "videomae/lr_per_step": torch.from_numpy(table)}
    compare(golden, found, rtol=1e-12, atol=1e-18)


def check_inflation(golden: Golden) -> None:
    flat, deep = golden["weight_2d"], golden["weight_3d_divided_by_t"]
    found = {
        "weight_3d_divided_by_t": inflate_kernel(flat, frames=deep.shape[2]),
        "weight_3d_repeat_only": inflate_kernel(flat, frames=deep.shape[2], divides=False),
    }
    compare(golden, found)
    # The file does not say which kernel was summed over time; one of the two gives it.
    sums = [deflate_kernel(kernel) for kernel in found.values()]
    wanted = golden["deflated_sum_over_time"]
    assert any(torch.allclose(each, wanted, rtol=0, atol=1e-6) for each in sums)


CHECKERS: dict[str, Callable[[Golden], None]] = {
    "mae_st pretrain": check_mae_st_pretrain,
    "mae_st finetune ViT (eval mode)": check_mae_st_finetune,
    "mae_st pretrain: which parameter gets weight decay 0.05 or 0": check_mae_st_weight_decay,
    "image MAE pretrain": check_mae_pretrain,
    "image MAE finetune ViT (eval mode)": check_mae_finetune,
    "image MAE 2-D sin-cos table with class row": check_mae_sincos,
    "image MAE linear probe head + LARS": check_mae_linear_probe,
    "VideoMAE pretrain": check_videomae_pretrain,
    "VideoMAE finetune ViT (eval mode)": check_videomae_finetune,
    "PySlowFast MaskMViT pretrain (layout of the released MAE-ST checkpoints)": check_pyslowfast_pretrain,
    "PySlowFast MViT-as-ViT classifier (eval, activation removed)": check_pyslowfast_finetune,
    "HOG target operator": check_hog,
    "AVA RoI head (PySlowFast)": check_roi_head,
    "block/cube mask samples (1 = masked), 20 draws each, Python random seeded": check_block_masks,
    "lr schedules: mae & mae_st share one; VideoMAE per-step table": check_schedules,
    "2-D to 3-D patch kernel: I3D rule (repeat and divide by t); PySlowFast image_init repeats without dividing; "
    "deflate sums over time": check_inflation,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_golden_file_is_met(path: Path, record_property: Callable[[str, object], None]) -> None:
    torch.set_num_threads(1)
    golden = Golden(path)
    system = golden.settings.get("system")
    assert system in CHECKERS, f"{path.name} is of kind '{system}', known kinds are: {', '.join(sorted(CHECKERS))}"
    CHECKERS[system](golden)
    assert not golden.unseen, f"no checker compared {sorted(golden.unseen)}"
    told = ", ".join(f"{name} {value:.1e}" for name, value in golden.differences.items())
    record_property("reference", f"{path.stem}\t{told or 'exact'}")


def test_golden_folder_is_there() -> None:
    if not FILES and not ASKED:
        pytest.skip("../shared/golden is not here, so parity with published code is not tested")
    assert FILES, f"STMAE_GOLDEN_DIR is {ASKED}, and holds no *.safetensors"


@pytest.mark.parametrize(
    ("name", "kind"), [("pos_embed_spatial", "separable"), ("pos_embed", "joint"), ("norm.bias", "sincos-3d")]
)
def test_pyslowfast_positions_are_told_by_names(name: str, kind: str, tmp_path: Path) -> None:
    """Its files name no kind of encoder positions, and a learned one and a fixed one differ in their names alone."""
    settings = {"embed_dim": 64, "num_heads": 1, "num_frames": 8, "img_size": 32, "patch": "2x16x16"}
    tensors = {f"weights/{name}": torch.zeros(1), "weights/blocks.0.mlp.fc1.weight": torch.zeros(256, 64)}
    save_file(tensors, tmp_path / "some.safetensors", {key: str(value) for key, value in settings.items()})
    assert pyslowfast_config(Golden(tmp_path / "some.safetensors")).positions == kind


LAYOUTS = {
    "mae_st pretrain": "mae_st",
    "mae_st finetune ViT (eval mode)": "mae_st",
    "image MAE pretrain": "mae",
    "image MAE finetune ViT (eval mode)": "timm",  # the same names; its table of positions was trained
    "VideoMAE pretrain": "videomae",
    "VideoMAE finetune ViT (eval mode)": "videomae",
    "PySlowFast MaskMViT pretrain (layout of the released MAE-ST checkpoints)": "pyslowfast",
    "PySlowFast MViT-as-ViT classifier (eval, activation removed)": "pyslowfast",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_layouts_are_read_with_every_option_that_shapes_tell(path: Path, tmp_path: Path) -> None:
    """The reader of foreign weights finds what the file's own settings say, and asks for nothing but heads and the clip's length."""
    golden = Golden(path)
    layout, settings = LAYOUTS.get(golden.settings.get("system", "")), golden.settings
    if layout is None:
        pytest.skip(f"{path.stem} holds no model of a published layout")
    asked = {"model.heads": settings.get("num_heads", settings.get("encoder_num_heads"))}
    weights = golden.under("weights/")
    if "decoder_num_heads" in settings:
        asked["model.decoder_heads"] = settings["decoder_num_heads"]
    frames = settings.get("num_frames", settings.get("frames", settings.get("all_frames", 1)))
    if layout == "videomae" or ("pos_embed" in weights and frames > 1):
        asked |= {"model.num_frames": frames, "model.crop_px": settings["img_size"]}
    torch.save({"model_state" if layout == "pyslowfast" else "model": weights}, tmp_path / "weights.pth")
    found = read_weights(tmp_path / "weights.pth", asked=asked)
    assert found.metadata["layout"] == layout
    assert found.metadata["kind"] == ("pretrain" if "pretrain" in settings["system"] else "finetune")
    model = found.model
    assert (model.num_frames, model.crop_px) == (frames, settings["img_size"])
    assert model.class_token == settings.get("cls_embed", layout in ("mae", "timm"))
    if found.metadata["kind"] == "finetune" and layout != "pyslowfast":
        averages = settings.get("global_pool", settings.get("use_mean_pooling", True))
        fresh = "mean-norm" if layout == "mae_st" else "mean-fresh-norm"
        assert found.recipe.finetune.pooling == (fresh if averages else "norm-first")
    sizes = {name: each.shape for name, each in weights.items() if not name.startswith("hogs.")}
    assert sum(each.numel() for each in found.tensors.values()) == sum(math.prod(shape) for shape in sizes.values())
