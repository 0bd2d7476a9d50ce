"""Which clip comes when: a pure function of (seed, epoch, set digest, global position).

Nothing is shuffled in memory and nothing depends on shards, workers or processes: the n-th draw of a run can be computed on its own,
so a run resumes anywhere and any process can compute its share (DESIGN.md, law 8).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stmae_train.errors import DataMismatch

__all__ = ["Mix", "order_key", "permute"]

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_ROUNDS = 6
_TABLE_SIZE = 1 << 18  # sets up to this size keep whole epochs of their order in memory
_BLOCK = 1024  # draws over which a mix keeps its shares exactly


def order_key(seed: int, digest: str) -> int:
    """64 bits that name the order of a set under a seed."""
    return int.from_bytes(hashlib.sha256(f"{seed}\x00{digest}".encode()).digest()[:8], "big")


def permute(positions: Ints, *, size: int, key: int, epoch: NDArray[np.int64] | int = 0) -> Ints:
    """Where each position in [0, size) goes in the keyed order of an epoch: a bijection, computed per element.

    A Feistel network over the next even power of two; results past `size` walk on until they fall inside (Black and Rogaway 2002,
    "Ciphers with arbitrary finite domains").
    """
    half = max((size - 1).bit_length() + 1, 2) // 2
    mask = np.uint64((1 << half) - 1)
    values = positions.astype(np.uint64)
    epochs = np.broadcast_to(np.asarray(epoch, dtype=np.uint64), values.shape)
    out = _feistel(values, epochs, half=half, mask=mask, key=key)
    outside = out >= size
    while outside.any():
        out[outside] = _feistel(out[outside], epochs[outside], half=half, mask=mask, key=key)
        outside = out >= size
    return out.astype(np.int64)


def _feistel(values: Words, epochs: Words, *, half: int, mask: np.uint64, key: int) -> Words:
    left, right = values >> np.uint64(half), values & mask
    salt = _mixed(epochs ^ np.uint64(key))
    for number in range(_ROUNDS):
        scrambled = _mixed(right ^ (salt + np.uint64(number * 0x9E3779B97F4A7C15 % 2**64)))
        left, right = right, left ^ (scrambled & mask)
    return (left << np.uint64(half)) | right


def _mixed(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea, Flood 2014): every bit in changes half of the bits out; products wrap."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _walk(counters: Ints, *, size: int, key: int) -> Ints:
    """The rows of a set that its draws number `counters` take, epoch after epoch."""
    epochs, positions = np.divmod(counters, size)
    if size > _TABLE_SIZE:
        return permute(positions, size=size, key=key, epoch=epochs)
    rows = np.empty_like(counters)
    for epoch in np.unique(epochs):
        mine = epochs == epoch
        rows[mine] = _table(size, key, int(epoch))[positions[mine]]
    return rows


@functools.lru_cache(maxsize=8)
def _table(size: int, key: int, epoch: int) -> Ints:
    """A whole epoch of a small set at once: many short calls cost more than one long one."""
    return permute(np.arange(size), size=size, key=key, epoch=epoch)


@dataclass(frozen=True, slots=True)
class Mix:
    """Several sets as one endless stream of videos.

    `sizes` are videos per set, `shares` their parts of the draws (they sum to 1), `keys` name each set's order. Every set goes
    through its own epochs; each video comes once per epoch of its set.
    """

    sizes: tuple[int, ...]
    shares: tuple[float, ...]
    keys: tuple[int, ...]

    @staticmethod
    def of(sizes: Sequence[int], weights: Sequence[float], *, digests: Sequence[str], seed: int) -> Mix:
        """Shares from weights. Weights that are all 1 mean the union: every video equally often.

        Raises:
            DataMismatch: a set's share is too small to be kept over a thousand draws.
        """
        raw = [float(size) for size in sizes] if all(weight == 1.0 for weight in weights) else list(weights)
        shares = tuple(weight / sum(raw) for weight in raw)
        if len(shares) > 1 and min(shares) < 2 / _BLOCK:
            raise DataMismatch(
                f"One of the mixed sets would get a share of {min(shares):.5f} of the draws, wanted at least {2 / _BLOCK:.5f}; "
                f"raise its weight (SET@WEIGHT) or leave it out."
            )
        return Mix(tuple(sizes), shares, tuple(order_key(seed, digest) for digest in digests))

    @property
    def epoch_videos(self) -> int:
        """Videos in the union."""
        return sum(self.sizes)

    def locate(self, draws: Ints) -> tuple[Ints, Ints]:
        """Set numbers [N] and sample positions inside those sets [N] of the given draws [N]."""
        if len(self.sizes) == 1:
            chosen, counters = np.zeros_like(draws), draws
        else:
            chosen, counters = self._choose(draws)
        rows = np.empty_like(draws)
        for number, (size, key) in enumerate(zip(self.sizes, self.keys, strict=True)):
            mine = chosen == number
            if mine.any():
                rows[mine] = _walk(counters[mine], size=size, key=key)
        return chosen, rows

    def _choose(self, draws: Ints) -> tuple[Ints, Ints]:
        """Which set each draw is from, and how many draws that set had before it."""
        blocks, slots = np.divmod(draws, _BLOCK)
        mixed = permute(slots, size=_BLOCK, key=self.keys[0] ^ self.keys[1], epoch=blocks)
        edges = np.cumsum(self.shares)
        edges[-1] = 1.0
        before = np.floor(blocks[:, None] * _BLOCK * edges + 0.5).astype(
            np.int64
        )  # draws of sets 0..k in earlier blocks
        after = np.floor((blocks[:, None] + 1) * _BLOCK * edges + 0.5).astype(np.int64)
        upper = after - before  # where each set's slots end within the block
        chosen = (mixed[:, None] >= upper).sum(axis=1)
        lower = np.concatenate([np.zeros((len(draws), 1), dtype=np.int64), upper], axis=1)
        own = np.diff(np.concatenate([np.zeros((len(draws), 1), dtype=np.int64), before], axis=1), axis=1)
        pick = np.arange(len(draws))
        return chosen, own[pick, chosen] + mixed - lower[pick, chosen]
