"""Cheap measures of a clip from its 64x64 luma frames, for SQL like `signals['motion'] > 0.02`.

All lie in [0, 1] but `cuts`, a count. Frames are full-range luma (0 black, 255 white), about 8 per second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["BLACK_LUMA", "CUT_DIFFERENCE", "FLAT_DEVIATION", "STATIC_DIFFERENCE", "measure"]

BLACK_LUMA = 12.0
"""A frame whose mean is below is black."""
FLAT_DEVIATION = 4.0
"""A frame whose standard deviation is below is one flat colour."""
STATIC_DIFFERENCE = 0.5
"""Two neighbours whose mean absolute difference, in levels, is below show the same picture."""
CUT_DIFFERENCE = 40.0
"""Two neighbours whose mean absolute difference is above, and over four times the clip's median, are on two sides of a cut."""

_RANGE = 255.0


def measure(hash_frames: NDArray[np.uint8], times_ms: NDArray[np.int64]) -> dict[str, float]:
    """Measure one clip.

    Args:
        hash_frames: luma [N, 64, 64] of uint8.
        times_ms: times [N] of these frames; must not fall.

    Returns:
        motion: mean absolute difference of neighbours per 1/8 s, over the range of luma.
        black_share, flat_share: shares of frames that are black, or of one colour.
        static_share: share of neighbours that show the same picture.
        cuts: number of hard cuts.
        brightness: mean luma, 0 black to 1 white.
        blockiness: how much stronger edges are on the 8x8 grid than beside it; 0 none. It sees codec blocks of 64 px sources and
            coarse mosaics of larger ones.

    Raises:
        ValueError: shapes do not fit, or there is no frame.
    """
    if hash_frames.ndim != 3 or len(hash_frames) == 0 or len(hash_frames) != len(times_ms):
        raise ValueError(f"wanted frames [N, 64, 64] with N times, found {hash_frames.shape} and {times_ms.shape}")
    frames = hash_frames.astype(np.float32)
    means = frames.mean(axis=(1, 2))
    deviations = frames.std(axis=(1, 2))
    values = {
        "motion": 0.0,
        "black_share": float((means < BLACK_LUMA).mean()),
        "flat_share": float((deviations < FLAT_DEVIATION).mean()),
        "static_share": 1.0,
        "cuts": 0.0,
        "brightness": float(means.mean() / _RANGE),
        "blockiness": _blockiness(frames),
    }
    if len(frames) > 1:
        differences = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2))
        steps = np.maximum(np.diff(times_ms) / 125.0, 1.0)
        values["motion"] = float(np.clip((differences / steps).mean() / _RANGE, 0, 1))
        values["static_share"] = float((differences < STATIC_DIFFERENCE).mean())
        is_cut = (differences > CUT_DIFFERENCE) & (differences > 4 * np.median(differences))
        values["cuts"] = float(is_cut.sum())
    return {name: round(value, 6) for name, value in values.items()}


def _blockiness(frames: NDArray[np.float32]) -> float:
    shares = []
    for axis in (1, 2):
        edges = np.abs(np.diff(frames, axis=axis)).mean(axis=(0, 3 - axis))  # [63]
        is_grid = np.arange(1, len(edges) + 1) % 8 == 0
        on, off = float(edges[is_grid].mean()), float(edges[~is_grid].mean())
        shares.append((on - off) / (on + off) if on + off > 0 else 0.0)
    return float(np.clip(np.mean(shares), 0, 1))
