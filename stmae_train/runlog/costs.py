"""Floating-point operations of a model, counted from its config; a product and a sum count two."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stmae_train.config import ModelConfig
from stmae_train.masks import hidden_count
from stmae_train.targets import target_size

__all__ = ["Flops", "forward_flops", "train_flops"]


@dataclass(frozen=True, slots=True)
class Flops:
    """One forward pass of one clip, by part."""

    embedding: float
    encoder: float
    projection: float
    decoder: float
    head: float

    @property
    def total(self) -> float:
        """All parts together."""
        return self.embedding + self.encoder + self.projection + self.decoder + self.head

    @property
    def multiply_adds(self) -> float:
        """The same in the papers' unit: a product with its sum counts one."""
        return self.total / 2


def forward_flops(
    model: ModelConfig,
    *,
    num_classes: int = 0,
    is_encoder: bool = False,
    counts: Literal["ours", "published"] = "ours",
) -> Flops:
    """Operations of one forward pass of one clip; norms, soft-max and activations are left out, as the papers do.

    Args:
        model: the config.
        num_classes: of a classifier, which sees all tokens and has no decoder; 0 for pre-training.
        is_encoder: the encoder on all tokens, without a decoder.
        counts: "ours" embeds visible tokens and predicts hidden ones alone; "published" embeds and predicts every token, as MAE-ST's
            code and its 81.0 G do.
    """
    t, h, w = model.grid_shape
    length, first = t * h * w, int(model.class_token)
    pixels = 3 * model.tubelet_frames * model.patch_px**2
    if num_classes or is_encoder:
        return Flops(
            embedding=length * 2 * pixels * model.width,
            encoder=_blocks(length + first, model.width, model.depth, model.mlp_ratio),
            projection=0.0,
            decoder=0.0,
            head=2 * model.width * num_classes,
        )
    hidden = hidden_count(model)
    visible = length if model.dense_encoder else length - hidden
    decoded = hidden if model.decoded_share == 1 else max(1, round(hidden * model.decoded_share))
    predicted = decoded if counts == "ours" else length
    width, depth = model.decoder_width, model.decoder_depth
    if model.decoder_attention == "cross":
        decoder = _cross_blocks(decoded, visible + first, width, depth, model.mlp_ratio)
    else:
        among = length if model.dense_encoder else length - hidden + decoded
        decoder = _blocks(among + first, width, depth, model.mlp_ratio)
    return Flops(
        embedding=(visible if counts == "ours" else length) * 2 * pixels * model.width,
        encoder=_blocks(visible + first, model.width, model.depth, model.mlp_ratio),
        projection=(visible + first) * 2 * model.width * width if model.decoder_input == "projected" else 0.0,
        decoder=decoder,
        head=predicted * 2 * width * target_size(model),
    )


def train_flops(model: ModelConfig, *, num_classes: int = 0) -> float:
    """Operations of one training step per clip; the backward pass is twice the forward pass."""
    return 3.0 * forward_flops(model, num_classes=num_classes).total


def _blocks(tokens: int, width: int, depth: int, mlp_ratio: float) -> float:
    return depth * tokens * ((8 + 4 * mlp_ratio) * width**2 + 4 * tokens * width)


def _cross_blocks(queries: int, memory: int, width: int, depth: int, mlp_ratio: float) -> float:
    return depth * ((4 + 4 * mlp_ratio) * queries * width**2 + 4 * memory * width**2 + 4 * queries * memory * width)
