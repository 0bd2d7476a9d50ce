"""Honest statistics over per-video predictions: intervals, tests, verdicts.

A score matrix is [S, V] of 0 and 1: S training seeds, V test videos in one fixed order. Both are samples from something
larger, so both are resampled: a difference counts only if other seeds *and* other videos would probably show it too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from stmae_train.errors import StudyError

__all__ = [
    "Comparison",
    "Interval",
    "SeedScatter",
    "compare",
    "holm",
    "interval",
    "mcnemar_exact",
    "minimum_detectable_effect",
    "seed_scatter",
    "verdict",
]

NUM_DRAWS = 4_000
MAX_SEEDS = 40  # 3**40 difference patterns still fit an int64 code


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its confidence interval; shares, not per cent."""

    mean: float
    low: float
    high: float
    seed_sd: float | None
    """Standard deviation of the seeds' means; None for a single seed."""
    num_seeds: int
    num_videos: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """How far an arm stands from its baseline on the same seeds and the same videos."""

    delta: float
    low: float
    high: float
    p: float
    """Two-sided, before any correction for several arms."""
    standard_error: float
    detectable: float
    """The smallest true difference that this many seeds and videos would show with 80 % power."""
    seeds_won: int
    num_seeds: int
    num_videos: int
    test: str
    """`bootstrap` (seeds, then videos) or `mcnemar` (a single seed)."""


@dataclass(frozen=True, slots=True)
class SeedScatter:
    """How far one arm's accuracy moves from seed to seed, once what a seed does to all arms alike is taken out."""

    variance: float
    degrees: int


def seed_scatter(arms: Sequence[NDArray[np.bool_]]) -> SeedScatter | None:
    """Pool the seeds' scatter over the arms of one task (residual of arms x seeds, two-way).

    Three seeds of one pair of arms say almost nothing about scatter (two degrees of freedom); five arms together say more.
    All arms are taken to scatter alike; `compare` lets an arm that scatters more keep its own figure.

    Returns:
        None where there is nothing to pool: fewer than two arms, a single seed, or unequal seeds.
    """
    if len(arms) < 2 or len({arm.shape[0] for arm in arms}) != 1 or arms[0].shape[0] < 2:
        return None
    means = np.stack([_checked(arm).mean(axis=1) for arm in arms])  # [A, S]
    residual = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
    degrees = (means.shape[0] - 1) * (means.shape[1] - 1)
    return SeedScatter(variance=float((residual**2).sum()) / degrees, degrees=degrees)


def interval(correct: NDArray[np.bool_], *, alpha: float = 0.05, generator: np.random.Generator) -> Interval:
    """Mean of a score matrix [S, V] with the interval that resampled seeds and videos give.

    A single seed gives the interval over videos alone: it says nothing about other trainings.

    Raises:
        StudyError: the matrix is empty or not two-dimensional.
    """
    scores = _checked(correct).astype(np.int8)
    draws = _widened_draws(scores, generator, _Doubt.of(scores))
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    seed_means = scores.mean(axis=1)
    return Interval(
        mean=float(scores.mean()),
        low=float(max(0.0, low)),
        high=float(min(1.0, high)),
        seed_sd=float(seed_means.std(ddof=1)) if len(seed_means) > 1 else None,
        num_seeds=scores.shape[0],
        num_videos=scores.shape[1],
    )


