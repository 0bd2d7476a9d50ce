"""Recipes: functions that return a whole config and cite where its numbers come from."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from stmae_train.config import Recipe
from stmae_train.errors import ConfigError
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
    videomae_l16,
    videomae_s16,
)
from stmae_train.recipes.variants import (
    mae_st_b16_cross_attention,
    mae_st_b16_half_decoded,
    mae_st_l16_cross_attention,
    mae_st_l16_half_decoded,
)

__all__ = [
    "demo",
    "lineage_options",
    "mae_b16",
    "mae_h14",
    "mae_l16",
    "mae_st_b16",
    "mae_st_b16_cross_attention",
    "mae_st_b16_half_decoded",
    "mae_st_h16",
    "mae_st_l16",
    "mae_st_l16_cross_attention",
    "mae_st_l16_half_decoded",
    "mae_st_s16_112",
    "names",
    "recipe",
    "videomae_b16",
    "videomae_l16",
    "videomae_s16",
]

_RECIPES: dict[str, Callable[[], Recipe]] = {
    "demo": demo,
    "mae-b16": mae_b16,
    "mae-h14": mae_h14,
    "mae-l16": mae_l16,
    "mae-st-b16": mae_st_b16,
    "mae-st-b16-cross-attention": mae_st_b16_cross_attention,
    "mae-st-b16-half-decoded": mae_st_b16_half_decoded,
    "mae-st-h16": mae_st_h16,
    "mae-st-l16": mae_st_l16,
    "mae-st-l16-cross-attention": mae_st_l16_cross_attention,
    "mae-st-l16-half-decoded": mae_st_l16_half_decoded,
    "mae-st-s16-112": mae_st_s16_112,
    "videomae-b16": videomae_b16,
    "videomae-l16": videomae_l16,
    "videomae-s16": videomae_s16,
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
