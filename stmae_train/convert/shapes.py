"""What names and shapes of weights leave no doubt about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from stmae_train.convert.layouts import LINEAGES
from stmae_train.errors import ModelError
from stmae_train.tokens import sincos_2d

__all__ = ["FRAMES", "HEADS", "ROWS", "VALUES", "seen_options"]

HOG_VALUES_PER_CELL = 27
HEADS = ("head.weight", "head.projection.weight")  # of classifiers
ROWS = "rows of a joint table"  # known beside the options, until the number of frames is
FRAMES = "frames per token"  # of a target of pixels; how many per clip follows from the number of frames
VALUES = "values per token"  # of a target that is no frames of pixels and no HOG


def seen_options(tensors: Mapping[str, Tensor], layout: str) -> dict[str, Any]:
    """Options of `ModelConfig` that names and shapes leave no doubt about.

    Args:
        tensors: by the names of the lineage's codebase.
        layout: as `layouts.recognise` told it.

    Raises:
        ModelError: weights no model here can hold, such as another number of colours.
    """
    lineage = LINEAGES[layout]
    begin = "encoder." if "encoder.patch_embed.proj.weight" in tensors else ""
    kernel = tensors[f"{begin}patch_embed.proj.weight"]
    width, colours, patch_px = kernel.shape[0], kernel.shape[1], kernel.shape[-1]
    tubelet_frames = kernel.shape[2] if kernel.ndim == 5 else 1
    if colours != 3 or kernel.shape[-2] != patch_px:
        raise ModelError(
            f"The patch kernel has shape {list(kernel.shape)}, wanted 3 colours and square patches; these weights cannot be used here."
        )
    blocks = f"{begin}blocks."
    options: dict[str, Any] = {
        "width": width,
        "depth": _count(tensors, blocks),
        "patch_px": patch_px,
        "tubelet_frames": tubelet_frames,
        "qkv": _layout(tensors, blocks),
        "qkv_bias": _bias(tensors, blocks),
        "class_token": "cls_token" in tensors,
    }
    if f"{blocks}0.mlp.fc1.weight" in tensors:
        options["mlp_ratio"] = tensors[f"{blocks}0.mlp.fc1.weight"].shape[0] / width
    options |= _positions(tensors, options, begin=begin)
    if kernel.ndim == 4:
        options["num_frames"] = 1
    options |= _decoder(tensors, options, lineage=lineage)
    is_classifier = any(name in tensors for name in HEADS)
    if not is_classifier and options.get("decoder_input") != "plain":
        options["encoder_norm"] = f"{begin}norm.weight" in tensors
    return options


def _positions(tensors: Mapping[str, Tensor], options: Mapping[str, Any], *, begin: str) -> dict[str, Any]:
    """Kind of positions, and the grid where the table tells it."""
    patch_px, tubelet_frames = options["patch_px"], options["tubelet_frames"]
    if begin and f"{begin}pos_embed" in tensors:
        raise ModelError(
            "These VideoMAE weights have learned positions, which its own fine-tuning cannot read (SPEC-models A3.6); only models with "
            "fixed positions can be used."
        )
    if "pos_embed_spatial" in tensors:
        side = _side(tensors["pos_embed_spatial"].shape[1], "pos_embed_spatial")
        times = tensors["pos_embed_temporal"].shape[1] if "pos_embed_temporal" in tensors else 1
        return {"positions": "separable", "crop_px": side * patch_px, "num_frames": times * tubelet_frames}
    if "pos_embed" not in tensors:
        return {"positions": "sincos-1d"}
    table = tensors["pos_embed"]
    length = table.shape[1] - int(options["class_token"])
    if tubelet_frames > 1:
        return {
            "positions": "joint",
            ROWS: length,
        }  # how its rows split into times and places is not told by their number
    side = _side(length, "pos_embed")
    kind = "sincos-2d" if _is_sincos(table[0, -length:], side) else "joint"
    return {"positions": kind, "crop_px": side * patch_px}


def _side(places: int, name: str) -> int:
    side = math.isqrt(places)
    if side * side != places:
        raise ModelError(
            f"'{name}' has rows for {places} places, wanted a square grid; only square models can be used here."
        )
    return side


def _is_sincos(rows: Tensor, side: int) -> bool:
    if rows.shape[1] % 4:
        return False
    fixed = torch.from_numpy(sincos_2d(side, side, width=rows.shape[1])).float()
    return torch.allclose(rows.float(), fixed, rtol=0, atol=1e-4)


def _decoder(tensors: Mapping[str, Tensor], options: Mapping[str, Any], *, lineage: str) -> dict[str, Any]:
    """Options of the decoder and the target's size, where there is a decoder."""
    blocks, head, embed = {
        "videomae": ("decoder.blocks.", "decoder.head.weight", "encoder_to_decoder"),
        "pyslowfast": ("pred_head.transforms.0.", "pred_head.projections.0.weight", "decoder_embed"),
    }.get(lineage, ("decoder_blocks.", "decoder_pred.weight", "decoder_embed"))
    if head not in tensors:
        return {}
    rows, width = tensors[head].shape
    found: dict[str, Any] = {
        "decoder_width": width,
        "decoder_depth": sum(name.startswith(blocks) and name.endswith(".norm1.weight") for name in tensors),
        "decoder_qkv": _layout(tensors, blocks),
        "decoder_input": "projected" if f"{embed}.weight" in tensors else "plain",
        "decoder_embed_bias": f"{embed}.bias" in tensors,
    }
    mask_width = tensors["mask_token"].shape[-1]
    if found["decoder_input"] == "plain":
        found |= {"dense_encoder": mask_width == options["width"], "decoder_embed_bias": True}
    elif width != options["width"]:  # the mask token enters where its width is
        found["dense_encoder"] = mask_width == options["width"]
    if lineage != "videomae":
        if options["class_token"]:
            found["decoder_class"] = "own" if "decoder_cls_token" in tensors else "encoder"
        if "decoder_pos_embed_spatial" in tensors:
            found["decoder_positions"] = "separable"
        elif "decoder_pos_embed" in tensors:
            table = tensors["decoder_pos_embed"][0]
            length = table.shape[0] - int(options["class_token"])
            is_fixed = lineage == "mae" and _is_sincos(table[-length:], _side(length, "decoder_pos_embed"))
            found["decoder_positions"] = "sincos-2d" if is_fixed else "joint"
    return found | _target(rows, options, lineage=lineage)


