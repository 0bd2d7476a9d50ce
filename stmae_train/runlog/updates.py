"""One optimizer update, shared by pre-training and fine-tuning: clip, guard, step.

An update with a non-finite loss or gradient leaves weights and
optimizer untouched, is named with its clips, and three in a row (or more than one in a hundred) end the run. In fp16 an update that
merely overflows is left out too, and lowers the loss scale; that is no bad update as long as there is scale to lose.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from stmae_train.distributed import gathered
from stmae_train.errors import TrainingStopped
from stmae_train.runlog.scaling import LossScale

__all__ = ["Guard", "Update", "autocast", "backward", "peak_flops", "update_weights"]

LOGGER = logging.getLogger("stmae.train")
BAD_IN_A_ROW = 3
_HALF_PEAK = {"H200": 989e12, "H100": 989e12, "A100": 312e12}  # dense bf16 and fp16, from the makers' data sheets
_HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """The context of a forward pass in `bf16`, `fp16` or `fp32`."""
    return torch.autocast(device.type, _HALVES[precision]) if precision in _HALVES else contextlib.nullcontext()


def backward(loss: Tensor, scale: LossScale | None) -> None:
    """Gradients of a loss, times the scale where there is one."""
    (loss if scale is None else loss * scale.value).backward()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Update:
    """What one update reports; tensors stay on the device so that nothing waits for it."""

    step: int
    loss: Tensor
    grad_norm: Tensor
    is_finite: Tensor
    clip_ids: tuple[str, ...]
    scale: Tensor | None = None  # of the loss, when it was computed


def update_weights(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[nn.Parameter],
    *,
    step: int,
    losses: Sequence[Tensor],
    grad_clip: float,
    clip_ids: tuple[str, ...],
    scale: LossScale | None = None,
) -> Update:
    """Clip the gradients and step, unless the loss or the gradient is not finite.

    The decision is taken on the device: fused AdamW skips a step whose `found_inf` is 1, as it does for gradient scalers.
    """
    loss = torch.stack([each.detach().float() for each in losses]).mean()
    used = None if scale is None else scale.value
    if used is not None:
        loss = _bad_everywhere(loss)
        torch._foreach_div_([each.grad for each in parameters if each.grad is not None], used)
    norm = gathered(nn.utils.clip_grad_norm_(parameters, grad_clip if grad_clip else float("inf"), foreach=True))
    # With several processes gradients are averaged, so their norm is the same everywhere, and a bad loss makes it bad.
    is_finite = torch.isfinite(norm) & torch.isfinite(loss) if not _is_shared() else torch.isfinite(norm)
    optimizer.found_inf = (~is_finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if scale is not None:
        scale.settle(is_finite)
    return Update(step, loss, norm.detach(), is_finite, clip_ids, used)


def _bad_everywhere(loss: Tensor) -> Tensor:
    """The loss, or not a number where any process has no finite one: with a scale, gradients alone do not tell a bad clip from overflow."""
    if not _is_shared():
        return loss
    is_bad = (~torch.isfinite(loss)).float()
    torch.distributed.all_reduce(is_bad, op=torch.distributed.ReduceOp.MAX)
    return torch.where(is_bad > 0, torch.full_like(loss, float("nan")), loss)


def _is_shared() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@dataclass(slots=True)
class Guard:
    """Collects updates until somebody looks; then names the bad ones and stops a run that keeps having them."""

    skipped: list[int] = field(default_factory=list)
    in_a_row: int = 0
    _open: list[Update] = field(default_factory=list)
    _losses: list[float] = field(default_factory=list)
    _norms: list[float] = field(default_factory=list)

    def add(self, update: Update) -> None:
        """Take an update; on a CPU, where looking is free, look at once."""
        self._open.append(update)
        if update.loss.device.type == "cpu":
            self.look()

    def look(self) -> None:
        """Wait for the device and judge what was collected.

        Raises:
            TrainingStopped: three bad updates in a row, or more than one in a hundred.
        """
        if not self._open:
            return
        table = torch.stack([_row(each) for each in self._open]).tolist()
        for update, (loss, norm, is_finite, scale) in zip(self._open, table, strict=True):
            if is_finite:
                self.in_a_row = 0
                self._losses.append(loss)
                self._norms.append(norm)
                continue
            if scale > 1 and math.isfinite(loss):
                LOGGER.info(
                    "Step %d overflowed in fp16; the loss scale goes from %g to %g.", update.step, scale, scale / 2
                )
                continue
            self.in_a_row += 1
            self.skipped.append(update.step)
            names = ", ".join(dict.fromkeys(update.clip_ids))
            LOGGER.warning("Step %d skipped: loss %s, gradient norm %s; its clips: %s", update.step, loss, norm, names)
            if self.in_a_row >= BAD_IN_A_ROW or len(self.skipped) > max(BAD_IN_A_ROW, 0.01 * update.step):
                raise TrainingStopped(
                    f"Training stopped at step {update.step}: {len(self.skipped)} updates had a loss or gradient that is not finite, the "
                    f"last {self.in_a_row} in a row; their clips are in the log. Lower base_lr, set grad_clip or precision=fp32, then "
                    f"go on with --resume --force."
                )
        self._open.clear()

    def take(self) -> tuple[float | None, float | None]:
        """Mean loss and last gradient norm of the finite updates since the last call; None where there was none."""
        self.look()
        loss = sum(self._losses) / len(self._losses) if self._losses else None
        norm = self._norms[-1] if self._norms else None
        self._losses.clear()
        self._norms.clear()
        return loss, norm


def _row(update: Update) -> Tensor:
    """Loss, norm, whether finite, scale (1 without one) of an update, on its device."""
    scale = update.scale if update.scale is not None else torch.ones_like(update.loss)
    return torch.stack([update.loss, update.grad_norm, update.is_finite.float(), scale])


def peak_flops(device: torch.device) -> float | None:
    """What the device can do in dense bf16 or fp16 by its data sheet; None where it is not known, as for any CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((value for key, value in _HALF_PEAK.items() if key in name), None)
