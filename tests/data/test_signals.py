"""Signals mean what they say."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data.signals import measure

NAMES = {"motion", "black_share", "flat_share", "static_share", "cuts", "brightness", "blockiness"}


def times(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 125


def texture(seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(60, 200, (64, 64), dtype=np.uint8)


def test_all_lie_in_their_ranges() -> None:
    frames = np.random.default_rng(0).integers(0, 256, (9, 64, 64), dtype=np.uint8)
    values = measure(frames, times(9))
    assert set(values) == NAMES
    assert all(0 <= values[name] <= 1 for name in NAMES - {"cuts"})


def test_black_frames_are_black_flat_and_static() -> None:
    values = measure(np.zeros((4, 64, 64), np.uint8), times(4))
    assert (values["black_share"], values["flat_share"], values["static_share"]) == (1.0, 1.0, 1.0)
    assert (values["motion"], values["brightness"], values["cuts"], values["blockiness"]) == (0.0,) * 4


def test_a_quarter_of_black_frames_is_a_quarter() -> None:
    frames = np.stack([texture(0)] * 3 + [np.zeros((64, 64), np.uint8)])
    assert measure(frames, times(4))["black_share"] == 0.25


def test_a_moving_picture_moves_more_than_a_still_one() -> None:
    still = np.stack([texture(1)] * 8)
    slow = np.stack([np.roll(texture(1) // 8, number, 1) for number in range(8)])
    fast = np.stack([np.roll(texture(1), number, 1) for number in range(8)])
    motions = [measure(frames, times(8))["motion"] for frames in (still, slow, fast)]
    assert motions[0] == 0 < motions[1] < motions[2]
    assert measure(still, times(8))["static_share"] == 1.0
    assert measure(fast, times(8))["static_share"] == 0.0


def test_motion_is_per_eighth_of_a_second() -> None:
    frames = np.stack([np.roll(texture(1), number, 1) for number in range(8)])
    assert measure(frames, 4 * times(8))["motion"] == pytest.approx(measure(frames, times(8))["motion"] / 4, rel=1e-3)


def test_cuts_are_counted() -> None:
    scenes = [np.full((64, 64), level, np.uint8) for level in (40, 120, 220)]
    frames = np.stack([scene for scene in scenes for _ in range(5)])
    assert measure(frames, times(15))["cuts"] == 2.0


def test_blocks_are_seen_on_the_grid_alone() -> None:
    blocks = np.kron(np.random.default_rng(3).integers(0, 255, (8, 8)), np.ones((8, 8))).astype(np.uint8)
    assert measure(blocks[None], times(1))["blockiness"] > 0.9
    assert measure(np.roll(blocks, 4, (0, 1))[None], times(1))["blockiness"] == 0.0
    assert measure(texture(4)[None], times(1))["blockiness"] < 0.1


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="wanted frames"):
        measure(np.zeros((0, 64, 64), np.uint8), times(0))
    with pytest.raises(ValueError, match="wanted frames"):
        measure(np.zeros((2, 64, 64), np.uint8), times(3))
