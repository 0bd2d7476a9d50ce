"""stmae_train.masks: how many tokens are hidden, and that a clip's mask depends on nothing but its own number."""

from __future__ import annotations

import ast
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stmae_train.config import ModelConfig
from stmae_train.errors import ConfigError, ModelError
from stmae_train.masks import (
    DECODE_STREAM,
    block_mask,
    block_mask_2d,
    draw_masks,
    even_out,
    frame_mask,
    generator_for,
    grid_mask,
    hidden_count,
    image_block_mask,
    keep_count,
    noise_for,
    random_mask,
    split_noise,
    tube_mask,
)
from stmae_train.tokens import Grid, split_tokens

torch.set_num_threads(1)
CONFIG = ModelConfig(crop_px=64, num_frames=8, num_target_frames=4)  # grid 4 x 4 x 4
STRATEGIES = ["random", "tube", "frame", "per-frame", "block", "image-block"]


@pytest.mark.parametrize(
    ("length", "ratio", "keep"), [(1568, 0.9, 156), (1568, 0.95, 78), (1568, 0.75, 392), (1000, 0.9, 99), (8, 0.0, 8)]
)
def test_kept_tokens_are_counted_as_published_code_counts_them(length: int, ratio: float, keep: int) -> None:
    assert keep_count(length, ratio) == keep


@pytest.mark.parametrize(("length", "ratio"), [(10, 1.0), (10, -0.1), (8, 0.9)])
def test_a_ratio_that_keeps_nothing_is_refused(length: int, ratio: float) -> None:
    with pytest.raises(ModelError, match=r"mask ratio"):
        keep_count(length, ratio)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(STRATEGIES),
    st.integers(0, 2**63),
    st.lists(st.integers(0, 2**40), min_size=1, max_size=5, unique=True),
    st.sampled_from([0.25, 0.5, 0.75]),
)
def test_masks_hide_one_count_and_do_not_depend_on_the_batch(
    strategy: str, seed: int, numbers: list[int], ratio: float
) -> None:
    config = replace(CONFIG, mask=strategy, mask_ratio=ratio)  # type: ignore[arg-type]
    masks = draw_masks(config, seed=seed, sample_numbers=numbers)
    assert masks.dtype == torch.bool
    assert masks.sum(1).tolist() == [hidden_count(config)] * len(numbers)
    for row, number in zip(masks, numbers, strict=True):
        assert torch.equal(row, draw_masks(config, seed=seed, sample_numbers=[number])[0])
    backwards = draw_masks(config, seed=seed, sample_numbers=numbers[::-1])
    assert torch.equal(masks, backwards.flip(0))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_other_seeds_and_samples_give_other_masks(strategy: str) -> None:
    config = replace(CONFIG, mask=strategy, mask_ratio=0.5)  # type: ignore[arg-type]
    rows = torch.cat([draw_masks(config, seed=seed, sample_numbers=range(20)) for seed in (0, 1)])
    assert len(rows.unique(dim=0)) >= 6  # four time steps allow no more than six frame masks


def test_masks_stay_the_same_over_versions() -> None:
    """Resumed runs and studies rely on these draws; a change here changes every run."""
    wanted = torch.tensor([[0.72253549, 0.34218276, 0.13493633], [0.82462448, 0.1360783, 0.58071107]])
    assert torch.allclose(noise_for(0, [0, 1], 3), wanted, rtol=0, atol=1e-7)


def test_masks_and_noise_of_one_key_agree() -> None:
    grid = Grid(4, 4, 4)
    noise = noise_for(3, [5], grid.length)
    kept, hidden = split_noise(noise, keep=keep_count(grid.length, 0.9))
    mask = random_mask(grid, ratio=0.9, generator=generator_for(3, 5))
    assert set(split_tokens(mask[None])[1][0].tolist()) == set(hidden[0].tolist())
    assert kept.shape == (1, 6)


def test_tubes_hide_the_same_places_in_every_slice() -> None:
    mask = tube_mask(Grid(8, 14, 14), ratio=0.9, generator=generator_for(0, 0)).reshape(8, 196)
    assert (mask == mask[0]).all()
    assert int(mask[0].sum()) == 176  # SPEC-models A3.3


@pytest.mark.parametrize(("ratio", "kept"), [(0.75, 2), (0.875, 1)])
def test_frame_masks_keep_whole_time_steps(ratio: float, kept: int) -> None:
    mask = frame_mask(Grid(8, 14, 14), ratio=ratio, generator=generator_for(0, 0)).reshape(8, 196)
    assert sorted(mask.sum(1).tolist()) == [0] * kept + [196] * (8 - kept)


