"""Between images and video: image weights inflated over time, video encoders deflated to images (SPEC-models A1.13, A1.14)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from stmae_train.checkpoint import Weights
from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.model import deflate_kernel, inflate_kernel
from stmae_train.recipes import lineage_options

__all__ = ["INFLATIONS", "deflate", "encoder_of", "inflate", "split_qkv"]

INFLATIONS = {
    "divide": "I3D's rule: the kernel is repeated over the tubelet and divided by its frames, so a still clip gives the image's tokens",
    "repeat": "PySlowFast's image_init rule: the kernel is repeated over the tubelet and not divided, so tokens are larger by its frames",
}


def inflate(weights: Weights, *, rule: str, num_frames: int = 16, tubelet_frames: int = 2) -> Weights:
    """A video encoder of the MAE-ST kind from an image encoder; decoder and head are left behind.

    The kernel is inflated by `rule`; the spatial positions are the image's, the temporal ones start at zero (MAE-ST, "image MAE weights");
    the pixels keep the image model's mean and deviation, which its kernel was trained for.

    Args:
        weights: of an image model.
        rule: "divide" or "repeat", see `INFLATIONS`.
        num_frames, tubelet_frames: of the video model.

    Raises:
        ModelError: the weights are no image model, or there is no such rule.
    """
    config, tensors = weights.model, weights.tensors
    if rule not in INFLATIONS:
        raise ModelError(f"There is no inflation '{rule}'; choose one of {', '.join(INFLATIONS)}.")
    if config.num_frames != 1 or config.tubelet_frames != 1:
        raise ModelError(
            f"These weights already see {config.num_frames} frames in tubelets of {config.tubelet_frames}; only image weights are inflated, so "
            f"leave --inflate out."
        )
    if "encoder.norm.weight" not in tensors:
        raise ModelError(
            "This classifier pools before a norm of its own and has no final encoder norm to start from; inflate the pre-trained weights."
        )
    if config.qkv_bias == "qv":
        raise ModelError(
            "These image weights have biases on queries and values alone, which no published image model has."
        )
    positions = tensors["encoder.positions.joint"]  # [1, (1 +) L, D]
    first = int(config.class_token)
    kernel = inflate_kernel(tensors["encoder.embed.weight"][:, :, 0], frames=tubelet_frames, divides=rule == "divide")
    found = {
        "encoder.embed.weight": kernel,
        "encoder.positions.spatial": positions[:, first:],
        "encoder.positions.temporal": torch.zeros(1, num_frames // tubelet_frames, config.width),
    }
    if first:
        found["encoder.positions.class_row"] = positions[:, :1]
    rest = {
        name: each
        for name, each in tensors.items()
        if name.startswith("encoder.") and name not in ("encoder.embed.weight", "encoder.positions.joint")
    }
    found |= split_qkv(rest)
    # What belongs to the encoder stays; the rest is MAE-ST's.
    kept = {"width", "depth", "heads", "mlp_ratio", "layer_norm_eps", "class_token", "qkv_bias", "crop_px", "patch_px"}
    options = {name: getattr(config, name) for name in (*kept, "mean", "std", "size")}
    grid = {
        "num_frames": num_frames,
        "tubelet_frames": tubelet_frames,
        "num_target_frames": num_frames // tubelet_frames,
    }
    model = ModelConfig(**(lineage_options("mae_st") | options | grid))
    data = replace(weights.recipe.data, num_frames=num_frames, frame_stride=4)
    notes = [
        *json.loads(weights.metadata.get("notes", "[]")),
        f"Inflated to {num_frames} frames by {INFLATIONS[rule]}.",
    ]
    facts = {"kind": "encoder", "lineage": "mae_st", "inflation": rule, "notes": json.dumps(notes)}
    kept_facts = {
        key: value
        for key, value in weights.metadata.items()
        if key not in ("num_classes", "recipe", "drops_first_token")
    }
    return Weights(found, replace(weights.recipe, model=model, data=data), {**kept_facts, **facts})


def deflate(weights: Weights) -> Weights:
    """An image encoder from a video encoder with learned separable positions: the kernel summed over time, temporal positions dropped.

    Raises:
        ModelError: the positions cannot be told apart by time.
    """
    config, tensors = weights.model, weights.tensors
    if config.positions != "separable":
        raise ModelError(
            f"Positions '{config.positions}' do not come apart into places and times, so this encoder cannot be deflated to images; only "
            f"separable ones can (MAE-ST)."
        )
    spatial = tensors["encoder.positions.spatial"]
    joint = torch.cat([tensors["encoder.positions.class_row"], spatial], dim=1) if config.class_token else spatial
    found = {
        name: each for name, each in tensors.items() if not name.startswith("decoder.") and ".positions." not in name
    }
    found.pop("mask_token", None)
    found["encoder.embed.weight"] = deflate_kernel(tensors["encoder.embed.weight"])[:, :, None]
    found["encoder.positions.joint"] = joint
    model = replace(config, num_frames=1, tubelet_frames=1, positions="joint", target_frames="all")
    data = replace(weights.recipe.data, num_frames=1, frame_stride=1)
    return Weights(found, replace(weights.recipe, model=model, data=data), dict(weights.metadata))


def encoder_of(weights: Weights) -> Weights:
    """The encoder alone.

    Raises:
        ModelError: a classifier with a norm of its own has no whole encoder.
    """
    if "encoder.norm.weight" not in weights.tensors:
        raise ModelError(
            "This classifier pools before a norm of its own, so its encoder has no final norm; convert the pre-trained weights."
        )
    dropped = ("num_classes", "drops_first_token", "recipe")
    metadata = {key: value for key, value in weights.metadata.items() if key not in dropped} | {"kind": "encoder"}
    return Weights(
        {name: each for name, each in weights.tensors.items() if name.startswith("encoder.")}, weights.recipe, metadata
    )


def split_qkv(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with every fused `qkv` cut into thirds `q`, `k`, `v`."""
    found: dict[str, Tensor] = {}
    for name, each in tensors.items():
        stem, is_fused, last = name.rpartition("qkv.")
        if not is_fused:
            found[name] = each
            continue
        for part, third in zip("qkv", each.chunk(3), strict=True):
            found[f"{stem}{part}.{last}"] = third
    return found
