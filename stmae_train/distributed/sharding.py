"""Whole tensors out of a model that may be sharded, and back, for any number of processes (torch.distributed.checkpoint's state-dict API).

Every process must call these functions; with a sharded model they talk to each other, and the main process alone gets the tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from stmae_train.errors import CheckpointError

__all__ = [
    "gathered",
    "load_model_tensors",
    "load_optimizer_tensors",
    "model_tensors",
    "optimizer_tensors",
    "own_part",
    "put",
]

# The API takes most of a second to import and is imported where something is sharded; a sharded tensor is told by what it can do.


def _is_sharded_tensor(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")


def _is_sharded(model: nn.Module) -> bool:
    return any(_is_sharded_tensor(each) for each in model.parameters())


def _api() -> Any:
    from torch.distributed.checkpoint import state_dict

    return state_dict


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    if not _is_sharded_tensor(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return whole


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that may be sharded; the same memory."""
    if not _is_sharded_tensor(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def put(target: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into one that may be sharded."""
    if _is_sharded_tensor(target):
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(target, DTensor)
        whole = distribute_tensor(whole.to(target.device), target.device_mesh, target.placements)
    target.copy_(whole)


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, whole; empty beside the main process where the model is sharded."""
    if not _is_sharded(model):
        return model.state_dict()
    found: dict[str, Tensor] = _api().get_model_state_dict(model, options=_whole())
    return found


def _whole() -> Any:
    return _api().StateDictOptions(full_state_dict=True, cpu_offload=True)


def load_model_tensors(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors, one for every name, into a model that may be sharded."""
    if _is_sharded(model):
        api = _api()
        api.set_model_state_dict(model, dict(tensors), options=api.StateDictOptions(full_state_dict=True))
    else:
        model.load_state_dict(dict(tensors))


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module | None = None) -> dict[str, Tensor]:
    """Every state of an optimizer over `optim.parameter_groups`, whole, as `<parameter name>:<state name>`.

    Args:
        optimizer: its groups have `names`.
        model: what it trains; needed where that is sharded.
    """
    if model is not None and _is_sharded(model):
        states = _api().get_optimizer_state_dict(model, optimizer, options=_whole()).get("state", {})
        return {f"{name}:{key}": value for name, each in states.items() for key, value in each.items()}
    return {
        f"{name}:{key}": value
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], model: nn.Module | None = None
) -> None:
    """Put saved states back.

    Raises:
        CheckpointError: a state of a parameter that the optimizer does not have.
    """
    names = [name for group in optimizer.param_groups for name in group["names"]]
    states: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        name, _, key = full_name.rpartition(":")
        if name not in names:
            raise CheckpointError(
                f"The checkpoint has an optimizer state of {name!r}, which this model does not train."
            )
        states.setdefault(name, {})[key] = tensor.clone()
    if model is not None and _is_sharded(model):
        groups = [
            {key: value for key, value in group.items() if key != "params"} | {"params": list(group["names"])}
            for group in optimizer.param_groups
        ]
        api = _api()
        whole = {"state": states, "param_groups": groups}
        api.set_optimizer_state_dict(model, optimizer, whole, options=api.StateDictOptions(full_state_dict=True))
        return
    numbered = {names.index(name): state for name, state in states.items()}
    optimizer.load_state_dict({"state": numbered, "param_groups": optimizer.state_dict()["param_groups"]})
