"""Frame hashes: what a clip looks like, in 256 bits per frame, comparable across sizes, codecs, bars and mirrors.

The hash is a 64x64 DCT of an area-scaled luma picture: the 16x16 block of frequencies 1..16 against its own median, as in PDQ
(ThreatExchange, "The TMK+PDQF Video-Hashing Algorithm and the PDQ Image-Hashing Algorithm", 2019). The cosine table is of whole
numbers, so that every product and sum is exact in float64 and the bits do not depend on machine, BLAS or batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.errors import UsageError

__all__ = [
    "ALGORITHM",
    "FINGERPRINT_COLUMNS",
    "MIRROR_MASK",
    "PRUNE_BITS",
    "VIEWS",
    "Fingerprints",
    "commit_fingerprints",
    "find_bars",
    "fingerprint_clip",
    "hash_luma",
]

ALGORITHM: Final = "stmae-dct256/1 luma64x64"
"""Name, version and input size: hashes of different input sizes do not compare (DEDUP §3.1)."""

VIEWS: Final = ("full", "bars_removed", "mirrored")

PRUNE_BITS: Final = 2
"""Frames at most this far from the last kept one belong to its run."""

FINGERPRINT_COLUMNS: Final = {
    "clip_id": "VARCHAR",
    "time_ms": "BIGINT",
    "view": "ENUM('full', 'bars_removed', 'mirrored')",
    "hash0": "UBIGINT",
    "hash1": "UBIGINT",
    "hash2": "UBIGINT",
    "hash3": "UBIGINT",
    "quality": "UTINYINT",
    "algorithm": "VARCHAR",
}
"""Columns of `meta/fingerprints/<shard>.parquet` (FACTS-inputs §4.2)."""

_SIDE: Final = 64
_BLOCK: Final = 16
_ANGLES = np.pi / _SIDE * np.outer(np.arange(1, _BLOCK + 1), np.arange(_SIDE) + 0.5)
# 64 * 255 * 2**12 and again * 64 * 2**12 stays below 2**45: exact in float64, whatever the order of the sums.
_COSINES: NDArray[np.float64] = np.round(np.cos(_ANGLES) * 4096)  # [16, 64]
# A picture mirrored left to right changes the sign of every odd horizontal frequency; columns hold frequencies 1, 2, 3, ...
_MIRROR: NDArray[np.float64] = np.where(np.arange(_BLOCK) % 2 == 0, -1.0, 1.0)  # [16], frequency = index + 1

_NOISE_LEVELS: Final = 2
"""Grey levels by which a good and a bad encode of one picture differ per pixel of 64x64."""
_NOISE_GAIN: Final = 4096**2 * _SIDE / 2
"""What noise of one level per pixel comes to in a coefficient: the root of the sum of squared cosine products."""

MIRROR_MASK: Final = 0xAAAA_AAAA_AAAA_AAAA
"""XOR of each hash word with this is the mirrored picture's hash, up to the few bits by which the median moves."""

_BAR_LEVELS: Final = (1, 3, 6)
"""A bar's pixels stay within this many grey levels of one value in the mean over time, ... Tight, because dark content begins close to
black, and loose, because poor encodes stain bars: the straightest edge is taken."""
_BAR_SWING: Final = 24
"""... and swing no further over time than codecs ring beside an edge."""
_LEAST_CONTENT: Final = 16
"""Rows or columns of 64 that bars must leave over; below that the frame is flat rather than barred."""
_STRAIGHT_EDGE: Final = 0.5
"""Share of the line behind a bar that must at some time differ from the bar."""


@dataclass(frozen=True, slots=True)
class Fingerprints:
    """Hashes of one clip, views one after another, each in order of time; columns of equal length N."""

    time_ms: NDArray[np.int64]  # [N], from the first frame
    view: NDArray[np.uint8]  # [N], index into VIEWS
    hashes: NDArray[np.uint64]  # [N, 4]
    quality: NDArray[np.uint8]  # [N], 0..100

    def __len__(self) -> int:
        return len(self.time_ms)


