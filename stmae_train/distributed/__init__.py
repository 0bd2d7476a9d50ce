"""One process or several, and how the blocks of a model run there: sharded, recomputed, compiled."""

from stmae_train.distributed.blocks import blocks_of, compile_blocks, recompute_activations
from stmae_train.distributed.sharding import (
    gathered,
    load_model_tensors,
    load_optimizer_tensors,
    model_tensors,
    optimizer_tensors,
    own_part,
    put,
)
from stmae_train.distributed.world import Sharding, World, start_world, stop_world

__all__ = [
    "Sharding",
    "World",
    "blocks_of",
    "compile_blocks",
    "gathered",
    "load_model_tensors",
    "load_optimizer_tensors",
    "model_tensors",
    "optimizer_tensors",
    "own_part",
    "put",
    "recompute_activations",
    "start_world",
    "stop_world",
]
