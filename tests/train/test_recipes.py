"""stmae_train.recipes: whole configs with published numbers."""

from __future__ import annotations

import pytest
import torch

from stmae_train import recipes
from stmae_train.config import from_toml, to_toml
from stmae_train.errors import ConfigError
from stmae_train.model import MaskedAutoencoder


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_cites_a_source_and_survives_toml(name: str) -> None:
    recipe = recipes.recipe(name)
    assert recipe.name == name
    assert len(recipe.source) > 40
    assert from_toml(to_toml(recipe)) == recipe


def test_published_rates_are_resolved() -> None:
    """SPEC-models B1: 1.6e-3 absolute, 1.5e-4 x 4096 / 256, 1.5e-4 x 1024 / 256."""
    rates = {name: recipes.recipe(name).optim.peak_lr(repeats=4) for name in ("mae-st-l16", "mae-l16", "videomae-b16")}
    assert rates == pytest.approx({"mae-st-l16": 1.6e-3, "mae-l16": 2.4e-3, "videomae-b16": 6e-4})


def test_parameter_counts_are_those_published() -> None:
    """SPEC-models A1.9: B encoder 86.39 M, whole pre-training model 99.9 M with an encoder of 12 x 768."""
    model = MaskedAutoencoder(recipes.mae_st_b16().model)
    assert sum(each.numel() for each in model.encoder.parameters()) == pytest.approx(86.39e6, rel=1e-3)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(99.9e6, rel=1e-3)


def test_names_may_be_written_with_underscores() -> None:
    assert recipes.recipe("mae_st_l16") == recipes.mae_st_l16()


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no recipe 'mae-st-l-16'; the nearest is 'mae-st-l16'"):
        recipes.recipe("mae-st-l-16")
    with pytest.raises(ConfigError, match="no lineage 'mvit'"):
        recipes.lineage_options("mvit")


def test_the_demo_trains_on_64_tokens() -> None:
    t, h, w = recipes.demo().model.grid_shape
    assert t * h * w == 64
    assert torch.get_num_threads() >= 1
