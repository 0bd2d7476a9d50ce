"""Checkpoints that resume exactly, weights files, and the loop that writes and resumes them."""

from stmae_train.checkpoint.loop import StepLoop
from stmae_train.checkpoint.store import (
    Checkpoint,
    Weights,
    load_autoencoder,
    load_model,
    load_weights,
    newest_checkpoint,
    save_checkpoint,
    save_tensors,
    save_weights,
    weights_path,
)
from stmae_train.checkpoint.trainee import Trainee

__all__ = [
    "Checkpoint",
    "StepLoop",
    "Trainee",
    "Weights",
    "load_autoencoder",
    "load_model",
    "load_weights",
    "newest_checkpoint",
    "save_checkpoint",
    "save_tensors",
    "save_weights",
    "weights_path",
]