def hash_luma(frames: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Hash pictures.

    Args:
        frames: [N, 64, 64] luma, area-scaled, upright.

    Returns:
        Hashes [N, 4] of uint64, and quality [N] of uint8 in 0..100: the share of bits that codec noise cannot turn. A flat frame
        has 0, the photographs and films this was looked at on have 90 and more.

    Raises:
        UsageError: another shape or type.
    """
    return _grade(_transform(frames))


def fingerprint_clip(frames: NDArray[np.uint8], times_ms: NDArray[np.int64]) -> Fingerprints:
    """Fingerprint one clip in three views, runs of equal frames pruned to their start and end.

    Args:
        frames: [N, 64, 64] luma at about 8 fps by presentation time.
        times_ms: [N] presentation times, ascending; counted from the first frame here.

    Returns:
        Views full, bars_removed (only where the clip has static bars), mirrored.
    """
    if len(frames) != len(times_ms):
        raise UsageError(f"Got {len(frames)} hash frames and {len(times_ms)} times; wanted one time per frame.")
    if not len(frames):
        return Fingerprints(
            np.zeros(0, np.int64), np.zeros(0, np.uint8), np.zeros((0, 4), np.uint64), np.zeros(0, np.uint8)
        )
    times = np.asarray(times_ms, dtype=np.int64)
    times = times - times[0]
    coefficients = _transform(frames)
    views = [(0, *_grade(coefficients))]
    bars = find_bars(frames)
    if bars is not None:
        views.append((1, *_grade(_transform(frames, bars))))
    views.append((2, *_grade(coefficients * _MIRROR)))
    kept = [_prune(hashes) for _, hashes, _ in views]
    return Fingerprints(
        np.concatenate([times[keep] for keep in kept]),
        np.concatenate(
            [np.full(len(keep), number, np.uint8) for keep, (number, _, _) in zip(kept, views, strict=True)]
        ),
        np.concatenate([hashes[keep] for keep, (_, hashes, _) in zip(kept, views, strict=True)]),
        np.concatenate([grade[keep] for keep, (_, _, grade) in zip(kept, views, strict=True)]),
    )


def commit_fingerprints(path: Path, clips: Sequence[tuple[str, Fingerprints]]) -> None:
    """Write the fingerprints of a shard's clips as Parquet, in the order given."""
    lengths = [len(prints) for _, prints in clips]
    names = [clip_id for clip_id, _ in clips]
    empty = np.zeros((0, 4), np.uint64)
    hashes = np.concatenate([prints.hashes for _, prints in clips] or [empty])
    connection = files.connect()
    try:
        columns = {
            "clip": np.repeat(np.arange(len(clips), dtype=np.int64), lengths),
            "time_ms": np.concatenate([prints.time_ms for _, prints in clips] or [np.zeros(0, np.int64)]),
            "view": np.concatenate([prints.view for _, prints in clips] or [np.zeros(0, np.uint8)]),
            **{f"hash{word}": np.ascontiguousarray(hashes[:, word]) for word in range(4)},
            "quality": np.concatenate([prints.quality for _, prints in clips] or [np.zeros(0, np.uint8)]),
        }
        connection.register("prints", columns)
        kind = FINGERPRINT_COLUMNS["view"]
        connection.execute("CREATE TABLE names AS SELECT unnest(?::VARCHAR[]) AS clip_id", [names])
        views = ", ".join(f"'{view}'" for view in VIEWS)
        files.copy_table(
            connection,
            f"""SELECT names.clip_id, time_ms, list_extract([{views}], view + 1)::{kind} AS view,
                       hash0, hash1, hash2, hash3, quality, '{ALGORITHM}' AS algorithm
                FROM prints JOIN names ON names.rowid = prints.clip ORDER BY prints.clip, prints.view, time_ms""",
            path,
            point="fingerprints",
        )
    finally:
        connection.close()


def find_bars(frames: NDArray[np.uint8]) -> tuple[float, float, float, float] | None:
    """Static bars along whole edges.

    Args:
        frames: [N, 64, 64] luma of one clip.

    Returns:
        The content's box (top, bottom, left, right) in rows and columns of 64, in fractions where a bar ends inside one; None
        where no edge has a bar, or where hardly anything would be left.
    """
    mean = frames.mean(axis=0)  # [64, 64]
    swing = frames.max(axis=0) - frames.min(axis=0)  # [64, 64]
    spans = []
    for level, change in ((mean, swing), (mean.T, swing.T)):
        first = _bar_length(level, change)
        last = _SIDE - _bar_length(level[::-1], change[::-1])
        if last - first < _LEAST_CONTENT:
            return None
        spans.append((first, last))
    if spans == [(0, _SIDE), (0, _SIDE)]:
        return None
    (top, bottom), (left, right) = spans
    return (
        _edge(frames, top, axis=1),
        _SIDE - _edge(frames[:, ::-1], _SIDE - bottom, axis=1),
        _edge(frames, left, axis=2),
        _SIDE - _edge(frames[:, :, ::-1], _SIDE - right, axis=2),
    )


def _bar_length(mean: NDArray[np.float64], swing: NDArray[np.uint8]) -> int:
    """How many whole rows from the top are one flat, unchanging bar with a straight edge.

    The straight edge tells a bar from a dark surrounding: crops that follow dark content differ from copy to copy (DEDUP §3.2).
    """
    level = np.abs(mean - np.median(mean[0]))  # [64, 64]
    best = (_STRAIGHT_EDGE, 0)
    for most in _BAR_LEVELS:
        is_off = (level > most) | (swing > _BAR_SWING)
        is_bar = ~is_off.any(axis=1)
        length = _SIDE if is_bar.all() else int(np.argmin(is_bar))
        if length + 1 >= _SIDE:
            return length
        if length > 0:
            best = max(best, (round(float(is_off[length + 1].mean()), 1), length))
    return best[1]


def _edge(frames: NDArray[np.uint8], length: int, *, axis: int) -> float:
    """Where a bar of `length` whole lines ends, in fractions: the next line is part bar, part content like the line after it."""
    if length == 0:
        return 0.0
    lines = np.take(frames, [length - 1, length, length + 1], axis=axis).astype(np.float64)
    bar, mixed, content = np.moveaxis(lines, axis, 0)
    step = content - bar.mean()
    weight = float((step * step).sum())
    share = float(((mixed - bar.mean()) * step).sum()) / weight if weight else 1.0
    # In whole 64ths, so that the last bits of these sums decide nothing.
    return length + round((1.0 - min(max(share, 0.0), 1.0)) * _SIDE) / _SIDE


def _area_matrix(start: float, end: float) -> NDArray[np.float64]:
    """[64, 64] weights that scale lines start..end to 64 lines by area; a line the bar covers in part counts as its neighbour."""
    first, last = int(np.ceil(start - 1e-9)), int(np.floor(end + 1e-9))
    edges = np.linspace(start, end, _SIDE + 1)
    matrix = np.zeros((_SIDE, _SIDE))
    for line in range(_SIDE):
        overlap = np.minimum(edges[1:], line + 1) - np.maximum(edges[:-1], line)
        matrix[:, min(max(line, first), last - 1)] += overlap.clip(0)
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _transform(frames: NDArray[np.uint8], box: tuple[float, float, float, float] | None = None) -> NDArray[np.float64]:
    """Low frequencies [N, 16, 16] of frames [N, 64, 64], or of a box of them scaled to 64x64: exact whole numbers."""
    if frames.ndim != 3 or frames.shape[1:] != (_SIDE, _SIDE) or frames.dtype != np.uint8:
        raise UsageError(f"Hash frames are [N, 64, 64] of uint8, got {list(frames.shape)} of {frames.dtype}.")
    rows = columns = _COSINES
    if box is not None:
        rows = np.round(_COSINES @ _area_matrix(box[0], box[1]))
        columns = np.round(_COSINES @ _area_matrix(box[2], box[3]))
    picture = frames.astype(np.float64)
    product: NDArray[np.float64] = rows @ picture @ columns.T
    return product


def _grade(coefficients: NDArray[np.float64]) -> tuple[NDArray[np.uint64], NDArray[np.uint8]]:
    """Hashes [N, 4] and quality [N] of coefficients [N, 16, 16].

    Bits say which frequencies lie above the median, row by row, the first in the highest bit. Quality is the share of bits, in
    percent, that codec noise of `_NOISE_LEVELS` cannot turn.
    """
    flat = coefficients.reshape(len(coefficients), _BLOCK * _BLOCK)
    middle = flat.shape[1] // 2 - 1
    above = flat - np.partition(flat, middle, axis=1)[:, middle, None]
    hashes = np.ascontiguousarray(np.packbits(above > 0, axis=1)).view(">u8").astype(np.uint64)  # [N, 4]
    firm = np.abs(above) > _NOISE_LEVELS * _NOISE_GAIN
    return hashes, (firm.sum(axis=1) * 100 // flat.shape[1]).astype(np.uint8)


def _prune(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Indices to keep of [N, 4]: start and end of every run within PRUNE_BITS of its start."""
    words = [int.from_bytes(line.tobytes(), "big") for line in hashes]
    kept = [0]
    for index in range(1, len(words)):
        if (words[index] ^ words[kept[-1]]).bit_count() > PRUNE_BITS:
            if kept[-1] != index - 1:
                kept.append(index - 1)
            kept.append(index)
    if kept[-1] != len(words) - 1:
        kept.append(len(words) - 1)
    return np.array(kept, dtype=np.int64)
