"""What runs in the confined child: the one place where `torch.load` may stand, with `weights_only=True`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

__all__ = ["unpack"]

# Where published files keep the model among optimizer states and the rest (SPEC-models A1.9, A3.6).
CONTAINERS = ("model", "model_state", "module", "state_dict")


def unpack(source: str, target: str) -> dict[str, Any]:
    """Read a PyTorch file and write its weights as safetensors to `target`; returns what the file says besides.

    Args:
        source: a file of `torch.save`, old or new format.
        target: where the safetensors file goes.

    Returns:
        `container`, the key the weights stood under ("" at the top), and `args`, the plain values of the published scripts' arguments.
    """
    torch.set_num_threads(1)  # the pool of the parent's threads is not here
    # Published training scripts save their parsed arguments beside the weights; a Namespace holds values, it runs nothing.
    with torch.serialization.safe_globals([argparse.Namespace]):
        loaded = torch.load(source, map_location="cpu", weights_only=True)
    container, weights = _weights(loaded)
    # Weights that share memory are told apart by name, so each gets its own.
    safetensors.torch.save_file({name: each.detach().clone().contiguous() for name, each in weights.items()}, target)
    return {"container": container, "args": _arguments(loaded)}


def _weights(loaded: Any) -> tuple[str, dict[str, Tensor]]:
    """The mapping of names to tensors inside a loaded file, and the key it stood under."""
    if not isinstance(loaded, Mapping):
        raise ValueError(f"the file holds a {type(loaded).__name__}, wanted a mapping of weight names to tensors")
    for container in CONTAINERS:
        inner = loaded.get(container)
        if isinstance(inner, Mapping) and any(isinstance(each, Tensor) for each in inner.values()):
            return container, _named(inner)
    found = _named(loaded)
    if not found:
        raise ValueError(f"the file holds no tensors under its top or {', '.join(CONTAINERS)}")
    return "", found


def _named(mapping: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {str(name): each for name, each in mapping.items() if isinstance(each, Tensor)}


def _arguments(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of the `args` that published scripts save."""
    args = loaded.get("args")
    values = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, Mapping) else {}
    return {
        str(name): value
        for name, value in values.items()
        if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    }
