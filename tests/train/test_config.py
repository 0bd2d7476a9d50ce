"""stmae_train.config: values that are checked when made, read, written and overridden."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stmae_train.config import ModelConfig, Recipe, from_toml, override, override_values, read_recipe, to_toml
from stmae_train.errors import ConfigError

RECIPE = Recipe(name="small", source="a test")


@given(
    st.builds(
        Recipe,
        name=st.text(st.characters(exclude_categories=["Cs"])),
        source=st.text(st.characters(exclude_categories=["Cs"])),
    ),
    st.floats(0.01, 0.99),
)
def test_any_recipe_reads_back_as_it_was_written(recipe: Recipe, ratio: float) -> None:
    recipe = replace(recipe, model=replace(recipe.model, mask_ratio=ratio))
    assert from_toml(to_toml(recipe)) == recipe


def test_keys_that_are_not_given_keep_their_defaults() -> None:
    recipe = from_toml('name = "a"\nsource = "b"\n[data]\nrepeats = 2\n')
    assert recipe.data.repeats == 2
    assert recipe.model == ModelConfig()


def test_overrides_change_single_values() -> None:
    changed = override(RECIPE, ["data.repeats=8", "model.mask=tube", "mask_ratio=0.75", "optim.betas=[0.9, 0.99]"])
    assert (changed.data.repeats, changed.model.mask, changed.model.mask_ratio) == (8, "tube", 0.75)
    assert changed.optim.betas == (0.9, 0.99)
    assert RECIPE.data.repeats == 4


def test_values_that_must_agree_can_be_changed_together() -> None:
    changed = override(RECIPE, ["model.crop_px=112", "data.crop_px=112"])
    assert changed.model.grid_shape == (8, 7, 7)
    with pytest.raises(ConfigError, match=r"set data\.crop_px=112"):
        override(RECIPE, ["model.crop_px=112"])


def test_a_short_key_means_pre_training_where_fine_tuning_has_it_too() -> None:
    changed = override_values(RECIPE, {"repeats": 1, "name": "other"})
    assert (changed.data.repeats, changed.finetune.repeats, changed.name) == (1, 2, "other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("data.repeat=4", r"no key 'data.repeat'; the nearest is 'data.repeats' \(a whole number\)"),
        ("dta.repeats=4", r"the nearest is 'data.repeats'"),
        ("model.crop_area=[0.5, 1]", r"the nearest is 'data.crop_area' \(a list of 2 float\)"),
        ("num_frames=8", "several sections; write one of model.num_frames, data.num_frames"),
        ("data.repeats=four", "data.repeats is 'four', wanted a whole number"),
        ("data.flip=1", "data.flip is 1, wanted true or false"),
        ("data.crop_area=[0.5]", "wanted a list of 2 float"),
        ("optim.base_lr=nan", "wanted a number"),
        ("model.mask=tubes", "wanted one of random, tube, frame, per-frame, block, image-block, grid"),
        ("model.mask_ratio=1", r"wanted a share in \[0, 1\)"),
        ("model.heads=7", "wanted a divisor of width 768"),
        ("model.patch_px=15", "does not divide into tubelets"),
        ("model.decoder_input=plain", "needs equal widths"),
        ("model.num_target_frames=4", "less than one frame per token"),
        ("model.num_target_frames=17", "wanted 1 to num_frames"),
        ("model.num_target_frames=9", "which 8 tubelets cannot share evenly; wanted a multiple of 8"),
        ("model.mask_ratio=0", "hides none of the tokens of a 'random' mask over 14 x 14 places"),
        ("data.crop_area=[0.9, 0.1]", "low <= high"),
        ("data.eval_views=[0, 1]", "wanted .temporal, spatial. from 1"),
        ("optim.batch_videos=0", "wanted a number above 0"),
        ("probe.lr_grid=[]", "is empty"),
        ("data.repeats", "not a change of the form key=value"),
    ],
)
def test_a_wrong_change_says_what_was_wanted(change: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        override(RECIPE, [change])


def test_masks_that_hide_nothing_are_refused() -> None:
    """A tube of 4 places at 0.2 hides floor(0.8) of them; the loss would be a mean over nothing."""
    small = ["model.crop_px=32", "data.crop_px=32", "model.mask=tube"]
    with pytest.raises(ConfigError, match="hides none of the tokens of a 'tube' mask over 2 x 2 places"):
        override(RECIPE, [*small, "model.mask_ratio=0.2"])
    assert override(RECIPE, [*small, "model.mask_ratio=0.25"]).model.mask_ratio == 0.25


def test_words_are_of_one_frame_per_token() -> None:
    """A tubelet of one frame has two at twice the frames: 256 words for 128 tokens."""
    words = ["model.target=tokens", "model.loss=cross-entropy", "model.target_values=9", "model.tubelet_frames=1"]
    with pytest.raises(ConfigError, match="'tokens' cannot be of the frames 'double'"):
        override(RECIPE, [*words, "model.target_frames=double", "data.num_frames=32"])
    with pytest.raises(ConfigError, match="'tokens' cannot be of the frames 'linspace'"):
        override(RECIPE, ["model.num_target_frames=16", *words[:3]])
    assert override(RECIPE, [*words, "model.target_frames=all"]).model.frames_per_token == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name = ", "is not TOML"),
        ('name = "a"', "has no 'source'"),
        ('name = "a"\nsource = "b"\nmodle = 1', "no key 'modle'; the nearest is 'model'"),
        ('name = "a"\nsource = "b"\nmodel = 1', r"write \[model\]"),
        ('name = 1\nsource = "b"', "name is 1, wanted text"),
        ('name = "a"\nsource = "b"\n[optim]\nlr = 1', "no key 'optim.lr'; the nearest is"),
    ],
)
def test_a_wrong_text_says_what_was_wanted(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_toml(text)


def test_a_recipe_file_is_read_and_a_missing_one_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "own.toml"
    path.write_text(to_toml(RECIPE), encoding="utf-8")
    assert read_recipe(path) == RECIPE
    with pytest.raises(ConfigError, match=r"gone\.toml cannot be read"):
        read_recipe(tmp_path / "gone.toml")


def test_the_rate_follows_its_rule() -> None:
    optim = override(RECIPE, ["optim.base_lr=1e-3", "optim.batch_videos=512"]).optim
    assert optim.peak_lr(repeats=4) == 1e-3
    assert replace(optim, lr_rule="per-256-videos").peak_lr(repeats=4) == 2e-3
    assert replace(optim, lr_rule="per-256-clips").peak_lr(repeats=4) == 8e-3
