"""Checkpoints that resume exactly, weights files, and the loop that writes and resumes them."""

from stmae_train.checkpoint.loop import StepLoop
from stmae_train.checkpoint.store import (
    Checkpoint,
    Weights,
    load_autoencoder,
    load_model,
    load_optimizer,
    load_weights,
    newest_checkpoint,
    optimizer_tensors,
    save_checkpoint,
    save_tensors,
    save_weights,
    weights_path,
)

__all__ = [
    "Checkpoint",
    "StepLoop",
    "Weights",
    "load_autoencoder",
    "load_model",
    "load_optimizer",
    "load_weights",
    "newest_checkpoint",
    "optimizer_tensors",
    "save_checkpoint",
    "save_tensors",
    "save_weights",
    "weights_path",
]
