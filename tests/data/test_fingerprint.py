"""Frame hashes: exact bits, mirrors, bars, quality, pruning, and the table they end in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from stmae_data import files
from stmae_data.errors import UsageError
from stmae_data.fingerprint import (
    ALGORITHM,
    FINGERPRINT_COLUMNS,
    MIRROR_MASK,
    VIEWS,
    commit_fingerprints,
    find_bars,
    fingerprint_clip,
    hash_luma,
)


def pictures(count: int, *, seed: int = 0, drift: int = 2) -> NDArray[np.uint8]:
    """[N, 64, 64] of a smooth random picture that drifts sideways."""
    noise = np.random.default_rng(seed).normal(size=(64, 64))
    frequencies = np.fft.fftfreq(64) * 64
    keep = np.exp(-(frequencies[:, None] ** 2 + frequencies[None] ** 2) / 60)
    smooth = np.fft.ifft2(np.fft.fft2(noise) * keep).real
    picture = (126 + 40 * smooth / smooth.std()).clip(16, 235).astype(np.uint8)
    return np.stack([np.roll(picture, drift * index, axis=1) for index in range(count)])


def bits(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> NDArray[np.int64]:
    return np.bitwise_count(one ^ other).sum(axis=-1).astype(np.int64)


def times(count: int) -> NDArray[np.int64]:
    return np.arange(count, dtype=np.int64) * 125 + 40


def test_a_hash_does_not_depend_on_the_batch() -> None:
    frames = pictures(9)
    whole, _ = hash_luma(frames)
    assert np.array_equal(whole, np.concatenate([hash_luma(frame[None])[0] for frame in frames]))


def test_noise_moves_few_bits_and_another_picture_moves_half() -> None:
    frames = pictures(1)
    noisy = (frames + np.random.default_rng(1).normal(0, 2, frames.shape)).round().clip(0, 255).astype(np.uint8)
    hashes, quality = hash_luma(frames)
    assert quality[0] >= 80
    assert bits(hashes, hash_luma(noisy)[0])[0] <= 31
    assert 90 <= bits(hashes, hash_luma(pictures(1, seed=7))[0])[0] <= 166


def test_flat_frames_have_quality_zero_and_no_bits() -> None:
    hashes, quality = hash_luma(np.full((2, 64, 64), 16, np.uint8))
    assert quality.tolist() == [0, 0] and not hashes.any()


def test_the_mirrored_view_is_the_hash_of_the_mirrored_picture() -> None:
    frames = pictures(6)
    prints = fingerprint_clip(frames, times(6))
    mirrored, _ = hash_luma(np.ascontiguousarray(frames[:, :, ::-1]))
    assert np.array_equal(prints.hashes[prints.view == 2], mirrored)
    assert bits(hash_luma(frames)[0] ^ np.uint64(MIRROR_MASK), mirrored).max() <= 12


def test_bars_are_found_to_a_fraction_of_a_line_and_their_view_matches_the_clean_picture() -> None:
    clean = pictures(6)
    barred = np.full_like(clean, 16)
    for index, frame in enumerate(clean):  # content squeezed to 48 rows, from row 8 to row 56
        squeezed = frame.reshape(16, 4, 64).astype(np.float64)
        barred[index, 8:56] = np.stack([squeezed[:, part] for part in (0, 1, 2)], axis=1).reshape(48, 64)
    box = find_bars(barred)
    assert box is not None and np.allclose(box, (8, 56, 0, 64), atol=0.6)
    prints = fingerprint_clip(barred, times(6))
    view = prints.hashes[prints.view == 1]
    assert bits(view[0], hash_luma(clean)[0][0]) <= 40 < bits(prints.hashes[0], hash_luma(clean)[0][0])


def test_a_dark_surrounding_without_a_straight_edge_is_not_a_bar() -> None:
    frames = np.full((8, 64, 64), 20, np.uint8)
    for index in range(8):
        frames[index, 24:40, 20 + index : 36 + index] = pictures(1)[0, :16, :16]
    assert find_bars(frames) is None
    assert set(fingerprint_clip(frames, times(8)).view.tolist()) == {0, 2}
    assert find_bars(np.full((3, 64, 64), 16, np.uint8)) is None


def test_runs_of_equal_frames_keep_their_start_and_end() -> None:
    still, moving = pictures(1), pictures(3, seed=3, drift=5)
    frames = np.concatenate([np.repeat(still, 6, axis=0), moving, np.repeat(moving[-1:], 4, axis=0)])
    prints = fingerprint_clip(frames, times(len(frames)))
    full = prints.time_ms[prints.view == 0]
    assert full.tolist() == [0, 625, 750, 875, 1000, 1500]


def test_an_empty_clip_has_no_hashes() -> None:
    assert len(fingerprint_clip(np.zeros((0, 64, 64), np.uint8), np.zeros(0, np.int64))) == 0


def test_frames_of_another_size_or_number_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\[N, 64, 64\] of uint8, got \[1, 32, 32\]"):
        hash_luma(np.zeros((1, 32, 32), np.uint8))
    with pytest.raises(UsageError, match="Got 2 hash frames and 1 times"):
        fingerprint_clip(np.zeros((2, 64, 64), np.uint8), np.zeros(1, np.int64))


def test_the_table_has_the_columns_of_the_format_and_twice_the_same_bytes(tmp_path: Path) -> None:
    prints = fingerprint_clip(pictures(5), times(5))
    clips = [("b", prints), ("a", prints)]
    commit_fingerprints(tmp_path / "one.parquet", clips)
    commit_fingerprints(tmp_path / "two.parquet", clips)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    rows = files.read_table(tmp_path / "one.parquet")
    assert list(rows[0]) == list(FINGERPRINT_COLUMNS)
    assert [row["clip_id"] for row in rows] == ["b"] * len(prints) + ["a"] * len(prints)
    first = rows[: len(prints)]
    assert [tuple(row[f"hash{word}"] for word in range(4)) for row in first] == [
        tuple(map(int, h)) for h in prints.hashes
    ]
    assert [row["view"] for row in first] == [VIEWS[view] for view in prints.view]
    assert {row["algorithm"] for row in rows} == {ALGORITHM}


def test_a_shard_without_clips_has_an_empty_table(tmp_path: Path) -> None:
    commit_fingerprints(tmp_path / "none.parquet", [])
    assert files.read_table(tmp_path / "none.parquet") == []


@pytest.mark.parametrize(("stain", "content"), [(0, 2.6), (4, 120.0)])
def test_bars_beside_dark_content_and_stained_bars_are_found_to_the_line(stain: int, content: float) -> None:
    frames = np.full((8, 64, 64), content, np.float64)
    frames[:, :, 30:50] += 100
    frames[:, :9] = frames[:, 55:] = 0
    frames[:, :9, :8] += stain
    box = find_bars(frames.round().astype(np.uint8))
    assert box is not None and box[:2] == (9.0, 55.0)
