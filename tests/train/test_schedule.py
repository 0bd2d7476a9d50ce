"""stmae_train.schedule: learning rates over a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stmae_train.config import FinetuneConfig, OptimConfig
from stmae_train.schedule import learning_rate, rate_line, wsd_lr

COSINE = OptimConfig(total_clips=1000, warmup_share=0.1, base_lr=1.0, min_lr=0.2, lr_rule="absolute")


def rate(config: OptimConfig, clips: float, **options: int) -> float:
    return learning_rate(config, clips=clips, repeats=4, **options)


def test_cosine_rises_then_falls_to_its_end() -> None:
    found = [rate(COSINE, clips) for clips in (0, 50, 100, 550, 1000, 1200)]
    assert found == pytest.approx([0.0, 0.5, 1.0, 0.6, 0.2, 0.2])


def test_wsd_runs_of_several_lengths_share_their_trunk() -> None:
    rates = [[wsd_lr(clips, total=total, warmup=10, decay=20, peak=1.0) for clips in range(80)] for total in (100, 200)]
    assert rates[0] == rates[1]
    assert wsd_lr(90, total=100, warmup=10, decay=20, peak=1.0, end=0.5) == pytest.approx(0.75)
    assert wsd_lr(100, total=100, warmup=10, decay=20, peak=1.0) == 0.0


def test_the_run_may_be_shorter_than_the_recipe() -> None:
    config = replace(COSINE, schedule="wsd", decay_share=0.5)
    assert rate(config, 75, total_clips=100) == pytest.approx(0.2 + 0.8 * 0.5)


def test_end_rate_follows_the_rule_of_the_base_rate() -> None:
    config = replace(COSINE, lr_rule="per-256-videos", batch_videos=512)
    assert rate(config, 1000) == pytest.approx(0.4)


def test_no_warm_up_starts_at_the_peak() -> None:
    assert rate(replace(COSINE, warmup_share=0.0), 0) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            OptimConfig(batch_videos=1024, base_lr=1.5e-4, lr_rule="per-256-videos"),
            "peak lr 6e-04 = base 1.5e-04 x 1,024 videos / 256; batch 1,024 videos = 4,096 clips; repeats not counted",
        ),
        (
            FinetuneConfig(batch_videos=256, base_lr=2.4e-3, lr_rule="per-256-clips"),
            "peak lr 9.6e-03 = base 2.4e-03 x 1,024 clips / 256; batch 256 videos = 1,024 clips; repeats counted",
        ),
        (
            OptimConfig(batch_videos=512, base_lr=1.6e-3),
            "peak lr 1.6e-03, absolute; batch 512 videos = 2,048 clips; the rate does not follow the batch",
        ),
    ],
)
def test_the_resolved_rate_is_told_in_videos_and_in_clips(config: OptimConfig | FinetuneConfig, line: str) -> None:
    assert rate_line(config, repeats=4) == line
