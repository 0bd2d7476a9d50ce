"""Recipes: functions that return a whole config and cite where its numbers come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from stmae_train.config import Recipe
from stmae_train.errors import ConfigError
from stmae_train.recipes.codebases import (
    mae_st_h16_intermediate,
    mae_st_l16_intermediate,
    mae_st_l16_repository,
    pyslowfast_b16,
    pyslowfast_h16,
    pyslowfast_l16,
)
from stmae_train.recipes.published import (
    demo,
    lineage_options,
    mae_b16,
    mae_h14,
    mae_l16,
    mae_st_b16,
    mae_st_h16,
    mae_st_l16,
    mae_st_s16_112,
    videomae_b16,
    videomae_h16,
    videomae_l16,
    videomae_s16,
)
from stmae_train.recipes.transfer import (
    mae_b16_scratch,
    mae_h14_scratch,
    mae_l16_scratch,
    mae_st_ava_h16,
    mae_st_ava_l16,
    mae_st_ssv2_h16,
    mae_st_ssv2_l16,
    videomae_ava_b16,
    videomae_ava_b16_labelled,
    videomae_ava_h16,
    videomae_ava_h16_labelled,
    videomae_ava_l16,
    videomae_ava_l16_labelled,
    videomae_hmdb51_b16,
    videomae_ssv2_b16,
    videomae_ssv2_l16,
    videomae_ssv2_s16,
    videomae_ucf101_b16,
)
from stmae_train.recipes.variants import (
    mae_st_b16_cross_attention,
    mae_st_b16_dense_encoder,
    mae_st_b16_half_decoded,
    mae_st_l16_cross_attention,
    mae_st_l16_dense_encoder,
    mae_st_l16_half_decoded,
)

__all__ = [
    "demo",
    "lineage_options",
    "mae_b16",
    "mae_b16_scratch",
    "mae_h14",
    "mae_h14_scratch",
    "mae_l16",
    "mae_l16_scratch",
    "mae_st_ava_h16",
    "mae_st_ava_l16",
    "mae_st_b16",
    "mae_st_b16_cross_attention",
    "mae_st_b16_dense_encoder",
    "mae_st_b16_half_decoded",
    "mae_st_h16",
    "mae_st_h16_intermediate",
    "mae_st_l16",
    "mae_st_l16_cross_attention",
    "mae_st_l16_dense_encoder",
    "mae_st_l16_half_decoded",
    "mae_st_l16_intermediate",
    "mae_st_l16_repository",
    "mae_st_s16_112",
    "mae_st_ssv2_h16",
    "mae_st_ssv2_l16",
    "names",
    "pyslowfast_b16",
    "pyslowfast_h16",
    "pyslowfast_l16",
    "recipe",
    "videomae_ava_b16",
    "videomae_ava_b16_labelled",
    "videomae_ava_h16",
    "videomae_ava_h16_labelled",
    "videomae_ava_l16",
    "videomae_ava_l16_labelled",
    "videomae_b16",
    "videomae_h16",
    "videomae_hmdb51_b16",
    "videomae_l16",
    "videomae_s16",
    "videomae_ssv2_b16",
    "videomae_ssv2_l16",
    "videomae_ssv2_s16",
    "videomae_ucf101_b16",
]

_RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "mae-b16": mae_b16,
    "mae-b16-scratch": mae_b16_scratch,
    "mae-h14": mae_h14,
    "mae-h14-scratch": mae_h14_scratch,
    "mae-l16": mae_l16,
    "mae-l16-scratch": mae_l16_scratch,
    "mae-st-ava-h16": mae_st_ava_h16,
    "mae-st-ava-l16": mae_st_ava_l16,
    "mae-st-b16": mae_st_b16,
    "mae-st-b16-cross-attention": mae_st_b16_cross_attention,
    "mae-st-b16-dense-encoder": mae_st_b16_dense_encoder,
    "mae-st-b16-half-decoded": mae_st_b16_half_decoded,
    "mae-st-h16": mae_st_h16,
    "mae-st-h16-intermediate": mae_st_h16_intermediate,
    "mae-st-l16": mae_st_l16,
    "mae-st-l16-cross-attention": mae_st_l16_cross_attention,
    "mae-st-l16-dense-encoder": mae_st_l16_dense_encoder,
    "mae-st-l16-half-decoded": mae_st_l16_half_decoded,
    "mae-st-l16-intermediate": mae_st_l16_intermediate,
    "mae-st-l16-repository": mae_st_l16_repository,
    "mae-st-s16-112": mae_st_s16_112,
    "mae-st-ssv2-h16": mae_st_ssv2_h16,
    "mae-st-ssv2-l16": mae_st_ssv2_l16,
    "pyslowfast-b16": pyslowfast_b16,
    "pyslowfast-h16": pyslowfast_h16,
    "pyslowfast-l16": pyslowfast_l16,
    "videomae-ava-b16": videomae_ava_b16,
    "videomae-ava-b16-labelled": videomae_ava_b16_labelled,
    "videomae-ava-h16": videomae_ava_h16,
    "videomae-ava-h16-labelled": videomae_ava_h16_labelled,
    "videomae-ava-l16": videomae_ava_l16,
    "videomae-ava-l16-labelled": videomae_ava_l16_labelled,
    "videomae-b16": videomae_b16,
    "videomae-h16": videomae_h16,
    "videomae-hmdb51-b16": videomae_hmdb51_b16,
    "videomae-l16": videomae_l16,
    "videomae-s16": videomae_s16,
    "videomae-ssv2-b16": videomae_ssv2_b16,
    "videomae-ssv2-l16": videomae_ssv2_l16,
    "videomae-ssv2-s16": videomae_ssv2_s16,
    "videomae-ucf101-b16": videomae_ucf101_b16,
}


def names() -> tuple[str, ...]:
    """The names `recipe` knows, sorted."""
    return tuple(sorted(_RECIPES))


def recipe(name: str) -> Recipe:
    """The recipe of that name; `mae_st_b16` and `mae-st-b16` are the same.

    Raises:
        ConfigError: no recipe has this name; the nearest one is named.
    """
    known = _RECIPES.get(name.replace("_", "-"))
    if known is None:
        nearest = max(_RECIPES, key=lambda each: difflib.SequenceMatcher(None, name, each).ratio())
        raise ConfigError(
            f"There is no recipe '{name}'; the nearest is '{nearest}', all are listed by: stmae-train recipes"
        )
    return known()
