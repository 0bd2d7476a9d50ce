"""What a weights file holds, in facts that a person and a program can read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stmae_train.checkpoint import Weights
from stmae_train.config import read_changes
from stmae_train.convert.read import OURS, read_weights
from stmae_train.runlog import forward_flops

__all__ = ["inspect_weights"]

SHAPE = ("width", "depth", "heads", "mlp_ratio", "layer_norm_eps", "qkv", "qkv_bias", "class_token", "positions")
DECODER = ("width", "depth", "heads", "positions", "class", "input", "attention")


def inspect_weights(path: Path, *, changes: tuple[str, ...] = ()) -> dict[str, Any]:
    """Facts about a file of any known layout; nothing is written.

    Args:
        path: the file.
        changes: `key=value` statements about what the file does not say, as for `convert`.

    Raises:
        CheckpointError, ModelError: as `read_weights`.
    """
    weights = read_weights(path, asked=read_changes(changes))
    model, facts = weights.model, weights.metadata
    kind = facts.get("kind", "pretrain")
    has_decoder = "decoder.head.weight" in weights.tensors
    is_classifier = "head.weight" in weights.tensors
    num_classes = len(weights.tensors["head.weight"]) if is_classifier else 0
    t, h, w = model.grid_shape
    found: dict[str, Any] = {
        "file": str(path),
        "layout": facts.get("layout", OURS),
        "kind": kind,
        "lineage": model.lineage,
        "size": model.size,
        "encoder": {name: getattr(model, name) for name in SHAPE},
        "clip": {
            "num_frames": model.num_frames,
            "crop_px": model.crop_px,
            "tubelet_frames": model.tubelet_frames,
            "patch_px": model.patch_px,
            "tokens": t * h * w,
        },
        "normalisation": {"mean": list(model.mean), "std": list(model.std)},
        "decoder": _decoder(weights) if has_decoder else None,
        "target": _target(weights) if has_decoder else None,
        "head": {"classes": num_classes, "pooling": weights.recipe.finetune.pooling} if is_classifier else None,
        "parameters": _parameters(weights),
        "gflops_per_clip": round(
            forward_flops(model, num_classes=num_classes, is_encoder=not has_decoder).total / 1e9, 2
        ),
        "trained_on": json.loads(facts.get("data", "{}")),
        "clips_seen": int(facts["clips"]) if "clips" in facts else None,
        "seed": int(facts["seed"]) if "seed" in facts else None,
        "notes": json.loads(facts.get("notes", "[]")),
    }
    return found


def _decoder(weights: Weights) -> dict[str, Any]:
    model = weights.model
    return {name: getattr(model, f"decoder_{name}") for name in DECODER}


def _target(weights: Weights) -> dict[str, Any]:
    model = weights.model
    return {
        "kind": model.target,
        "frames": model.target_frames,
        "range": model.target_range,
        "loss": model.loss,
        "mask": model.mask,
        "mask_ratio": model.mask_ratio,
    }


def _parameters(weights: Weights) -> dict[str, int]:
    """Values held, by part; fixed tables that a file stores are not parameters."""
    fixed = {
        f"{part}.positions.joint"
        for part, kind in (("encoder", weights.model.positions), ("decoder", weights.model.decoder_positions))
        if kind.startswith("sincos")
    }
    counts = {"encoder": 0, "decoder": 0, "head": 0}
    for name, each in weights.tensors.items():
        if name not in fixed:
            part = (
                "encoder"
                if name.startswith("encoder.")
                else "head"
                if name.startswith(("head.", "fresh_norm."))
                else "decoder"
            )
            counts[part] += each.numel()
    return {**{part: count for part, count in counts.items() if count}, "total": sum(counts.values())}
