"""Masks: which tokens are hidden. True means hidden.

Every draw comes from a generator that is keyed by (seed, global sample number), so a clip's mask does not depend on
batch size, worker, process or resume. A strategy hides the same number of tokens in every clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stmae_train.config import ModelConfig
from stmae_train.errors import ModelError
from stmae_train.tokens import Grid

__all__ = [
    "DECODE_STREAM",
    "block_mask",
    "block_mask_2d",
    "draw_masks",
    "even_out",
    "frame_mask",
    "generator_for",
    "grid_mask",
    "hidden_count",
    "image_block_mask",
    "keep_count",
    "noise_for",
    "per_frame_mask",
    "random_mask",
    "split_noise",
    "tube_mask",
]

# Streams of one (seed, sample) key that other rooms must not draw from; a Philox counter's top word.
MASK_STREAM = 1
DECODE_STREAM = 2  # which hidden tokens a half-decoded model decodes


def generator_for(seed: int, sample_number: int, *, stream: int = MASK_STREAM) -> np.random.Generator:
    """A generator that depends on (seed, sample number, stream) alone.

    Raises:
        ModelError: a negative number.
    """
    if min(seed, sample_number, stream) < 0:
        raise ModelError(f"Seed {seed}, sample {sample_number} and stream {stream} must not be negative; raise them.")
    # Philox is counter-based: the key picks an independent stream, no state has to be carried along.
    bits = np.random.Philox(key=np.array([seed, sample_number], dtype=np.uint64), counter=[0, 0, 0, stream])
    return np.random.Generator(bits)


def noise_for(seed: int, sample_numbers: Sequence[int], length: int, *, stream: int = MASK_STREAM) -> Tensor:
    """Uniform noise [B, length] in [0, 1), float32: one row per global sample number."""
    rows = [generator_for(seed, number, stream=stream).random(length, dtype=np.float32) for number in sample_numbers]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, length)


def keep_count(length: int, ratio: float) -> int:
    """Visible tokens of `length`: floor(length * (1 - ratio)) in double arithmetic, as published code computes it.

    The rounding is part of the result: 1000 tokens at 0.9 keep 99 (SPEC-models A1.5).

    Raises:
        ModelError: the ratio is outside [0, 1) or keeps no token.
    """
    if not 0 <= ratio < 1:
        raise ModelError(f"The mask ratio is {ratio}, wanted a share in [0, 1); change it.")
    keep = int(length * (1 - ratio))
    if not keep:
        raise ModelError(f"A mask ratio of {ratio} keeps none of {length} tokens; lower it or use more tokens.")
    return keep


def split_noise(noise: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
    """Numbers of the kept [B, keep] and hidden tokens of noise [B, L], both in the order of the noise (small = kept)."""
    order = torch.argsort(noise, dim=1, stable=True)
    return order[:, :keep], order[:, keep:]


def random_mask(grid: Grid, *, ratio: float, generator: np.random.Generator) -> Tensor:
    """Hide tokens anywhere in space and time (MAE-ST section 3.1).

    Args:
        grid: token counts (t, h, w).
        ratio: share of tokens hidden, in [0, 1).
        generator: source of randomness.

    Returns:
        Mask [L] of bool that keeps floor(L * (1 - ratio)) tokens.
    """
    noise = torch.from_numpy(generator.random(grid.length, dtype=np.float32))
    return _largest(noise, hidden=grid.length - keep_count(grid.length, ratio))


def tube_mask(grid: Grid, *, ratio: float, generator: np.random.Generator) -> Tensor:
    """Hide the same places in every time slice: floor(ratio * h * w) of them (VideoMAE masking_generator)."""
    noise = torch.from_numpy(generator.random(grid.places, dtype=np.float32))
    if not 0 <= ratio < 1:
        raise ModelError(f"The mask ratio is {ratio}, wanted a share in [0, 1); change it.")
    return _largest(noise, hidden=int(ratio * grid.places)).repeat(grid.t)


def frame_mask(grid: Grid, *, ratio: float, generator: np.random.Generator) -> Tensor:
    """Hide whole time steps and keep floor(t * (1 - ratio)) of them (MAE-ST Figure 4, time-only)."""
    noise = torch.from_numpy(generator.random(grid.t, dtype=np.float32))
    hidden = _largest(noise, hidden=grid.t - keep_count(grid.t, ratio))
    return hidden.repeat_interleave(grid.places)


def per_frame_mask(grid: Grid, *, ratio: float, generator: np.random.Generator) -> Tensor:
    """Hide places drawn anew in every time step, equally many in each."""
    noise = torch.from_numpy(generator.random((grid.t, grid.places), dtype=np.float32))
    hidden = grid.places - keep_count(grid.places, ratio)
    return torch.stack([_largest(row, hidden=hidden) for row in noise]).flatten()


def block_mask(
    grid: Grid,
    *,
    ratio: float,
    generator: np.random.Generator,
    window: tuple[int, int, int] | None = None,
    even: bool = True,
) -> Tensor:
    """Hide cubes (MaskFeat's 3-D generator, SPEC-models A1.6).

    Up to 100 tries draw an area between a fifth of the window and all of it, a log-uniform aspect in [0.3, 1/0.3], a
    duration and a place; a cube counts if it adds between one cell and what is still missing.

    Args:
        grid: token counts (t, h, w).
        ratio: share of cells hidden, in [0, 1).
        generator: source of randomness.
        window: cells (t, h, w) the cubes are drawn in, brought to the grid by nearest neighbour. None means
            half the grid per spatial side where both are even (8x7x7 under 8x14x14), else the grid.
        even: make up for a short draw with random tokens, so that every clip hides the count of `random_mask`.

    Returns:
        Mask [L] of bool.
    """
    hidden = grid.length - keep_count(grid.length, ratio)
    t, h, w = window or _window(grid)
    cells = _cubes(t, h, w, target=round(t * h * w * ratio), generator=generator)
    times, rows, columns = (np.arange(count) * size // count for count, size in ((grid.t, t), (grid.h, h), (grid.w, w)))
    mask = torch.from_numpy(cells[np.ix_(times, rows, columns)].reshape(-1))
    return even_out(mask, hidden=hidden, generator=generator) if even else mask


def block_mask_2d(height: int, columns: int, *, hidden: int, generator: np.random.Generator) -> Tensor:
    """Hide rectangles in an image (BEiT's generator): mask [height, columns] of bool with at most `hidden` cells.

    A block's area is drawn between 16 cells and what is missing, whichever is more, its aspect between 0.3 and 1/0.3; it has 10 tries to
    be placed, and counts if it adds between one cell and what is missing.
    """
    mask = np.zeros((height, columns), dtype=bool)
    count = 0
    while count < hidden:
        added = _add_block(mask, missing=hidden - count, generator=generator)
        if not added:
            break
        count += added
    return torch.from_numpy(mask)


def image_block_mask(grid: Grid, *, ratio: float, generator: np.random.Generator) -> Tensor:
    """Hide rectangles (`block_mask_2d`), the same in every time slice (image MAE Table 1f, "block").

    Args:
        grid: token counts (t, h, w).
        ratio: share of places hidden, in [0, 1); a short draw is made up for with random places.
        generator: source of randomness.

    Returns:
        Mask [L] of bool; every slice keeps floor(h * w * (1 - ratio)) places.
    """
    hidden = grid.places - keep_count(grid.places, ratio)
    mask = block_mask_2d(grid.h, grid.w, hidden=hidden, generator=generator).flatten()
    return even_out(mask, hidden=hidden, generator=generator).repeat(grid.t)


def grid_mask(grid: Grid, *, ratio: float = 0.75) -> Tensor:
    """Keep the first place of every 2 x 2 in every time slice (image MAE Table 1f, "grid"): mask [L] of bool; nothing is drawn.

    Raises:
        ModelError: another ratio than 0.75, or an odd side.
    """
    if ratio != 0.75 or grid.h % 2 or grid.w % 2:
        raise ModelError(
            f"A grid mask keeps one place of every 2 x 2, found ratio {ratio} and {grid.h} x {grid.w} places; wanted 0.75 and even sides."
        )
    places = torch.ones(grid.h, grid.w, dtype=torch.bool)
    places[::2, ::2] = False
    return places.flatten().repeat(grid.t)


def even_out(mask: Tensor, *, hidden: int, generator: np.random.Generator) -> Tensor:
    """The mask [L] with exactly `hidden` tokens hidden: random ones are added or shown again."""
    noise = torch.from_numpy(generator.random(len(mask), dtype=np.float32))
    return _largest(noise + mask, hidden=hidden)


_STRATEGIES = {
    "random": random_mask,
    "tube": tube_mask,
    "frame": frame_mask,
    "per-frame": per_frame_mask,
    "block": block_mask,
    "image-block": image_block_mask,
}


def draw_masks(config: ModelConfig, *, seed: int, sample_numbers: Sequence[int]) -> Tensor:
    """The masks [B, L] of a batch by the config's strategy and ratio: one row per global sample number."""
    grid = Grid(*config.grid_shape, config.tubelet_frames, config.patch_px)
    if config.mask == "random":
        _, hidden = split_noise(
            noise_for(seed, sample_numbers, grid.length), keep=keep_count(grid.length, config.mask_ratio)
        )
        return torch.zeros(len(sample_numbers), grid.length, dtype=torch.bool).scatter_(1, hidden, True)
    if config.mask == "grid":
        return grid_mask(grid, ratio=config.mask_ratio).expand(len(sample_numbers), -1)
    draw = _STRATEGIES[config.mask]
    rows = [draw(grid, ratio=config.mask_ratio, generator=generator_for(seed, number)) for number in sample_numbers]
    return torch.stack(rows)


def hidden_count(config: ModelConfig) -> int:
    """Tokens that every mask of this config hides."""
    t, h, w = config.grid_shape
    if config.mask == "random" or config.mask == "block":
        return t * h * w - keep_count(t * h * w, config.mask_ratio)
    if config.mask == "tube":
        return t * int(config.mask_ratio * h * w)
    if config.mask == "frame":
        return (t - keep_count(t, config.mask_ratio)) * h * w
    return t * (h * w - keep_count(h * w, config.mask_ratio))


def _largest(noise: Tensor, *, hidden: int) -> Tensor:
    """Hide the `hidden` largest values of noise [N]; of equal values the earlier is kept."""
    order = torch.argsort(noise, stable=True)
    mask = torch.zeros(len(noise), dtype=torch.bool)
    mask[order[len(noise) - hidden :]] = True
    return mask


def _window(grid: Grid) -> tuple[int, int, int]:
    """MaskFeat's window has half the grid's sides, so its smallest cubes are not single tokens."""
    halved = grid.h % 2 == 0 and grid.w % 2 == 0
    return (grid.t, grid.h // 2, grid.w // 2) if halved else (grid.t, grid.h, grid.w)


def _aspect(generator: np.random.Generator) -> float:
    return math.exp(generator.uniform(math.log(0.3), math.log(1 / 0.3)))


def _cubes(t: int, h: int, w: int, *, target: int, generator: np.random.Generator) -> np.ndarray:
    """Cells [t, h, w] of bool, filled with cubes up to `target` cells; 100 tries in a row may fail short of it."""
    cells = np.zeros((t, h, w), dtype=bool)
    count, misses = 0, 0
    while count < target and misses < 100:
        misses += 1
        area, aspect = generator.uniform(h * w // 5, h * w), _aspect(generator)
        height, columns = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        duration = int(generator.integers(1, t + 1))
        if not (0 < height < h and 0 < columns < w):
            continue
        top, left = int(generator.integers(0, h - height + 1)), int(generator.integers(0, w - columns + 1))
        front = int(generator.integers(0, t - duration + 1))
        cube = cells[front : front + duration, top : top + height, left : left + columns]
        added = int((~cube).sum())
        if 0 < added <= target - count:
            cube[:] = True
            count += added
            misses = 0
    return cells


def _add_block(mask: np.ndarray, *, missing: int, generator: np.random.Generator) -> int:
    """Add one rectangle of at most `missing` new cells to the mask; the number of cells added, 0 where none fitted."""
    height, columns = mask.shape
    for _ in range(10):
        # Between the two also where fewer than 16 are missing: a last block may be small, or overlap others.
        area, aspect = generator.uniform(min(16, missing), max(16, missing)), _aspect(generator)
        rows, across = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < rows < height and 0 < across < columns):
            continue
        top, left = int(generator.integers(0, height - rows + 1)), int(generator.integers(0, columns - across + 1))
        block = mask[top : top + rows, left : left + across]
        added = int((~block).sum())
        if 0 < added <= missing:
            block[:] = True
            return added
    return 0
