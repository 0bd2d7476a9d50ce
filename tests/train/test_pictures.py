"""Pictures: a perfect prediction looks like the original whatever the target, and the files say how they were made."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stmae_train.checkpoint import save_weights
from stmae_train.config import Recipe, override
from stmae_train.errors import CheckpointError, ModelError
from stmae_train.masks import draw_masks
from stmae_train.model import MaskedAutoencoder
from stmae_train.pictures import PictureRequest, picture, reconstruct
from stmae_train.targets import target_vectors


def saved(recipe: Recipe, folder: Path) -> Path:
    path = folder / "weights.safetensors"
    save_weights(path, MaskedAutoencoder(recipe.model), recipe=recipe, facts={})
    return path


@pytest.mark.parametrize(
    "changes",
    [
        ["model.target=pixels"],
        ["model.target=normalized-pixels"],
        ["model.target=normalized-per-color", "model.target_range=unit"],
        ["model.target=normalized-pixels", "model.target_frames=first"],
        ["model.target=normalized-pixels", "model.target_frames=linspace", "model.num_target_frames=2"],
    ],
    ids=lambda changes: " ".join(changes).replace("model.", ""),
)
def test_a_perfect_prediction_shows_the_original(
    small_recipe: Recipe, changes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = override(small_recipe, changes).model
    model = MaskedAutoencoder(config).eval()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(2, 3, 4, 16, 16, generator=generator)
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (config.mean, config.std))
    clips = (pixels - mean) / std
    honest = MaskedAutoencoder.forward

    def perfect(self: MaskedAutoencoder, *args: object, **options: object) -> object:
        return honest(self, *args, **options)._replace(every_prediction=target_vectors(clips, config))

    monkeypatch.setattr(MaskedAutoencoder, "forward", perfect)
    mask = draw_masks(config, seed=0, sample_numbers=range(2))
    (original, masked, shown), note = reconstruct(model, clips, mask=mask)
    assert torch.allclose(shown, original, atol=1e-4)
    grey = (masked == 0.5).flatten(1).float().mean(dim=1)
    assert torch.allclose(grey, mask.float().mean(dim=1), atol=0.01)
    assert ("put back" in note) == (config.target != "pixels")


def test_pictures_of_fixed_clips_say_how_they_were_made(
    small_world: Path, small_recipe: Recipe, tmp_path: Path
) -> None:
    recipe = override(small_recipe, ["model.target=normalized-pixels", "model.patch_px=4"])
    request = PictureRequest(
        small_world, str(saved(recipe, tmp_path)), "tiny:val", tmp_path / "pictures", count=3, device="cpu"
    )
    paths = picture(request)
    assert [path.name for path in paths] == [
        f"tinyval{number:04d}-{ratio}.png" for ratio in (90, 95) for number in range(3)
    ]
    captions = json.loads((tmp_path / "pictures" / "captions.json").read_text())
    with Image.open(paths[0]) as image:
        assert image.info["Description"] == captions[paths[0].name]
        assert "90% hidden" in captions[paths[0].name] and "mean and deviation were put back" in captions[paths[0].name]
        assert image.size == (4 * (96 + 12) - 12, 3 * (96 + 12) - 12)
        assert np.asarray(image)[:96, :96].std() > 0
    before = [path.read_bytes() for path in paths]
    assert [path.read_bytes() for path in picture(request)] == before


@pytest.mark.parametrize(("mask", "ratio"), [("frame", 0.5), ("grid", 0.75)])
def test_a_mask_that_cannot_hide_so_much_is_drawn_at_random(
    small_world: Path, small_recipe: Recipe, tmp_path: Path, mask: str, ratio: float
) -> None:
    recipe = override(small_recipe, [f"model.mask={mask}", f"model.mask_ratio={ratio}", "model.patch_px=4"])
    weights = str(saved(recipe, tmp_path))
    picture(PictureRequest(small_world, weights, "tiny:val", tmp_path, count=1, ratios=(ratio, 0.9), device="cpu"))
    captions = json.loads((tmp_path / "captions.json").read_text())
    assert f"{ratio:.0%} hidden ({mask})" in captions[f"tinyval0000-{100 * ratio:g}.png"]
    assert "90% hidden (random)" in captions["tinyval0000-90.png"]


def test_what_cannot_be_shown_is_one_sentence(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    weights = str(saved(small_recipe, tmp_path))
    with pytest.raises(ModelError, match="Clip absent is not in tiny:val"):
        picture(PictureRequest(small_world, weights, "tiny:val", tmp_path, clip_ids=("absent",)))
    with pytest.raises(CheckpointError, match="no weights at 'nowhere'"):
        picture(PictureRequest(small_world, "nowhere", "tiny:val", tmp_path))
    hog = saved(override(small_recipe, ["model.target=hog"]), tmp_path)
    with pytest.raises(ModelError, match="no pixels to show"):
        picture(PictureRequest(small_world, str(hog), "tiny:val", tmp_path, ratios=(0.5,), device="cpu"))
