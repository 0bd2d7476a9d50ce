"""Intervals, tests and verdicts: known cases by hand, and A/A studies that must stay quiet."""

from __future__ import annotations

import numpy as np
import pytest

from stmae_train.errors import StudyError
from stmae_train.study.statistics import (
    compare,
    holm,
    interval,
    mcnemar_exact,
    minimum_detectable_effect,
    seed_scatter,
    verdict,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def draw(
    generator: np.random.Generator, *, seeds: int, videos: int, arms: int, seed_sd: float = 0.0, gain: float = 0.0
) -> list[np.ndarray]:
    """Score matrices of arms that share hard and easy videos; the last arm is better by about `gain` logits."""
    ease = generator.normal(1.4, 1.5, videos)
    found = []
    for arm in range(arms):
        shift = generator.normal(0, seed_sd, (seeds, 1)) + (gain if arm == arms - 1 else 0.0)
        found.append(generator.random((seeds, videos)) < 1 / (1 + np.exp(-(ease + shift))))
    return found


@pytest.mark.parametrize(("seeds", "seed_sd"), [(1, 0.0), (2, 0.3), (3, 0.0), (3, 0.3)])
def test_studies_without_a_difference_find_one_in_at_most_alpha_of_the_runs(seeds: int, seed_sd: float) -> None:
    generator, alarms, studies = rng(), 0, 600
    for _ in range(studies):
        arms = draw(generator, seeds=seeds, videos=150, arms=3, seed_sd=seed_sd)
        scatter = seed_scatter(arms)
        found = [compare(arm, arms[0], scatter=scatter, generator=generator) for arm in arms[1:]]
        adjusted = holm([each.p for each in found])
        words = [verdict(each.delta, p) for each, p in zip(found, adjusted, strict=True)]
        alarms += any(word != "not told apart" for word in words)
    assert alarms <= 0.05 * studies


def test_a_single_pair_without_pooling_stays_quiet_too() -> None:
    generator, alarms, studies = rng(), 0, 600
    for _ in range(studies):
        arm, baseline = draw(generator, seeds=3, videos=150, arms=2, seed_sd=0.3)
        alarms += compare(arm, baseline, generator=generator).p < 0.05
    assert alarms <= 0.05 * studies


def test_a_real_gain_is_told_apart() -> None:
    found = 0
    for seed in range(20):
        arms = draw(rng(seed), seeds=3, videos=400, arms=4, seed_sd=0.1, gain=1.5)
        found += compare(arms[-1], arms[0], scatter=seed_scatter(arms), generator=rng(seed)).p < 0.01
    assert found >= 19


def test_exact_mcnemar_matches_the_binomial_by_hand() -> None:
    assert mcnemar_exact(0, 0) == 1.0
    assert mcnemar_exact(5, 0) == pytest.approx(2 / 32)
    assert mcnemar_exact(1, 9) == pytest.approx(2 * 11 / 1024)
    assert mcnemar_exact(9, 1) == mcnemar_exact(1, 9)
    assert mcnemar_exact(4, 4) == 1.0


def test_holm_matches_its_definition_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5]) == [0.5]
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def test_the_only_words_are_better_worse_and_not_told_apart() -> None:
    assert verdict(0.02, 0.01) == "better"
    assert verdict(-0.02, 0.01) == "worse"
    assert verdict(0.02, 0.05) == "not told apart"
    assert verdict(0.0, 0.0) == "not told apart"


def test_a_single_seed_uses_mcnemar() -> None:
    arm, baseline = np.zeros((1, 100), bool), np.zeros((1, 100), bool)
    arm[0, :9], baseline[0, 9] = True, True
    found = compare(arm, baseline, generator=rng())
    assert found.test == "mcnemar"
    assert found.p == pytest.approx(2 * 11 / 1024)
    assert found.delta == pytest.approx(0.08)


def test_equal_arms_differ_by_nothing_and_are_not_told_apart() -> None:
    scores = rng().random((3, 50)) < 0.8
    found = compare(scores, scores, generator=rng())
    assert (found.delta, found.p) == (0.0, 1.0)
    assert found.low <= 0 <= found.high


def test_few_videos_that_all_agree_prove_little() -> None:
    found = compare(np.ones((2, 3), bool), np.zeros((2, 3), bool), generator=rng())
    assert found.low < found.high


def test_two_seeds_that_disagree_are_not_told_apart_whatever_the_videos_say() -> None:
    arm, baseline = np.zeros((2, 1000), bool), np.zeros((2, 1000), bool)
    arm[0, :300] = True  # +30 points with one seed, nothing with the other
    found = compare(arm, baseline, generator=rng())
    assert found.delta == pytest.approx(0.15)
    assert found.p > 0.05


def test_pooling_over_arms_sharpens_but_never_hides_an_arm_that_scatters_more() -> None:
    steady = [np.tile(np.arange(100) < 50 + arm, (3, 1)) for arm in range(5)]
    wild = np.stack([np.arange(100) < count for count in (40, 60, 80)])
    scatter = seed_scatter([*steady, wild])
    assert scatter is not None
    assert scatter.degrees == 10
    alone = compare(wild, steady[0], generator=rng())
    pooled = compare(wild, steady[0], scatter=scatter, generator=rng())
    assert pooled.standard_error == pytest.approx(alone.standard_error)
    assert seed_scatter([wild]) is None
    assert seed_scatter([wild[:1], wild[:1]]) is None


def test_the_interval_of_one_arm_covers_its_mean_and_stays_inside_0_and_1() -> None:
    found = interval(rng(1).random((3, 200)) < 0.99, generator=rng())
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.seed_sd is not None
    single = interval(np.array([[True] * 80 + [False] * 20]), generator=rng())
    assert single.seed_sd is None
    assert single.low == pytest.approx(0.72, abs=0.02)
    assert single.high == pytest.approx(0.88, abs=0.02)


def test_the_same_generator_gives_the_same_figures() -> None:
    arm, baseline = draw(rng(3), seeds=3, videos=100, arms=2)
    assert compare(arm, baseline, generator=rng(4)) == compare(arm, baseline, generator=rng(4))


def test_unpaired_matrices_are_refused() -> None:
    with pytest.raises(StudyError, match="same seeds and videos"):
        compare(np.ones((3, 10), bool), np.ones((2, 10), bool), generator=rng())
    with pytest.raises(StudyError, match="at least one entry"):
        interval(np.ones((0, 0), bool), generator=rng())


@pytest.mark.parametrize(
    ("videos", "discordance", "points"), [(19_881, 0.125, 0.83), (3_783, 0.073, 1.31), (1_530, 0.185, 3.15)]
)
def test_the_detectable_difference_meets_the_published_sizes(videos: int, discordance: float, points: float) -> None:
    # K400, UCF101 split 1 and HMDB51 split 1 with three seeds of sd 0.2 points: about 0.8, 1.3 and 3.2.
    found = minimum_detectable_effect(videos, 3, num_arms=6, discordance=discordance)
    assert found * 100 == pytest.approx(points, rel=0.12)


def test_more_videos_and_seeds_detect_less() -> None:
    assert minimum_detectable_effect(800, 3) < minimum_detectable_effect(400, 3)
    assert minimum_detectable_effect(400, 5, seed_sd=0.02) < minimum_detectable_effect(400, 2, seed_sd=0.02)
    with pytest.raises(StudyError, match="at least one video"):
        minimum_detectable_effect(0, 3)
