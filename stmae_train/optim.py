"""Optimizers: AdamW and SGD, their parameter groups with weight-decay rules and layer decay, LARS for the linear probe, the running mean of weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, overload

import torch
from torch import Tensor, nn

from stmae_train.distributed import gathered, own_part, put

__all__ = ["Lars", "WeightMean", "adamw", "decays", "layer_number", "parameter_groups", "set_learning_rate", "sgd"]


def decays(name: str, parameter: Tensor, *, rule: str = "not-1d") -> bool:
    """Whether weight decay applies to a parameter.

    Args:
        name: our name of the parameter.
        parameter: the tensor; 1-D tensors and biases never decay.
        rule: "not-1d" decays everything else, mask and class tokens and positions included (MAE-ST and image MAE
            pre-training); "not-1d-nor-tokens" spares those too (VideoMAE, and fine-tuning everywhere).
    """
    if parameter.ndim <= 1 or name.endswith(".bias"):
        return False
    return rule == "not-1d" or not (name.endswith(("class_token", "mask_token")) or ".positions." in name)


def layer_number(name: str, *, depth: int) -> int:
    """The layer a parameter counts to in layer decay: 0 embeddings and tokens, i + 1 block i, depth + 1 the rest."""
    if name.startswith(("encoder.embed.", "encoder.positions.", "encoder.class_token")):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1


def parameter_groups(
    model: nn.Module,
    *,
    weight_decay: float,
    decay_rule: str = "not-1d",
    layer_decay: float = 1.0,
    depth: int = 0,
) -> list[dict[str, Any]]:
    """Groups for an optimizer, in the order of the model's parameters.

    Args:
        model: a masked autoencoder, classifier or probe.
        weight_decay: of the parameters that decay; the others get 0.
        decay_rule: see `decays`.
        layer_decay: layer i of an encoder of `depth` blocks learns at layer_decay ** (depth + 1 - i).
        depth: blocks of the encoder; needed with layer decay.

    Returns:
        Dicts with params, weight_decay, lr_scale and names; every trainable parameter is in exactly one.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = weight_decay if decays(name, parameter, rule=decay_rule) else 0.0
        scale = 1.0 if layer_decay == 1.0 else layer_decay ** (depth + 1 - layer_number(name, depth=depth))
        group = groups.setdefault((decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale, "names": []})
        group["params"].append(parameter)
        group["names"].append(name)
    return list(groups.values())


def adamw(
    groups: list[dict[str, Any]], *, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW over `parameter_groups`; its rates are 0 until `set_learning_rate` sets them."""
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)


def sgd(groups: list[dict[str, Any]], *, momentum: float = 0.9) -> torch.optim.SGD:
    """SGD over `parameter_groups`; its rates are 0 until `set_learning_rate` sets them."""
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            # Made here: a first step that is skipped would leave the fused kernel's own buffer as the memory was found.
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the rate times its own lr_scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


class WeightMean:
    """An exponential running mean of a model's trained parameters: mean = decay * mean + (1 - decay) * parameter, per step.

    It starts at the parameters as they are. Sharded parameters have sharded means.

    Args:
        model: on its device, wrapped for its processes.
        decay: in (0, 1).
    """

    def __init__(self, model: nn.Module, *, decay: float) -> None:
        self.decay = decay
        self._parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
        self._means = {name: each.detach().clone() for name, each in self._parameters.items()}

    @torch.no_grad()
    def add(self, is_used: Tensor) -> None:
        """Take in the parameters after a step; a step that was skipped (bool on the device) changes nothing."""
        means = [own_part(each) for each in self._means.values()]
        steps = torch._foreach_sub([own_part(each.detach()) for each in self._parameters.values()], means)
        torch._foreach_mul_(steps, torch.where(is_used, 1 - self.decay, 0.0).float())
        torch._foreach_add_(means, steps)

    def tensors(self) -> dict[str, Tensor]:
        """The means by parameter name, whole; every process must ask."""
        return {name: gathered(each) for name, each in self._means.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from saved means, one for every parameter."""
        for name, mean in self._means.items():
            put(mean, tensors[name])


class Lars(torch.optim.Optimizer):
    """Layer-wise adaptive SGD as image MAE's linear probe uses it (util/lars.py; SPEC-models B3).

    Matrices take a step of trust * |weight| / |gradient| times the rate; 1-D parameters take plain momentum steps
    without decay.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)
        return loss

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        direction = parameter.grad
        assert direction is not None
        if parameter.ndim > 1:
            direction = direction + group["weight_decay"] * parameter
            size, length = parameter.norm(), direction.norm()
            # A zero weight or gradient has no ratio; it takes the plain step.
            is_sized = (size > 0) & (length > 0)
            ratio = torch.where(is_sized, group["trust"] * size / length, torch.ones_like(size))
            direction = direction * ratio
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(group["momentum"]).add_(direction)
        parameter.add_(state["momentum"], alpha=-group["lr"])
