"""Colour jitter of training clips: brightness, contrast, saturation and hue, by torchvision, keyed by clip number like the crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from stmae_train.views.draws import uniforms

__all__ = ["Jitter", "jitter_clips", "random_jitter"]

Floats = NDArray[np.float64]

_JITTER_STREAM = 19
_STEPS = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)


@dataclass(frozen=True, slots=True)
class Jitter:
    """What is done to the colours of B clips: `factors` [B, 4] of brightness, contrast, saturation (1 changes nothing) and hue (0
    changes nothing), and the `order` [B, 4] in which they come."""

    factors: Floats
    order: NDArray[np.int64]


def random_jitter(
    seed: int, numbers: Sequence[int] | NDArray[np.int64], *, strength: tuple[float, float, float, float]
) -> Jitter:
    """Factors as torchvision's ColorJitter draws them: uniform around "no change", the four steps in a random order.

    Args:
        seed: of the run.
        numbers: global clip numbers [B].
        strength: of brightness, contrast, saturation and hue; 0 leaves a step out.
    """
    draws = uniforms(seed, numbers, count=8, stream=_JITTER_STREAM)
    middle = np.array([1.0, 1.0, 1.0, 0.0])
    lowest = np.array([0.0, 0.0, 0.0, -0.5])
    low, high = np.maximum(middle - strength, lowest), middle + np.array(strength)
    return Jitter(low + (high - low) * draws[:, :4], np.argsort(draws[:, 4:], axis=1))


def jitter_clips(clips: Tensor, jitter: Jitter, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Change the colours of normalised clips [B, 3, T, S, S] where they are; one draw per clip, the same in every frame.

    Colours are brought back to [0, 1] for it and stay within. What a CPU and a GPU make of it differs by rounding alone (less than a
    thousandth of a level of 255 in fp32, but for hues at a corner of the colour wheel).
    """
    middle, spread = (torch.tensor(each, device=clips.device)[:, None, None, None] for each in (mean, std))
    levels = clips * spread + middle
    changed = torch.empty_like(levels)
    for number in range(len(levels)):
        frames = levels[number].transpose(0, 1).clamp(0, 1)  # [T, 3, S, S]
        for step in jitter.order[number]:
            factor = float(jitter.factors[number, step])
            if factor != (0.0 if step == 3 else 1.0):
                frames = _STEPS[step](frames, factor)
        changed[number] = frames.transpose(0, 1)
    return (changed - middle) / spread
