"""Learning rates over a run. Progress and lengths share one unit: epochs, steps or clips."""

from __future__ import annotations

import math

import numpy as np

from stmae_train.config import FinetuneConfig, OptimConfig, lr_factor

__all__ = ["cosine_lr", "learning_rate", "per_step_table", "rate_line", "wsd_lr"]


def cosine_lr(progress: float, *, total: float, warmup: float, peak: float, end: float = 0.0) -> float:
    """Linear warm-up from 0, then a cosine that reaches `end` at `total` (mae and mae_st, util/lr_sched.py)."""
    if progress < warmup:
        return peak * progress / warmup
    share = min((progress - warmup) / max(total - warmup, 1e-12), 1.0)
    return end + (peak - end) * 0.5 * (1 + math.cos(math.pi * share))


def wsd_lr(progress: float, *, total: float, warmup: float, decay: float, peak: float, end: float = 0.0) -> float:
    """Warm-up, stable, decay: flat between a linear warm-up and a linear decay over the last `decay`.

    Runs of several lengths share the flat trunk and differ in their decay branch alone (STUDY.md rule 4).
    """
    if progress < warmup:
        return peak * progress / warmup
    left = max(total - progress, 0.0)
    return peak if left >= decay else end + (peak - end) * left / decay


def per_step_table(*, epochs: int, steps_per_epoch: int, warmup_epochs: int, peak: float, end: float) -> np.ndarray:
    """VideoMAE's table [epochs * steps_per_epoch], float64.

    Warm-up is evenly spaced from 0 to the peak, both included; the cosine's last step stays above `end`
    (VideoMAE utils.py, cosine_scheduler; SPEC-models B1).
    """
    warmup_steps = warmup_epochs * steps_per_epoch
    rest = epochs * steps_per_epoch - warmup_steps
    falling = end + 0.5 * (peak - end) * (1 + np.cos(np.pi * np.arange(rest) / rest))
    return np.concatenate([np.linspace(0, peak, warmup_steps), falling])


def learning_rate(config: OptimConfig, *, clips: float, repeats: int, total_clips: int | None = None) -> float:
    """The learning rate of the step that starts after `clips` clips.

    Args:
        config: schedule, base rate and its rule, warm-up and decay shares.
        clips: clips seen before this step, repeats included.
        repeats: clips drawn per video, for the lr rule.
        total_clips: the run's length where it is not the config's.
    """
    total = total_clips or config.total_clips
    peak, end = config.peak_lr(repeats=repeats), config.end_lr(repeats=repeats)
    warmup = config.warmup_share * total
    if config.schedule == "wsd":
        return wsd_lr(clips, total=total, warmup=warmup, decay=config.decay_share * total, peak=peak, end=end)
    return cosine_lr(clips, total=total, warmup=warmup, peak=peak, end=end)


def rate_line(config: OptimConfig | FinetuneConfig, *, repeats: int) -> str:
    """The resolved rate in words, with the batch in videos and in clips.

    Args:
        config: base rate, its rule and the batch.
        repeats: clips drawn per video.

    >>> rate_line(OptimConfig(batch_videos=1024, base_lr=1.5e-4, lr_rule="per-256-videos"), repeats=4)
    'peak lr 6e-04 = base 1.5e-04 x 1,024 videos / 256; batch 1,024 videos = 4,096 clips; repeats not counted'
    """
    videos, clips = config.batch_videos, config.batch_videos * repeats
    batch = f"batch {videos:,} videos = {clips:,} clips"
    peak = config.base_lr * lr_factor(config.lr_rule, batch_videos=videos, repeats=repeats)
    if config.lr_rule == "absolute":
        return f"peak lr {_rate(peak)}, absolute; {batch}; the rate does not follow the batch"
    is_clips = config.lr_rule == "per-256-clips"
    counted = f"{clips:,} clips" if is_clips else f"{videos:,} videos"
    rule = f"base {_rate(config.base_lr)} x {counted} / 256"
    return f"peak lr {_rate(peak)} = {rule}; {batch}; repeats {'' if is_clips else 'not '}counted"


def _rate(value: float) -> str:
    """4.8e-03, with no more digits than it has, up to four."""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{power}"
