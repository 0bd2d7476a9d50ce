"""The loss scale of fp16: gradients are kept above what fp16 rounds to zero, and below what overflows (Micikevicius et al. 2018)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["LossScale"]

FIRST = 2.0**16
GROWS_AFTER = 2000  # good steps


class LossScale:
    """A power of two on the device: halved by a step that overflows, doubled after many that do not. Nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.value = torch.tensor(FIRST, device=device)
        self.good_steps = torch.tensor(0, device=device)

    def settle(self, is_finite: Tensor) -> None:
        """Take notice of a step."""
        good = torch.where(is_finite, self.good_steps + 1, 0)
        is_due = good >= GROWS_AFTER
        grown = torch.where(is_due, self.value * 2, self.value)
        self.value = torch.where(is_finite, grown, (self.value / 2).clamp(min=1.0))
        self.good_steps = torch.where(is_due, 0, good)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"value": float(self.value), "good_steps": int(self.good_steps)}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where a checkpoint left."""
        self.value = torch.full_like(self.value, float(state["value"]))
        self.good_steps = torch.full_like(self.good_steps, int(state["good_steps"]))