def test_block_masks_lie_in_cubes() -> None:
    mask = block_mask(Grid(8, 14, 14), ratio=0.75, generator=generator_for(0, 0), even=False).reshape(8, 14, 14)
    assert (mask[:, ::2, ::2] == mask[:, 1::2, 1::2]).all()  # drawn in a window of 8 x 7 x 7
    assert 0.9 * 1176 < int(mask.sum()) <= 1176
    image = block_mask_2d(14, 14, hidden=98, generator=generator_for(0, 1))
    assert 80 < int(image.sum()) <= 98


def published_image_block(side: int, *, hidden: int, draws: random.Random) -> int:
    """BEiT's generator as published, with Python's own generator: how many cells of a square image one draw hides."""
    mask, count = np.zeros((side, side), dtype=bool), 0
    while count < hidden:
        added, missing = 0, hidden - count
        for _ in range(10):
            area = draws.uniform(16, missing)  # also where fewer than 16 are missing
            aspect = math.exp(draws.uniform(math.log(0.3), math.log(1 / 0.3)))
            height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (height < side and width < side):
                continue
            top, left = draws.randint(0, side - height), draws.randint(0, side - width)
            block = mask[top : top + height, left : left + width]
            added = int((~block).sum())
            if 0 < added <= missing:
                block[:] = True
                break
            added = 0
        if not added:
            break
        count += added
    return count


@pytest.mark.parametrize(("side", "hidden"), [(14, 40), (12, 50), (16, 100)])
def test_image_blocks_fall_short_as_often_as_published_ones(side: int, hidden: int) -> None:
    """400 draws each: the share that reaches the count lies within 4 standard errors; before, twice as many fell short."""
    draws = random.Random(1)
    published = [published_image_block(side, hidden=hidden, draws=draws) for _ in range(400)]
    ours = [
        int(block_mask_2d(side, side, hidden=hidden, generator=generator_for(0, number)).sum()) for number in range(400)
    ]
    assert max(ours) == max(published) == hidden
    reached = [np.mean([count == hidden for count in counts]) for counts in (published, ours)]
    share = sum(reached) / 2
    assert abs(reached[0] - reached[1]) < 4 * math.sqrt(2 * share * (1 - share) / 400), reached


def test_image_blocks_are_rectangles_and_the_same_in_every_slice() -> None:
    image = image_block_mask(Grid(1, 14, 14), ratio=0.5, generator=generator_for(0, 1))
    drawn = block_mask_2d(14, 14, hidden=98, generator=generator_for(0, 1)).flatten()
    assert int(image.sum()) == 98 and not bool((drawn & ~image).any())  # a short draw is filled up
    video = image_block_mask(Grid(4, 14, 14), ratio=0.5, generator=generator_for(0, 1))
    assert torch.equal(video.reshape(4, 196), image.expand(4, 196))


def test_a_grid_keeps_one_place_of_every_four_and_draws_nothing() -> None:
    config = ModelConfig(crop_px=64, num_frames=8, num_target_frames=4, mask="grid", mask_ratio=0.75)
    masks = draw_masks(config, seed=0, sample_numbers=[1, 2]).reshape(2, 4, 4, 4)
    wanted = torch.tensor([[False, True] * 2, [True] * 4] * 2)
    assert torch.equal(masks, wanted.expand(2, 4, 4, 4))
    assert hidden_count(config) == int(wanted.sum()) * 4
    with pytest.raises(ConfigError, match=r"one place of every 2 x 2, found mask_ratio 0\.9 over 4 x 4"):
        replace(config, mask_ratio=0.9)
    with pytest.raises(ConfigError, match="over 3 x 3 places"):
        replace(config, crop_px=48)
    with pytest.raises(ModelError, match=r"wanted 0\.75 and even sides"):
        grid_mask(Grid(1, 3, 4))


def test_even_out_changes_only_what_it_must() -> None:
    mask = torch.tensor([True, True, False, False, False])
    more = even_out(mask, hidden=4, generator=generator_for(0, 0))
    fewer = even_out(mask, hidden=1, generator=generator_for(0, 0))
    assert int(more.sum()) == 4 and bool((more & mask).sum() == 2)
    assert int(fewer.sum()) == 1 and bool((fewer & ~mask).sum() == 0)


def test_negative_numbers_are_refused() -> None:
    with pytest.raises(ModelError, match="must not be negative"):
        generator_for(-1, 0)
    with pytest.raises(ModelError, match="wanted a share"):
        tube_mask(Grid(1, 2, 2), ratio=1.0, generator=generator_for(0, 0))


