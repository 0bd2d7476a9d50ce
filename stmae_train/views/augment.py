"""What fine-tuning does to clips after cropping: RandAugment, random erasing, mixup and cutmix, all from timm (SPEC-models B2).

timm draws from the global generators of `random`, NumPy and torch. They are seeded here for the stretch of a call, by clip number or by
step, and put back after it, so that a resumed run draws what an uninterrupted one draws.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.mixup import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from stmae_train.config import FinetuneConfig, ModelConfig
from stmae_train.views.draws import uniforms

__all__ = ["mix_clips", "perturb_clips", "seeded", "step_seed"]

_AUGMENT_STREAM = 18


def step_seed(seed: int, step: int, *, rank: int = 0) -> int:
    """63 bits that name what is drawn once per step."""
    text = f"step\x00{seed}\x00{step}\x00{rank}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators for a stretch and put them back as they were."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def perturb_clips(
    clips: Tensor, config: FinetuneConfig, model: ModelConfig, *, numbers: NDArray[np.int64], seed: int
) -> Tensor:
    """RandAugment, then random erasing: one operation, magnitude and rectangle per clip, the same in every frame.

    Args:
        clips: normalised pixels [B, 3, T, S, S].
        config: magnitudes and probabilities; what is 0 is left out.
        model: mean and standard deviation of the normalisation.
        numbers: global clip numbers [B].
        seed: of the run.

    Returns:
        Clips of the same shape, on the same device.
    """
    if not config.randaug_magnitude and not config.erasing_prob:
        return clips
    seeds = (uniforms(seed, numbers, count=1, stream=_AUGMENT_STREAM)[:, 0] * 2**32).astype(np.int64)
    changed = [_perturb(clip, config, model, seed=int(each)) for clip, each in zip(clips.cpu(), seeds, strict=True)]
    return torch.stack(changed).to(clips.device)


def _perturb(clip: Tensor, config: FinetuneConfig, model: ModelConfig, *, seed: int) -> Tensor:
    if config.randaug_magnitude:
        clip = _rand_augment(clip, config, model, seed=seed)
    if config.erasing_prob:
        erase = RandomErasing(probability=config.erasing_prob, mode="pixel", device="cpu")  # type: ignore[no-untyped-call]
        with seeded(seed):
            # Frames as colours: one rectangle for the clip, fresh noise in every frame.
            clip = erase(clip.flatten(0, 1).clone()).view_as(clip)
    return clip


def _rand_augment(clip: Tensor, config: FinetuneConfig, model: ModelConfig, *, seed: int) -> Tensor:
    """timm's RandAugment on pictures of whole levels; every frame sees the same draws."""
    mean, std = (torch.tensor(each)[:, None, None, None] for each in (model.mean, model.std))
    levels = (
        ((clip * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 3, 0).numpy()
    )  # [T, S, S, 3]
    options: dict[str, Any] = {
        "translate_const": int(levels.shape[1] * 0.45),
        "img_mean": tuple(round(255 * each) for each in model.mean),
    }
    name = f"rand-m{config.randaug_magnitude}-n{config.randaug_ops}-mstd{config.randaug_std}-inc1"
    augment = rand_augment_transform(name, options)
    frames = []
    for frame in levels:
        with seeded(seed):
            frames.append(np.asarray(augment(Image.fromarray(frame))))
    back = torch.from_numpy(np.stack(frames)).permute(3, 0, 1, 2).float() / 255
    return (back - mean) / std


def mix_clips(
    clips: Tensor, labels: Tensor, config: FinetuneConfig, *, num_classes: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Mixup or cutmix by the recipe, and smoothed targets: one share per batch, sample i with its mirror image in the batch.

    Args:
        clips: [B, 3, T, S, S]; changed in place where they are mixed.
        labels: [B].
        config: alphas, probabilities, smoothing.
        num_classes: C.
        seed: of this step.

    Returns:
        Clips, and targets [B, C] that sum to 1. An odd batch, left by skipped clips, is not mixed.
    """
    if (not config.mixup and not config.cutmix) or len(clips) % 2:
        smooth = config.smoothing / num_classes
        targets = torch.full((len(labels), num_classes), smooth, device=clips.device)
        return clips, targets.scatter_(1, labels[:, None], 1 - config.smoothing + smooth)
    mix = Mixup(  # type: ignore[no-untyped-call]
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.mix_prob,
        switch_prob=config.mix_switch_prob,
        label_smoothing=config.smoothing,
        num_classes=num_classes,
    )
    with seeded(seed):
        # Frames as colours: the cutmix box is the same in every frame.
        mixed, targets = mix(clips.flatten(1, 2), labels)
    return mixed.view_as(clips), targets
