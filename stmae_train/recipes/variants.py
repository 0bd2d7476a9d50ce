"""Recipes with a cheaper decoder or a dense encoder. They are no published MAE-ST models, so no other recipe turns into them silently."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stmae_train.config import Recipe
from stmae_train.recipes.published import mae_st_b16, mae_st_l16

__all__ = [
    "mae_st_b16_cross_attention",
    "mae_st_b16_dense_encoder",
    "mae_st_b16_half_decoded",
    "mae_st_l16_cross_attention",
    "mae_st_l16_dense_encoder",
    "mae_st_l16_half_decoded",
]


def _variant(base: Recipe, name: str, source: str, **model: Any) -> Recipe:
    return replace(
        base,
        name=f"{base.name}-{name}",
        source=f"{source} Everything else is {base.name}; not published in this form, so its scores compare with themselves alone.",
        model=replace(base.model, **model),
    )


def _half_decoded(base: Recipe) -> Recipe:
    source = (
        "After VideoMAE V2 (Wang et al. 2023), whose decoder sees half of the hidden tokens; there they follow a running cell, here they are "
        "drawn at random for every clip."
    )
    return _variant(base, "half-decoded", source, decoded_share=0.5)


def _cross_attention(base: Recipe) -> Recipe:
    source = (
        "After CrossMAE (Fu et al. 2024), whose decoder lets every mask token look at the visible tokens and not at other mask tokens; the "
        "encoder's last layer alone is looked at, and all hidden tokens are decoded."
    )
    return _variant(base, "cross-attention", source, decoder_attention="cross")


def mae_st_b16_half_decoded() -> Recipe:
    """MAE-ST ViT-B/16 that decodes half of the hidden tokens."""
    return _half_decoded(mae_st_b16())


def mae_st_l16_half_decoded() -> Recipe:
    """MAE-ST ViT-L/16 that decodes half of the hidden tokens."""
    return _half_decoded(mae_st_l16())


def mae_st_b16_cross_attention() -> Recipe:
    """MAE-ST ViT-B/16 with a decoder of cross-attention alone."""
    return _cross_attention(mae_st_b16())


def mae_st_l16_cross_attention() -> Recipe:
    """MAE-ST ViT-L/16 with a decoder of cross-attention alone."""
    return _cross_attention(mae_st_l16())


def _dense_encoder(base: Recipe) -> Recipe:
    source = (
        'After MAE-ST Table 1, "w/ [M]": the encoder runs on all tokens, hidden ones replaced by a mask token of its width after the patch '
        "embedding and before the positions; no public code has this variant, PySlowFast's MaskFeat path is the nearest."
    )
    return _variant(base, "dense-encoder", source, dense_encoder=True)


def mae_st_b16_dense_encoder() -> Recipe:
    """MAE-ST ViT-B/16 with mask tokens in the encoder."""
    return _dense_encoder(mae_st_b16())


def mae_st_l16_dense_encoder() -> Recipe:
    """MAE-ST ViT-L/16 with mask tokens in the encoder, 7.7 times the operations (MAE-ST Table 1)."""
    return _dense_encoder(mae_st_l16())