def test_random_masks_are_uniform_over_tokens_pairs_and_clips() -> None:
    """2,000 clips of 64 tokens, 48 hidden: counts have to lie where independent uniform draws put them (5 sigma)."""
    clips, length, hidden = 2000, 64, 48
    masks = draw_masks(replace(CONFIG, mask="random", mask_ratio=0.75), seed=7, sample_numbers=range(clips)).double()
    share = hidden / length
    spread = (share * (1 - share) / clips) ** 0.5
    assert float((masks.mean(0) - share).abs().max()) < 5 * spread
    both = masks.T @ masks / clips  # [L, L], how often two tokens are hidden together
    together = share * (hidden - 1) / (length - 1)
    off = both[~torch.eye(length, dtype=torch.bool)]
    assert float((off - together).abs().max()) < 5 * (together * (1 - together) / clips) ** 0.5
    next_to = (masks[:-1] * masks[1:]).sum(1).mean() / length  # hidden in a clip and in the one after it
    assert abs(float(next_to) - share**2) < 5 * spread / length**0.5


GOLDEN = Path(os.environ.get("STMAE_GOLDEN_DIR") or Path(__file__).resolve().parents[3] / "shared" / "golden")


def test_random_masks_scatter_where_published_block_masks_cluster() -> None:
    """The golden samples of blocks and cubes have far more hidden neighbours than random masks of the same count; ours have their share."""
    path = GOLDEN / "block_masks.safetensors"
    if not path.is_file():
        pytest.skip(f"{path} is not here, so random masks are not held against published block masks")
    for name, published in load_file(path).items():
        shape = published.shape[1:]
        grid = Grid(*((1, *shape) if published.ndim == 3 else shape))
        hidden = published.flatten(1).sum(1).double().mean()
        share = float(hidden) / grid.length
        drawn = [random_mask(grid, ratio=share, generator=generator_for(1, number)) for number in range(200)]
        ours = torch.stack(drawn).reshape(-1, *shape)
        count = int(ours[0].sum())
        assert abs(count - float(hidden)) <= 1, name
        chance = (count - 1) / (grid.length - 1)  # that a neighbour of a hidden cell is hidden
        for axis in range(1, ours.ndim):
            random, block = (neighbours(each.bool(), axis) for each in (ours, published))
            assert abs(random - chance) < 0.02, f"{name}, axis {axis}: {random} of random masks, {chance} by chance"
            assert block - chance > 0.3 * (1 - chance), f"{name}, axis {axis}: {block} of blocks, {chance} by chance"


def neighbours(masks: torch.Tensor, axis: int) -> float:
    """Of the hidden cells that have a next cell along an axis, the share whose next cell is hidden too."""
    size = masks.shape[axis]
    first, second = masks.narrow(axis, 0, size - 1), masks.narrow(axis, 1, size - 1)
    return float((first & second).sum() / first.sum())


def test_masks_do_not_depend_on_the_process_or_on_earlier_draws() -> None:
    """A worker that starts anywhere draws what one process draws in a row."""
    code = (
        "from dataclasses import replace; from stmae_train.config import ModelConfig; from stmae_train.masks import draw_masks; "
        "config = ModelConfig(crop_px=64, num_frames=8, num_target_frames=4); "
        f"print([draw_masks(replace(config, mask=each, mask_ratio=0.5), seed=3, sample_numbers=[5, 2]).int().tolist() for each in {STRATEGIES}])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for strategy, elsewhere in zip(STRATEGIES, ast.literal_eval(ended.stdout), strict=True):
        config = replace(CONFIG, mask=strategy, mask_ratio=0.5)  # type: ignore[arg-type]
        in_a_row = torch.cat([draw_masks(config, seed=3, sample_numbers=[number]) for number in range(6)])
        assert torch.equal(in_a_row[[5, 2]].int(), torch.tensor(elsewhere).int()), strategy


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 8), st.floats(0, 0.99), st.integers(0, 2**40))
def test_every_grid_and_ratio_keeps_what_the_count_says(t: int, h: int, w: int, ratio: float, number: int) -> None:
    grid = Grid(t, h, w)
    if int(grid.length * (1 - ratio)) < 1:
        with pytest.raises(ModelError, match="keeps none"):
            random_mask(grid, ratio=ratio, generator=generator_for(0, number))
        return
    mask = random_mask(grid, ratio=ratio, generator=generator_for(0, number))
    assert int((~mask).sum()) == int(grid.length * (1 - ratio)) and len(mask) == grid.length
    visible, hidden = split_tokens(mask[None])
    assert sorted([*visible[0].tolist(), *hidden[0].tolist()]) == list(range(grid.length))
    tubes = tube_mask(grid, ratio=ratio, generator=generator_for(0, number)).reshape(t, h * w)
    assert bool((tubes == tubes[0]).all()) and int(tubes[0].sum()) == int(ratio * h * w)


def test_noise_of_different_streams_is_different() -> None:
    first, second = noise_for(0, [1], 100), noise_for(0, [1], 100, stream=DECODE_STREAM)
    assert not torch.equal(first, second) and abs(float(torch.corrcoef(torch.cat([first, second]))[0, 1])) < 0.4
