"""Initial weights, per codebase (SPEC-models A1.8, A2, A3.5). Everything is drawn from one generator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from stmae_train.tokens import Positions, TubeletEmbedding

__all__ = ["initialise"]


@torch.no_grad()
def initialise(model: nn.Module, *, lineage: str, generator: torch.Generator, kind: str = "lineage") -> None:
    """Draw all weights anew.

    Args:
        model: a masked autoencoder or a classifier; its modules are visited in the order they were made.
        lineage: "mae_st", "pyslowfast", "videomae" or "mae".
        generator: source of randomness, on the CPU.
        kind: "lineage"; "truncated": linears and patch kernels from a truncated normal of 0.02, the rest as the lineage has it; "pytorch": what
            PyTorch gives new layers, positions and class tokens zero, as mae_st's classifier starts from scratch.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            _linear(module, name=name, lineage=lineage, generator=generator, kind=kind)
        elif isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.constant_(module.bias, 0.0 if kind == "pytorch" else _bias(name, lineage))
        elif isinstance(module, TubeletEmbedding):
            _kernel(module, lineage=lineage, generator=generator, kind=kind)
        elif isinstance(module, Positions):
            for parameter in module.learned():
                if kind == "pytorch":
                    nn.init.zeros_(parameter)
                else:
                    nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    for name, parameter in model.named_parameters():
        if name.endswith("mask_token"):
            _mask_token(parameter, lineage=lineage, generator=generator)
        elif name.endswith("class_token") and kind == "pytorch":
            nn.init.zeros_(parameter)
        elif name.endswith("class_token"):
            _class_token(parameter, name=name, lineage=lineage, generator=generator)


def _linear(module: nn.Linear, *, name: str, lineage: str, generator: torch.Generator, kind: str) -> None:
    # The projection to the decoder is made after the init routine ran (PySlowFast) or is never visited by it
    # (VideoMAE), so it keeps PyTorch's default.
    if kind == "pytorch" or (name == "decoder.embed" and lineage in ("pyslowfast", "videomae")):
        _pytorch_default(module.weight, module.bias, generator=generator)
        return
    if lineage == "pyslowfast" or kind == "truncated":
        nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
    else:
        # q, k and v are drawn one by one where they are separate; a fused matrix has three times the fan-out.
        nn.init.xavier_uniform_(module.weight, generator=generator)
    if module.bias is not None:
        nn.init.constant_(module.bias, _bias(name, lineage))


def _bias(name: str, lineage: str) -> float:
    """PySlowFast sets the encoder's biases to 0.02, all others are zero."""
    return 0.02 if lineage == "pyslowfast" and not name.startswith("decoder.") else 0.0


def _kernel(module: TubeletEmbedding, *, lineage: str, generator: torch.Generator, kind: str) -> None:
    _pytorch_default(module.weight, module.bias, generator=generator)
    if kind == "pytorch" or lineage == "videomae":
        return
    if lineage == "pyslowfast" or kind == "truncated":
        # mae_st's own trunc_init draws the kernel with deviation 1, an argument being missing; that is not copied.
        nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
    else:
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1), generator=generator)


def _mask_token(parameter: Tensor, *, lineage: str, generator: torch.Generator) -> None:
    if lineage == "videomae":
        nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02, generator=generator)
    elif lineage == "pyslowfast":
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)
    else:
        nn.init.normal_(parameter, std=0.02, generator=generator)


def _class_token(parameter: Tensor, *, name: str, lineage: str, generator: torch.Generator) -> None:
    if name.startswith("decoder."):
        nn.init.zeros_(parameter)
    elif lineage == "mae":
        nn.init.normal_(parameter, std=0.02, generator=generator)
    else:
        nn.init.trunc_normal_(parameter, std=0.02, generator=generator)


def _pytorch_default(weight: Tensor, bias: Tensor | None, *, generator: torch.Generator) -> None:
    """What a new linear or convolution of PyTorch holds: uniform in +-1/sqrt(fan in)."""
    bound = 1 / math.sqrt(weight[0].numel())
    nn.init.uniform_(weight, -bound, bound, generator=generator)
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound, generator=generator)