def _target(rows: int, options: Mapping[str, Any], *, lineage: str) -> dict[str, Any]:
    """How many frames a token predicts, told by the rows of the last layer."""
    pixels, tubelet_frames = 3 * options["patch_px"] ** 2, options["tubelet_frames"]
    if rows == HOG_VALUES_PER_CELL * (options["patch_px"] // 8) ** 2:
        return {"target": "hog"}
    frames, rest = divmod(rows, pixels)
    if frames == 2 * tubelet_frames and not rest:
        return {"target_frames": "double"}
    if rest or not 1 <= frames <= tubelet_frames:
        return {VALUES: rows}
    if frames == tubelet_frames:
        return {"target_frames": "all", FRAMES: frames}
    # mae_st truncates evenly spaced frames, PySlowFast takes the first of each tubelet (SPEC-models A1.7).
    return {"target_frames": "linspace" if lineage == "mae_st" else "first", FRAMES: frames}


def _count(tensors: Mapping[str, Tensor], beginning: str) -> int:
    return len({name.removeprefix(beginning).split(".")[0] for name in tensors if name.startswith(beginning)})


def _layout(tensors: Mapping[str, Tensor], beginning: str) -> str:
    return "fused" if f"{beginning}0.attn.qkv.weight" in tensors else "separate"


def _bias(tensors: Mapping[str, Tensor], beginning: str) -> str:
    first = f"{beginning}0.attn."
    if f"{first}q_bias" in tensors:
        return "qv"
    return "all" if f"{first}qkv.bias" in tensors or f"{first}k.bias" in tensors else "none"