def compare(
    arm: NDArray[np.bool_],
    baseline: NDArray[np.bool_],
    *,
    alpha: float = 0.05,
    scatter: SeedScatter | None = None,
    generator: np.random.Generator,
) -> Comparison:
    """Difference of two score matrices [S, V] with equal seeds (rows) and videos (columns).

    With two seeds or more: paired hierarchical bootstrap. With one seed: exact McNemar for p, bootstrap over videos for
    the interval; that speaks of these two trainings, not of others.

    Args:
        arm, baseline: right or wrong, per seed and video.
        alpha: share of false alarms that is accepted; the interval covers 1 - alpha.
        scatter: the seeds' scatter pooled over the task's arms (`seed_scatter`); without it this pair stands alone.
        generator: source of the bootstrap draws.

    Raises:
        StudyError: the matrices differ in shape, so nothing is paired.
    """
    ours, theirs = _checked(arm), _checked(baseline)
    if ours.shape != theirs.shape:
        raise StudyError(
            f"A paired comparison needs the same seeds and videos on both sides, found {ours.shape} against "
            f"{theirs.shape}. Finish the missing cells: stmae-train study run"
        )
    difference = ours.astype(np.int8) - theirs.astype(np.int8)  # [S, V] of -1, 0, 1
    num_seeds, num_videos = difference.shape
    doubt = _Doubt.of(difference, scatter)
    draws = _widened_draws(difference, generator, doubt)
    low, high = np.quantile(draws, [alpha / 2, 1 - alpha / 2])
    if num_seeds == 1:
        p = mcnemar_exact(int((difference > 0).sum()), int((difference < 0).sum()))
    else:
        below, above = int((draws <= 0).sum()), int((draws >= 0).sum())
        p = min(1.0, 2 * (min(below, above) + 1) / (len(draws) + 1))
    return Comparison(
        delta=float(difference.mean()),
        low=float(low),
        high=float(high),
        p=p,
        standard_error=doubt.standard_error,
        detectable=doubt.detectable(alpha=alpha, power=0.8),
        seeds_won=int((difference.sum(axis=1) > 0).sum()),
        num_seeds=num_seeds,
        num_videos=num_videos,
        test="mcnemar" if num_seeds == 1 else "bootstrap",
    )


