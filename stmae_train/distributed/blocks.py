"""How the blocks of a model run: their activations recomputed, their code compiled. Names, weights and results stay."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["blocks_of", "compile_blocks", "recompute_activations"]

LOGGER = logging.getLogger("stmae.train")


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a model: what stands in its lists called `blocks`."""
    lists = [each for name, each in model.named_modules() if name.rpartition(".")[2] == "blocks"]
    return [block for each in lists if isinstance(each, nn.ModuleList) for block in each]


def recompute_activations(model: nn.Module) -> None:
    """Let every block keep its input alone and compute the rest again on the way back (Chen et al. 2016).

    Random draws inside a block, such as drop path, are repeated too, so losses and gradients are the same.
    """
    for block in blocks_of(model):
        # The method is replaced, not the module: names in checkpoints stay as they are.
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)


class Compiled:
    """Whether compiled code is in use, and why not where it cannot be."""

    def __init__(self) -> None:
        self.failure: str | None = None

    def give_up(self, error: Exception) -> None:
        """Note the reason, once, where everybody sees it."""
        inner = getattr(error, "inner_exception", None) or error
        first = str(inner).strip().splitlines()
        self.failure = f"{type(inner).__name__}: {first[0] if first else 'no reason given'}"
        LOGGER.warning(
            "torch.compile cannot be used here (%s); the blocks run as they are, slower and with the same results. "
            "Set compile_blocks=false to leave this message out.",
            self.failure,
        )


def compile_blocks(model: nn.Module) -> Compiled:
    """Compile every block on its own: they share their code, so one compilation serves all of a kind.

    Where compiling fails, on a machine without a C++ compiler for one, all blocks run as they are and a warning says why.

    Returns:
        Whether it is in use, to be asked after the first step.
    """
    state = Compiled()
    for block in blocks_of(model):
        # Not block.compile(): a block must be able to go back.
        block.forward = _guarded(block.forward, torch.compile(block.forward, dynamic=False), state)
    return state


def _guarded(plain: Callable[..., Any], compiled: Callable[..., Any], state: Compiled) -> Callable[..., Any]:
    """The compiled function until the compiler fails anywhere, then the plain one. Errors of the block itself come out as they are."""
    from torch._dynamo.exc import TorchDynamoException

    def forward(*arguments: Any, **options: Any) -> Any:
        if state.failure is None:
            try:
                return compiled(*arguments, **options)
            except TorchDynamoException as error:
                state.give_up(error)
        return plain(*arguments, **options)

    return forward
