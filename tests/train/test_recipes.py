"""stmae_train.recipes: whole configs with published numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stmae_train import recipes
from stmae_train.config import from_toml, to_toml
from stmae_train.errors import ConfigError
from stmae_train.model import MaskedAutoencoder, parameter_counts
from stmae_train.runlog import forward_flops


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


def test_only_videomae_scales_the_end_of_fine_tuning_by_the_batch() -> None:
    """SPEC-models B2: 1e-6 in mae and mae_st, 1e-6 x 512 / 256 in VideoMAE."""
    ends = {name: recipes.recipe(name).finetune.end_lr() for name in ("mae-st-l16", "mae-l16", "videomae-b16")}
    assert ends == pytest.approx({"mae-st-l16": 1e-6, "mae-l16": 1e-6, "videomae-b16": 2e-6})


def test_parameter_counts_are_those_published() -> None:
    """SPEC-models A1.9: B encoder 86.39 M, whole pre-training model 99.9 M with an encoder of 12 x 768."""
    model = MaskedAutoencoder(recipes.mae_st_b16().model)
    assert sum(each.numel() for each in model.encoder.parameters()) == pytest.approx(86.39e6, rel=1e-3)
    assert sum(each.numel() for each in model.parameters()) == pytest.approx(99.9e6, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "encoder", "published"), [("b", 86.39e6, 87e6), ("l", 304.1e6, 304e6), ("h", 631e6, 632e6)]
)
def test_encoders_have_the_published_parameters(name: str, encoder: float, published: float) -> None:
    """SPEC-models A1.9 counts encoders; PySlowFast's model card (C1) counts classifiers: 87, 304 and 632 M."""
    model = recipes.recipe(f"mae-st-{name}16").model
    counts = parameter_counts(model)
    assert counts["encoder"] == pytest.approx(encoder, rel=2e-3)
    assert counts["encoder"] + 401 * model.width == pytest.approx(published, rel=6e-3)
    assert counts["total"] == counts["encoder"] + counts["decoder"]


@pytest.mark.parametrize(("name", "gigas"), [("b", 180), ("l", 598), ("h", 1193)])
def test_classifiers_cost_what_the_model_card_says(name: str, gigas: float) -> None:
    """SPEC-models C1: multiply-adds of one view, in G."""
    flops = forward_flops(recipes.recipe(f"mae-st-{name}16").model, num_classes=400)
    assert flops.multiply_adds / 1e9 == pytest.approx(gigas, rel=5e-3)


def test_a_sparse_encoder_saves_what_the_paper_says() -> None:
    """SPEC-models C1, Table 1: ViT-L, 627.5 G with mask tokens in the encoder, 81.0 G without, 7.7x."""
    model = recipes.mae_st_l16().model
    sparse = forward_flops(model, counts="published").multiply_adds / 1e9
    dense = forward_flops(replace(model, dense_encoder=True), counts="published").multiply_adds / 1e9
    assert sparse == pytest.approx(81.0, rel=0.02) and dense == pytest.approx(627.5, rel=0.02)
    assert dense / sparse == pytest.approx(7.7, rel=0.02)
    assert forward_flops(model).total < forward_flops(model, counts="published").total


@pytest.mark.parametrize(("name", "gigas"), [("b", 92.3), ("l", 163.2)])
def test_forward_passes_cost_what_the_performance_page_says(name: str, gigas: float) -> None:
    """PERFORMANCE, "Limits of the training step": a product and a sum count two."""
    flops = forward_flops(recipes.recipe(f"mae-st-{name}16").model, counts="published")
    assert flops.total / 1e9 == pytest.approx(gigas, rel=5e-3)


def test_counts_agree_with_the_counter_of_the_framework() -> None:
    """torch counts the products that really run: dense projections and attention, forward."""
    for name in ("mae-st-s16-112", "mae-b16", "mae-st-b16-half-decoded", "mae-st-b16-cross-attention"):
        base = recipes.recipe(name).model
        model = replace(base, width=48, heads=4, depth=2, decoder_width=24, decoder_heads=2, decoder_depth=2)
        model = replace(model, crop_px=4 * model.patch_px)
        clips = torch.zeros(1, 3, model.clip_frames, model.crop_px, model.crop_px)
        length = model.grid_shape[0] * 16
        noise = torch.arange(length, dtype=torch.float32)[None]
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            MaskedAutoencoder(model)(clips, noise=noise, decode_noise=noise)
        assert forward_flops(model).total == pytest.approx(counter.get_total_flops(), rel=1e-6), name


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
