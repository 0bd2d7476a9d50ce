"""Colour jitter: drawn by clip number, applied as torchvision does, the same in every frame and on every device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms import ColorJitter

from stmae_train.config import Recipe, override
from stmae_train.errors import ConfigError
from stmae_train.loader import CropRule, TrainLoader, open_sources
from stmae_train.pretrain import PretrainRequest, pretrain
from stmae_train.views import FrameRule, Jitter, jitter_clips, random_jitter

STRENGTH = (0.4, 0.3, 0.2, 0.1)
MEAN, STD = (0.45, 0.4, 0.5), (0.225, 0.2, 0.25)


def smooth_levels(seed: int, *, clips: int = 3, frames: int = 2, side: int = 12) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((clips * frames, 3, 4, 4), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return fine.view(clips, frames, 3, side, side).transpose(1, 2).contiguous()


def normalised(levels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (MEAN, STD))
    return (levels - mean) / std


def levels_of(clips: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (MEAN, STD))
    return clips * std + mean


def test_draws_depend_on_seed_and_number_alone_and_keep_their_bounds() -> None:
    together = random_jitter(3, np.arange(4000), strength=STRENGTH)
    alone = random_jitter(3, [17], strength=STRENGTH)
    assert np.array_equal(together.factors[17], alone.factors[0])
    assert np.array_equal(together.order[17], alone.order[0])
    assert not np.array_equal(random_jitter(4, [17], strength=STRENGTH).factors, alone.factors)
    low, high = together.factors.min(axis=0), together.factors.max(axis=0)
    assert np.allclose(low, [0.6, 0.7, 0.8, -0.1], atol=2e-3) and np.allclose(high, [1.4, 1.3, 1.2, 0.1], atol=2e-3)
    orders = {tuple(each) for each in together.order.tolist()}
    assert len(orders) == 24 and all(sorted(each) == [0, 1, 2, 3] for each in orders)
    assert random_jitter(0, np.arange(99), strength=(2.0, 0, 0, 0)).factors.min() >= 0


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_step_is_torchvisions(step: int) -> None:
    levels = smooth_levels(step)
    factors = np.array([[1.0, 1.0, 1.0, 0.0]] * 3)
    factors[:, step] = [0.1, 0.05, -0.1] if step == 3 else [1.3, 0.7, 1.1]
    jitter = Jitter(factors, np.array([[2, 0, 3, 1]] * 3))
    found = levels_of(jitter_clips(normalised(levels), jitter, mean=MEAN, std=STD))
    for number in range(3):
        value = float(factors[number, step])
        theirs = ColorJitter(**{("brightness", "contrast", "saturation", "hue")[step]: (value, value)})
        wanted = theirs(levels[number].transpose(0, 1)).transpose(0, 1)
        assert (found[number] - wanted).abs().max() < 2e-6


def test_steps_come_in_the_drawn_order_and_the_same_in_every_frame() -> None:
    levels = smooth_levels(9, clips=1, frames=1).expand(1, 3, 4, 12, 12).contiguous()
    factors = np.array([[1.4, 0.6, 1.3, 0.08]])
    one, other = (
        jitter_clips(normalised(levels), Jitter(factors, np.array([order])), mean=MEAN, std=STD)
        for order in ([0, 1, 2, 3], [3, 2, 1, 0])
    )
    assert (one == one[:, :, :1]).all() and not torch.allclose(one, other, atol=1e-3)
    assert levels_of(one).min() > -1e-6 and levels_of(one).max() < 1 + 1e-6


@pytest.mark.gpu
def test_a_gpu_gives_the_picture_of_the_cpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    clips, jitter = normalised(smooth_levels(1, clips=8)), random_jitter(0, range(8), strength=STRENGTH)
    ours = jitter_clips(clips, jitter, mean=MEAN, std=STD)
    theirs = jitter_clips(clips.cuda(), jitter, mean=MEAN, std=STD).cpu()
    assert (levels_of(ours) - levels_of(theirs)).abs().max() * 255 < 0.05


def test_the_recipe_switches_it_on_for_pretraining(small_world: Path, small_recipe: Recipe, tmp_path: Path) -> None:
    recipe = override(small_recipe, ["data.crop_area=[0.08, 1.0]", "data.color_jitter=[0.4, 0.4, 0.4, 0.1]"])
    plain = replace(recipe, data=replace(recipe.data, color_jitter=(0.0, 0.0, 0.0, 0.0)))
    runs = [
        pretrain(PretrainRequest(small_world, ("tiny",), each, tmp_path / name, clips=16, device="cpu", pictures=0))
        for name, each in (("jitter", recipe), ("again", recipe), ("plain", plain))
    ]
    jittered, again, without = (each.weights.read_bytes() for each in runs)
    assert jittered == again and jittered != without
    with pytest.raises(ConfigError, match=r"wanted \[brightness, contrast, saturation, hue\] from 0, hue up to 0\.5"):
        override(small_recipe, ["data.color_jitter=[0.4, 0.4, 0.4, 0.6]"])


def test_batches_carry_the_jitter_of_their_clips_whoever_asks(small_world: Path, small_recipe: Recipe) -> None:
    def batches(world: int, rank: int, strength: tuple[float, float, float, float]) -> list[torch.Tensor]:
        crop = CropRule((0.5, 1.0), (3 / 4, 4 / 3), True, strength)
        reading = TrainLoader(
            small_world,
            open_sources(small_world, ["even"]),
            rule=FrameRule(4, 4),
            crop=crop,
            seed=1,
            batch_videos=4,
            repeats=1,
            rank=rank,
            world_size=world,
        )
        return [each.clips(small_recipe.model, device=torch.device("cpu")) for each in reading.batches(0, 2)]

    whole = batches(1, 0, STRENGTH)
    halves = [batches(2, rank, STRENGTH) for rank in range(2)]
    for step in range(2):
        assert torch.allclose(torch.cat([halves[0][step], halves[1][step]]), whole[step], atol=1e-5)
    assert not torch.allclose(whole[0], batches(1, 0, (0.0, 0.0, 0.0, 0.0))[0], atol=1e-2)