def mcnemar_exact(won: int, lost: int) -> float:
    """Two-sided exact McNemar p from the discordant videos (McNemar 1947, binomial form)."""
    if won + lost == 0:
        return 1.0
    return float(min(1.0, 2 * stats.binom.cdf(min(won, lost), won + lost, 0.5)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Step-down adjusted p values in the given order (Holm 1979); controls the family-wise error."""
    count = len(p_values)
    adjusted = [0.0] * count
    running = 0.0
    for rank, index in enumerate(sorted(range(count), key=lambda i: p_values[i])):
        running = max(running, min(1.0, (count - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def verdict(delta: float, p_adjusted: float, *, alpha: float = 0.05) -> str:
    """The only three words a study may say: `better`, `worse`, `not told apart`."""
    if p_adjusted >= alpha or delta == 0:
        return "not told apart"
    return "better" if delta > 0 else "worse"


def minimum_detectable_effect(
    num_videos: int,
    num_seeds: int,
    *,
    num_arms: int = 2,
    discordance: float = 0.125,
    seed_sd: float = 0.002,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that a study of this size would tell apart with the given power.

    Args:
        num_videos: test videos, the same for both arms.
        num_seeds: training seeds per arm; one seed means videos are the only source of doubt.
        num_arms: arms over which the seeds' scatter is pooled, the baseline among them.
        discordance: share of videos that exactly one of the two arms gets right (0.125 on K400-like tests).
        seed_sd: standard deviation of one arm's accuracy over seeds.
    """
    if num_videos < 1 or num_seeds < 1:
        raise StudyError(f"A study needs at least one video and one seed, found {num_videos} and {num_seeds}.")
    doubt = _Doubt(
        seed_variance=2 * seed_sd**2 / num_seeds if num_seeds > 1 else 0.0,
        seed_degrees=max(1, (num_arms - 1) * (num_seeds - 1)),
        video_variance=discordance / num_videos,
    )
    return doubt.detectable(alpha=alpha, power=power)


def _checked(correct: NDArray[np.bool_]) -> NDArray[np.bool_]:
    if correct.ndim != 2 or correct.size == 0:
        raise StudyError(f"Scores must be a matrix of seeds by videos with at least one entry, found {correct.shape}.")
    return correct


@dataclass(frozen=True, slots=True)
class _Doubt:
    """Where the doubt in a mean comes from: the variance that seeds and that videos give it."""

    seed_variance: float
    seed_degrees: int
    video_variance: float

    @classmethod
    def of(cls, values: NDArray[np.int8], scatter: SeedScatter | None = None) -> Self:
        num_seeds, num_videos = values.shape
        seed_variance = float(values.mean(axis=1).var(ddof=1)) / num_seeds if num_seeds > 1 else 0.0
        seed_degrees = max(1, num_seeds - 1)
        if scatter is not None and num_seeds > 1:
            # A difference of two arms scatters twice as much as one arm.
            seed_variance = max(seed_variance, 2 * scatter.variance / num_seeds)
            seed_degrees = scatter.degrees
        over_videos = float(values.mean(axis=0).var(ddof=1)) / num_videos if num_videos > 1 else 0.0
        # Half a video of either sign keeps doubt alive where (almost) all videos agree (Agresti and Min 2005).
        return cls(seed_variance, seed_degrees, over_videos + 1 / num_videos**2)

    @property
    def standard_error(self) -> float:
        return float(np.sqrt(self.seed_variance + self.video_variance))

    @property
    def seed_share(self) -> float:
        return self.seed_variance / (self.seed_variance + self.video_variance)

    def quantile(self, level: float) -> float:
        """Quantile in standard errors: a Student's for the seeds' share of the doubt, a normal's for the videos'.

        Cochran and Cox (1950). Satterthwaite's degrees of freedom call up to 13 % of A/A pairs different when two seeds
        happen to agree; this stays at or below 6 % for two seeds and below 5 % from three on (simulated).
        """
        share = self.seed_share
        return float(share * stats.t.ppf(level, self.seed_degrees) + (1 - share) * stats.norm.ppf(level))

    def detectable(self, *, alpha: float, power: float) -> float:
        return (self.quantile(1 - alpha / 2) + self.quantile(power)) * self.standard_error


def _widened_draws(values: NDArray[np.int8], generator: np.random.Generator, doubt: _Doubt) -> NDArray[np.float64]:
    """Bootstrap means of [S, V] over seeds, then videos, sorted [NUM_DRAWS], honest for a handful of seeds.

    Plain resampling of S seeds shows only (S-1)/S of their variance and has a normal's tails; with two or three seeds an
    A/A study would then cry "better" far too often. So the draws give the shape, `doubt` the width and the tails.
    """
    num_seeds, num_videos = values.shape
    patterns, counts = _patterns(values)
    # Videos with the same row of outcomes are exchangeable: draw how many of each kind instead of NUM_DRAWS x V indices.
    drawn = generator.multinomial(num_videos, counts / num_videos, size=NUM_DRAWS)  # [N, K]
    seed_means = (drawn @ patterns) / num_videos  # [N, S]
    draws = seed_means.mean(axis=1)
    if num_seeds > 1:
        chosen = generator.integers(num_seeds, size=(NUM_DRAWS, num_seeds))
        draws = np.take_along_axis(seed_means, chosen, axis=1).mean(axis=1)
    draws = draws + (generator.poisson(0.5, NUM_DRAWS) - generator.poisson(0.5, NUM_DRAWS)) / num_videos
    mean = values.mean()
    share = doubt.seed_share
    stretch = share * _tail_stretch(doubt.seed_degrees) + (1 - share)
    widened: NDArray[np.float64] = mean + (np.sort(draws) - mean) * stretch * doubt.standard_error / draws.std()
    return widened


@functools.lru_cache(maxsize=32)
def _tail_stretch(degrees: int) -> NDArray[np.float64]:
    """How much farther out a Student's quantiles lie than a normal's, for sorted draws [NUM_DRAWS]."""
    levels = (np.arange(NUM_DRAWS) + 0.5) / NUM_DRAWS
    ratio: NDArray[np.float64] = stats.t.ppf(levels, degrees) / stats.norm.ppf(levels)
    return ratio


def _patterns(values: NDArray[np.int8]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Distinct columns of [S, V] as rows [K, S], and how many videos have each [K]."""
    if values.shape[0] > MAX_SEEDS:
        raise StudyError(f"A study has at most {MAX_SEEDS} seeds, found {values.shape[0]}.")
    codes = (3 ** np.arange(values.shape[0], dtype=np.int64)) @ (values.astype(np.int64) + 1)  # [V]
    _, first, counts = np.unique(codes, return_index=True, return_counts=True)
    return values[:, first].T.astype(np.float64), counts.astype(np.int64)
